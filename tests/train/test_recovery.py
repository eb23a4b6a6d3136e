"""A run that was killed, however and whenever, ends as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from benchmarks.kills import (
    differences,
    job_for,
    kill_worker,
    killed_run,
    outcome,
    starts,
    step_now,
    write_table,
)

from planaria.errors import InputError, RunError
from planaria.job import Job, dump_job
from planaria.train import launch
from planaria.train.checkpoint import CheckpointStore, step_of
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

ROWS, STRETCH, STEPS = 24_000, 4_000, 750
LOCAL = {"workers": 0, "shards": 2}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "rows.parquet", ROWS, STRETCH)


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run in one process, without Ray, comes to when it is left alone."""
    place = tmp_path_factory.mktemp("undisturbed")
    run_here(job_for(table, scale=LOCAL), RunFolder(place), table.parent)
    found = outcome(place)
    summary = found["summary"]
    assert summary["steps"] == STEPS and summary["shifts"] >= 1, "else nothing of interest could be lost"
    assert summary["grows"] + summary["shrinks"] >= 1 and summary["revisions"] >= 4
    return found


def same(folder: Path, undisturbed: dict[str, Any]) -> None:
    """Bit for bit, however many workers there were."""
    found = outcome(folder)
    assert found["summary"]["rows_lost"] == found["summary"]["rows_repeated"] == 0
    found["summary"]["workers"] = undisturbed["summary"]["workers"]
    assert list(differences(undisturbed, found)) == []


def until(happens: Callable[[], bool], within_s: float = 400.0) -> None:
    end = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Background:
    """A call in a thread of its own."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error

    def join(self) -> Any:
        self.thread.join(400)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


# -- in one process


def test_a_process_killed_again_and_again_at_random_times_changes_nothing(
    table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    choice = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["planaria.train.worker"])
    job = job_for(table, scale=LOCAL, storage={"checkpoint_every_s": 0.1, "keep_checkpoints": 1})
    store = CheckpointStore(str(tmp_path / "checkpoints"), 1)
    kills = 6
    for _ in range(kills):
        before = max(store.steps(), default=-1)
        process = context.Process(target=run_here, args=(job, RunFolder(tmp_path), table.parent))
        process.start()
        until(lambda before=before, process=process: max(store.steps(), default=-1) > before or not process.is_alive())
        time.sleep(choice.uniform(0.0, 0.4))
        process.kill()
        process.join()
        assert process.exitcode != 0, "it ended before it could be killed; give it more rows"
    run_here(job, RunFolder(tmp_path), table.parent)
    assert len(starts(tmp_path)) == kills + 1
    same(tmp_path, undisturbed)


class Killed(BaseException):
    """Not an error that anybody would handle."""


@pytest.mark.parametrize("after", range(8))
def test_a_kill_at_any_write_of_a_checkpoint_leaves_the_one_before(after: int, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=1)
    old, new = {"a": b"1" * 10, "b": b"2" * 10, "c": b"3"}, {"a": b"4" * 10, "b": b"5" * 10, "c": b"6"}
    store.save(1, old)
    write, writes = store._write, iter(range(4))

    def cut_short(path: str, content: bytes) -> None:
        if next(writes) < after // 2:
            return write(path, content)
        write(path, content[: len(content) // 2] if after % 2 else b"")
        raise Killed

    store._write = cut_short  # type: ignore[method-assign]
    with pytest.raises(Killed):
        store.save(2, new)
    again = CheckpointStore(str(tmp_path), keep=1)
    assert next(again.whole()) == ("step-000000000001", old)
    again.save(2, new)
    assert list(again.whole()) == [("step-000000000002-2", new)]


def test_a_kill_during_the_very_first_checkpoint_begins_again(
    table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    (tmp_path / "checkpoints" / "step-000000000000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000000000000" / "state.json").write_text('{"st')
    run_here(job_for(table, scale=LOCAL), RunFolder(tmp_path), table.parent)
    same(tmp_path, undisturbed)


def test_a_broken_newest_checkpoint_is_passed_over_and_the_run_says_so(
    table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    folder = RunFolder(tmp_path)
    job = job_for(table, scale=LOCAL, storage={"checkpoint_every_s": 0.1, "keep_checkpoints": 2})
    _stop_at(folder, 60)
    assert run_here(job, folder, table.parent)["status"] == "stopped"
    folder.stop_mark.unlink()
    newest, before = CheckpointStore(str(folder.checkpoints), 2).names()
    (folder.checkpoints / newest / "optimizer.safetensors").write_bytes(b"")
    run_here(job, folder, table.parent)
    same(tmp_path, undisturbed)
    words = f"{newest} is damaged; went on from {before}"
    assert starts(tmp_path)[-1]["message"] == words and starts(tmp_path)[-1]["step"] == step_of(before)
    assert json.loads(folder.live.read_text())["message"] == words


def _stop_at(folder: RunFolder, step: int) -> threading.Thread:
    """Ask the run to stop once it has checkpointed a step as late."""
    store = CheckpointStore(str(folder.checkpoints), 1)

    def wait() -> None:
        until(lambda: max(store.steps(), default=0) >= step)
        folder.stop_mark.touch()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_second_process_waits_until_the_first_one_is_dead(table: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = ExitStack()
    first.enter_context(folder.held("writer"))
    with (
        pytest.raises(InputError, match="another process runs this; wait for it, or `planaria stop"),
        folder.held("writer"),
    ):
        pass
    threading.Timer(0.5, first.close).start()
    began = time.monotonic()
    summary = run_here(job_for(table, scale=LOCAL, samples=64), folder, table.parent)
    assert time.monotonic() - began > 0.4
    assert summary["status"] == "done"


# -- a stream that follows a folder


def _parts(table: Path, count: int) -> list[Any]:
    import pyarrow.parquet as pq

    whole = pq.read_table(table)
    cuts = [at * ROWS // count for at in range(count + 1)]
    return [whole.slice(low, high - low) for low, high in itertools.pairwise(cuts)]


def _arrive(incoming: Path, number: int, part: Any) -> None:
    import pyarrow.parquet as pq

    pq.write_table(part, incoming / f"{number}.tmp")
    (incoming / f"{number}.tmp").rename(incoming / f"{number}.parquet")


def _following(table: Path, incoming: Path, scale: dict[str, Any]) -> Job:
    stream = {**job_for(table).stream.model_dump(), "path": str(incoming), "follow": True, "follow_poll_s": 0.05}
    return job_for(table, stream=stream, scale=scale, samples=ROWS)


def _live_on_a_folder(job: Job, folder: RunFolder, incoming: Path, parts: list[Any], run: Callable[[], Any]) -> None:
    """Rows arrive while the run goes on; it is stopped while it waits, and goes on with the rest."""
    first = Background(run)
    until(lambda: folder.live.exists() and folder.read_json(folder.live).get("status") == "waiting")
    for number, part in enumerate(parts[:3]):
        _arrive(incoming, number, part)
        time.sleep(0.2)
    last_step = sum(len(part) for part in parts[:3]) // job.batch_rows
    # While it waits it checkpoints what it has done, and shows that it lives.
    until(lambda: max(CheckpointStore(str(folder.checkpoints), 1).steps(), default=0) == last_step)
    until(lambda: folder.read_json(folder.live).get("status") == "waiting")
    folder.stop_mark.touch()
    first.join()
    summary = folder.read_json(folder.summary)
    assert (summary["status"], summary["steps"]) == ("stopped", last_step)
    folder.stop_mark.unlink()
    for number, part in enumerate(parts[3:], start=3):
        _arrive(incoming, number, part)
    run()


def test_a_followed_folder_gives_the_same_run_as_its_files_at_once(
    table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    incoming, folder = tmp_path / "in", RunFolder(tmp_path / "run")
    incoming.mkdir()
    folder.make()
    job = _following(table, incoming, LOCAL)
    _live_on_a_folder(job, folder, incoming, _parts(table, 6), lambda: run_here(job, folder, table.parent))
    found = outcome(folder.path)
    assert list(differences(_without_files(undisturbed), _without_files(found))) == []


def _without_files(found: dict[str, Any]) -> dict[str, Any]:
    """But for the names of the files that the rows came in."""
    state = found["state"]
    return {**found, "state": {**state, "stream": {**state["stream"], "tape": None}}}


# -- on Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.ray
def test_a_killed_worker_changes_nothing_and_the_controller_can_still_be_read(
    cluster: None, table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    from planaria.control.actor import read_controller

    folder = tmp_path / f"run-{os.getpid()}"
    run = Background(lambda: launch.run(job_for(table), out=folder))
    until(lambda: step_now(folder) > 0 or not run.thread.is_alive())
    step, state = read_controller(folder.name)
    assert 0 <= step <= STEPS and state
    kill_worker(os.getpid(), random.Random(1))
    until(lambda: len(starts(folder)) > 1 or not run.thread.is_alive())
    until(lambda: read_controller(folder.name)[0] > step)
    result = run.join()
    assert (result.status, result.summary["restarts"]) == ("done", 1)
    same(folder, undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_runs_of_one_cluster_share_what_their_controllers_learn(cluster: None, table: Path, tmp_path: Path) -> None:
    job = job_for(table, scale={"workers": 1, "shards": 1})
    controller = job.policy.controller.model_copy(update={"shared": "both"})
    job = job.model_copy(update={"policy": job.policy.model_copy(update={"controller": controller})})
    for name in ("first", "second"):
        assert launch.run(job, out=tmp_path / name).status == "done"
    first, second = (json.loads((tmp_path / name / "controller.json").read_text()) for name in ("first", "second"))
    assert first["returns"] and not first["borrowed"]
    lent = list(zip(first["features"], first["returns"], strict=True))
    # What the first one learned after its last decision was not lent any more.
    assert second["borrowed"] and all([row, value] in [list(one) for one in lent] for row, value in second["borrowed"])


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_changes_nothing_also_where_rays_ports_are_taken(
    table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job, folder = tmp_path / "job.yaml", tmp_path / "run"
    job.write_text(dump_job(job_for(table)))
    with ExitStack() as taken:
        for port in (6379, 8265, 10001, 52365):  # Ray's own defaults
            listener = taken.enter_context(socket.socket())
            with suppress(OSError):  # taken by somebody else: as good
                listener.bind(("127.0.0.1", port))
                listener.listen()
        (kill,) = killed_run(5, ("driver",), job, folder, STEPS)
    assert 0 < kill.from_step < STEPS
    same(folder, undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("worker", "worker"), ("ray", "ctrl-c")], ids=" then ".join)
def test_more_kills_change_nothing(
    kinds: tuple[str, ...], table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    job, folder = tmp_path / "job.yaml", tmp_path / "run"
    job.write_text(dump_job(job_for(table)))
    kills = killed_run(7, kinds, job, folder, STEPS)
    assert len(kills) == 2
    same(folder, undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_one_worker_is_the_same_run_as_two(
    cluster: None, table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    result = launch.run(job_for(table, scale={"workers": 1, "shards": 2}), out=tmp_path / "one")
    assert result.summary["workers"] == 1
    same(tmp_path / "one", undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_an_elastic_run_takes_the_workers_that_there_are(
    cluster: None, table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    result = launch.run(job_for(table, scale={"workers": [1, 2]}), out=tmp_path / "elastic")
    assert result.summary["workers"] in (1, 2)
    same(tmp_path / "elastic", undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_follow_a_folder_together(
    cluster: None, table: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    incoming, folder = tmp_path / "in", RunFolder(tmp_path / f"follow-{os.getpid()}")
    incoming.mkdir()
    job = _following(table, incoming, {"workers": 2, "shards": 2})

    def run() -> Any:
        return launch.resume(folder.path) if folder.job.exists() else launch.run(job, out=folder.path)

    _live_on_a_folder(job, folder, incoming, _parts(table, 6), run)
    found = outcome(folder.path)
    found["summary"]["workers"] = undisturbed["summary"]["workers"]
    assert list(differences(_without_files(undisturbed), _without_files(found))) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_bad_file_that_arrives_ends_the_run_on_all_workers_at_once(
    cluster: None, table: Path, tmp_path: Path
) -> None:
    incoming, folder = tmp_path / "in", RunFolder(tmp_path / f"bad-{os.getpid()}")
    incoming.mkdir()
    first, *_ = _parts(table, 6)
    _arrive(incoming, 0, first)
    run = Background(lambda: launch.run(_following(table, incoming, {"workers": 2, "shards": 2}), out=folder.path))
    until(lambda: folder.read_json(folder.live).get("status") == "waiting")
    _arrive(incoming, 1, first.set_column(first.schema.get_field_index("x0"), "x0", [["a"] * len(first)]))
    with pytest.raises(RunError, match=r"column 'x0' holds text, but features\.numeric needs numbers"):
        run.join()
    assert len(starts(folder.path)) == 1, "it is not tried again and again"
    assert folder.read_json(folder.summary)["samples"] == len(first) // 32 * 32
