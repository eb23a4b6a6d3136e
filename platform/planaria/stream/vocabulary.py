"""Values numbered in order of first appearance: labels, categories and contexts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Value: TypeAlias = bool | int | float | str
UNRESOLVED = -1


class Vocabulary:
    """Numbers values from `first` on. With a capacity, what comes too late gets no number."""

    def __init__(self, *, first: int = 0, capacity: int | None = None) -> None:
        self.values: list[Value] = []
        self._numbers: dict[Value, int] = {}
        self._first = first
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self.values)

    def number(self, value: Value) -> int | None:
        """The value's number, a new one if it has none yet; None where the capacity is used up."""
        known = self._numbers.get(value)
        if known is not None:
            return known
        if self._capacity is not None and len(self.values) >= self._capacity:
            return None
        number = self._first + len(self.values)
        self.values.append(value)
        self._numbers[value] = number
        return number

    def restore(self, values: Iterable[Value]) -> None:
        self.values = list(values)
        self._numbers = {value: self._first + place for place, value in enumerate(self.values)}


@dataclass(frozen=True)
class Coded:
    """A column's values as codes into a short list, so that each distinct value is looked up once.

    `numbers[code]` is the value's number in a vocabulary, UNRESOLVED until a row that holds it is read: the
    vocabulary must not know values of rows that nobody has asked for yet.
    """

    codes: npt.NDArray[np.int64]
    values: list[Value | None]
    """None is a missing value."""
    numbers: npt.NDArray[np.int64]

    def unresolved(self, rows: slice) -> npt.NDArray[np.int64]:
        """Codes among the rows that have no number yet, in order of first appearance."""
        codes = self.codes[rows]
        return in_order(codes[self.numbers[codes] == UNRESOLVED])


def in_order(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The distinct ones among the values, in order of first appearance."""
    if not values.size:  # As nearly always.
        return np.empty(0, np.int64)
    _, first = np.unique(values, return_index=True)
    return np.asarray(values[np.sort(first)], np.int64)
