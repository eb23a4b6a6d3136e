"""The readout beside the transformer, and the random features that it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from planaria.blueprint import Blueprint, GrowOutputs, Restore
from planaria.control.library import Snapshot
from planaria.model import ElasticTransformer, build, load_model, save_model
from planaria.morph import operate

PICTURES = Blueprint(
    "classification", 16, 4, 32, (1,), 3, image_shape=(2, 12, 10), patch=4, readout_features=64, readout_concepts=3
)
TABLE = Blueprint(
    "regression",
    16,
    4,
    32,
    (1,),
    1,
    numeric=3,
    categorical=2,
    categories=8,
    readout_features=40,
    readout_concepts=2,
    readout_fading=2,
)


def _features(blueprint: Blueprint, rows: int = 200) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    if blueprint.image_shape is not None:
        return {"image": torch.randint(0, 256, (rows, *blueprint.image_shape), dtype=torch.uint8, generator=generator)}
    numeric = torch.randn(rows, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.01]) + 5
    numeric[::7, 1] = torch.nan
    return {"numeric": numeric, "categorical": torch.randint(0, 8, (rows, 2), generator=generator)}


def _read(blueprint: Blueprint) -> tuple[ElasticTransformer, dict[str, torch.Tensor]]:
    """A model whose readout has some answer."""
    model, features = build(blueprint), _features(blueprint)
    assert model.readout is not None
    model.readout.features.fit(features, seed=1)
    torch.nn.init.normal_(model.readout.all_DC, std=0.05)
    torch.nn.init.ones_(model.readout.trust_V)
    return model, features


@pytest.mark.parametrize("blueprint", [PICTURES, TABLE], ids=["pictures", "table"])
def test_features_are_finite_of_unit_size_and_equal_for_equal_seeds(blueprint: Blueprint) -> None:
    model, features = _read(blueprint)
    assert model.readout is not None
    described = model.readout.describe(features)
    assert described.shape == (200, model.readout.size) and described.isfinite().all()
    size = described.square().mean(0).sqrt()
    torch.testing.assert_close(size[size > 1e-3], torch.ones(int((size > 1e-3).sum())), rtol=1e-3, atol=1e-3)
    assert (size > 1e-3).float().mean() > 0.6
    again, _ = _read(blueprint)
    assert again.readout is not None
    assert torch.equal(described, again.readout.describe(features))


def test_bytes_and_fractions_of_one_are_read_alike() -> None:
    model, features = _read(PICTURES)
    torch.testing.assert_close(model(features), model({"image": features["image"].float() / 255}))


def test_a_category_and_what_goes_with_it_can_be_read_off_linearly() -> None:
    """Random combinations hold what the columns by themselves do not: here, that two categories agree."""
    model, _ = _read(TABLE)
    assert model.readout is not None
    generator = torch.Generator().manual_seed(6)
    names = torch.randint(0, 2, (400, 2), generator=generator)
    features = {"numeric": torch.zeros(400, 3), "categorical": names}
    model.readout.features.fit(features, seed=2)
    described = model.readout.describe(features)
    agree = (names[:, 0] == names[:, 1]).float()[:, None]
    solved = torch.linalg.lstsq(described, agree, driver="gelsd").solution
    assert ((described @ solved > 0.5) == (agree > 0.5)).all()


@pytest.mark.parametrize("blueprint", [PICTURES, TABLE], ids=["pictures", "table"])
def test_the_answer_is_added_to_the_transformers(blueprint: Blueprint, tmp_path: Path) -> None:
    model, features = _read(blueprint)
    assert model.readout is not None
    bare = build(replace(blueprint, readout_features=0))
    difference = (model(features) - bare(features)).detach()
    assert difference.abs().max() > 0.1
    torch.testing.assert_close(difference, model.readout(features).detach(), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in model.parameters()) == blueprint.parameters
    save_model(model, tmp_path / "model", {})
    torch.testing.assert_close(load_model(tmp_path / "model")[0](features), model(features))


def test_new_classes_leave_the_known_ones_answers() -> None:
    model, features = _read(PICTURES)
    before = model(features)
    operate(model, GrowOutputs(5), seed=0)
    after = model(features)
    torch.testing.assert_close(after[:, :3], before)
    assert after.shape == (200, 5)


def test_restoring_a_concept_leaves_the_readout_as_it_is() -> None:
    model, features = _read(PICTURES)
    kept = Snapshot.of(model, model.blueprint, [[0]], 10)
    assert model.readout is not None
    read = model.readout(features)
    operate(model, Restore(0, model.blueprint.heads), seed=0, weights=kept.weights)
    assert not any(name.startswith("readout.") for name in kept.weights)
    assert torch.equal(model.readout(features), read)


def test_rows_are_read_by_the_regression_of_the_concept_that_they_look_like() -> None:
    model, _ = _read(PICTURES)
    readout = model.readout
    assert readout is not None
    readout.held_K[:2] = 1.0
    readout.recogniser_DK[-1, 0], readout.recogniser_DK[-1, 1] = 1.0, 0.0
    readout.concept_DC(0)[-1, 2] = readout.concept_DC(1)[-1, 1] = 1.0
    described = torch.zeros(1, readout.size)
    described[0, -1] = 1.0
    assert readout.experts(described)[0, 1].tolist() == [0.0, 0.0, 1.0]
