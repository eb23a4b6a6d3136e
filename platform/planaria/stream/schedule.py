"""When which context rules, and how the stream passes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from planaria.job import Change
from planaria.stream.chance import uniform

Integers = npt.NDArray[np.int64]


class Schedule:
    """Contexts one after the other, the whole sequence `repeat` times. S stretches in the sequence."""

    def __init__(self, changes: Sequence[Change], repeat: int, key: int) -> None:
        self.names = list(dict.fromkeys(change.name for change in changes))
        """Of the contexts, by number: the same name is the same context."""
        self._context_S = np.array([self.names.index(change.name) for change in changes], np.int64)
        lengths = np.array([change.samples for change in changes], np.int64)
        self._start_S = np.cumsum(lengths) - lengths
        self._transition_S = np.array([change.transition_samples for change in changes], np.int64)
        self._pass_rows = int(lengths.sum())
        self._key = key
        self.rows = self._pass_rows * repeat

    def contexts(self, rows: Integers) -> Integers:
        """From which context each row is drawn. In a transition the old one's share falls linearly from 1 to 0."""
        passes, within = np.divmod(rows, self._pass_rows)
        stretch = np.searchsorted(self._start_S, within, side="right") - 1
        into = within - self._start_S[stretch]
        lasts = self._transition_S[stretch]
        share_of_new = (into + 0.5) / np.maximum(1, lasts)
        old = (into < lasts) & (uniform(self._key, rows) >= share_of_new) & (passes + stretch > 0)
        return np.asarray(self._context_S[stretch - old], np.int64)

    def change_before(self, row: int) -> int | None:
        """First row of the stretch that most recently brought another context; None before there was one."""
        pass_, within = divmod(min(row, self.rows - 1), self._pass_rows)
        stretch = int(np.searchsorted(self._start_S, within, side="right")) - 1
        for _ in range(len(self._context_S)):
            if pass_ == 0 and stretch == 0:
                return None
            if self._context_S[stretch] != self._context_S[stretch - 1]:
                return pass_ * self._pass_rows + int(self._start_S[stretch])
            pass_, stretch = (pass_, stretch - 1) if stretch else (pass_ - 1, len(self._context_S) - 1)
        return None
