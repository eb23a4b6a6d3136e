"""Rank 0's care for the run's folder: checkpoints, tables, the summary, and a glance at what goes on.

Nothing here changes what the run computes: it only looks at the clock, the folder and the finished step.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from planaria.errors import InputError, RunError
from planaria.model import save_model
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import RunFolder
from planaria.train.lifelong import Lifelong

logger = logging.getLogger(__name__)

GLANCE_EVERY_S = 1.0
REPORT_EVERY_S = 10.0


class Keeper:
    """Keeps one run's folder while the run goes on."""

    def __init__(self, run: Lifelong, folder: RunFolder, publish: Callable[[int, Mapping[str, Any]], None]) -> None:
        self.run, self.folder, self.publish = run, folder, publish
        storage = run.job.storage
        self.store = CheckpointStore(str(folder.checkpoints), storage.keep_checkpoints)
        self.checkpoint_every_s = storage.checkpoint_every_s
        self.stopping = False
        self.failure: str | None = None
        """Why the folder can no longer be kept; the run then stops on all workers together."""
        self._published = -1
        now = time.monotonic()
        self._glanced, self._saved, self._reported = now, now, now
        self._rate_from = (now, run.row)

    def start(self) -> None:
        """Note that workers begin; a first checkpoint makes sure that nothing is ever done twice."""
        line = {"time": time.time(), "step": self.run.step, "workers": self.run.group.size}
        with self.folder.starts.open("a") as starts:
            starts.write(json.dumps(line) + "\n")
        if self.run.step == 0:
            self.save("running")

    def wants(self) -> tuple[bool, bool]:
        """(stop, report): what rank 0 asks all workers to agree on in the next step."""
        now = time.monotonic()
        if now - self._glanced >= GLANCE_EVERY_S:
            self._glanced = now
            self.stopping = self.stopping or self.folder.stop_mark.exists()
            self._guard(lambda: self.glance("running"))
        return self.stopping, now - self._reported >= REPORT_EVERY_S

    def after_step(self, reported: bool) -> None:
        now = time.monotonic()
        if reported:
            self._reported = now
        if self.run.controller.decisions != self._published:
            self._published = self.run.controller.decisions
            self.publish(self.run.step, self.run.controller.state())
        if now - self._saved >= self.checkpoint_every_s:
            self._guard(lambda: self.save("running"))

    def _guard(self, work: Callable[[], None]) -> None:
        """A folder that cannot be written stops the run on all workers together, rather than this one alone."""
        try:
            work()
        except (RunError, OSError) as error:
            self.failure, self.stopping = str(error), True

    def save(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Checkpoint, tables and summary, in this order: what is shown is never ahead of what can be resumed."""
        self.store.save(self.run.step, self.run.state())
        self.run.records.write(self.folder.path)
        self.summarise({**(summary or self.run.summary(status))})
        self._saved = time.monotonic()

    def summarise(self, summary: dict[str, Any]) -> None:
        kept = self.folder.read_json(self.folder.summary)
        restarts = max(0, self.folder.count_starts() - 1)
        run_id = kept.get("mlflow_run_id")
        self.folder.write_json(self.folder.summary, {**summary, "restarts": restarts, "mlflow_run_id": run_id})

    def finish(self, status: str) -> dict[str, Any]:
        """Write the end of a run that is done; the checkpoint is that of the last step."""
        final = self.run.finish()
        summary = self.run.summary(status, final)
        self.save(status, summary)
        save_model(self.run.model, self.folder.served, self.run.encoding())
        self.glance(status)
        return self.folder.read_json(self.folder.summary)

    def glance(self, status: str) -> None:
        """What a watcher sees: live.json, replaced about once a second."""
        run, now = self.run, time.monotonic()
        since, rows = self._rate_from
        rate = (run.row - rows) / (now - since) if now > since else 0.0
        if now - since > 5:
            self._rate_from = (now, run.row)
        totals, pulse = run.totals, run.controller.pulse
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
                "message": None,
                **scores,
            },
        )


def restore(run: Lifelong, store: CheckpointStore) -> bool:
    """Load the newest whole checkpoint, on every worker the one that rank 0 takes. False where there is none.

    Raises InputError where there are checkpoints but none can be used.
    """
    broken = ""
    step = -1
    if run.group.rank == 0:
        for found, parts in store.whole():
            try:
                run.load_state(parts)
                step = found
                break
            except InputError as error:
                broken = str(error)
                logger.warning("%s/step-%012d: %s", store.folder, found, error)
        if step < 0 and (broken or store.steps()):
            broken = broken or "every file of it is damaged"
    step, broken = run.group.share((step, broken))
    if step < 0:
        if broken:
            raise InputError(f"{store.folder}: no usable checkpoint ({broken}); start the job again in a new folder")
        return False
    if run.group.rank != 0:
        run.load_state(store.whole_at(step))
    return True
