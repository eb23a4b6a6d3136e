"""What is exported answers as the live model does, with planaria or without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import planaria
from planaria.blueprint import Blueprint, Gates
from planaria.cli import BAD_INPUT, DONE, call
from planaria.deploy.export import Exported, write_checked
from planaria.deploy.formats import format_of
from planaria.deploy.plain import PlainModel
from planaria.deploy.source import Source
from planaria.deploy.weights import Weights
from planaria.errors import InputError, RunError
from planaria.model import build, load_model

CHOICES = {"shared": {}, "readout": {"readout_features": 64, "readout_concepts": 2, "readout_fading": 2}}


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
    return write_checked(source(blueprint), to, place / f"made{format_of(to).suffix}")


@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("blueprint", [table_blueprint, picture_blueprint])
def test_loaded_weights_answer_with_equal_bits(tmp_path: Path, blueprint: Any, kind: str) -> None:
    assert exported(blueprint(kind), "safetensors", tmp_path).difference == 0


def test_a_picture_model_with_a_readout_is_followed_for_any_number_of_rows(tmp_path: Path) -> None:
    assert exported(picture_blueprint("readout"), "torch-export", tmp_path).difference <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHOICES)
@pytest.mark.parametrize("to", ["torch-export", "onnx"])
@pytest.mark.parametrize("blueprint", [table_blueprint, picture_blueprint])
def test_every_kind_of_model_is_followed_for_any_number_of_rows(
    tmp_path: Path, blueprint: Any, to: str, kind: str
) -> None:
    assert exported(blueprint(kind), to, tmp_path).difference <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("blueprint", [table_blueprint, picture_blueprint])
def test_8_bits_answer_nearly_as_before(tmp_path: Path, blueprint: Any) -> None:
    assert 0 < exported(blueprint("shared"), "int8", tmp_path).difference < 0.05


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
sys.modules["planaria"] = None
import numpy as np
import torch
about = json.load(open(sys.argv[1] + ".json"))
given = {"numeric": np.array([[2.0, 0.0], [-2.0, np.nan]], np.float32), "categorical": np.array([[1], [0]])}
rows = [given[one["name"]].astype(one["dtype"]) for one in about["inputs"]]
if sys.argv[1].endswith(".pt2"):
    answer = torch.export.load(sys.argv[1]).module()(*map(torch.from_numpy, rows)).detach().numpy()
else:
    import onnxruntime
    names = [one["name"] for one in about["inputs"]]
    answer = onnxruntime.InferenceSession(sys.argv[1]).run(None, dict(zip(names, rows)))[0]
print(json.dumps([[about["labels"][n] for n in answer.argmax(1)], answer.tolist(), about["categories"]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "file", "close"),
    [
        ("torch-export", "torch-export.pt2", 1e-4),
    ],
)
def test_a_file_is_usable_where_planaria_is_not_there(run: Path, to: str, file: str, close: float) -> None:
    made = planaria.export(run, to)
    assert made.path == str(run / "export" / file)
    command = [sys.executable, "-c", WITHOUT, made.path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    labels, answer, categories = json.loads(done.stdout.splitlines()[-1])
    model, encoding = load_model(run / "model")
    rows = {
        "numeric": torch.tensor([[2.0, 0.0], [-2.0, torch.nan]]),
        "categorical": torch.tensor([[1], [0]]),
    }
    with torch.no_grad():
        live = model(rows)
    assert np.abs(live.numpy() - np.array(answer)).max() <= close
    assert labels == [encoding["labels"][number] for number in live.argmax(1)]
    assert categories == encoding["stream"]["categories"]


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
