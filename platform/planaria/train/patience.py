"""Storage that fails for a while is tried again for a bounded time, and named in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from safetensors import SafetensorError

from planaria.errors import RunError

logger = logging.getLogger(__name__)

T = TypeVar("T")

STORAGE_ERRORS = (RunError, OSError, SafetensorError)
"""What writing into a run's folder may raise."""
_AGAIN_AFTER_S = 1.0


class TakenOver(RunError):
    """Another process has gone on with the run: nothing that this one does may be kept any more."""


def patiently(work: Callable[[], T], within_s: float) -> T:
    """What `work` returns once it succeeds. Raises its error where it still fails after so many seconds."""
    until, told = time.monotonic() + within_s, False
    while True:
        try:
            done = work()
        except TakenOver:
            raise
        except STORAGE_ERRORS as error:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise
            if not told:
                logger.warning("%s; trying again for up to %.0f s", error, left_s)
                told = True
            time.sleep(min(_AGAIN_AFTER_S, left_s))
        else:
            if told:
                logger.warning("storage is back")
            return done
