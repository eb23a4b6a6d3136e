"""The replay memory in shares: each row is held and computed once, and the run is the same one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.kills import differences, job_for, outcome, write_table

from planaria.job import Job, dump_job
from planaria.train import keeper
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import RunFolder
from planaria.train.shares import share_out
from planaria.train.worker import run_here

LEARNERS: dict[str, dict[str, Any]] = {
    "er": {"readout": {"features": 24}},
    "der++": {"loss": "der++"},
    "loss_aware": {"memory": {"rows": 300, "kind": "loss_aware"}},
    "a_gem": {"loss": "a_gem"},
}
SMALL = {"memory": {"rows": 300}, "learning_rate": 0.005}


@pytest.mark.parametrize("shards", [1, 2, 3, 8, 50])
@pytest.mark.parametrize(("rows", "replayed", "judged"), [(32, 32, 8), (7, 0, 3), (10, 96, 0), (0, 5, 5)])
def test_every_row_of_a_step_is_computed_once(rows: int, replayed: int, judged: int, shards: int) -> None:
    draws = np.random.default_rng(rows + shards)
    slots = [np.sort(draws.integers(0, 300, count) % shards) for count in (replayed, judged)]
    parts = share_out(rows, *slots, shards)
    for name, count in (("fresh", rows), ("replayed", replayed), ("judged", judged)):
        cuts = [getattr(part, name) for part in parts]
        assert [at for cut in cuts for at in range(count)[cut]] == list(range(count))
    for shard, part in enumerate(parts):
        assert (slots[0][part.replayed] == shard).all() and (slots[1][part.judged] == shard).all()


def test_a_worker_is_told_of_its_own_shards_alone() -> None:
    replay, judged = np.array([0, 4, 1, 5, 2, 3, 7]), np.array([6])
    every = share_out(20, replay, judged, 4)
    assert share_out(20, replay, judged, 4, range(1, 3)) == every[1:3]


def test_fresh_rows_make_the_shards_even() -> None:
    replay, judged = np.array([0, 2, 4, 6, 8, 1, 3]), np.array([5])
    first, second = share_out(8, replay, judged, 2)
    assert (first.fresh, second.fresh) == (slice(0, 3), slice(3, 8)) and first.even and second.even
    crowded, idle = share_out(2, replay[:5], judged[:0], 2)
    assert (crowded.fresh, idle.fresh) == (slice(0, 0), slice(0, 2)) and not crowded.even and not idle.even


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "rows.parquet", 2_560, 1_280)


def _job(table: Path, learner: str = "er", shards: int = 2, **changes: Any) -> Job:
    job = job_for(table, scale={"workers": 0, "shards": shards}, **changes)
    asked = job.policy.model_dump() | {"learner": {**SMALL, **LEARNERS[learner]}}
    return Job.model_validate({**job.model_dump(), "policy": asked})


def _folder(place: Path, job: Job) -> RunFolder:
    folder = RunFolder(place)
    folder.make()
    folder.write_text(folder.job, dump_job(job))
    return folder


def _alone(place: Path, job: Job) -> Path:
    """Where a run of this process has left what it came to."""
    run_here(job, _folder(place, job), Path.cwd())
    return place


class Two:
    """Two workers that run the folders' jobs together."""

    def __init__(self, scratch: Path, *folders: Path) -> None:
        call = [str(scratch / f"meeting-{time.monotonic_ns()}"), *map(str, folders)]
        script = str(Path(__file__).with_name("sharing_member.py"))
        self.members = [
            subprocess.Popen([sys.executable, script, str(rank), "2", *call], stdout=subprocess.PIPE, text=True)
            for rank in range(2)
        ]

    def answers(self) -> list[list[Any]]:
        return [
            [json.loads(line) for line in member.communicate(timeout=240)[0].splitlines() if line.startswith("[")]
            for member in self.members
        ]

    def kill(self) -> None:
        for member in self.members:
            member.kill()
            member.wait()


def _same(left: Path, right: Path) -> list[str]:
    found = [outcome(path) for path in (left, right)]
    for one in found:
        one["summary"].pop("workers")
    return list(differences(*found))


def test_two_workers_hold_half_each_and_are_the_same_run_as_one(table: Path, tmp_path: Path) -> None:
    two = [_folder(tmp_path / f"two-{name}", _job(table, name)).path for name in LEARNERS]
    members = Two(tmp_path, *two)
    one = [_alone(tmp_path / f"one-{name}", _job(table, name)) for name in LEARNERS]
    answers = members.answers()
    for at, name in enumerate(LEARNERS):
        assert [member[at][1] for member in answers] == ["done", None], "rank 0 has the summary"
        assert _same(one[at], two[at]) == [], name
        row_bytes = 4 * 4 + 4 * len(outcome(one[at])["state"]["stream"]["labels"])
        assert [member[at][0] for member in answers] == [150 * row_bytes] * 2
    grown = sum(outcome(path)["summary"]["revisions"] for path in one)
    assert grown > 2 * len(one), "else no decision has looked at remembered rows"


@pytest.mark.slow
def test_two_workers_that_were_killed_are_gone_on_with_by_one_and_one_by_two(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(table, storage={"checkpoint_every_s": 0.05})
    folder = _folder(tmp_path / "killed", job)
    store = CheckpointStore(str(folder.checkpoints), 1)
    members = Two(tmp_path, folder.path)
    while max(store.steps(), default=0) < 20:
        time.sleep(0.01)
    members.kill()
    monkeypatch.setattr(keeper, "GLANCE_EVERY_S", 0.0)
    folder.stop_mark.touch()
    assert run_here(job, folder, table.parent)["status"] == "stopped"
    folder.stop_mark.unlink()
    assert [one[0][1] for one in Two(tmp_path, folder.path).answers()] == ["done", None]
    whole = _alone(tmp_path / "whole", _job(table))
    assert outcome(folder.path)["summary"]["workers"] == 2
    assert _same(whole, folder.path) == []


def test_a_run_in_three_shards_is_that_in_one_but_for_rounding(table: Path, tmp_path: Path) -> None:
    still = {"controller": {"kind": "none"}}
    for shards in (1, 3):
        job = _job(table, shards=shards)
        job = Job.model_validate({**job.model_dump(), "policy": job.policy.model_dump() | still, "samples": 640})
        _alone(tmp_path / str(shards), job)
    losses = [[row["loss"] for row in outcome(tmp_path / place)["tables"]["steps"]] for place in ("1", "3")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
