"""What a process and all that it started hold and have spent, read from /proc. Linux only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Started:
    """A process, told from later ones that get its id."""

    pid: int
    start: int
    """Clock ticks since the machine began."""


def below(parent: int) -> Mapping[Started, float]:
    """CPU seconds of every process below one, at any depth; of those that have ended nothing is known."""
    children: dict[int, list[tuple[Started, float]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            one = Started(int(path.parent.name), int(fields[19]))
            children.setdefault(int(fields[1]), []).append((one, (int(fields[11]) + int(fields[12])) / _TICKS))
    found: dict[Started, float] = {}
    at = [parent]
    while at:
        for process, seconds in children.get(at.pop(), ()):
            found[process] = seconds
            at.append(process.pid)
    return found


def command(pid: int) -> str:
    """Its command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def allocated_bytes(pid: int) -> int:
    """Memory that the process has allocated and that is in RAM, its part of what it shares; without mapped files, whose
    part grows when other processes that map them end. 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def open_files(pid: int) -> int:
    """0 where it has ended."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0
