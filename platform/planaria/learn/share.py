"""Which worker holds which slots of a replay memory.

A slot belongs to one shard of the run, and a worker holds the slots of its own shards: what is computed depends on the
number of shards, where it is held on that of the workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """A worker's `own` ones of all `shards`."""

    shards: int = 1
    own: range = range(1)

    @property
    def is_whole(self) -> bool:
        """Whether this worker holds every slot."""
        return len(self.own) == self.shards

    def holds(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which of the slots this worker holds."""
        shard = slots % self.shards
        return (shard >= self.own.start) & (shard < self.own.stop)

    def places(self, slots: Slots) -> Slots:
        """Where in its columns this worker holds the slots, which must be its own."""
        if self.is_whole:
            return slots
        return slots // self.shards * len(self.own) + (slots % self.shards - self.own.start)

    def slots(self, below: int) -> Slots:
        """Those that this worker holds, in the order of their places."""
        every = np.arange(below)
        return every if self.is_whole else every[self.holds(every)]

    def capacity(self, slots: int) -> int:
        """Places for this worker's part of so many slots."""
        return slots if self.is_whole else len(self.own) * -(-slots // self.shards)

    def by_shard(self, slots: Slots) -> Slots:
        """The slots, those of the first shard first; else as they came."""
        return slots if self.shards == 1 else slots[np.argsort(slots % self.shards, kind="stable")]
