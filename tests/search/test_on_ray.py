"""Campaigns on a real local Ray: populations, shares of CPUs, trials on Ray Train workers, taught controllers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planaria.record.tables import read_rows
from planaria.record.tracking import connect, embedded_uri
from planaria.search.places import folder_of, lives_in, read_trials
from planaria.search.teaching import TAUGHT

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def searched(campaign: Path, out: Path) -> dict[str, Any]:
    """In a process of its own, as each campaign starts a Ray of another kind."""
    command = [sys.executable, "-m", "planaria.cli", "search", str(campaign), "--out", str(out), "--json"]
    done = subprocess.run(command, cwd=campaign.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_population_on_halves_of_cpus_is_recorded(written: Callable[..., Path], tmp_path: Path) -> None:
    path = written(
        search={
            "policy.learner.learning_rate": {"between": [0.0001, 0.01], "log": True},
            "policy.heads.start": {"integers": [1, 4]},
        },
        algorithm="pbt",
        population={"every_samples": 96},
        objectives={"prequential_accuracy": "max"},
        trials=3,
        seeds=[3],
        cpus_per_trial=0.5,
    )
    summary = searched(path, tmp_path / "out")
    assert summary["status"] == "done" and summary["done"] == 3
    took_over = [
        (trial["number"], turn) for trial in read_trials(tmp_path / "out") for turn in trial["turns"] if "from" in turn
    ]
    assert len(took_over) == 3, "one of three at each of three turns"
    client = connect(embedded_uri(tmp_path / "out"))
    (experiment,) = [e for e in client.search_experiments() if e.name == "planaria-search"]
    runs = client.search_runs([experiment.experiment_id])
    for number, turn in took_over:
        (run,) = [run for run in runs if run.info.run_name == f"trial {number}"]
        assert str(turn["from"]) in run.data.tags["parent_trial"] and "leg_score" in run.data.metrics
        revisions = read_rows(lives_in(folder_of(tmp_path / "out", number))[0], "revisions")
        assert "pbt" in [revision["cause"] for revision in revisions]
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(nested) > 6, "trials, their lives, and the revisions of these"


def test_trials_live_on_workers_of_ray_train_and_teach_each_other(written: Callable[..., Path], tmp_path: Path) -> None:
    policy = {"heads.cooldown_samples": 100, "controller.wait_samples": 64, "controller.thrift_every_samples": 100}
    path = written(
        settings={
            **{f"policy.{key}": value for key, value in policy.items()},
            "policy.controller.kind": "learned",
            "samples": 1500,
            "stream.source": "agrawal_abrupt",
        },
        search={"policy.learner.learning_rate": {"between": [0.0001, 0.01], "log": True}},
        trials=3,
        seeds=[3],
        at_once=1,
        workers_per_trial=2,
        cpus_per_trial=0.5,
        teach=True,
    )
    summary = searched(path, tmp_path / "out")
    assert summary["status"] == "done" and summary["done"] == 3
    for number in range(3):
        (life,) = lives_in(folder_of(tmp_path / "out", number))
        assert json.loads((life / "summary.json").read_text())["workers"] == 2
    first = json.loads((lives_in(folder_of(tmp_path / "out", 0))[0] / "controller.json").read_text())
    given = json.loads((folder_of(tmp_path / "out", 2) / TAUGHT).read_text())
    assert given.get("features", []) == first["features"], "trial 2 begins with what trial 0 has learned"
