"""Export a run's model, and hold the file against the live model before it is handed over."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planaria.deploy.formats import Answer, Array, answer_of, format_of
from planaria.deploy.plain import input_names
from planaria.deploy.source import Source, read_source
from planaria.errors import InputError, RunError
from planaria.uri import is_uri, local_path

TOLERANCE = 1e-5
"""Largest absolute difference of outputs; of targets in units of their own, in their standard deviations."""
BATCHES = (1, 64)
_LATENCY_REPEATS = 30
_CHECKED = (1, 7, 64)
"""Rows at once, with which the outputs are compared."""


@dataclass(frozen=True)
class Exported:
    path: str
    format: str
    task: str
    step: int
    bytes: int
    live_bytes: int
    """Of the weights in safetensors: what a checkpoint holds."""
    difference: float
    rows: int
    held_out: bool
    live_ms: dict[int, float]
    """Median latency by rows at once, on one thread."""
    exported_ms: dict[int, float]
    live_score: float
    """Accuracy, or root mean squared error in the target's own units, on those rows."""
    exported_score: float


def export(folder: Path | str, to: str, out: Path | str | None = None, checkpoint: int | None = None) -> Exported:
    """Write the model of a run's newest (or the named) checkpoint as `to`: see docs/export.md.

    Raises InputError for bad input, and RunError where the outputs are not the live model's; then nothing is left.
    """
    format_ = format_of(to)
    above = Path() if is_uri(folder) else local_path(folder)
    path = Path(out) if out is not None else above / "export" / f"{to}{format_.suffix}"
    ending = Path(f"model{format_.suffix}").suffix
    if not path.name.endswith(ending):
        raise InputError(f"{path}: --to {to} writes a file whose name ends in {ending}; give --out such a name")
    beside = path.with_name(path.name + ".json")
    for place in (path, beside):
        if place.exists():
            raise InputError(f"{place}: exists already; remove it, or choose another place with --out")
    source = read_source(folder, checkpoint)
    with tempfile.TemporaryDirectory(prefix="planaria-") as temporary:
        made = Path(temporary) / (path.name or "model")
        result = write_checked(source, to, made)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made, path)
            if to != "safetensors":
                beside.write_text(json.dumps(about(source, to), indent=1))
        except OSError as error:
            raise InputError(f"{path}: cannot write here ({error.strerror}); choose another place with --out") from None
    return Exported(**{**asdict(result), "path": str(path)})


def write_checked(source: Source, to: str, path: Path) -> Exported:
    """Raises InputError for a model that the format cannot hold, RunError where outputs are not the live model's."""
    format_ = format_of(to)
    inputs = [np.ascontiguousarray(source.features[name]) for name in input_names(source.model.blueprint)]
    try:
        format_.write(source.model, source.encoding, [np.resize(x, (64, *x.shape[1:])) for x in inputs], path)
    except (RuntimeError, ValueError) as error:  # what torch and ONNX raise for a model that they cannot follow
        why = str(error).partition("\n")[0]
        raise InputError(f"export: --to {to} cannot write this model ({why}); use --to safetensors") from error
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compared(source, to, path, inputs, format_.read(path))
    finally:
        torch.set_num_threads(threads)


def _compared(source: Source, to: str, path: Path, inputs: Sequence[Array], exported: Answer) -> Exported:
    names = input_names(source.model.blueprint)
    live = answer_of(lambda *tensors: source.model(dict(zip(names, tensors, strict=True))))
    rows = len(source.target)
    spread = float(source.model.output.spread)
    difference = 0.0
    for count in _CHECKED:
        few = [np.resize(x, (count, *x.shape[1:])) for x in inputs]
        difference = max(difference, float(np.abs(live(few) - exported(few)).max()) / spread)
    answers = [
        np.concatenate([answer([x[low : low + 64] for x in inputs]) for low in range(0, rows, 64)])
        for answer in (live, exported)
    ]
    difference = max(difference, float(np.abs(answers[0] - answers[1]).max()) / spread)
    if format_of(to).exact and not difference <= TOLERANCE:
        raise RunError(
            f"export: outputs of {to} differ from the live model's by {difference:.2g}, more than {TOLERANCE:g}; "
            "use --to safetensors"
        )
    times = [{batch: _latency_ms(answer, inputs, batch) for batch in BATCHES} for answer in (live, exported)]
    held = source.model.state_dict().values()
    return Exported(
        path=str(path),
        format=to,
        task=source.model.blueprint.task,
        step=source.step,
        bytes=sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size,
        live_bytes=sum(tensor.numel() * tensor.element_size() for tensor in held),
        difference=difference,
        rows=rows,
        held_out=source.held_out,
        live_ms=times[0],
        exported_ms=times[1],
        live_score=_score(source, answers[0]),
        exported_score=_score(source, answers[1]),
    )


def about(source: Source, to: str) -> dict[str, Any]:
    """What the file's rows and answers are, for a program without planaria."""
    shape, fields = source.model.blueprint, source.encoding["fields"]
    categories: Mapping[str, Any] = source.encoding["stream"].get("categories") or {}
    inputs = [
        {"name": name, "dtype": str(source.features[name].dtype), "shape": ["rows", *source.features[name].shape[1:]]}
        for name in input_names(source.model.blueprint)
    ]
    return {
        "format": to,
        "step": source.step,
        "task": shape.task,
        "inputs": inputs,
        "output": "the target in its own units" if shape.task == "regression" else "logits, one for each label",
        "labels": list(source.encoding.get("labels") or []),
        "numeric": list(fields["numeric"]),
        "missing_number": "NaN",
        "categorical": list(fields["categorical"]),
        # the number of a category is its place in this list and 1; 0 is missing or unseen
        "categories": {name: list(values) for name, values in categories.items()},
    }


def _latency_ms(answer: Answer, inputs: Sequence[Array], batch: int) -> float:
    rows = [np.resize(x, (batch, *x.shape[1:])) for x in inputs]
    taken = []
    for _ in range(_LATENCY_REPEATS):
        began = time.perf_counter()
        answer(rows)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)) * 1e3


def _score(source: Source, output_BC: Array) -> float:
    if source.model.blueprint.task == "regression":
        return float(np.sqrt(np.square(output_BC[:, 0] - source.target).mean()))
    return float((output_BC.argmax(1) == source.target).mean())
