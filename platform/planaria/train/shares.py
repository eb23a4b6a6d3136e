"""Which rows of a step each shard computes, and remembered rows brought from the workers that hold them.

A shard computes the remembered rows of its own slots, and as many fresh ones beside them as make the shards even: every
worker can read those.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planaria.learn import ReplayMemory
from planaria.signals import Features
from planaria.train.group import Group

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One shard's: where its rows lie among the step's fresh, replayed and judged ones."""

    fresh: slice
    replayed: slice
    judged: slice
    even: bool
    """Whether it has as many rows as its share of them all; not so where it has more remembered ones than that."""


def share_out(rows: int, replay: Slots, judged: Slots, shards: int, own: range | None = None) -> list[Part]:
    """What each of the `own` shards (None: all) computes of a step of so many fresh rows. The slots come shard by shard
    (`Share.by_shard`)."""
    if shards == 1:
        return [Part(slice(0, rows), slice(0, len(replay)), slice(0, len(judged)), even=True)]
    replayed, judging = (_ends(slots, shards) for slots in (replay, judged))
    total = np.arange(shards + 1) * (rows + len(replay) + len(judged)) // shards
    fresh = np.maximum.accumulate(np.clip(total - replayed - judging, 0, rows))
    even = np.diff(total) == np.diff(fresh + replayed + judging)
    mine = slice(0, shards) if own is None else slice(own.start, own.stop)
    slices = (_slices(ends[mine.start : mine.stop + 1]) for ends in (fresh, replayed, judging))
    return [Part(*one) for one in zip(*slices, even[mine].tolist(), strict=True)]


def _slices(ends: Slots) -> list[slice]:
    return [slice(low, high) for low, high in itertools.pairwise(ends.tolist())]


def _ends(slots: Slots, shards: int) -> Slots:
    """0, and after each shard how many of the slots are its own or of those before it."""
    return np.concatenate(([0], np.cumsum(np.bincount(slots % shards, minlength=shards))))


def gather_rows(memory: ReplayMemory, slots: Slots, group: Group) -> Features:
    """Features of any slots, on every worker: each sends what it holds of them, in one collective."""
    if memory.share.is_whole:
        return memory.select(slots)
    at = np.flatnonzero(memory.share.holds(slots))
    found = group.spread(group.size, lambda rank: (at, memory.select(slots[at])))
    whole = {name: np.empty((len(slots), *c.shape[1:]), c.dtype) for name, c in found[0][1].items()}
    for places, features in found:
        for name, column in features.items():
            whole[name][places] = column
    return whole
