"""What is exported: the model in one of a run's checkpoints, its encoding, and rows to compare outputs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from planaria.errors import InputError
from planaria.job import load_job
from planaria.model import ElasticTransformer
from planaria.own_folder import check_no_links
from planaria.stream import open_stream
from planaria.train.checkpoint import CheckpointStore, step_of
from planaria.train.folder import RunFolder, working_copy
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

MOST_ROWS = 4_096
"""On which outputs are compared and accuracy is measured."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    model: ElasticTransformer
    encoding: Mapping[str, Any]
    step: int
    features: Mapping[str, Array]
    """Real rows: held-out ones where there are any, else those of the replay memory."""
    target: Array
    held_out: bool


def read_source(given: Path | str, step: int | None = None) -> Source:
    """The newest whole checkpoint of a run, which may still go on, or that of a step. Nothing is written.

    Raises InputError where there is none.
    """
    with working_copy(given) as folder:
        return _read(folder, step)


def _read(folder: RunFolder, step: int | None) -> Source:
    if not folder.job.is_file():
        raise InputError(
            f"{folder.place}: is no run's folder (job.yaml is missing); give the folder that `planaria run` made"
        )
    check_no_links(folder.path)
    job = load_job(folder.job, ())
    name, parts = _checkpoint(CheckpointStore(folder.checkpoints_at, job.storage.keep_checkpoints), step)
    base = Path(folder.read_json(folder.path / "place.json").get("base", Path.cwd()))
    stream = open_stream(job.stream, seed=job.seed, base=base, hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.load_state(parts)
    features, target, held_out = _rows(run)
    return Source(run.model.eval(), run.encoding(), step_of(name), features, target, held_out)


def _checkpoint(store: CheckpointStore, step: int | None) -> tuple[str, dict[str, bytes]]:
    there = sorted(set(store.steps()))
    if step is not None and step not in there:
        listed = ", ".join(map(str, there)) or "none"
        raise InputError(f"{store.folder}: there is no checkpoint of step {step}; those that there are: {listed}")
    for name, parts in store.whole():
        if step in (None, step_of(name)):
            return name, parts
    what = "no whole checkpoint" if step is None else f"no whole checkpoint of step {step}"
    raise InputError(f"{store.folder}: {what}; wait until the run has written one, or name another one")


def _rows(run: Lifelong) -> tuple[dict[str, Array], Array, bool]:
    """Of every context equally many."""
    found = [held for context in run.evaluator.seen if (held := run.evaluator.held_out(context)) is not None]
    if not found:
        slots = np.arange(min(len(run.memory), MOST_ROWS))
        if not len(slots):
            raise InputError("export: the checkpoint holds no rows to check with; let the run go on to its next one")
        return run.memory.select(slots), run.memory.target[slots], False
    each = max(1, MOST_ROWS // len(found))
    features = {name: np.concatenate([held[0][name][:each] for held in found]) for name in found[0][0]}
    return features, np.concatenate([held[1][:each] for held in found]), True
