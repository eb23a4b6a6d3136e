"""Recording a run's folder into MLflow, from the driver alone. A store that fails never fails the run."""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planaria.addresses import mask_secrets
from planaria.errors import InputError, RunError
from planaria.plain_json import read_json
from planaria.record.registry import register
from planaria.record.stored_run import STATUSES, StoredRun, read_summary
from planaria.record.tables import SCHEMAS, read_rows, write_atomically
from planaria.record.tracking import connect, embedded_uri, experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

RECORDS = "records"
"""Where the tables lie among a run's artifacts."""
_MARKS = "mlflow.json"
_LONGEST_WAIT_S = 120.0


class MlflowRecorder:
    """Sends what is new in a run's folder, again and again, until the run has ended and all is stored.

    Belongs to the driver process; its methods may be called from any one of its threads.
    """

    def __init__(self, tracking_uri: str | None, experiment: str, folder: Path, retry_s: float = 2.0) -> None:
        """`tracking_uri` None is a SQLite store inside `folder`. After a failure the store is left alone for
        `retry_s`, then for twice as long each time, up to two minutes."""
        self._uri = tracking_uri or embedded_uri(folder)
        self._shown_uri = mask_secrets(tracking_uri) if tracking_uri else "embedded"
        self._experiment, self._folder, self._retry_s = experiment, folder, retry_s
        self._name, self._job, self._model_name = folder.name, {}, None  # type: tuple[str, Mapping[str, Any], str | None]
        self._client: MlflowClient | None = None
        self._run: StoredRun | None = None
        self._files_sent: tuple[int, ...] | None = None
        self._models_sent: set[str] = set()
        self._failures, self._next_try = 0, 0.0
        self._pending = True
        self._lock = threading.RLock()

    @property
    def run_id(self) -> str | None:
        """The parent run's id; None as long as the store could not be reached."""
        return self._run.run_id if self._run else _read_marks(self._folder).get("run_id")

    def start(self, job_name: str, job: Mapping[str, Any]) -> str | None:
        """Make the run, or find the one that this folder has had before, and return its id.

        None where the store is down; the run is then made by a later `sync`.
        """
        self._name, self._job = job_name, job
        record = job.get("record")
        registers = not isinstance(record, Mapping) or record.get("register_model", True)
        self._model_name = job_name if registers else None
        self._attempt(lambda: self._send(final=None))
        return self.run_id

    def sync(self) -> bool:
        """Send what is new. True where all that the folder holds is stored; a failing store is waited for."""
        if time.monotonic() < self._next_try:
            return False
        return self._attempt(lambda: self._send(final=None))

    def pending(self) -> bool:
        """Whether something in the folder could not be sent yet."""
        return self._pending

    def finish(self, status: str) -> bool:
        """Send the rest, the report and the model, and end the run as "done", "stopped" or "failed".

        True where all is stored. Otherwise the records are kept; a new recorder for the folder sends them.
        """
        if status not in STATUSES:
            raise ValueError(f"status is {status!r}; it must be one of {sorted(STATUSES)}")
        return self._attempt(lambda: self._send(final=status))

    def _attempt(self, send: Callable[[], None]) -> bool:
        with self._lock:
            try:
                send()
            except Exception as error:  # Stores, databases, networks and disks each have their own errors.
                self._note_failure(error)
                return False
            if self._failures:
                logger.info("MLflow: %s is back, all records are sent", mask_secrets(self._uri))
            self._failures, self._next_try, self._pending = 0, 0.0, False
            return True

    def _note_failure(self, error: Exception) -> None:
        """Warn once per outage, and start afresh at the next try: what was stored is then asked of the store."""
        if not self._failures:
            kept = f"records are kept in {self._folder} and sent when it is back"
            logger.warning("MLflow: %s cannot be written (%s); %s", mask_secrets(self._uri), _reason(error), kept)
        self._run = self._client = None
        self._files_sent = None
        self._models_sent.clear()
        self._pending = True
        wait_s = min(_LONGEST_WAIT_S, self._retry_s * 2**self._failures)
        self._failures, self._next_try = self._failures + 1, time.monotonic() + wait_s

    def _send(self, final: str | None) -> None:
        run = self._connected()
        steps = read_rows(self._folder, "steps")
        revisions, shifts = read_rows(self._folder, "revisions"), read_rows(self._folder, "shifts")
        if final is None and read_summary(self._folder).get("status") != "done":
            run.reopen()
        # The last interval may still grow: while the run goes on, it is not sent.
        run.send_steps(steps if final else steps[:-1])
        run.send_shifts(shifts)
        run.send_revisions(revisions, STATUSES[final] if final else None)
        self._register_revisions(run)
        if final:
            self._send_end(run, final, steps[-1]["samples"] if steps else 0)
        elif self._files_sent != (len(revisions), len(shifts)):
            run.send_files(self._files(), RECORDS)
            self._files_sent = (len(revisions), len(shifts))

    def _register_revisions(self, run: StoredRun) -> None:
        """Models of earlier revisions that the run has kept, each once."""
        assert self._client is not None
        kept = sorted((self._folder / "models").glob("revision-*")) if self._model_name else []
        for place in kept:
            if place.name not in self._models_sent:
                _, revision, samples = place.name.split("-")
                register(self._client, run.run_id, str(self._model_name), place, int(revision), int(samples))
                self._models_sent.add(place.name)

    def _send_end(self, run: StoredRun, status: str, samples: int) -> None:
        assert self._client is not None
        self._note_run_id(run.run_id)
        summary = read_summary(self._folder)
        if summary:
            run.send_summary(summary, samples)
        run.send_files(self._files(), RECORDS)
        report = self._folder / "report.html"
        run.send_files([report] if report.exists() else [])
        model = self._folder / "model"
        if self._model_name and model.is_dir():
            revision = int(summary.get("revisions") or 1) - 1
            register(self._client, run.run_id, self._model_name, model, revision, samples)
        run.end(STATUSES[status])

    def _connected(self) -> StoredRun:
        if self._run is None or self._client is None:
            self._client = connect(self._uri)
            experiment = experiment_id(self._client, self._uri, self._experiment)
            self._run = StoredRun(self._client, experiment, self._key(), self._name)
            self._run.describe(self._job)
            self._write_marks({"run_id": self._run.run_id})
        return self._run

    def _key(self) -> str:
        """What this folder's run is found by; made before the run is, so that a crash between leaves no orphan."""
        key = _read_marks(self._folder).get("key")
        if key is None:
            key = uuid.uuid4().hex
            self._write_marks({"key": key})
        return key

    def _write_marks(self, marks: Mapping[str, str]) -> None:
        known = {**_read_marks(self._folder), "tracking_uri": self._shown_uri, "experiment": self._experiment, **marks}
        content = json.dumps(known, indent=1).encode()
        write_atomically(self._folder / _MARKS, lambda file: file.write(content))

    def _note_run_id(self, run_id: str) -> None:
        """The run has ended, so nobody else writes its summary now."""
        summary = read_summary(self._folder)
        if summary and summary.get("mlflow_run_id") != run_id:
            content = json.dumps({**summary, "mlflow_run_id": run_id}, indent=1).encode()
            write_atomically(self._folder / "summary.json", lambda file: file.write(content))

    def _files(self) -> list[Path]:
        names = [*(f"{table}.parquet" for table in SCHEMAS), "job.yaml", "summary.json", "controller.json"]
        return [path for name in names if (path := self._folder / name).exists()]


@contextmanager
def fetched_records(run_id: str, tracking_uri: str) -> Iterator[Path]:
    """A temporary folder with the records that a run left in the store.

    Raises InputError where the store or the run cannot be read, or the run holds no records of ours.
    """
    shown = mask_secrets(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="planaria-") as temporary:
        try:
            client = connect(tracking_uri)
            held = {item.path for item in client.list_artifacts(run_id)}
            if RECORDS in held:
                client.download_artifacts(run_id, RECORDS, temporary)
        except Exception as error:  # As above: the store's own errors, of any type.
            why = _reason(error)
            raise InputError(f"{shown}: run {run_id} cannot be read ({why}); correct the id or the URI") from None
        if RECORDS not in held:
            raise InputError(f"{shown}: run {run_id} holds no records of planaria; give the id of a stream's run")
        folder = Path(temporary) / RECORDS
        (folder / _MARKS).write_text(json.dumps({"tracking_uri": shown, "run_id": run_id}))
        yield folder


def _reason(error: BaseException) -> str:
    """One short line. Network errors come wrapped in several others: the innermost says what happened."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    system = next((e.strerror for e in reversed(chain) if isinstance(e, OSError) and e.strerror), None)
    lines = mask_secrets(str(error)).strip().splitlines() or [type(error).__name__]
    return system or lines[0][:200]


def _read_marks(folder: Path) -> dict[str, str]:
    """The key and the id of the folder's run; nothing before there is one. Raises RunError where it is broken."""
    path = folder / _MARKS
    try:
        marks = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete it to record into a new MLflow run") from None
    return {str(name): str(value) for name, value in marks.items()} if isinstance(marks, dict) else {}
