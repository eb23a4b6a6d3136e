"""Runs that share a controller learn from each other's edits."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from planaria.control.features import NAMES
from planaria.control.judge import Known
from planaria.control.learned import LearnedJudge
from planaria.control.value import load_value
from planaria.policy import Controller


def known(count: int, returned: float, seed: int = 0) -> list[Known]:
    rows = np.random.default_rng(seed).normal(size=(count, len(NAMES)))
    return [([float(x) for x in row], returned) for row in rows]


def gain(judge: LearnedJudge) -> list[float]:
    rows = np.random.default_rng(9).normal(size=(3, len(NAMES)))
    return [float(x) for x in judge.value.gains(rows, judge._members, 0.0)[0]]


def test_what_is_borrowed_changes_what_is_predicted_and_is_part_of_the_state() -> None:
    first, second = (LearnedJudge(Controller(), load_value()) for _ in range(2))
    before = gain(first)
    first.borrow(known(8, 0.5))
    assert gain(first) != before
    second.load_state(first.state())
    assert gain(second) == gain(first)
    first.borrow([])
    assert gain(first) == before


def test_its_own_outcomes_come_before_borrowed_ones() -> None:
    alone, sharing = (LearnedJudge(Controller(), load_value()) for _ in range(2))
    own = known(64, -0.2, seed=1)
    state = {"features": [row for row, _ in own], "returns": [value for _, value in own], "open": [], "borrowed": []}
    for judge in (alone, sharing):
        judge.load_state(state)
    sharing.borrow(known(30, 0.9))
    assert gain(sharing) == gain(alone)


def test_only_a_learned_controller_is_shared() -> None:
    with pytest.raises(ValidationError, match="set kind: learned or remove shared"):
        Controller(kind="look_ahead", shared="all")
