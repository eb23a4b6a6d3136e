"""Sorts rows by their target, so that a change of the link between inputs and targets shows as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.saved import Saved, pack
from planaria.signals import Task

CELLS = 32
QUARTILES = (25, 50, 75)
FIT_ROWS = 256

CellNumbers = npt.NDArray[np.int64]


class Cells:
    """A cell is a class (class numbers beyond 32 share them), or a quarter of the first rows' target values."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._first: npt.NDArray[np.float64] = np.zeros(0)
        self._edges: npt.NDArray[np.float64] = np.zeros(0)

    @property
    def fixed(self) -> bool:
        """False while a regression's first rows are being gathered: all rows are in cell 0."""
        return self._task == "classification" or len(self._edges) > 0

    def __call__(self, target_B: npt.NDArray[Any]) -> CellNumbers:
        if self._task == "classification":
            return np.asarray(target_B, np.int64) % CELLS
        values = np.nan_to_num(np.asarray(target_B, np.float64).reshape(len(target_B)))
        if not len(self._edges):
            self._gather(values)
            return np.zeros(len(values), np.int64)
        return np.searchsorted(self._edges, values).astype(np.int64)

    def _gather(self, values: npt.NDArray[np.float64]) -> None:
        self._first = np.concatenate([self._first, values])
        if len(self._first) >= FIT_ROWS:
            self._edges = np.percentile(self._first, QUARTILES)
            self._first = np.zeros(0)

    def state(self) -> dict[str, Any]:
        return {"first": pack(self._first), "edges": pack(self._edges)}

    def load_state(self, saved: Saved) -> None:
        self._first = saved.array("first", np.float64, (None,))
        self._edges = saved.array("edges", np.float64, (None,))
        if len(self._edges) not in (0, len(QUARTILES)):
            raise saved.mistake("edges", f"holds {len(self._edges)} numbers where {len(QUARTILES)} belong")


def pair_signs(features: int) -> npt.NDArray[np.float32]:
    """Random signs [cell, feature]: a sketch times the signs of its row's cell is a random feature of the pair.

    Its mean moves when inputs keep their distribution but change their labels.
    """
    signs = np.random.default_rng(0xCE11).integers(0, 2, (CELLS, features)) * 2 - 1
    return signs.astype(np.float32)
