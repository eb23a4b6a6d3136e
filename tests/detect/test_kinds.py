from __future__ import annotations

import numpy as np
import pytest

from planaria.detect.kinds import course, drift, ramp_over_step
from planaria.detect.moments import Moments

BLOCKS = np.arange(24)


def noisy(shape: np.ndarray, seed: int) -> np.ndarray:
    return shape + np.random.default_rng(seed).normal(0, 0.05, len(shape))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("onset", [8, 14, 20])
def test_a_ramp_and_a_step_are_told_apart(onset: int, seed: int) -> None:
    assert ramp_over_step(noisy(np.where(onset <= BLOCKS, 1.0, 0.0), seed)) < 1
    assert ramp_over_step(noisy(0.2 * np.maximum(BLOCKS - onset, 0), seed)) > 1


def test_drift_is_a_difference_between_the_halves_beyond_chance() -> None:
    scores = [drift(noisy(np.zeros(24), seed)) for seed in range(200)]
    assert np.quantile(scores, 0.9) < 2.2
    assert drift(noisy(BLOCKS / 24, 0)) > 3


def test_a_course_shows_no_trend_where_there_is_none() -> None:
    """Its direction is fitted to chance in the newest rows, which must not show as a rise."""
    rises = []
    for seed in range(40):
        chance = np.random.default_rng(seed)
        before = Moments(32)
        before.add(chance.normal(size=(1_024, 32)))
        blocks = course(before, chance.normal(size=(1_024, 32)), newest=256)
        rises.append(blocks[-4:].mean() - blocks[:-4].mean())
    assert abs(np.mean(rises)) < 3 * np.std(rises) / np.sqrt(len(rises))
