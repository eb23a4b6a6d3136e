"""Rank 0's care for the run's folder: checkpoints, tables, the summary, and a glance at what goes on.

Nothing here changes what the run computes: it only looks at the clock, the folder and the finished step.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from planaria.errors import InputError, RunError
from planaria.model import save_model
from planaria.record.tables import to_json
from planaria.train.checkpoint import CheckpointStore, step_of
from planaria.train.folder import RunFolder
from planaria.train.group import agree
from planaria.train.lifelong import Lifelong, Tick
from planaria.train.pace import Pace
from planaria.train.patience import STORAGE_ERRORS, TakenOver, patiently

logger = logging.getLogger(__name__)
decisions = logging.getLogger("planaria.decisions")
"""One line of JSON for every decision, on rank 0."""

State = Mapping[str, bytes]
"""Of a run, as a checkpoint holds it: see Lifelong.state, which all workers call together."""
_TOLD_OF_DECISION = ("number", "step", "sample", "trigger", "chosen", "predicted", "revision", "seconds", "why")
GLANCE_EVERY_S = 1.0
REPORT_EVERY_S = 10.0
WHILE_OTHERS_WAIT_S = 45.0
"""How long storage may hold rank 0 up at most: less than what the other workers wait for it in a collective."""
_AGAIN_AFTER_S = 5.0
"""Between two tries of a checkpoint that could not be written."""


class Keeper:
    """Keeps one run's folder while the run goes on."""

    def __init__(
        self,
        run: Lifelong,
        folder: RunFolder,
        publish: Callable[[int, Mapping[str, Any]], None],
        message: str | None = None,
        check_held: Callable[[], None] = lambda: None,
        hosts: Sequence[str] = (),
    ) -> None:
        """`message` is what a watcher should know of how the run went on. `check_held` raises TakenOver where another
        process writes the folder by now. `hosts` are the names of each worker's."""
        self.run, self.folder, self.publish, self.message = run, folder, publish, message
        self.check_held = check_held
        self.pace = Pace(hosts)
        storage = run.job.storage
        self.store = CheckpointStore(folder.checkpoints_at, storage.keep_checkpoints)
        self.checkpoint_every_s, self.patience_s = storage.checkpoint_every_s, storage.patience_s
        self.stopping = False
        self.failure: str | None = None
        """Why the folder can no longer be kept; the run then stops on all workers together."""
        self._published = -1
        self._decided = run.account.totals.decisions
        self._restarts = 0
        now = time.monotonic()
        self._glanced, self._reported = now, now
        self._save_at, self._saved_step = now + self.checkpoint_every_s, -1
        self._failing_since: float | None = None
        self._rate_from = (now, run.row)

    def start(self, first: State | None) -> None:
        """Note that workers begin; a first checkpoint, of a run that was not restored, makes sure that nothing is ever
        done twice."""
        self._at_once(self._note_start, WHILE_OTHERS_WAIT_S)
        if first is None:
            self._saved_step = self.run.step
            self._at_once(lambda: self.summarise(self.run.summary("running")), WHILE_OTHERS_WAIT_S)
        else:
            self._at_once(lambda: self.save("running", first), WHILE_OTHERS_WAIT_S)
        self._try(self.folder.settle, "this start is not counted where the run is kept")

    def _note_start(self) -> None:
        line = {"time": time.time(), "step": self.run.step, "workers": self.run.group.size, "message": self.message}
        with self.folder.starts.open("a") as starts:
            starts.write(json.dumps(line) + "\n")
        self._restarts = max(0, self.folder.count_starts() - 1)

    def wants(self) -> Tick:
        """What rank 0 asks all workers to agree on in the next step."""
        now = time.monotonic()
        if now - self._glanced >= GLANCE_EVERY_S:
            self._glanced = now
            self.stopping = self.stopping or self.folder.stop_mark.exists()
            self._try(lambda: self.glance("running"), "its watchers are not shown how it is")
        return Tick(self.stopping, now - self._reported >= REPORT_EVERY_S, now >= self._save_at)

    def wait(self) -> Tick:
        """Called again and again while the stream has no rows: whether to stop, and to keep what was done so far."""
        now = time.monotonic()
        if now - self._glanced >= GLANCE_EVERY_S:
            self._glanced = now
            self._try(lambda: self.glance("waiting"), "its watchers are not shown how it is")
        checkpoint = now >= self._save_at and self._saved_step != self.run.step
        return Tick(self.stopping or self.folder.stop_mark.exists(), checkpoint=checkpoint)

    def keep(self, state: State) -> None:
        """A checkpoint of a run that waits."""
        self._save_or_later("waiting", state)

    def keep_model(self) -> None:
        """Before an edit: keep the revision that ends, if it lived long enough, and only the newest few of those."""
        record = self.run.job.record
        if record.register_model and self.run.account.life.samples >= record.register_after_samples:
            self._try(self._keep_model, f"the model of revision {self.run.account.totals.revisions - 1} is not kept")

    def _keep_model(self) -> None:
        number = self.run.account.totals.revisions - 1
        place = self.folder.models / f"revision-{number:05d}-{self.run.row:012d}"
        partial = self.folder.models / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        save_model(self.run.model, partial, self.run.encoding())
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        for old in sorted(self.folder.models.iterdir())[: -self.run.job.record.register_newest]:
            self.folder.remove(old)

    def after_step(self, reported: bool, state: State | None = None) -> None:
        """`state` is there where a checkpoint is due."""
        now = time.monotonic()
        self._log_decisions()
        self.pace.add(self.run.step, self.run.busy_W, now)
        if reported:
            self._reported = now
        if reported or self.run.controller.decisions != self._published:
            self._published = self.run.controller.decisions
            self.publish(self.run.step, self.run.controller.state())
        if state is not None:
            self._save_or_later("running", state)

    def _log_decisions(self) -> None:
        """A line of JSON for each new decision."""
        records, made = self.run.account.records, self.run.account.totals.decisions
        new, self._decided = made - self._decided, made
        for row in list(records.rows("decisions"))[-new:] if new > 0 else ():
            told = {key: row[key] for key in _TOLD_OF_DECISION}
            decisions.info(to_json({"event": "decision", "run": self.folder.path.name, **told}))

    def _save_or_later(self, status: str, state: State) -> None:
        """A checkpoint that cannot be written is tried again, with what the run is by then, until patience ends."""
        now = time.monotonic()
        try:
            self.check_held()
            self.save(status, state)
        except STORAGE_ERRORS as error:
            began, self._failing_since = self._failing_since is None, self._failing_since or now
            if isinstance(error, TakenOver) or now - self._failing_since >= self.patience_s:
                self._give_up(error)
                return
            self._save_at = now + min(_AGAIN_AFTER_S, self.checkpoint_every_s)
            if began:
                self._warn(error, f"the run goes on, and tries again for up to {self.patience_s:g} s")
        else:
            if self._failing_since is not None:
                logger.warning("%s: can be written again, after %.0f s", self.folder.place, now - self._failing_since)
            self._failing_since = None

    def _try(self, work: Callable[[], None], else_what: str) -> None:
        """What the run can do without while storage fails."""
        try:
            self.check_held()
            work()
        except TakenOver as error:
            self._give_up(error)
        except STORAGE_ERRORS as error:
            if self._failing_since is None:
                self._warn(error, else_what)

    def _at_once(self, work: Callable[[], None], within_s: float) -> None:
        """What the run cannot go on, or end, without."""

        def while_held() -> None:
            self.check_held()
            work()

        try:
            patiently(while_held, within_s)
        except STORAGE_ERRORS as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """The run stops on all workers together, rather than this one alone."""
        self.failure, self.stopping = self._in_words(error), True

    def _warn(self, error: Exception, meanwhile: str) -> None:
        logger.warning("%s; meanwhile %s", self._in_words(error), meanwhile)

    def _in_words(self, error: Exception) -> str:
        if isinstance(error, RunError):
            return str(error)
        reason = getattr(error, "strerror", None) or error
        return (
            f"{self.folder.place}: cannot be written ({reason}); free some space or mend the folder's rights, then "
            f"`planaria resume {self.folder.place}`"
        )

    def save(self, status: str, state: State, summary: Mapping[str, Any] | None = None) -> None:
        """Checkpoint, tables and summary, in this order: what is shown is never ahead of what can be resumed."""
        self.store.save(self.run.step, state, before_dropping=self.check_held)
        self.run.account.records.write(self.folder.path)
        self.folder.write_json(self.folder.learned, self.run.controller.judge.state())
        self.summarise({**(summary or self.run.summary(status))})
        self._save_at, self._saved_step = time.monotonic() + self.checkpoint_every_s, self.run.step

    def end(self, status: str, state: State) -> dict[str, Any]:
        """The last word on a run that ends between two steps, "stopped" or "failed". Raises RunError."""
        return self._last_word(lambda: self.save(status, state), status)

    def summarise(self, summary: dict[str, Any]) -> None:
        kept = self.folder.read_json(self.folder.summary)
        restarts = max(0, self.folder.count_starts() - 1)
        run_id = kept.get("mlflow_run_id")
        self.folder.write_json(self.folder.summary, {**summary, "restarts": restarts, "mlflow_run_id": run_id})

    def finish(self, status: str, final: Mapping[int, tuple[float, float]], state: State) -> dict[str, Any]:
        """Write the end of a run that is done; `final` is what it came to (Lifelong.finish), and the checkpoint is that
        of the last step. Raises RunError."""
        summary = self.run.summary(status, final)

        def work() -> None:
            save_model(self.run.model, self.folder.served, self.run.encoding())
            self.save(status, state, summary)

        return self._last_word(work, status)

    def _last_word(self, work: Callable[[], None], status: str) -> dict[str, Any]:
        if self.failure is None:
            self._at_once(work, self.patience_s)
        if self.failure is None:
            self._at_once(lambda: self.glance(status), self.patience_s)
        if self.failure is None:
            self._at_once(self.folder.settle, self.patience_s)
        if self.failure is not None:
            raise RunError(self.failure)
        return self.folder.read_json(self.folder.summary)

    def glance(self, status: str) -> None:
        """What a watcher sees: live.json, replaced about once a second."""
        run, now = self.run, time.monotonic()
        since, rows = self._rate_from
        rate = (run.row - rows) / (now - since) if now > since else 0.0
        if now - since > 5:
            self._rate_from = (now, run.row)
        totals, pulse = run.account.totals, run.controller.pulse
        count = max(1, totals.samples)
        scores: dict[str, Any] = {"prequential_mae": totals.error / count, "mae_recent": pulse.error_fast}
        if run.task == "classification":
            scores = {"prequential_accuracy": 1 - totals.error / count, "accuracy_recent": 1 - pulse.error_fast}
        self.folder.write_json(
            self.folder.live,
            {
                "status": status,
                "time": time.time(),
                "step": run.step,
                "samples": run.row,
                "total_samples": run.job.samples if run.job.samples is not None else run.stream.total_rows,
                "samples_per_second": rate,
                "shifts": totals.shifts,
                "edits": totals.grows + totals.shrinks,
                "revision": totals.revisions - 1,
                "heads": list(run.blueprint.heads),
                "parameters": run.blueprint.parameters,
                "decisions": totals.decisions,
                "decision_seconds": totals.decision_seconds,
                "workers": run.group.size,
                "slow": None if self.pace.slow is None else asdict(self.pace.slow),
                "restarts": self._restarts,
                "lag_rows": self._lag(),
                "message": self._told(),
                **scores,
            },
        )

    def _told(self) -> str | None:
        """What a watcher should know now, in words that stay the same for as long as it is so."""
        if self._failing_since is not None:
            return "checkpoints cannot be written; the run goes on and tries again"
        if (slow := self.pace.slow) is not None:
            return f"worker {slow.worker} on {slow.host} is slow, and all others wait for it"
        return self.message

    def _lag(self) -> int | None:
        """Rows that have arrived in a followed folder and wait to be learned from, as far as the stream looks ahead."""
        if not self.run.job.stream.follow:
            return None
        try:
            return self.run.stream.available(self.run.row)
        except RunError:
            return None  # the step that reads them says what is wrong


@dataclass(frozen=True)
class Restored:
    step: int | None
    """None where there was no checkpoint to go on from."""
    message: str | None = None
    """What was wrong with a newer one."""


def restore(run: Lifelong, store: CheckpointStore) -> Restored:
    """Load the newest whole checkpoint, on every worker the one that rank 0 takes.

    Raises InputError where there are checkpoints but none can be used.
    """
    name, problem = _newest(run, store) if run.group.rank == 0 else (None, None)
    name, problem = run.group.share((name, problem))
    if name is None and problem is not None:
        raise InputError(f"{store.folder}: no usable checkpoint ({problem}); start the job again in a new folder")
    failed = None
    if name is not None and run.group.rank != 0:
        try:
            run.load_state(store.read(name))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            failed = f"{store.folder}/{name}: cannot be read on every worker ({error}); let all nodes see this folder"
    agree(run.group, failed)
    return Restored(None if name is None else step_of(name), problem)


def _newest(run: Lifelong, store: CheckpointStore) -> tuple[str | None, str | None]:
    """The checkpoint that could be loaded, and what was wrong with newer ones (or with all of them)."""
    passed_over = store.names()
    problem = None
    for name, parts in store.whole():
        try:
            run.load_state(parts)
        except InputError as error:
            problem = f"{name}: {error}"
            logger.warning("%s/%s", store.folder, problem)
            continue
        newer = passed_over[: passed_over.index(name)]
        if newer and problem is None:
            problem = f"{newer[0]} is damaged"
        return name, f"{problem}; went on from {name}" if newer else None
    damaged = store.begun()
    return None, problem or (f"{damaged[0]} is damaged" if damaged else None)
