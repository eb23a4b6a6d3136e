"""Rows whose features are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.signals import Features

Index = npt.NDArray[np.int64] | slice


@dataclass(frozen=True)
class DecodedRows:
    """The `Rows` of every stream in this package: what is cheap is there, what is dear is a function."""

    start: int
    target: npt.NDArray[Any]
    context: npt.NDArray[np.int64] | None
    held_out: npt.NDArray[np.bool_]
    decode: Callable[[Index], Features]

    def __len__(self) -> int:
        return len(self.target)

    def select(self, index: Index) -> Features:
        return self.decode(index)
