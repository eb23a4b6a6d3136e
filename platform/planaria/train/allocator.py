"""The C library's memory allocator, told to keep what a step frees for the next step."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
"""From glibc's malloc.h."""
_LARGEST_KEPT = 32 << 20
"""The most that glibc accepts; larger blocks still come from the system and go back to it."""
_KEPT_AT_MOST = 1 << 30
_GROW_BY = 64 << 20


def reuse_freed_memory() -> None:
    """By default glibc returns the large blocks of a step to the system, and the next step pays for every page anew:
    15% of a CPU step (docs/benchmarks.md). Does nothing where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, value in (
        (_M_MMAP_THRESHOLD, _LARGEST_KEPT),
        (_M_TRIM_THRESHOLD, _KEPT_AT_MOST),
        (_M_TOP_PAD, _GROW_BY),
    ):
        mallopt(setting, value)
