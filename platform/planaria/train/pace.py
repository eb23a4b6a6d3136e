"""Whether one worker holds the others up, who wait for it in every step: on rank 0, by what each of them computes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

SLOW_FACTOR = 3.0
"""Of what the median of the others takes: a worker that takes more is slow."""
_WELL_AGAIN_FACTOR = 2.0
_FOR_S = 10.0
"""Before it is named: shorter troubles pass."""
_LEAST_S = 0.005
"""By which a step is held up at least. A factor of next to nothing is of no interest."""
_NEWEST = 0.05
"""Weight of the newest step in the running means."""


@dataclass(frozen=True)
class Slow:
    worker: int
    host: str
    factor: float
    """Of the others' time."""


class Pace:
    """W workers, one host name for each."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = hosts
        self.slow: Slow | None = None
        self._mean_W: npt.NDArray[np.float64] | None = None
        self._since: float | None = None

    def add(self, step: int, busy_W: npt.NDArray[np.float32], now: float) -> None:
        """Seconds that each worker computed in a step, at a time by a clock that never goes back."""
        if len(busy_W) < 2:
            return
        if self._mean_W is None:
            self._mean_W = busy_W.astype(np.float64)
        self._mean_W += _NEWEST * (busy_W - self._mean_W)
        worker = int(np.argmax(self._mean_W))
        own, others = self._mean_W[worker], float(np.median(np.delete(self._mean_W, worker)))
        factor = own / max(others, 1e-9)
        if factor > SLOW_FACTOR and own - others > _LEAST_S:
            self._since = now if self._since is None else self._since
            if now - self._since >= _FOR_S:
                self._name(step, Slow(worker, self.hosts[worker], factor), own, others)
            return
        self._since = None
        if self.slow is not None and factor < _WELL_AGAIN_FACTOR:
            logger.warning("step %d: %s is as fast as the others again", step, self.slow.host)
            self.slow = None

    def _name(self, step: int, found: Slow, own_s: float, others_s: float) -> None:
        """Once, and then only what it has come to."""
        if self.slow is None or self.slow.worker != found.worker:
            logger.warning(
                "step %d: worker %d on %s is slow: it takes %.1f times as long as the others (%.3f s a step, not %.3f)"
                "; all of them wait for it",
                *(step, found.worker, found.host, found.factor, own_s, others_s),
            )
        self.slow = found
