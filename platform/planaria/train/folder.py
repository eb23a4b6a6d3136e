"""A run's folder: names of its files, small atomic writes, and the marks by which processes talk through it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.errors import InputError, RunError
from planaria.plain_json import read_json
from planaria.train.patience import TakenOver

_LEAST_ROOM_BYTES = 1 << 20
"""A folder with less room than this could not hold a first checkpoint and the record."""


@dataclass(frozen=True)
class Hold:
    """A process's right to write a run's folder, for as long as its lock file is the one that lies there."""

    lock: Path
    descriptor: int

    def check(self) -> None:
        """Raises TakenOver where another process has this right by now, OSError where that cannot be known."""
        mine, there = os.fstat(self.descriptor), self.lock.stat()
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise TakenOver(f"{self.lock.parent}: another process has gone on with this run; this one stops")


@dataclass(frozen=True)
class RunFolder:
    path: Path

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
        with contextlib.suppress(OSError):
            if all(path.suffix == ".lock" for path in self.path.iterdir()):
                for path in self.path.iterdir():
                    path.unlink()
                self.path.rmdir()

    @contextlib.contextmanager
    def held(self, by: str, wait_s: float = 0.0, *, take_over: bool = False) -> Iterator[Hold]:
        """Only one process at a time drives the run, and only one writes it; a killed one's hold ends with it.

        Where another one still holds it after `wait_s`, it is taken from that one, which finds out by Hold.check, or
        InputError is raised.
        """
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
            yield Hold(path, lock.fileno())

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
                f"{path}: cannot be written ({error.strerror}); free some space, then `planaria resume {self.path}`"
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


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A filesystem that knows no locks cannot help here; one that does says EWOULDBLOCK.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True
