"""The newest rows of an endless sequence, without copying them all whenever some are added."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LEAST_ROWS = 256


class Tail:
    """Rows [N, ...] that are added behind and dropped in front. They lie in a buffer with room behind them; when that
    is used up, they move to the front of one twice as large as they are."""

    def __init__(self, rows: npt.NDArray[Any]) -> None:
        self._buffer, self._first, self._end = rows, 0, len(rows)

    def __len__(self) -> int:
        return self._end - self._first

    @property
    def rows(self) -> npt.NDArray[Any]:
        """A view, valid until rows are added."""
        return self._buffer[self._first : self._end]

    def add(self, rows: npt.NDArray[Any]) -> None:
        end = self._end + len(rows)
        if end > len(self._buffer):
            held = self.rows
            self._buffer = np.empty((max(_LEAST_ROWS, 2 * (len(held) + len(rows))), *held.shape[1:]), held.dtype)
            self._buffer[: len(held)] = held
            self._first, self._end, end = 0, len(held), len(held) + len(rows)
        self._buffer[self._end : end] = rows
        self._end = end

    def drop(self, count: int) -> None:
        """The oldest `count` rows go; none where it is negative."""
        self._first += max(0, min(count, len(self)))
