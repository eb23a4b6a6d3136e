from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planaria.blueprint import Blueprint
from planaria.errors import InputError
from planaria.model import build, load_model, predict, save_model

IMAGE = Blueprint("classification", 16, 4, 32, (2, 3), 4, image_shape=(1, 9, 8), patch=4)
TABLE = Blueprint("regression", 16, 4, 32, (1, 2), 1, numeric=3, categorical=2, categories=8)


def _table(rows: int = 50) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    numeric = torch.randn(rows, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.01]) + 5
    numeric[::7, 1] = torch.nan
    return {"numeric": numeric, "categorical": torch.randint(0, 8, (rows, 2), generator=generator)}


def test_equal_seeds_give_equal_models() -> None:
    one, two, other = build(IMAGE, 1), build(IMAGE, 1), build(IMAGE, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.block(0).attention.q, other.block(0).attention.q)


def test_bytes_and_fractions_of_one_are_the_same_picture() -> None:
    model = build(IMAGE)
    torch.nn.init.normal_(model.output.weight)
    pixels = torch.randint(0, 256, (5, 1, 9, 8), dtype=torch.uint8)
    torch.testing.assert_close(model({"image": pixels}), model({"image": pixels.float() / 255}))


def test_the_last_layers_shortcut_gives_the_answer_of_the_whole_layer() -> None:
    model = build(IMAGE)
    torch.nn.init.normal_(model.output.weight)
    features = {"image": torch.randint(0, 256, (5, 1, 9, 8), dtype=torch.uint8)}
    short = model(features)
    model.block(1).answer_first = False
    torch.testing.assert_close(short, model(features), atol=1e-5, rtol=1e-5)


def test_running_statistics_do_not_depend_on_how_rows_are_batched() -> None:
    whole, parts, features = build(TABLE), build(TABLE), _table()
    whole.observe(features)
    for low in range(0, 50, 11):
        parts.observe({name: column[low : low + 11] for name, column in features.items()})
    expected = features["numeric"].double().nanmean(0)
    torch.testing.assert_close(whole.input.mean_K, expected)
    torch.testing.assert_close(parts.input.mean_K, expected)
    torch.testing.assert_close(parts.input.squares_K, whole.input.squares_K)


def test_a_missing_number_is_not_the_mean() -> None:
    model, features = build(TABLE), _table()
    torch.nn.init.normal_(model.output.weight)
    model.observe(features)
    mean = {**features, "numeric": features["numeric"].nan_to_num(float(model.input.mean_K[1]))}
    assert torch.isfinite(model(features)).all()
    assert not torch.allclose(model(features)[::7], model(mean)[::7])


def test_regression_answers_in_the_targets_own_units() -> None:
    model = build(TABLE)
    model.observe(_table())
    model.output.observe(torch.tensor([900.0, 1100.0]))
    torch.testing.assert_close(predict(model, _table()), torch.full((50,), 1000.0))


def test_bfloat16_answers_in_float32_and_close_to_it() -> None:
    model = build(IMAGE)
    torch.nn.init.normal_(model.output.weight)
    features = {"image": torch.randint(0, 256, (5, 1, 9, 8), dtype=torch.uint8)}
    with torch.autocast("cpu", torch.bfloat16):
        low = model(features)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, model(features), atol=0.15, rtol=0.05)


@pytest.mark.parametrize("blueprint", [IMAGE, TABLE])
def test_a_saved_model_answers_the_same(blueprint: Blueprint, tmp_path: Path) -> None:
    model = build(blueprint)
    torch.nn.init.normal_(model.output.weight)
    features = _table() if blueprint is TABLE else {"image": torch.zeros(2, 1, 9, 8, dtype=torch.uint8)}
    save_model(model, tmp_path, {"labels": ["a"]})
    loaded, encoding = load_model(tmp_path)
    assert torch.equal(loaded(features), model(features))
    assert encoding == {"labels": ["a"]}


def test_a_damaged_saved_model_is_refused_in_one_line(tmp_path: Path) -> None:
    save_model(build(IMAGE), tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(InputError, match="no usable model"):
        load_model(tmp_path)
