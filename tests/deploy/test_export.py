"""What is exported answers as the live model does, with planaria or without."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import planaria
from planaria.blueprint import Blueprint, Gates, Quantisation
from planaria.cli import BAD_INPUT, DONE, call
from planaria.deploy.export import Exported, write_checked
from planaria.deploy.formats import format_of
from planaria.deploy.plain import PlainModel, input_names
from planaria.deploy.source import Source
from planaria.deploy.weights import Weights
from planaria.errors import InputError, RunError
from planaria.model import build, load_model

CHOICES = {
    "shared": {},
    "readout": {"readout_features": 64, "readout_concepts": 2, "readout_fading": 2},
    "adapters": {"adapters": 3, "adapter_units": 4},
}


def source(blueprint: Blueprint) -> Source:
    """A model whose answers depend on its input, with rows of its schema: missing numbers, unseen categories (0)."""
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(2)
    model = build(blueprint)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    numeric = random.normal(size=(80, 2)).astype(np.float32)
    numeric[random.random(numeric.shape) < 0.2] = np.nan
    features: dict[str, Any] = {"numeric": numeric, "categorical": random.integers(0, 5, (80, 2))}
    if blueprint.image_shape is not None:
        features = {"image": random.integers(0, 256, (80, *blueprint.image_shape)).astype(np.uint8)}
    tensors = {name: torch.from_numpy(column) for name, column in features.items()}
    model.observe(tensors)
    model.output.observe(torch.randn(64, generator=generator) * 30 + 500)
    if model.readout is not None:
        model.readout.features.fit(tensors, 0)
        model.readout.solved_DXC.normal_(std=0.1, generator=generator)
        model.readout.recogniser_DK.normal_(generator=generator)
        model.readout.held_K.fill_(1)
    if model.router is not None:
        model.router.features.fit(tensors, 0)
        model.router.weight_FK.normal_(std=0.3, generator=generator)
        model.router.known_K.fill_(1)
    return Source(model.eval(), {"fields": {}, "labels": []}, 0, features, np.zeros(80), False)


def table_blueprint(kind: str) -> Blueprint:
    shape: dict[str, Any] = {"numeric": 2, "categorical": 2, "categories": 5, "mlp_of": (0, 0, 0)}
    shared = {"attention_of": (0, 0, 2), "difference_rank": 2}
    return Blueprint("regression", 16, 4, 16, (2, 2, 3), 1, **shape, **shared, **CHOICES[kind])


def picture_blueprint(kind: str) -> Blueprint:
    gates = Gates("straight_through", "row", 4) if kind == "shared" else None
    more: dict[str, Any] = {"image_shape": (1, 8, 6), "patch": 4, "gates": gates}
    return Blueprint("classification", 16, 4, 16, (1, 3), 3, **more, **CHOICES[kind])


def exported(blueprint: Blueprint, to: str, place: Path) -> Exported:
    place.mkdir(exist_ok=True)
    return write_checked(source(blueprint), to, place / f"made{format_of(to).suffix}")


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("blueprint", [table_blueprint, picture_blueprint])
def test_loaded_weights_answer_with_equal_bits(tmp_path: Path, blueprint: Any, kind: str) -> None:
    assert exported(blueprint(kind), "safetensors", tmp_path).difference == 0


@pytest.mark.parametrize("kind", ["readout", "adapters"])
def test_a_picture_model_is_followed_for_any_number_of_rows(tmp_path: Path, kind: str) -> None:
    assert exported(picture_blueprint(kind), "torch-export", tmp_path).difference <= 1e-5


def test_rows_of_mixed_concepts_are_routed_one_by_one_in_a_file_that_torch_runs(tmp_path: Path) -> None:
    made = source(picture_blueprint("adapters"))
    tensors = {name: torch.from_numpy(column) for name, column in made.features.items()}
    assert made.model.router is not None
    used = made.model.router(tensors).argmax(1)
    assert len(used.unique()) == 3, "rows of all concepts, in no order"
    write_checked(made, "torch-export", tmp_path / "made.pt2")
    answer = torch.export.load(tmp_path / "made.pt2").module()
    for rows in (slice(0, 1), slice(3, 20)):
        alone = {name: column[rows] for name, column in tensors.items()}
        assert torch.allclose(answer(alone["image"]), made.model(tensors)[rows], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("to", ["torch-export", "onnx"])
@pytest.mark.parametrize("blueprint", [table_blueprint, picture_blueprint])
def test_every_kind_of_model_is_followed_for_any_number_of_rows(
    tmp_path: Path, blueprint: Any, to: str, kind: str
) -> None:
    assert exported(blueprint(kind), to, tmp_path).difference <= 1e-5


def _slow_but_one() -> list[Any]:
    first, *others = itertools.product((table_blueprint, picture_blueprint), CHOICES)
    return [first, *(pytest.param(*one, marks=pytest.mark.slow) for one in others)]


@pytest.mark.parametrize(("blueprint", "kind"), _slow_but_one())
def test_8_bits_answer_nearly_as_before(tmp_path: Path, blueprint: Any, kind: str) -> None:
    assert 0 < exported(blueprint(kind), "int8", tmp_path).difference < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", [Quantisation(8, "token"), Quantisation(4, "tensor")])
@pytest.mark.parametrize("blueprint", [table_blueprint, picture_blueprint])
def test_the_file_of_a_quantised_model_is_much_closer_to_it_than_float32_is(
    tmp_path: Path, blueprint: Any, quantisation: Quantisation
) -> None:
    live = source(replace(blueprint("readout"), quantisation=quantisation))
    features = {name: torch.from_numpy(column) for name, column in live.features.items()}
    path = tmp_path / "made.int8.onnx"
    made = write_checked(live, "int8", path)
    assert live.model.blueprint.quantisation == quantisation, "as it was"
    answer = format_of("int8").read(path)([live.features[name] for name in input_names(live.model.blueprint)])
    with torch.no_grad():
        quantised = live.model(features)
        live.model.quantise(None)
        whole = live.model(features)
    from_live = np.abs(answer - quantised.numpy()).mean()
    assert from_live < 0.2 * (quantised - whole).abs().mean().item()
    assert made.difference < 0.05


@pytest.mark.slow
def test_4_bits_take_half_the_bytes_of_the_weights_that_8_take(tmp_path: Path) -> None:
    shape = Blueprint("classification", 64, 16, 128, (4,) * 2, 3, image_shape=(1, 8, 6), patch=4)
    eight, four = (
        exported(replace(shape, quantisation=Quantisation(bits, "token")), "int8", tmp_path / str(bits))
        for bits in (8, 4)
    )
    weights = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert eight.bytes - four.bytes == pytest.approx(weights / 2, rel=0.1)


@pytest.mark.slow
def test_a_quantised_model_goes_with_torch_export_and_is_no_float32_onnx(tmp_path: Path) -> None:
    shape = replace(picture_blueprint("shared"), quantisation=Quantisation(8, "token"))
    assert exported(shape, "torch-export", tmp_path).difference <= 1e-5
    with pytest.raises(InputError, match="computes in float32, but this model is quantised; use --to int8"):
        exported(shape, "onnx", tmp_path)


def test_a_model_that_a_format_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlainModel, "forward", lambda self, *inputs: inputs[0].sum() if inputs[0].sum() > 0 else 0)
    with pytest.raises(
        InputError, match=r"^export: --to torch-export cannot write this model \(.+\); use --to safe"
    ) as told:
        exported(picture_blueprint("readout"), "torch-export", tmp_path)
    assert "\n" not in str(told.value)


def test_a_file_whose_answers_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Weights().read
    monkeypatch.setattr(Weights, "read", lambda self, path: lambda inputs: answer(path)(inputs) + 1e-3)
    with pytest.raises(RunError, match=r"safetensors differ from the live model's by 0.001, more than 1e-05"):
        exported(picture_blueprint("readout"), "safetensors", tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on a table."""
    place = tmp_path_factory.mktemp("export")
    random = np.random.default_rng(0)
    x = random.normal(size=(1_280, 2))
    city = random.choice(["oslo", "rome"], 1_280)
    label = np.where(x[:, 0] > 0, "up", "down")
    table = pa.table({"a": np.where(x[:, 1] > 1, np.nan, x[:, 0]), "b": x[:, 1], "city": city, "label": label})
    pq.write_table(table, place / "table.parquet")
    features = {"numeric": ["a", "b"], "categorical": ["city"]}
    path = str(place / "table.parquet")
    job = planaria.Job.model_validate(
        {
            "name": "export",
            "stream": {"source": "parquet", "path": path, "features": features, "target": "label"},
            "model": {"width": 16, "layers": 2, "mlp_width": 16},
            "scale": {"workers": 0},
        }
    )
    planaria.run(job, out=place / "run")
    return place / "run"


WITHOUT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "planaria":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    import planaria
except ModuleNotFoundError:
    pass
else:
    sys.exit("planaria is there")
import numpy as np
path, given, made = sys.argv[1:]
about, rows = json.load(open(path + ".json")), np.load(given)
tables = [rows[one["name"]].astype(one["dtype"]) for one in about["inputs"]]
if path.endswith(".pt2"):
    import torch
    model = torch.export.load(path).module()
    answer = lambda few: model(*map(torch.from_numpy, few)).detach().numpy()
else:
    import onnxruntime
    session, names = onnxruntime.InferenceSession(path), [one["name"] for one in about["inputs"]]
    answer = lambda few: session.run(None, dict(zip(names, few)))[0]
np.savez(made, **{str(count): answer([table[:count] for table in tables]) for count in (1, 7, 64)})
print(json.dumps([about["labels"], about["categories"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("to", "close"), [("torch-export", 1e-5), ("onnx", 1e-5), ("int8", 0.05)])
def test_a_file_answers_as_the_live_model_where_planaria_is_not_there(
    run: Path, tmp_path: Path, to: str, close: float
) -> None:
    made = planaria.export(run, to, tmp_path / f"made{format_of(to).suffix}")
    random = np.random.default_rng(1)
    numeric = random.normal(size=(64, 2)).astype(np.float32)
    numeric[::5, 0] = np.nan
    given = {"numeric": numeric, "categorical": random.integers(0, 3, (64, 1))}
    np.savez(tmp_path / "given.npz", **given)
    command = [sys.executable, "-c", WITHOUT, made.path, str(tmp_path / "given.npz"), str(tmp_path / "made.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model, encoding = load_model(run / "model")
    answers = np.load(tmp_path / "made.npz")
    for count in (1, 7, 64):
        with torch.no_grad():
            live = model({name: torch.from_numpy(column[:count]) for name, column in given.items()})
        assert answers[str(count)].shape == live.shape
        assert np.abs(live.numpy() - answers[str(count)]).max() <= close
    assert json.loads(done.stdout) == [encoding["labels"], encoding["stream"]["categories"]]


def test_the_command_writes_a_folder_that_loads_and_says_what_it_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights"
    assert call(["export", str(run), "--to", "safetensors", "--out", str(out), "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["difference"] == 0 and told["live_score"] == told["exported_score"] > 0.5
    assert set(told["exported_ms"]) == {"1", "64"} and told["bytes"] > told["live_bytes"] > 0
    assert load_model(out)[1]["labels"]
    assert call(["export", str(run), "--to", "safetensors", "--out", str(out)]) == BAD_INPUT
    assert "exists already; remove it" in capsys.readouterr().err


def test_bad_input_says_what_to_do(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is no run's folder"):
        planaria.export(tmp_path, "safetensors")
    with pytest.raises(InputError, match="no format 'tflite'; choose from safetensors, torch-export"):
        planaria.export(run, "tflite")
    with pytest.raises(InputError, match=r"writes a file whose name ends in .onnx; give --out such a name"):
        planaria.export(run, "onnx", tmp_path / "model.bin")
    with pytest.raises(InputError, match="no checkpoint of step 7; those that there are: "):
        planaria.export(run, "safetensors", tmp_path / "out", checkpoint=7)
    monkeypatch.setattr("planaria.deploy.formats.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx is not installed; pip install 'planaria\[export\]'"):
        planaria.export(run, "onnx")
