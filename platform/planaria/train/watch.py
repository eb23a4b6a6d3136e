"""Which rows are watched: seen by the detectors, the memory, the readout and the router, on every worker.

What is watched costs every worker the same, however many there are; so a step has a bound for it, and the rows of a
larger one are sampled. Which rows that are follows from the job and the row number alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planaria.job import Job
from planaria.stream.chance import key, uniform


class Watch:
    """All rows of steps of up to `scale.watched_rows`; of larger ones about so many."""

    def __init__(self, job: Job) -> None:
        self._most, self._batch = job.scale.watched_rows, job.batch_rows
        self._fraction = job.batch_fraction
        self._key = key(job.seed, "watched")

    def among(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Which of the stream's rows `start` to `start + count` are watched, counted from `start`, ascending."""
        if self._batch <= self._most:
            return np.arange(count)
        row_B = np.arange(start, start + count)
        return np.flatnonzero(uniform(self._key, row_B) * self._step_rows(row_B) < self._most)

    def _step_rows(self, row_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | int:
        """Of a step that would begin with the row, about."""
        if self._fraction is None:
            return self._batch
        return np.minimum(self._batch, (self._fraction * row_B).astype(np.int64))
