"""Who drives or writes a run that is kept where there are no file locks: a small object that names the holder.

A driver writes its lease anew every few seconds; one that has not changed for LEASE_S is a dead process's and may be
taken over. A writer takes its lease at once, and whoever held it before stops at its next look: Ray has given it up.
Clocks of different machines are never compared.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from pyarrow import fs

REFRESH_S = 5.0
LEASE_S = 20.0
_SETTLED_AFTER_S = 0.5
_LOOK_EVERY_S = 1.0
_READS = 5


class Lease:
    """One object on a filesystem. Its methods raise OSError where the filesystem cannot be reached."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self.filesystem, self.path = filesystem, path
        self._holder = uuid.uuid4().hex

    def take(self) -> bool:
        """Take it, unless a living process holds it; False then."""
        if self._is_held():
            return False
        self.write()
        # Of two that take it at the same moment, the later one has it.
        time.sleep(_SETTLED_AFTER_S)
        return not self.is_lost()

    def write(self) -> None:
        """Say that it is held by this process, now."""
        about = {"holder": self._holder, "machine": _machine(), "process": _process(os.getpid()), "time": time.time()}
        with self.filesystem.open_output_stream(self.path) as stream:
            stream.write(json.dumps(about).encode())

    def is_lost(self) -> bool:
        """Whether another process has taken it."""
        found = self._read()
        return found is not None and found.get("holder") != self._holder

    def release(self) -> None:
        if not self.is_lost():
            self.filesystem.delete_file(self.path)

    def _is_held(self) -> bool:
        """Whether a living process holds it: at once for one of this machine, else after a look of LEASE_S."""
        found = self._read()
        if found is None or found.get("holder") == self._holder:
            return False
        if found.get("machine") == _machine():
            number = str(found.get("process")).partition("@")[0]
            return number.isdigit() and _process(int(number)) == found["process"]
        until = time.monotonic() + LEASE_S
        while time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
            if self._read() != found:
                return True
        return False

    def _read(self) -> dict[str, Any] | None:
        """What it says; None where there is none."""
        for _ in range(_READS):
            try:
                with self.filesystem.open_input_stream(self.path) as stream:
                    return dict(json.loads(stream.read()))
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):  # replaced while it was read
                time.sleep(_SETTLED_AFTER_S / _READS)
        raise OSError(f"{self.path} cannot be understood")


def _machine() -> str:
    """Equal for processes that see each other's ids, for as long as the machine is up."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _process(number: int) -> str | None:
    """A process's id and its time of birth, by which it differs from a later one of the same id; None if there is
    none."""
    try:
        after_name = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] == "Z" else f"{number}@{after_name[19]}"
