"""A run that is kept at a URI, on a real S3 server: as on a disk, whoever works on it and wherever."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from benchmarks.kills import Driver, differences, job_for, outcome, starts, write_table
from tests.conftest import S3

import planaria
from planaria.cli import call
from planaria.errors import InputError, RunError
from planaria.job import Job, dump_job
from planaria.train import launch, lease, mirror
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import RunFolder, working_copy
from planaria.train.lease import Lease
from planaria.train.worker import run_here

ROWS = 4_800
LOCAL = {"workers": 0, "shards": 2}
STILL = {"controller": {"kind": "none"}, "learner": {"memory": {"rows": 300}}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "EVERY_S", 1.0)
    monkeypatch.setattr(mirror, "REFRESH_S", 1.0)
    monkeypatch.setattr(lease, "_SETTLED_AFTER_S", 0.1)


@pytest.fixture
def runs(s3: S3) -> str:
    return s3.bucket("runs-of-tests") + "/runs"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "rows.parquet", ROWS, ROWS // 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def job(table: Path, store: str) -> Job:
    """A job that needs no Ray and no decisions, and records into one store for all tests."""
    record = {"interval_samples": 400, "register_model": False, "tracking_uri": store}
    return job_for(table, scale=LOCAL, policy=STILL, record=record, storage={"checkpoint_every_s": 1})


def fetched(uri: str, into: Path) -> Path:
    """All that is kept at a URI, as a person would copy it."""
    filesystem, root = fs.FileSystem.from_uri(uri)
    into.mkdir()
    fs.copy_files(root, str(into), source_filesystem=filesystem)
    return into


def same(uri: str, into: Path, undisturbed: dict[str, Any]) -> Path:
    folder = fetched(uri, into)
    assert list(differences(undisturbed, outcome(folder))) == []
    return folder


def until(happens: Callable[[], bool], within_s: float = 400.0) -> None:
    end = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def once(happens: Callable[[], bool], act: Callable[[], Any]) -> None:
    """Act in the background, as soon as it happens."""

    def wait() -> None:
        until(happens)
        act()

    threading.Thread(target=wait, daemon=True).start()


def newest_step(uri: str) -> int:
    return max(CheckpointStore(f"{uri}/checkpoints", 1).steps(), default=-1)


def live(uri: str) -> dict[str, Any]:
    with working_copy(uri) as folder:
        return folder.read_json(folder.live)


def put(table: Path, uri: str, first: int, rows: int) -> None:
    filesystem, path = fs.FileSystem.from_uri(uri)
    pq.write_table(pq.read_table(table).slice(first, rows), path, filesystem=filesystem)


def names(uri: str) -> set[str]:
    filesystem, root = fs.FileSystem.from_uri(uri)
    return {info.base_name for info in filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))}


def test_a_run_is_stopped_and_goes_on_from_any_machine_as_if_it_lay_on_a_disk(
    job: Job,
    runs: str,
    tmp_path: Path,
    undisturbed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"{runs}/stopped"
    once(lambda: "checkpoints" in names(uri), lambda: call(["stop", uri]))
    stopped = launch.run(job, out=uri)
    assert stopped.status == "stopped" and 0 < stopped.summary["samples"] < ROWS
    assert stopped.folder == uri and stopped.report == f"{uri}/report.html"
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert call(["status", uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "stopped"
    assert call(["report", uri]) == 0 and "<html" in (tmp_path / "report.html").read_text()
    assert call(["export", uri, "--to", "safetensors", "--out", str(tmp_path / "exported")]) == 0
    assert planaria.resume(uri).status == "done"
    folder = same(uri, tmp_path / "copy", undisturbed)
    assert {"job.yaml", "summary.json", "steps.parquet", "revisions.parquet", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert not {"driver.lease", "writer.lease", "stop"} & names(uri)
    assert json.loads((folder / "summary.json").read_text())["restarts"] == 1


def test_what_cannot_be_reached_is_one_line(s3: S3, runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["status", f"{runs}/nothing"]) == 2
    assert call(["run", "jobs/weather.yaml", "--out", "s3://no-such-bucket/runs/a"]) == 2
    assert call(["resume", "s3x://bucket/runs"]) == 2
    assert call(["search", "jobs/search_tables.yaml", "--out", "s3://bucket/campaign"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == (
        f"{runs}/nothing: is no run's folder (job.yaml is missing); for a submitted job give --address too"
    )
    assert "s3://no-such-bucket/runs/a: cannot be reached" in lines[1]
    assert "s3x://bucket/runs cannot be opened" in lines[2]
    assert "is a URI, and only runs are kept at one; give a folder" in lines[3]


def test_a_key_in_a_uri_is_refused_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for uri in ("s3://key:planted@bucket/runs/a", "s3://bucket/runs/a?secret_key=planted"):
        for command in (["run", "jobs/weather.yaml", "--out", uri], ["status", uri], ["resume", uri], ["stop", uri]):
            assert call(command) == 2
    shown = capsys.readouterr().err
    assert "planted" not in shown and shown.count("***") == 8
    assert "give it in the environment, such as AWS_ACCESS_KEY_ID" in shown


# -- who may drive and write


def test_a_run_that_goes_on_elsewhere_is_not_resumed(job: Job, runs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{runs}/driven"
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.1)
    with working_copy(uri) as folder:
        folder.write_text(folder.job, dump_job(job))
        folder.settle()
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(lease, "_machine", lambda: "another machine")
            with folder.held("driver"):
                elsewhere.undo()
                with pytest.raises(
                    InputError, match=r"another process runs this; wait for it, or `planaria stop s3://"
                ):
                    launch.resume(uri)


def test_a_lease_of_a_machine_that_is_gone_is_taken_over_after_a_while_and_of_a_dead_process_at_once(
    runs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.1)
    filesystem, root = fs.FileSystem.from_uri(runs)
    for by, where, least_s, most_s in (("a", "another machine", 1.0, 9.0), ("b", lease._machine(), 0.0, 1.0)):
        path = f"{root}/{by}.lease"
        about = {"holder": "somebody", "machine": where, "process": f"{os.getpid()}@1", "time": time.time()}
        with filesystem.open_output_stream(path) as stream:
            stream.write(json.dumps(about).encode())
        began = time.monotonic()
        assert Lease(filesystem, path).take()
        assert least_s <= time.monotonic() - began <= most_s


@pytest.mark.slow
def test_a_run_that_another_process_has_taken_over_stops_and_writes_nothing_more(
    job: Job, runs: str, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    uri = f"{runs}/taken"
    filesystem, root = fs.FileSystem.from_uri(uri)

    def take_over() -> None:
        for by in ("driver", "writer"):
            Lease(filesystem, f"{root}/{by}.lease").write()

    once(lambda: "checkpoints" in names(uri), take_over)
    with pytest.raises(RunError, match="another process has gone on with this run; this one stops"):
        launch.run(job, out=uri)
    for by in ("driver", "writer"):
        filesystem.delete_file(f"{root}/{by}.lease")
    with working_copy(uri) as folder:
        assert folder.read_json(folder.summary).get("status") in (None, "running"), (
            "it is the other one's to say how it ended"
        )
    assert planaria.resume(uri).status == "done"
    same(uri, tmp_path / "copy", undisturbed)


@pytest.mark.parametrize("name", ["models/../../../evil/model.safetensors", ".bashrc", "models/a b/model.safetensors"])
def test_an_object_whose_name_leads_elsewhere_is_left_where_it_is(name: str, s3: S3, tmp_path: Path) -> None:
    uri = f"{s3.bucket('hostile')}/runs/a"
    filesystem, root = fs.FileSystem.from_uri(uri)
    for each in (name, "job.yaml", "models/revision-00001-000000001600/model.safetensors"):
        with filesystem.open_output_stream(f"{root}/{each}") as stream:
            stream.write(b"from another")
    local = tmp_path / "x" / "y" / "a"
    local.mkdir(parents=True)
    kept = mirror.Mirror(uri, local)
    kept.settle()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"x/y/a/job.yaml", "x/y/a/models/revision-00001-000000001600/model.safetensors"}


def test_journals_of_the_embedded_store_stay_with_it(s3: S3, tmp_path: Path) -> None:
    uri = f"{s3.bucket('journals')}/runs/a"
    local = tmp_path / "a"
    local.mkdir()
    for name in ("job.yaml", "mlflow.db", "mlflow.db-journal", "mlflow.db-wal"):
        (local / name).write_text("of one process")
    mirror.Mirror(uri, local).settle()
    assert names(uri) == {"job.yaml"}


def test_a_summary_that_is_there_never_tells_more_than_the_tables_there(s3: S3, tmp_path: Path) -> None:
    """A run whose summary is done is not written again, so a kill at any time must leave its tables there too."""
    uri = f"{s3.bucket('order')}/runs/a"
    filesystem, root = fs.FileSystem.from_uri(uri)
    local = tmp_path / "a"
    local.mkdir()
    kept, numbers = mirror.Mirror(uri, local), itertools.count()
    tables = ("a.parquet", "steps.parquet", "zz.parquet")

    def there(name: str) -> int:
        return int(filesystem.open_input_stream(f"{root}/{name}").read())

    def write_all() -> None:
        """As rank 0 does: the summary last."""
        number = next(numbers)
        for name in (*tables, "summary.json"):
            (local / name).write_text(f"{number:04d}")

    def between(work: Callable[..., Any]) -> Callable[..., Any]:
        def worked(*arguments: Any) -> Any:
            write_all()
            result = work(*arguments)
            if "summary.json" in names(uri):
                assert {name: there(name) >= there("summary.json") for name in tables} == dict.fromkeys(tables, True)
            write_all()
            return result

        return worked

    write_all()
    with pytest.MonkeyPatch.context() as at_the_worst_times:
        for method in ("_units_here", "_put"):
            at_the_worst_times.setattr(kept, method, between(getattr(kept, method)))
        for _ in range(3):
            kept.settle()
    kept.settle()
    assert {there(name) for name in (*tables, "summary.json")} == {next(numbers) - 1}


# -- faults


@pytest.mark.slow
def test_storage_that_cannot_be_reached_for_a_while_costs_nothing(
    job: Job, s3: S3, runs: str, tmp_path: Path, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The server is away while the run goes on, between two checkpoints, and when its last word is due."""
    uri = f"{runs}/away"
    patient = job.model_copy(update={"storage": job.storage.model_copy(update={"checkpoint_every_s": 600.0})})
    back = threading.Event()
    once(lambda: "summary.json" in names(uri), s3.stop)
    once(lambda: "trying again for up to" in caplog.text, lambda: (time.sleep(3.0), s3.start(), back.set()))
    assert launch.run(patient, out=uri).status == "done"
    assert back.wait(60) and "cannot be reached" in caplog.text
    same(uri, tmp_path / "copy", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_driver_killed_at_a_random_time_goes_on_from_an_empty_machine(
    seed: int, job: Job, runs: str, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    choice, uri = random.Random(seed), f"{runs}/killed-{seed}"
    (tmp_path / "job.yaml").write_text(dump_job(job))
    command: tuple[str, ...] = ("run", str(tmp_path / "job.yaml"), "--out", uri)
    begun = 0
    for _ in range(2):
        before = newest_step(uri)
        with working_copy(uri) as there:
            begun += there.read_json(there.summary).get("status") != "done"
        driver = Driver(*command)
        # On a fast machine the run may be done before it is killed a second time.
        until(lambda before=before, driver=driver: newest_step(uri) > before or driver.process.poll() is not None)
        time.sleep(choice.uniform(0.0, 3.0))
        driver.kill("driver", choice)
        command = ("resume", uri)
    assert planaria.resume(uri).status == "done"
    folder = same(uri, tmp_path / "copy", undisturbed)
    assert json.loads((folder / "summary.json").read_text())["rows_repeated"] == 0
    assert len(starts(folder)) >= begun, "each is there before the first step"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1_800)
def test_two_workers_whose_driver_and_workers_are_killed_go_on_with_their_embedded_store(
    table: Path, runs: str, tmp_path: Path
) -> None:
    """With edits, on Ray, with models that are kept, and without any folder that processes share."""
    changes: dict[str, Any] = {
        "record": {"interval_samples": 400, "register_model": True, "register_after_samples": 500},
        "storage": {"checkpoint_every_s": 1},
    }
    here = tmp_path / "here"
    here.mkdir()
    run_here(job_for(table, scale=LOCAL, **changes), RunFolder(here), table.parent)
    uri, choice = f"{runs}/on-ray", random.Random(0)
    (tmp_path / "job.yaml").write_text(dump_job(job_for(table, **changes)))
    driver = Driver("run", str(tmp_path / "job.yaml"), "--out", uri)
    until(lambda: newest_step(uri) > 0)
    driver.kill("worker", choice)
    killed_at = newest_step(uri)
    until(lambda: newest_step(uri) > killed_at)
    driver.kill("driver", choice)
    status, output = Driver("resume", uri).wait()
    assert status == 0, output
    folder = fetched(uri, tmp_path / "copy")
    found, undisturbed = outcome(folder), outcome(here)
    found["summary"]["workers"] = undisturbed["summary"]["workers"]
    assert list(differences(undisturbed, found)) == []
    assert found["summary"]["grows"] + found["summary"]["shrinks"] >= 1, "else nothing of interest could be lost"
    assert (folder / "model" / "model.safetensors").is_file()
    from mlflow import MlflowClient

    store = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = [one for one in store.search_experiments() if one.name == "planaria"]
    revisions = [run.data.tags.get("planaria.revision") for run in store.search_runs([experiment.experiment_id])]
    counted = sorted(int(number) for number in revisions if number is not None)
    assert counted == list(range(found["summary"]["revisions"])), "each revision once"


@pytest.mark.slow
def test_rows_that_arrive_in_a_bucket_are_followed_by_a_run_that_is_kept_in_one(
    table: Path, s3: S3, runs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    incoming, uri = s3.bucket("arriving") + "/in", f"{runs}/following"
    stream = {**job_for(table).stream.model_dump(), "path": incoming, "follow": True, "follow_poll_s": 0.2}
    put(table, f"{incoming}/0.parquet", 0, 1_600)
    job = job_for(table, scale=LOCAL, policy=STILL, stream=stream, samples=ROWS, storage={"checkpoint_every_s": 1})
    driving = threading.Thread(target=launch.run, args=(job,), kwargs={"out": uri}, daemon=True)
    driving.start()
    until(lambda: live(uri).get("status") == "waiting" and live(uri)["samples"] == 1_600)
    assert call(["report", uri, "--out", str(tmp_path / "early.html")]) == 0
    put(table, f"{incoming}/1.parquet", 1_600, 3_200)
    driving.join(300)
    assert not driving.is_alive()
    found = outcome(fetched(uri, tmp_path / "copy"))
    assert (found["summary"]["samples"], found["summary"]["rows_lost"]) == (ROWS, 0)
