"""Short simulated streams, and experience that is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planaria.control.features import NAMES, rows_of
from planaria.meta.episodes import BLOCKS
from planaria.meta.experience import MOST_CANDIDATES, Experience
from planaria.meta.families import SimStream, make_stream
from planaria.signals import Candidate

Short = Callable[[str, int, int], SimStream]
MadeUp = Callable[..., Experience]
KEEP = Candidate("keep", None, "keep", (3,), 100)
GROW = Candidate("grow", {"kind": "grow_heads", "layer": 0, "heads": 1}, "keep", (4,), 120)
SHRINK = Candidate("shrink", {"kind": "shrink_heads", "layer": 0, "heads": [0]}, "keep", (2,), 80)
WORTH = (0.0, 0.1, -0.1)
"""Of keeping, growing and shrinking."""


@pytest.fixture(scope="session")
def short() -> Short:
    return cut


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    return experience


def cut(family: str, seed: int, rows: int) -> SimStream:
    """The first rows of a stream."""
    stream = make_stream(family, seed)
    phases = slice(sum(start < rows for start in stream.starts))
    return replace(
        stream,
        features={name: column[:rows] for name, column in stream.features.items()},
        target=stream.target[:rows],
        starts=stream.starts[phases],
        contexts=stream.contexts[phases],
        demand=stream.demand[phases],
        changes=stream.changes[phases],
        gradual_rows=stream.gradual_rows[phases],
    )


def experience(decisions: int = 160, seed: int = 0, worth: tuple[float, ...] = WORTH) -> Experience:
    """Decisions of two deployments in which the loss falls by something, and by as much more as an edit is worth."""
    random = np.random.default_rng(seed)
    candidates, count = (KEEP, GROW, SHRINK)[: len(worth)], len(worth)
    wide = MOST_CANDIDATES
    features_DKX = np.zeros((decisions, wide, len(NAMES)), np.float32)
    returned_DK = np.zeros((decisions, wide), np.float32)
    for at in range(decisions):
        observed = {"loss_fast": random.uniform(0.3, 1.5), "heads_fraction": random.random()}
        features_DKX[at, :count] = rows_of(observed, candidates, 1.0, {})
        returned_DK[at, :count] = random.normal(0, 0.05) + np.array(worth)
    there_DK = np.zeros((decisions, wide), np.bool_)
    there_DK[:, :count] = True
    chosen_D = random.integers(0, count, decisions)
    return Experience(
        task_D=np.array([f"made_up/{at % 2}" for at in range(decisions)]),
        seed_D=np.arange(decisions) // 20,
        there_DK=there_DK,
        before_DKX=features_DKX,
        after_DKX=features_DKX.copy(),
        return_DK=returned_DK,
        falls_DKZ=np.repeat(returned_DK[..., None], BLOCKS, axis=-1),
        realised_D=returned_DK[np.arange(decisions), chosen_D],
        memory_DK=np.zeros((decisions, wide), np.float32),
        chosen_D=chosen_D,
        scale_D=np.ones(decisions, np.float32),
        price_DK=np.zeros((decisions, wide), np.float32),
    )
