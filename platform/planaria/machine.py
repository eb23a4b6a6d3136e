"""What this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def memory_bytes() -> int:
    """The machine's memory, or what this container may use of it."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control group, or one without a limit
        return machine
