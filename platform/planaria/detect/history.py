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
    """Sketch and cell of the newest rows, found by their number in the stream."""

    def __init__(self, features: int) -> None:
        self._features = features
        self.seen = 0
        self._sketch_NF = Tail(np.zeros((0, features), np.float32))
        self._cell_N = Tail(np.zeros(0, np.int64))

    def add(self, start: int, sketch_BF: npt.NDArray[np.float32], cell_B: CellNumbers) -> None:
        """A batch larger than the history keeps it all until the next."""
        for tail, rows in ((self._sketch_NF, sketch_BF), (self._cell_N, cell_B)):
            tail.drop(len(tail) - max(0, HISTORY_ROWS - len(rows)))
            tail.add(rows)
        self.seen = start + len(cell_B)

    @property
    def first(self) -> int:
        """Number of the oldest row held."""
        return self.seen - len(self._cell_N)

    def between(self, start: int, end: int) -> tuple[npt.NDArray[np.float32], CellNumbers]:
        """Sketch and cell of rows `start` to `end`, as far as they are still held."""
        rows = slice(max(0, start - self.first), max(0, end - self.first))
        return self._sketch_NF.rows[rows], self._cell_N.rows[rows]

    def state(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "sketch": pack(self._sketch_NF.rows),
            "cell": pack(self._cell_N.rows.astype(np.int16)),
        }

    def load_state(self, saved: Saved) -> None:
        self.seen = saved.integer("seen")
        sketch_NF = saved.array("sketch", np.float32, (None, self._features))
        cell_N = saved.array("cell", np.int16, (len(sketch_NF),)).astype(np.int64)
        self._sketch_NF, self._cell_N = Tail(sketch_NF), Tail(cell_N)
        if len(cell_N) and not 0 <= cell_N.min() <= cell_N.max() < CELLS:
            raise saved.mistake("cell", f"holds numbers outside 0 to {CELLS - 1}")
