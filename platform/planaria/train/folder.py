"""A run's folder: names of its files, small atomic writes, and the marks by which processes talk through it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from planaria.errors import InputError, RunError
from planaria.plain_json import read_json
from planaria.train.mirror import Mirror
from planaria.train.patience import TakenOver
from planaria.uri import below, is_uri, local_path, name_of

_LEAST_ROOM_BYTES = 1 << 20
"""A folder with less room than this could not hold a first checkpoint and the record."""


class Hold(Protocol):
    """A process's right to write a run's folder."""

    def check(self) -> None:
        """Raises TakenOver where another process has this right by now, OSError where that cannot be known."""


@dataclass(frozen=True)
class LockFile:
    """A right that lasts for as long as its lock file is the one that lies there."""

    lock: Path
    descriptor: int

    def check(self) -> None:
        """As Hold.check."""
        mine, there = os.fstat(self.descriptor), self.lock.stat()
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise TakenOver(f"{self.lock.parent}: another process has gone on with this run; this one stops")


@dataclass(frozen=True)
class RunFolder:
    path: Path
    """Where this process works."""
    mirror: Mirror | None = None
    """Of a run that is kept at a URI: `path` is then a folder of this process alone, kept in step with it."""

    @property
    def place(self) -> str:
        """What the user calls it: the path, or the URI."""
        return str(self.path) if self.mirror is None else self.mirror.uri

    @property
    def checkpoints_at(self) -> str:
        """Where all processes of the run find its checkpoints: a path or a URI."""
        return str(self.checkpoints) if self.mirror is None else below(self.mirror.uri, "checkpoints")

    @property
    def job(self) -> Path:
        return self.path / "job.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def live(self) -> Path:
        return self.path / "live.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def learned(self) -> Path:
        """What the controller has learned from its own edits, for other runs to begin with."""
        return self.path / "controller.json"

    @property
    def inherited(self) -> Path:
        """What this run's controller begins with, where its policy names another run."""
        return self.path / "controller_from.json"

    @property
    def stop_mark(self) -> Path:
        """While this file exists, the run is asked to stop at its next checkpoint."""
        return self.path / "stop"

    @property
    def starts(self) -> Path:
        """One line for each time that workers began (or began again) to run."""
        return self.path / "starts.jsonl"

    @property
    def models(self) -> Path:
        """Models of revisions that lived long enough to be worth serving: `revision-NUMBER-SAMPLES`."""
        return self.path / "models"

    @property
    def served(self) -> Path:
        """The newest model, as serving loads it."""
        return self.path / "model"

    def make(self) -> bool:
        """True where the folder was not there before. Raises InputError where it cannot be made or written to."""
        if self.mirror is not None:
            return self.mirror.is_empty()
        new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            try:
                probe.write_bytes(b"\0" * _LEAST_ROOM_BYTES)
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            if new:
                self.remove_if_unused()
            raise InputError(
                f"{self.path}: cannot write here ({error.strerror}); choose another folder with --out, or mend its "
                "rights or free some space"
            ) from None
        return new

    def remove_if_unused(self) -> None:
        """Where nothing was started in it."""
        if self.mirror is not None:
            self.mirror.remove_if_unused()
            return
        with contextlib.suppress(OSError):
            if all(path.suffix == ".lock" for path in self.path.iterdir()):
                for path in self.path.iterdir():
                    path.unlink()
                self.path.rmdir()

    @contextlib.contextmanager
    def held(self, by: str, wait_s: float = 0.0, *, take_over: bool = False) -> Iterator[Hold]:
        """Only one process at a time drives the run, and only one writes it; a killed one's hold ends with it.

        Where another one still holds it after `wait_s`, it is taken from that one, which finds out by Hold.check, or
        InputError is raised. At a URI, leases do what locks do on a disk.
        """
        if self.mirror is not None:
            with self.mirror.held(by, take_over=take_over) as hold:
                yield hold
            return
        path = self.path / f".{by}.lock"
        until = time.monotonic() + wait_s
        with contextlib.ExitStack() as opened:
            lock = opened.enter_context(path.open("a"))
            while not _locked(lock.fileno()):
                if time.monotonic() >= until:
                    if take_over:
                        break
                    raise InputError(
                        f"{self.path}: another process runs this; wait for it, or `planaria stop {self.path}` first"
                    )
                time.sleep(0.1)
            if take_over:
                # A file of its own, since a host that cannot be reached may hold the old one for minutes, and some
                # filesystems know no locks.
                own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
                lock = opened.enter_context(own.open("a"))
                _locked(lock.fileno())
                own.replace(path)
            yield LockFile(path, lock.fileno())

    def settle(self) -> None:
        """What was written here is where the run is kept, once this returns. Raises RunError."""
        if self.mirror is not None:
            self.mirror.settle()

    def put_store(self, database: str, artifacts: str) -> None:
        """Put an embedded MLflow store where the run is kept. Raises RunError."""
        if self.mirror is not None:
            self.mirror.put_store(database, artifacts)

    def ask_to_stop(self) -> None:
        """Ask whoever runs it to stop at its next checkpoint. Raises InputError where the mark cannot be left."""
        if self.mirror is not None:
            self.mirror.leave(self.stop_mark.name)
            return
        try:
            self.stop_mark.touch()
        except OSError as error:
            raise InputError(f"{self.path}: cannot write here ({error.strerror}); ask as the run's user") from None

    def remove(self, path: Path) -> None:
        """A file, or a model's folder; wherever the run is kept."""
        if self.mirror is not None:
            self.mirror.forget(str(path.relative_to(self.path)))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        self.write_text(path, json.dumps(values, indent=1))

    def write_text(self, path: Path, text: str) -> None:
        """Readers see the old content or the new, never half of it. Raises RunError where there is no room."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}); free some space, then `planaria resume {self.place}`"
            ) from None

    def read_json(self, path: Path) -> dict[str, Any]:
        """An empty mapping where the file is not there (yet)."""
        try:
            content = read_json(path)
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def count_starts(self) -> int:
        return len(self.starts.read_text().splitlines()) if self.starts.exists() else 0


@contextlib.contextmanager
def working_copy(place: str | Path, *, in_step: bool = False) -> Iterator[RunFolder]:
    """A run's folder to work in: the folder itself, or for a URI one of this process, with what is kept there.

    `in_step` keeps both sides equal from then on. Raises InputError where the URI cannot be reached.
    """
    if not is_uri(place):
        yield RunFolder(local_path(place))
        return
    uri = str(place)
    if name_of(uri) in ("", ".", ".."):
        raise InputError(f"{uri}: names no run's folder; give one, such as s3://bucket/runs/name")
    with contextlib.ExitStack() as held:
        above = held.enter_context(tempfile.TemporaryDirectory(prefix="planaria-", ignore_cleanup_errors=True))
        local = Path(above) / name_of(uri)
        local.mkdir()
        mirror = Mirror(uri, local)
        mirror.fetch()
        if in_step:
            held.enter_context(mirror.in_step())
        yield RunFolder(local, mirror)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A filesystem that knows no locks cannot help here; one that does says EWOULDBLOCK.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
