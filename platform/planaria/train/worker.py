"""What every worker runs: open the stream, restore, step until the stream ends or a stop is asked for.

The same function serves one process without Ray (tests, notebooks, science) and every Ray Train worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from planaria.control.actor import publish, share_outcomes
from planaria.control.judge import Exchange
from planaria.errors import InputError, RunError
from planaria.job import Job
from planaria.signals import Stream
from planaria.stream import Loaded, open_stream
from planaria.train.allocator import reuse_freed_memory
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import Hold, RunFolder, working_copy
from planaria.train.group import Alone, Group, TorchGroup, agree
from planaria.train.keeper import WHILE_OTHERS_WAIT_S, Keeper, restore
from planaria.train.lifelong import QUIET, Lifelong, Tick
from planaria.train.patience import patiently
from planaria.train.turn import Turn

logger = logging.getLogger(__name__)

_PREDECESSOR_DIES_WITHIN_S = 5.0
"""A killed run's last worker may take a moment to die. One that lives on, on a host that cannot be reached, is not
waited for: what it writes it writes no more."""


@dataclass(frozen=True)
class Leg:
    """A part of a run: where it ends, and what is changed or given where it begins."""

    until_row: int | None = None
    """Stop at the first step's end at or after this row, as a run that is asked to stop does. None is the end of the
    stream."""
    turn: Turn | None = None
    """The change of the policy with which the leg begins, if any."""
    loaded: Loaded | None = None
    """The stream's rows, where they are in memory already."""


WHOLE = Leg()


def live(
    job: Job,
    folder: RunFolder,
    base: Path,
    group: Group,
    device: torch.device,
    *,
    tell: Callable[[int, Mapping[str, Any]], None] = lambda step, state: None,
    report: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
    report_rows: int | None = None,
    exchange: Exchange | None = None,
    leg: Leg = WHOLE,
) -> dict[str, Any]:
    """Run to the end of the leg, or to a stop; returns the summary (on rank 0; a part of it elsewhere).

    `tell` publishes the controller's state, `report` is called by all workers at the same step about every 10 s, or
    where `report_rows` is given every so many rows.
    `exchange` is how rank 0 shares what its controller learns with other runs. Raises InputError and RunError.
    """
    with contextlib.ExitStack() as held:
        stream, hold = _open(job, folder, base, group, held, leg.loaded)
        run = Lifelong(job, stream, group, device)
        run.while_waiting = _WaitForFirstRows(folder)
        restored = restore(run, CheckpointStore(folder.checkpoints_at, job.storage.keep_checkpoints))
        if restored.step is None:
            if not run.begin():
                return _stopped_before_it_began(job, folder, group)
            if folder.inherited.exists():
                run.controller.judge.inherit(folder.read_json(folder.inherited))
        elif leg.turn is not None:
            run.turn(leg.turn)
        hosts = group.gather(socket.gethostname())
        keeper = Keeper(run, folder, tell, restored.message, hold.check, hosts) if hold is not None else None
        if exchange is not None:
            run.exchange = exchange
        first = run.state() if restored.step is None else None
        if keeper is not None:
            run.while_waiting, run.keep, run.before_edit = keeper.wait, keeper.keep, keeper.keep_model
            keeper.start(first)
        try:
            return _step_by_step(run, keeper, report, report_rows, leg.until_row)
        except RunError:
            if run.between_steps and (keeper is None or keeper.failure is None):
                _keep_what_was_done(run, keeper)
            raise
        finally:
            run.let_go()


def _keep_what_was_done(run: Lifelong, keeper: Keeper | None) -> None:
    """All workers fail together, so that they can gather a last checkpoint; one that fails alone has the one before."""
    try:
        state = run.state()
    except RuntimeError as error:  # of the collective
        logger.warning("no checkpoint of the failure: %s", error)
        return
    if keeper is not None:
        keeper.end("failed", state)


def _open(
    job: Job, folder: RunFolder, base: Path, group: Group, held: contextlib.ExitStack, loaded: Loaded | None
) -> tuple[Stream, Hold | None]:
    """The stream, and on rank 0 the right to write the folder. Raises InputError, on all workers alike."""
    stream, hold, problem = None, None, None

    def take() -> Hold:
        return held.enter_context(folder.held("writer", _PREDECESSOR_DIES_WITHIN_S, take_over=True))

    try:
        if group.rank == 0:
            hold = patiently(take, WHILE_OTHERS_WAIT_S)
        stream = open_stream(
            job.stream,
            seed=job.seed,
            base=base,
            hold_out_fraction=job.evaluation.hold_out_fraction,
            loaded=loaded,
        )
    except (InputError, OSError) as error:
        problem = str(error)
    agree(group, problem)
    assert stream is not None
    return stream, hold


def _step_by_step(
    run: Lifelong,
    keeper: Keeper | None,
    report: Callable[[Mapping[str, Any]], None],
    report_rows: int | None,
    until_row: int | None,
) -> dict[str, Any]:
    while True:
        first = run.row
        if until_row is not None and first >= until_row:
            state = run.state()
            return keeper.end("stopped", state) if keeper is not None else {}
        tick = run.take_step(keeper.wants() if keeper is not None else QUIET)
        if tick is None:
            final, state = run.finish(), run.state()
            return keeper.finish("done", final, state) if keeper is not None else {}
        due = tick.report if report_rows is None else run.row // report_rows > first // report_rows
        if due:
            report(_progress(run))
        state = run.state() if tick.checkpoint or tick.stopped else {}
        if keeper is not None:
            keeper.after_step(tick.report, state if tick.checkpoint and not tick.stopped else None)
        if tick.stopped:
            if keeper is None:
                return {}
            if keeper.failure is not None:
                raise RunError(keeper.failure)
            return keeper.end("stopped", state)


def _progress(run: Lifelong) -> dict[str, Any]:
    totals, rows = run.account.totals, max(1, run.row)
    progress = {"step": run.step, "samples": run.row, "prequential_loss": totals.loss / rows}
    error = totals.error / rows
    return progress | ({"prequential_accuracy": 1 - error} if run.task == "classification" else {"mae": error})


class _WaitForFirstRows:
    """Asked while a followed folder is still empty: whether to stop. Shows that somebody is there."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def __call__(self) -> Tick:
        with contextlib.suppress(RunError):
            self.folder.write_json(self.folder.live, {"status": "waiting", "time": time.time(), "samples": 0})
        return Tick(stopped=self.folder.stop_mark.exists())


def _stopped_before_it_began(job: Job, folder: RunFolder, group: Group) -> dict[str, Any]:
    summary = {"name": job.name, "status": "stopped", "task": job.stream.task, "samples": 0, "steps": 0}
    if group.rank == 0:
        folder.write_json(folder.summary, {**summary, "workers": group.size, "seed": job.seed})
        folder.settle()
    return summary


def _prepare_process() -> None:
    torch.set_num_threads(1)
    reuse_freed_memory()


def ray_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's loop: `config` holds the job as JSON, its folder, the base of relative paths, and the actor."""
    import ray.train
    import ray.train.torch

    _prepare_process()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with contextlib.suppress(OSError):  # what cannot be found from here is named when it is opened
        os.chdir(config["base"])
    device = ray.train.torch.get_device()
    actor, group = config["actor"], TorchGroup()
    job = Job.model_validate_json(config["job"])
    shared = job.policy.controller.shared
    try:
        with _on_all(group, working_copy(config["folder"], in_step=group.rank == 0)) as folder:
            return live(
                job,
                folder,
                Path(config["base"]),
                group,
                device,
                tell=lambda step, state: publish(actor, step, state),
                report=lambda metrics: ray.train.report(dict(metrics)),
                exchange=share_outcomes(shared, folder.path.name) if shared is not None and group.rank == 0 else None,
                leg=config["leg"],
            )
    except (InputError, RunError) as error:
        # Handed back as a value: Ray would take an exception for a fault and try the same thing again.
        return {"status": "failed", "reason": str(error)}


@contextlib.contextmanager
def _on_all(group: Group, folder: contextlib.AbstractContextManager[RunFolder]) -> Iterator[RunFolder]:
    """A folder that every worker has reached; where one has not, InputError on all of them."""
    with contextlib.ExitStack() as held:
        found, problem = None, None
        try:
            found = held.enter_context(folder)
        except InputError as error:
            problem = str(error)
        agree(group, problem)
        assert found is not None
        yield found


def run_here(
    job: Job,
    folder: RunFolder,
    base: Path,
    *,
    report: Callable[[Mapping[str, Any]], None] = lambda metrics: None,
    report_rows: int | None = None,
    leg: Leg = WHOLE,
) -> dict[str, Any]:
    """The whole run, or a leg of it, in this process, without Ray. `report` is called as in `live`."""
    _prepare_process()
    device = torch.device("cuda" if job.scale.gpus is not False and torch.cuda.is_available() else "cpu")
    return live(job, folder, base, Alone(), device, report=report, report_rows=report_rows, leg=leg)
