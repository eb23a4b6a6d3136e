"""Rows that can be taken in any order: what a scenario draws from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.signals import Features, Fields

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """How a kind of number lies: [columns] for a table, scalars for pictures."""

    deviation: npt.NDArray[np.float32]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]


BYTE_SPREAD = Spread(
    deviation=np.array([255], np.float32), low=np.array([0], np.float32), high=np.array([255], np.float32)
)
"""Of uint8 pictures: noise is measured against the whole range."""


@dataclass(frozen=True)
class Pool:
    """Rows in memory or in memory-mapped files. N rows, of which `chosen` may be drawn."""

    fields: Fields
    labels: list[str | int]
    target: npt.NDArray[Any]
    """int32 [N], an index into labels; or float32 values."""
    columns: dict[str, npt.NDArray[Any]]
    """"image" [N, channels * height * width], or "numeric" and "categorical" [N, columns]."""
    spread: Spread
    chosen: npt.NDArray[Any]
    """Row numbers that may be drawn."""

    @property
    def rows(self) -> int:
        return len(self.chosen)

    def take(self, rows: Integers) -> Features:
        """Copies of the rows."""
        if self.fields.image_shape:
            return {"image": self.columns["image"][rows].reshape(-1, *self.fields.image_shape)}
        numeric = self.columns["numeric"][rows]
        return {"numeric": numeric, "categorical": self.columns["categorical"][rows].astype(np.int64)}


@dataclass(frozen=True)
class Pools:
    """Rows to stream and rows kept for evaluation, which never overlap."""

    train: Pool
    test: Pool
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """What was handled silently while the rows were written: see FileStream.counts."""


class ClassIndex:
    """A pool's rows, class by class."""

    def __init__(self, pool: Pool) -> None:
        of_row = pool.target[pool.chosen] if pool.labels else np.zeros(pool.rows, np.int32)
        # Sorting 16-bit numbers takes linear time.
        narrow = of_row.astype(np.uint16) if len(pool.labels) <= 1 << 16 else of_row
        self.order = pool.chosen[np.argsort(narrow, kind="stable")]
        self.sizes = np.bincount(of_row, minlength=max(1, len(pool.labels))).astype(np.int64)
        self.first = np.cumsum(self.sizes) - self.sizes
