"""Starting, stopping and resuming a run, as the command and the package's functions do it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.kills import differences, job_for, outcome, write_table

import planaria
from planaria.cli import call
from planaria.errors import InputError
from planaria.job import Job, dump_job
from planaria.train import launch
from planaria.train.folder import RunFolder

ROWS = 9_600
LOCAL = {"workers": 0, "shards": 2}
STILL = {"controller": {"kind": "none"}, "learner": {"memory": {"rows": 300}}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "rows.parquet", ROWS, ROWS // 4)


@pytest.fixture(scope="module")
def job(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that needs no Ray and no decisions, and records into one store for all tests."""
    store = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    record = {"interval_samples": 400, "register_model": False, "tracking_uri": store}
    return job_for(table, scale=LOCAL, policy=STILL, record=record, storage={"checkpoint_every_s": 0.2})


def once_it_runs(folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Act as soon as the run has written its first checkpoint."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not (folder / "starts.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def finish(folder: Path, undisturbed: dict[str, Any]) -> None:
    assert planaria.resume(folder).status == "done"
    assert list(differences(undisturbed, outcome(folder))) == []


def test_ctrl_c_stops_at_a_checkpoint_and_the_rest_follows(
    job: Job, tmp_path: Path, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    once_it_runs(tmp_path / "run", interrupt)
    result = launch.run(job, out=tmp_path / "run")
    assert result.status == "stopped" and result.summary["samples"] < ROWS
    assert result.report is not None and result.report.exists()
    assert "stopping at the next checkpoint; press Ctrl-C again to end at once" in caplog.text
    finish(tmp_path / "run", undisturbed)


def test_a_second_ctrl_c_ends_at_once_and_the_rest_follows(
    job: Job, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    def twice() -> None:
        # As if the first had just been: what it asks for takes a step.
        (tmp_path / "run" / "stop").touch()
        interrupt()

    once_it_runs(tmp_path / "run", twice)
    with pytest.raises(KeyboardInterrupt):
        launch.run(job, out=tmp_path / "run")
    finish(tmp_path / "run", undisturbed)


def test_a_run_that_goes_on_is_not_resumed_by_a_second_process(job: Job, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    folder.write_text(folder.job, dump_job(job))
    folder.stop_mark.touch()
    with folder.held("driver"), pytest.raises(InputError) as error:
        launch.resume(folder.path)
    assert str(error.value) == (
        f"{folder.path}: another process runs this; wait for it, or `planaria stop {folder.path}` first"
    )
    assert folder.stop_mark.exists(), "what was asked of the other one stands"


def test_resuming_where_there_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run here \(job\.yaml is missing\); give the folder that `planaria run`"):
        launch.resume(tmp_path)


def test_an_empty_followed_folder_is_waited_for_and_the_wait_can_be_stopped(
    job: Job, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    incoming, folder = tmp_path / "in", RunFolder(tmp_path / "run")
    incoming.mkdir()
    stream = {**job.stream.model_dump(), "path": str(incoming), "follow": True, "follow_poll_s": 0.05}
    following = Job.model_validate({**job.model_dump(), "stream": stream, "samples": ROWS})
    (tmp_path / "job.yaml").write_text(dump_job(following))

    def stop() -> None:
        end = time.monotonic() + 60
        while folder.read_json(folder.live).get("status") != "waiting" and time.monotonic() < end:
            time.sleep(0.01)
        folder.stop_mark.touch()

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    assert call(["run", str(tmp_path / "job.yaml"), "--out", str(folder.path)]) == 0
    stopper.join()
    shown = " ".join(capsys.readouterr().out.split())
    assert "status stopped" in shown and f"resume {folder.path}" in shown
    summary = folder.read_json(folder.summary)
    assert (summary["status"], summary["samples"]) == ("stopped", 0)

    (incoming / "1.parquet").write_bytes(table.read_bytes())
    result = launch.resume(folder.path)
    assert (result.status, result.summary["samples"]) == ("done", ROWS)
    assert result.summary["rows_lost"] == result.summary["rows_repeated"] == 0


def test_a_folder_in_which_nothing_could_be_started_is_not_left_behind(job: Job, tmp_path: Path) -> None:
    many = job.model_copy(update={"scale": job.scale.model_copy(update={"workers": 1, "cpus_per_worker": 4_000.0})})
    with pytest.raises(InputError, match=r"scale: 1 workers need 4000 CPUs but there are \d+; lower scale\.workers or"):
        launch.run(many, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
