"""Which row of a pool a stream's row is: a pure function of its number, without replacement within a pass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planaria.stream.chance import place_in_shuffle
from planaria.stream.pool import ClassIndex

Integers = npt.NDArray[np.int64]
_LEAST_PLACES = 10
"""Of the class of least weight: rounding to whole places then changes its weight by a twentieth at most."""
_MOST_PLACES = 1 << 40
"""Of all classes: far less than what counting places can hold."""


class Draw:
    """Rows of some classes in a random order.

    A pass has `slots[c]` places for class c, in an order of its own: without weights one for every row. With
    weights, each pass goes on within a class's own random order where the pass before it stopped, so that no row
    comes again before all others of its class have come.
    """

    def __init__(self, index: ClassIndex, classes: Integers, weights: npt.NDArray[np.float64] | None, key: int) -> None:
        """`weights`: how often each class is drawn, relative to the others; None is as often as it is there."""
        sizes = index.sizes[classes]
        slots = sizes if weights is None else _slots(sizes, weights)
        used = np.flatnonzero(slots)
        self._slots = slots[used]
        self._ends = np.cumsum(self._slots)
        self._sizes = sizes[used]
        self._first = index.first[classes][used]
        self._order = index.order
        self._weighted = weights is not None
        self._key = key

    @property
    def rows(self) -> int:
        """Places of a pass."""
        return int(self._ends[-1]) if self._ends.size else 0

    def at(self, positions: Integers) -> Integers:
        """Row numbers of the pool."""
        passes, within = np.divmod(positions, self.rows)
        slot = place_in_shuffle(self._key, passes, within, np.full(len(positions), self.rows))
        group = np.searchsorted(self._ends, slot, side="right")
        within_class = slot - (self._ends[group] - self._slots[group])
        if self._weighted:
            sizes = self._sizes[group]
            rounds, within_round = np.divmod(passes * self._slots[group] + within_class, sizes)
            within_class = place_in_shuffle(self._key, self._first[group] + rounds, within_round, sizes)
        return np.asarray(self._order[self._first[group] + within_class], np.int64)


def _slots(sizes: Integers, weights: npt.NDArray[np.float64]) -> Integers:
    """Places for each class in proportion to its weight: as many as the scarcest class allows without repeating, or
    where that would leave another one without a place of its own, as many as that one needs."""
    weights = np.where(sizes > 0, weights, 0.0)
    if not weights.any():
        return np.zeros_like(sizes)
    drawn = weights > 0
    scale, least = float((sizes[drawn] / weights[drawn]).min()), float(weights[drawn].min())
    if scale * least < 1:
        scale = max(scale, min(_LEAST_PLACES / least, _MOST_PLACES / float(weights.sum())))
    return np.where(drawn, np.maximum(1, np.rint(weights * scale)), 0).astype(np.int64)
