"""What meta-training learns from: decisions whose candidates were all followed, as arrays that a file can hold.

Legend: D decisions, K candidates (at most), X features, Z blocks of the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from planaria.control.features import NAMES, rows_of, scale_of
from planaria.meta.episodes import BLOCKS, Branching, Life

MOST_CANDIDATES = 9
SOON_BLOCKS = 3
"""About the rows after which a run takes the outcome of a decision."""


@dataclass(frozen=True)
class Experience:
    """Rows of padding are False in `there_DK`, and zero."""

    task_D: npt.NDArray[np.str_]
    """Decisions of one task share what a deployment has in common: family and label noise."""
    seed_D: npt.NDArray[np.int64]
    """Of the stream."""
    there_DK: npt.NDArray[np.bool_]
    before_DKX: npt.NDArray[np.float32]
    """Features before any look-ahead."""
    after_DKX: npt.NDArray[np.float32]
    """Features with what looking ahead showed."""
    return_DK: npt.NDArray[np.float32]
    """Relative fall of the loss over the horizon."""
    falls_DKZ: npt.NDArray[np.float32]
    """The same block by block, to see what a shorter horizon would have told."""
    realised_D: npt.NDArray[np.float32]
    """What a run would have seen of it by then: the relative fall over the choice's cool-down."""
    memory_DK: npt.NDArray[np.float32]
    """Relative fall of the loss on remembered rows, against keeping; 0 where nothing is remembered."""
    chosen_D: npt.NDArray[np.int64]
    scale_D: npt.NDArray[np.float32]
    """Nats of a relative 1."""
    price_DK: npt.NDArray[np.float32]
    """Nats for capacity, against keeping."""

    def __len__(self) -> int:
        return len(self.task_D)

    def take(self, at: npt.NDArray[np.int64]) -> Experience:
        return Experience(**{f.name: getattr(self, f.name)[at] for f in fields(self)})


def joined(parts: Sequence[Experience]) -> Experience:
    return Experience(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Experience)})


def experience_of(lives: Sequence[Life]) -> Experience:
    """All that was branched in some lives."""
    found = [(life, branching) for life in lives for branching in life.branchings]
    count, most, wide = len(found), MOST_CANDIDATES, len(NAMES)
    there = np.zeros((count, most), np.bool_)
    before, after = np.zeros((count, most, wide), np.float32), np.zeros((count, most, wide), np.float32)
    falls, realised = np.zeros((count, most, BLOCKS), np.float32), np.zeros(count, np.float32)
    returned, memory, price = (np.zeros((count, most), np.float32) for _ in range(3))
    for at, (_, branching) in enumerate(found):
        decision, scale = branching.decision, scale_of(branching.loss)
        known = slice(len(decision.candidates))
        there[at, known] = True
        trials = dict(enumerate(branching.trials))
        before[at, known] = rows_of(decision.observation, decision.candidates, scale, {})
        after[at, known] = rows_of(decision.observation, decision.candidates, scale, trials)
        soon = branching.loss_KZ[_chosen(branching), :SOON_BLOCKS].mean()
        realised[at] = (branching.loss - soon) / scale
        returned[at, known] = (branching.loss - branching.loss_KZ.mean(1)) / scale
        falls[at, known] = (branching.loss - branching.loss_KZ) / scale
        memory[at, known] = np.nan_to_num(branching.memory_K[0] - branching.memory_K) / scale
        price[at, known] = [c.price - decision.candidates[0].price for c in decision.candidates]
    return Experience(
        task_D=np.array([f"{life.stream.family}/{life.stream.label_noise:g}" for life, _ in found]),
        seed_D=np.array([life.stream.seed for life, _ in found], np.int64),
        there_DK=there,
        before_DKX=before,
        after_DKX=after,
        return_DK=returned,
        falls_DKZ=falls,
        realised_D=realised,
        memory_DK=memory,
        chosen_D=np.array([_chosen(branching) for _, branching in found], np.int64),
        scale_D=np.array([scale_of(branching.loss) for _, branching in found], np.float32),
        price_DK=price,
    )


def _chosen(branching: Branching) -> int:
    names = [candidate.name for candidate in branching.decision.candidates]
    return names.index(branching.decision.chosen.name)
