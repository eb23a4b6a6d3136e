"""The newest rows as the detectors saw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.cells import CELLS, CellNumbers
from planaria.detect.saved import Saved, pack
from planaria.detect.tail import Tail

HISTORY_ROWS = 2_048


class History:
    """Sketch and cell of the newest watched rows, found by their place among all that were watched."""

    def __init__(self, features: int) -> None:
        self._features = features
        self.seen = 0
        self._sketch_NF = Tail(np.zeros((0, features), np.float32))
        self._cell_N = Tail(np.zeros(0, np.int64))
        self._number_N = Tail(np.zeros(0, np.int64))

    def add(self, number_B: npt.NDArray[np.int64], sketch_BF: npt.NDArray[np.float32], cell_B: CellNumbers) -> None:
        """A batch larger than the history keeps it all until the next."""
        for tail, rows in ((self._sketch_NF, sketch_BF), (self._cell_N, cell_B), (self._number_N, number_B)):
            tail.drop(len(tail) - max(0, HISTORY_ROWS - len(rows)))
            tail.add(rows)
        self.seen += len(cell_B)

    @property
    def first(self) -> int:
        """Place of the oldest row held."""
        return self.seen - len(self._cell_N)

    def between(self, start: int, end: int) -> tuple[npt.NDArray[np.float32], CellNumbers]:
        """Sketch and cell of rows `start` to `end`, as far as they are still held."""
        rows = slice(max(0, start - self.first), max(0, end - self.first))
        return self._sketch_NF.rows[rows], self._cell_N.rows[rows]

    def number(self, place: int) -> int:
        """Number in the stream of the row at that place. Of one that is not held any more, as if rows before the oldest
        had been as far apart as those held; of one that is still to come, as if it were the next."""
        number_N, at = self._number_N.rows, place - self.first
        if not len(number_N):
            return place
        if at >= len(number_N):
            return int(number_N[-1]) + 1 + at - len(number_N)
        if at >= 0:
            return int(number_N[at])
        apart = (int(number_N[-1]) - int(number_N[0])) / max(1, len(number_N) - 1)
        return max(0, round(int(number_N[0]) + at * apart))

    def state(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "number": pack(self._number_N.rows),
            "sketch": pack(self._sketch_NF.rows),
            "cell": pack(self._cell_N.rows.astype(np.int16)),
        }

    def load_state(self, saved: Saved) -> None:
        self.seen = saved.integer("seen")
        sketch_NF = saved.array("sketch", np.float32, (None, self._features))
        cell_N = saved.array("cell", np.int16, (len(sketch_NF),)).astype(np.int64)
        number_N = np.arange(self.seen - len(cell_N), self.seen)
        if saved.holds("number"):  # not in checkpoints of versions that watched every row
            number_N = saved.array("number", np.int64, (len(cell_N),))
        self._sketch_NF, self._cell_N, self._number_N = Tail(sketch_NF), Tail(cell_N), Tail(number_N)
        if len(cell_N) and not 0 <= cell_N.min() <= cell_N.max() < CELLS:
            raise saved.mistake("cell", f"holds numbers outside 0 to {CELLS - 1}")
