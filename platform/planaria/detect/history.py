"""The newest rows as the detectors saw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.cells import CELLS, CellNumbers
from planaria.detect.saved import Saved, pack

HISTORY_ROWS = 2_048


class History:
    """Sketch and cell of the newest rows, found by their number in the stream."""

    def __init__(self, features: int) -> None:
        self._features = features
        self.seen = 0
        self._sketch_NF: npt.NDArray[np.float32] = np.zeros((0, features), np.float32)
        self._cell_N: CellNumbers = np.zeros(0, np.int64)

    def add(self, start: int, sketch_BF: npt.NDArray[np.float32], cell_B: CellNumbers) -> None:
        """A batch larger than the history keeps it all until the next."""
        keep = max(0, HISTORY_ROWS - len(cell_B))
        self._sketch_NF = np.concatenate([_last(self._sketch_NF, keep), sketch_BF])
        self._cell_N = np.concatenate([_last(self._cell_N, keep), cell_B])
        self.seen = start + len(cell_B)

    @property
    def first(self) -> int:
        """Number of the oldest row held."""
        return self.seen - len(self._cell_N)

    def between(self, start: int, end: int) -> tuple[npt.NDArray[np.float32], CellNumbers]:
        """Sketch and cell of rows `start` to `end`, as far as they are still held."""
        rows = slice(max(0, start - self.first), max(0, end - self.first))
        return self._sketch_NF[rows], self._cell_N[rows]

    def state(self) -> dict[str, Any]:
        return {
            "seen": self.seen,
            "sketch": pack(self._sketch_NF),
            "cell": pack(self._cell_N.astype(np.int16)),
        }

    def load_state(self, saved: Saved) -> None:
        self.seen = saved.integer("seen")
        self._sketch_NF = saved.array("sketch", np.float32, (None, self._features))
        self._cell_N = saved.array("cell", np.int16, (len(self._sketch_NF),)).astype(np.int64)
        if len(self._cell_N) and not 0 <= self._cell_N.min() <= self._cell_N.max() < CELLS:
            raise saved.mistake("cell", f"holds numbers outside 0 to {CELLS - 1}")


def _last(rows: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    return rows[max(0, len(rows) - count) :]
