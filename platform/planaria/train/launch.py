"""Starting and resuming runs: check everything first, then Ray (or this process), then the record.

The driver is the one process that talks to MLflow. It reads what rank 0 leaves in the run's folder, so that nothing
on the training path ever waits for the store.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from planaria.errors import InputError, RunError
from planaria.job import Job, dump_job, load_job, resolved
from planaria.own_folder import check_no_links
from planaria.record import MlflowRecorder, check_tracking_uri, write_report
from planaria.record.tracking import EMBEDDED_ARTIFACTS, EMBEDDED_DB
from planaria.stream import open_stream
from planaria.train.boundaries import check_boundaries
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import RunFolder, working_copy
from planaria.train.gauges import Gauges
from planaria.train.inheritance import learned_by
from planaria.train.patience import patiently
from planaria.train.result import RunResult
from planaria.train.worker import WHOLE, Leg, ray_worker, run_here
from planaria.uri import below, is_uri, local_path

logger = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[dict[str, Any]], None]

_POLL_S = 1.0
_SYNC_EVERY_S = 15.0
_TORCH_TIMEOUT_S = 60
_CLUSTER_ANSWERS_WITHIN_S = 10.0
_LOOKS_FOR_WORKERS_EVERY_S = 10.0
"""How often an elastic run that lacks workers looks for more. Taking them costs a restart of all."""
_ELASTIC_START_TIMEOUT_S = 20
"""What Ray Train waits at most for workers that it takes to be there: of lost hosts it hears late."""
_RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    # A head that is restarted with its state kept (docs/cluster.md) may be away for so long.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Relative paths in a job mean the folder that the command was given in, on workers too.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run(
    job: Job | str | Path,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Run a job (or the job file at a path) to its end; workers=0 stays in this process, without Ray.

    Raises InputError before anything is started, RunError where the run could not go on: what it had done is kept in
    its folder, and `resume` goes on from there.
    """
    job = resolved(job) if isinstance(job, Job) else load_job(Path(job))
    if workers is not None:
        scale = job.scale.model_copy(update={"workers": workers, "shards": max(job.scale.shard_count, workers)})
        job = job.model_copy(update={"scale": scale})
    with working_copy(_resolved(out if out is not None else _new_folder(job)), in_step=True) as folder:
        _check_unused(folder)
        base = Path.cwd()
        _check(job, base, address)
        with _driving(folder), _cluster(job, address):
            _check_unused(folder)
            source = job.policy.controller.from_run
            if source is not None:
                folder.write_json(folder.inherited, learned_by(source, job.record.tracking_uri, base))
            folder.write_text(folder.job, dump_job(job))
            folder.write_json(folder.path / "place.json", {"base": str(base)})
            return _go(job, folder, base, progress)


def resume(folder: str | Path, *, address: str | None = None, progress: Progress | None = None) -> RunResult:
    """Go on with a run that was killed, stopped, or failed; a run that is done only has its record completed."""
    with working_copy(_resolved(folder), in_step=True) as place:
        if not place.job.exists():
            raise InputError(
                f"{place.place}: no run here (job.yaml is missing); give the folder that `planaria run` printed"
            )
        check_no_links(place.path)
        job = load_job(place.job)
        base = Path(place.read_json(place.path / "place.json").get("base", Path.cwd()))
        base = base if base.is_dir() else Path.cwd()
        with _driving(place):
            if place.read_json(place.summary).get("status") == "done":
                return _record_only(job, place)
            _check(job, base, address)
            _check_checkpoints(job, place)
            with _cluster(job, address):
                place.remove(place.stop_mark)
                return _go(job, place, base, progress)


def _resolved(place: str | Path) -> str:
    return str(place) if is_uri(place) else str(local_path(place).resolve())


def _new_folder(job: Job) -> str | Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    if is_uri(job.storage.folder):
        return below(job.storage.folder, f"{job.name}-{stamp}-{secrets.token_hex(2)}")
    first = local_path(job.storage.folder) / f"{job.name}-{stamp}"
    for number in range(2, 1_000):
        if not first.exists():
            return first
        first = first.with_name(f"{job.name}-{stamp}-{number}")
    return first


def _check(job: Job, base: Path, address: str | None) -> None:
    """Everything that can be known to fail is found here, before anything is started."""
    address = address or os.environ.get("RAY_ADDRESS")
    if job.scale.bounds[1] and not _in_cluster():
        if address:
            _check_answers(address)
        else:
            _check_cpus(job, os.cpu_count() or 1)
    if job.policy.controller.shared is not None and not job.scale.bounds[1]:
        raise InputError("policy.controller.shared: runs share through Ray; set scale.workers to 1 or more")
    stream = open_stream(job.stream, seed=job.seed, base=base, hold_out_fraction=job.evaluation.hold_out_fraction)
    if not job.stream.follow:
        try:
            first = stream.read(0, job.batch_rows)
        except RunError as error:
            raise InputError(str(error)) from None
        if not len(first):
            raise InputError("stream: no rows; give a path with data in it")
    check_boundaries(job, stream)
    if job.record.tracking_uri is not None:
        check_tracking_uri(job.record.tracking_uri)


def _check_unused(folder: RunFolder) -> None:
    if folder.job.exists():
        raise InputError(
            f"{folder.place}: holds a run already; choose another folder, or `planaria resume {folder.place}`"
        )


def _check_checkpoints(job: Job, folder: RunFolder) -> None:
    """That one of them is whole; those that are not are named in the log."""
    store = CheckpointStore(folder.checkpoints_at, job.storage.keep_checkpoints)
    if next(store.whole(), None) is None and store.begun():
        raise InputError(
            f"{folder.checkpoints_at}: no usable checkpoint (all of them are damaged); start the job again in a new "
            "folder"
        )


@contextlib.contextmanager
def _driving(folder: RunFolder) -> Iterator[None]:
    """No two processes drive one run. A new folder that nothing was started in is not left behind."""
    new = folder.make()
    try:
        with folder.held("driver"):
            yield
    finally:
        if new:
            folder.remove_if_unused()


def _go(job: Job, folder: RunFolder, base: Path, progress: Progress | None) -> RunResult:
    began, patience_s = time.monotonic(), job.storage.patience_s
    patiently(folder.settle, patience_s)
    recorder = MlflowRecorder(job.record.tracking_uri, job.record.experiment, folder.path)
    with _watched(job, folder, recorder, progress), _clean_stop(folder):
        try:
            outcome = run_here(job, folder, base) if job.scale.bounds[1] == 0 else _run_on_ray(job, folder, base)
        except (InputError, RunError) as error:
            outcome = {"status": "failed", "reason": str(error)}
    if outcome.get("status") == "failed":
        _keep_what_there_is(job, folder, recorder, str(outcome["reason"]))
        raise RunError(f"{outcome['reason']} (kept in {folder.place})")
    patiently(folder.settle, patience_s)
    summary = folder.read_json(folder.summary)
    seconds = summary.get("total_seconds", 0.0) + time.monotonic() - began
    patiently(lambda: folder.write_json(folder.summary, {**summary, "total_seconds": seconds}), patience_s)
    return patiently(lambda: _close_record(job, folder, recorder), patience_s)


def _keep_what_there_is(job: Job, folder: RunFolder, recorder: MlflowRecorder, reason: str) -> None:
    """Summary, report and record of a failed run. Where there is no room for them, the reason is what counts."""
    with contextlib.suppress(InputError, RunError, OSError):
        folder.settle()
        folder.write_json(folder.summary, {**folder.read_json(folder.summary), "status": "failed", "reason": reason})
        _close_record(job, folder, recorder)


def _record_only(job: Job, folder: RunFolder) -> RunResult:
    recorder = MlflowRecorder(job.record.tracking_uri, job.record.experiment, folder.path)
    recorder.start(job.name, job.model_dump(mode="json"))
    return _close_record(job, folder, recorder)


def _close_record(job: Job, folder: RunFolder, recorder: MlflowRecorder) -> RunResult:
    report = write_report(folder.path)
    recorder.finish(str(folder.read_json(folder.summary).get("status", "failed")))
    folder.put_store(EMBEDDED_DB, EMBEDDED_ARTIFACTS)
    folder.settle()
    summary = folder.read_json(folder.summary)
    if folder.mirror is not None:
        return RunResult(folder.place, str(summary.get("status")), summary, below(folder.place, report.name))
    return RunResult(folder.path, str(summary.get("status")), summary, report)


@contextlib.contextmanager
def _watched(job: Job, folder: RunFolder, recorder: MlflowRecorder, progress: Progress | None) -> Iterator[None]:
    """While the body runs, a thread shows progress and sends the record; its errors never reach the run."""
    over = threading.Event()
    gauges = Gauges(folder.path.name) if _in_cluster() and job.scale.bounds[1] else None

    def watch() -> None:
        recorder.start(job.name, job.model_dump(mode="json"))
        synced = time.monotonic()
        while not over.wait(_POLL_S):
            glance = folder.read_json(folder.live)
            if progress is not None and glance:
                progress(glance)
            if gauges is not None:
                gauges.show(glance)
            if time.monotonic() - synced >= _SYNC_EVERY_S:
                recorder.sync()
                synced = time.monotonic()

    thread = threading.Thread(target=_logged(watch), name="planaria-record", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=60)
        glance = folder.read_json(folder.live)
        if progress is not None and glance:
            progress(glance)


def _logged(work: Callable[[], None]) -> Callable[[], None]:
    def safe() -> None:
        try:
            work()
        except Exception:
            logger.exception("the record could not be kept up; it is completed when the run ends")

    return safe


@contextlib.contextmanager
def _clean_stop(folder: RunFolder) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks the run to stop at a checkpoint, the second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if folder.stop_mark.exists():
            raise KeyboardInterrupt
        folder.stop_mark.touch()
        logger.warning("stopping at the next checkpoint; press Ctrl-C again to end at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_on_workers(
    job: Job, folder: RunFolder, base: Path, name: str, report: Progress, leg: Leg = WHOLE
) -> dict[str, Any]:
    """The whole run, or a leg of it, on Ray Train workers of the cluster that this process belongs to; returns the
    summary. `name` is one that no other run of the cluster has, `report` is given a glance at the run now and then.
    Raises InputError and RunError."""
    _set_ray_environment(job)
    seen = 0

    def look() -> None:
        nonlocal seen
        glance = folder.read_json(folder.live)
        if glance.get("samples", 0) > seen:
            seen = int(glance["samples"])
            report(glance)

    outcome = _run_on_ray(job, folder, base, name, leg, look)
    if outcome.get("status") == "failed":
        raise RunError(str(outcome["reason"]))
    return folder.read_json(folder.summary)


def _run_on_ray(
    job: Job,
    folder: RunFolder,
    base: Path,
    name: str | None = None,
    leg: Leg = WHOLE,
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One long Ray Train fit: Ray restarts the workers after a fault, and they go on from the newest checkpoint."""
    import ray.train
    import ray.train.torch

    from planaria.control.actor import start_actor

    gpus = _use_gpus(job)
    config = {
        "job": job.model_dump_json(),
        "folder": folder.place,
        "base": str(base),
        "actor": start_actor(name or folder.path.name),
        "leg": leg,
    }

    def fit(attempt: int) -> Any:
        # Ray 2.60 publishes the types of its first Train version, which the second has outgrown.
        trainer = ray.train.torch.TorchTrainer(
            ray_worker,  # type: ignore[arg-type]
            train_loop_config=config,
            scaling_config=_scaling(job, gpus),
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=_TORCH_TIMEOUT_S),
            run_config=ray.train.RunConfig(
                # A name of its own for every start: planaria's checkpoints decide where a run goes on, not Ray's, which
                # it would read from a folder of that name.
                name=f"{name or folder.path.name}-{folder.count_starts()}-{attempt}-{uuid.uuid4().hex[:12]}",
                storage_path=str(folder.path / "ray"),
                failure_config=ray.train.FailureConfig(max_failures=job.scale.max_failures),
            ),
        )
        with _request_of(trainer.train_run_context.run_id, folder):  # type: ignore[attr-defined]
            return _beside_main_thread(trainer.fit, meanwhile)

    outcome = _fit_again_without_controller(fit, job.scale.max_failures, folder).return_value
    return (
        outcome if isinstance(outcome, dict) else {"status": "failed", "reason": "the workers ended without an answer"}
    )


def _scaling(job: Job, gpus: bool) -> Any:
    import ray.train

    low, high = job.scale.bounds
    return ray.train.ScalingConfig(
        num_workers=high if low == high else (low, high),  # type: ignore[arg-type]
        use_gpu=gpus,
        resources_per_worker={"CPU": job.scale.cpus_per_worker, **({"GPU": 1} if gpus else {})},
        elastic_resize_monitor_interval_s=_LOOKS_FOR_WORKERS_EVERY_S,  # type: ignore[call-arg]
    )


@contextlib.contextmanager
def _request_of(ray_run: str, folder: RunFolder) -> Iterator[None]:
    """Note in the run's folder what Ray Train asks of the cluster, and take back what it asked for before.

    Ray goes on to set workers aside for a controller or a driver that was killed, for three minutes, and an elastic run
    would wait for its own. One that ends by itself takes its request back.
    """
    note = folder.path / "ray.json"
    before = folder.read_json(note).get("requester")
    if before is not None:
        _cancel_request(str(before))
    with contextlib.suppress(RunError):  # storage that fails now costs three minutes at most, should this one be killed
        folder.write_json(note, {"requester": f"train-{ray_run}"})
    yield
    with contextlib.suppress(OSError):
        note.unlink(missing_ok=True)


def _cancel_request(requester: str) -> None:
    import ray

    try:
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(coordinator.cancel_request.remote(requester), timeout=_CLUSTER_ANSWERS_WITHIN_S)
    except (ValueError, ray.exceptions.RayError) as error:  # none was made yet, or it is being restarted
        logger.info("ray: the request of %s was not taken back (%s)", requester, error)


def _fit_again_without_controller(fit: Callable[[int], T], max_failures: int, folder: RunFolder) -> T:
    """Ray Train starts lost workers again, but not its own controller: without that one, the whole fit is begun anew.
    Raises RunError."""
    import ray.exceptions
    import ray.train

    for attempt in itertools.count():
        try:
            return fit(attempt)
        except ray.train.TrainingFailedError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[-1]
            raise RunError(f"the workers failed more than scale.max_failures={max_failures} times ({reason})") from None
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            lost_controller = isinstance(error, ray.exceptions.RayActorError)
            if not lost_controller or -1 < max_failures <= attempt:
                raise RunError(
                    f"ray: the cluster was lost ({reason}); go on with `planaria resume {folder.place}`"
                ) from None
            logger.warning("ray: the controller of the workers was lost (%s); starting them again", reason)
    raise AssertionError("unreachable")


def _beside_main_thread(work: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    """Ray Train takes Ctrl-C for itself where it runs in the main thread, and would drop what a clean stop keeps.
    `meanwhile` is called in this one about once a second."""
    box: Future[T] = Future()

    def fill() -> None:
        try:
            box.set_result(work())
        except BaseException as error:
            box.set_exception(error)

    threading.Thread(target=fill, name="planaria-fit", daemon=True).start()
    while not wait([box], timeout=_POLL_S).done:
        meanwhile()
    return box.result()


@contextlib.contextmanager
def _cluster(job: Job, address: str | None) -> Iterator[None]:
    """What the job's workers run on; nothing where it has none. Raises InputError before anything of the run is made.

    Joins the cluster at `address` (or the one that this process has joined), or starts a local one for this run.
    """
    if job.scale.bounds[1] == 0:
        yield
        return
    _set_ray_environment(job)
    import ray

    joined_before = ray.is_initialized()
    try:
        if not joined_before:
            _join(address or os.environ.get("RAY_ADDRESS") or None)
        _check_resources(job)
        yield
    finally:
        if not joined_before:
            ray.shutdown()


def _set_ray_environment(job: Job) -> None:
    """What the user has set stays."""
    low, high = job.scale.bounds
    elastic = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_ELASTIC_START_TIMEOUT_S)} if low < high else {}
    for name, value in {**_RAY_ENVIRONMENT, **elastic}.items():
        os.environ.setdefault(name, value)


def _join(address: str | None) -> None:
    import ray

    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=True,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises bare ones where a machine is too busy for it to start in time
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = address or "this machine"
        raise InputError(
            f"ray: cannot start or join a cluster at {where} ({line}); `planaria doctor` says what to mend"
        ) from None


def _check_answers(address: str) -> None:
    """Ray itself would wait for minutes for a cluster that is not there."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto": Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CLUSTER_ANSWERS_WITHIN_S).close()
    except OSError as error:
        raise InputError(
            f"ray: nothing answers at {address} ({error.strerror or error}); start the cluster or correct --address"
        ) from None


def _in_cluster() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _check_cpus(job: Job, cpus: float) -> None:
    needed = job.scale.bounds[0] * job.scale.cpus_per_worker
    if needed > cpus:
        raise InputError(
            f"scale: {job.scale.bounds[0]} workers need {needed:g} CPUs but there are {cpus:g}; "
            "lower scale.workers or scale.cpus_per_worker"
        )


def _check_resources(job: Job) -> None:
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    _check_cpus(job, float(resources.get("CPU", 0)))
    _use_gpus(job)


def _use_gpus(job: Job) -> bool:
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    available = float(resources.get("GPU", 0)) >= job.scale.bounds[0]
    if job.scale.gpus and not available:
        raise InputError(
            f"scale.gpus is true but the cluster has no GPU for each of {job.scale.bounds[0]} workers; set it to false"
        )
    return available if job.scale.gpus is None else job.scale.gpus
