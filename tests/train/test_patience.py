"""Storage that fails for a while, workers that live on where they cannot be reached, a controller that is lost."""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.kills import differences, job_for, outcome, write_table

from planaria.errors import RunError
from planaria.job import Job
from planaria.train import launch, patience
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import RunFolder
from planaria.train.patience import TakenOver, patiently
from planaria.train.worker import run_here

STILL = {"controller": {"kind": "none"}, "learner": {"memory": {"rows": 300}}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    table = write_table(tmp_path_factory.mktemp("table") / "rows.parquet", 4_800, 2_400)
    return job_for(table, scale={"workers": 0, "shards": 2}, policy=STILL, storage={"checkpoint_every_s": 0.3})


def fail_writes(monkeypatch: pytest.MonkeyPatch, first: int, last: float) -> list[str]:
    """Of the checkpoints that the run tries to write, these cannot be written; the paths that were refused."""
    write, tried, refused = CheckpointStore._write, itertools.count(), list[str]()

    def refuse(store: CheckpointStore, path: str, content: bytes) -> None:
        if path.endswith("state.json") and first <= next(tried) <= last:
            refused.append(path)
            raise OSError(28, "No space left on device")
        write(store, path, content)

    monkeypatch.setattr(CheckpointStore, "_write", refuse)
    return refused


def test_a_run_goes_on_while_storage_fails_and_is_what_it_would_have_been(
    job: Job,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = fail_writes(monkeypatch, 1, 2)
    run_here(job, RunFolder(tmp_path), tmp_path)
    assert len(refused) == 2
    assert list(differences(undisturbed, outcome(tmp_path))) == []
    (begun,) = [line for line in caplog.messages if "the run goes on, and tries again for up to 60 s" in line]
    assert "No space left on device" in begun and str(tmp_path) in begun
    assert any("can be written again, after" in line for line in caplog.messages)


def test_storage_that_fails_for_longer_than_patience_stops_the_run_with_one_line(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_writes(monkeypatch, 1, math.inf)
    impatient = job.model_copy(update={"storage": job.storage.model_copy(update={"patience_s": 0.3})})
    with pytest.raises(RunError, match=r"cannot write a checkpoint \(No space left on device\); free some space"):
        run_here(impatient, RunFolder(tmp_path), tmp_path)
    (checkpoint,) = CheckpointStore(str(tmp_path / "checkpoints"), 3).whole()
    assert checkpoint[0] == "step-000000000000"


def test_patience_names_an_outage_once_and_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(patience, "_AGAIN_AFTER_S", 0.01)
    answers = iter([OSError(5, "Input/output error"), OSError(5, "Input/output error"), None])

    def work() -> str:
        error = next(answers)
        if error is not None:
            raise error
        return "done"

    assert patiently(work, within_s=10) == "done"
    assert len(caplog.messages) == 2 and caplog.messages[-1] == "storage is back"
    with pytest.raises(RunError, match="never"):
        patiently(lambda: (_ for _ in ()).throw(RunError("never")), within_s=0.1)


def test_a_writer_that_cannot_be_reached_is_taken_over_from_and_keeps_nothing_more(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    store = CheckpointStore(str(folder.checkpoints), keep=2)
    with folder.held("writer", take_over=True) as lost:
        lost.check()
        with folder.held("writer", wait_s=0.1, take_over=True) as present:
            store.save(9, {"state.json": b"{}"}, before_dropping=present.check)
            with pytest.raises(TakenOver, match="another process has gone on with this run"):
                lost.check()
            # It was writing a checkpoint all the while. The later one stays.
            with pytest.raises(TakenOver):
                store.save(5, {"state.json": b"{}"}, before_dropping=lost.check)
            assert store.steps() == [9, 5]
            present.check()


def test_a_run_that_was_taken_over_from_stops_without_a_word_into_its_folder(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    save, holds = CheckpointStore.save, []

    def saved(store: CheckpointStore, *arguments: Any, **named: Any) -> None:
        save(store, *arguments, **named)
        if not holds:
            holds.append(folder.held("writer", take_over=True))
            holds[0].__enter__()

    monkeypatch.setattr(CheckpointStore, "save", saved)
    with pytest.raises(RunError, match="another process has gone on with this run; this one stops"):
        run_here(job, folder, tmp_path)
    holds[0].__exit__(None, None, None)
    assert json.loads(folder.summary.read_text())["status"] == "running"


def test_a_fit_that_loses_its_controller_is_begun_anew_so_many_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray.exceptions

    attempts: list[int] = []

    def fit(attempt: int) -> str:
        attempts.append(attempt)
        if attempt < 2:
            raise ray.exceptions.RayActorError(error_msg="the actor died")
        return "done"

    again = launch._fit_again_without_controller
    assert again(fit, 2, RunFolder(tmp_path)) == "done" and attempts == [0, 1, 2]
    assert "the controller of the workers was lost (the actor died); starting them again" in caplog.text
    with pytest.raises(RunError, match=r"the cluster was lost \(the actor died\); go on with `planaria resume"):
        again(fit, 1, RunFolder(tmp_path))


def test_what_a_killed_controller_had_asked_ray_for_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_back: list[str] = []
    monkeypatch.setattr(launch, "_cancel_request", taken_back.append)
    folder = RunFolder(tmp_path)
    with pytest.raises(RuntimeError, match="killed"), launch._request_of("first", folder):
        raise RuntimeError("killed")
    with launch._request_of("second", folder):
        assert taken_back == ["train-first"]
    with launch._request_of("third", folder):
        assert taken_back == ["train-first"], "the second one ended by itself"
