"""What tests of whole runs have in common: begin one, live it, and compare all that it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kills import outcome

from planaria.job import Job
from planaria.stream import open_stream
from planaria.train.folder import RunFolder
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong
from planaria.train.worker import run_here


@pytest.fixture(scope="module")
def undisturbed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the module's job comes to where nothing is done to its run."""
    place = tmp_path_factory.mktemp("undisturbed")
    run_here(job, RunFolder(place), place)
    return outcome(place)


def begun(job: Job) -> Lifelong:
    stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    return run


def live(run: Lifelong, steps: int | None = None) -> Lifelong:
    """Up to that step, or to the end."""
    while (steps is None or run.step < steps) and run.take_step() is not None:
        pass
    return run


def everything(run: Lifelong) -> dict[str, Any]:
    """But for what a clock measured."""
    parts = run.state()
    about = json.loads(parts.pop("state.json"))
    for stretch in ("totals", "interval", "life"):
        measured = about["account"][stretch]
        about["account"][stretch] = {k: v for k, v in measured.items() if "seconds" not in k and "energy" not in k}
    del parts["records.arrow"]
    return {"account": about["account"], "pruning": about["pruning"], **parts}
