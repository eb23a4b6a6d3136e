"""A worker that holds the others up is named."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from planaria.train.pace import Pace, Slow


def steps(pace: Pace, busy: list[float], seconds: float, begin: float = 0.0) -> None:
    """Ten steps a second."""
    for number in range(round(seconds * 10)):
        pace.add(number, np.array(busy, np.float32), begin + number / 10)


def test_a_slow_worker_is_named_once_with_its_host(caplog: pytest.LogCaptureFixture) -> None:
    pace = Pace(["a", "b", "c"])
    steps(pace, [0.02, 0.21, 0.02], 60)
    assert pace.slow == Slow(1, "b", pytest.approx(10.5, rel=0.01))
    (line,) = caplog.messages
    assert "worker 1 on b is slow: it takes 10.5 times as long as the others (0.210 s a step, not 0.020)" in line


def test_a_worker_that_was_slow_for_a_moment_is_not_named() -> None:
    pace = Pace(["a", "b"])
    steps(pace, [0.02, 0.2], 5)
    steps(pace, [0.02, 0.02], 20, begin=5)
    steps(pace, [0.02, 0.2], 9, begin=25)
    assert pace.slow is None


def test_a_worker_that_is_well_again_is_no_longer_slow(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    pace = Pace(["a", "b"])
    steps(pace, [0.2, 0.02], 30)
    assert pace.slow is not None and pace.slow.host == "a"
    steps(pace, [0.02, 0.02], 30, begin=30)
    assert pace.slow is None
    assert caplog.messages[-1].endswith("a is as fast as the others again")


def test_differences_of_next_to_nothing_are_not_worth_a_word() -> None:
    pace = Pace(["a", "b"])
    steps(pace, [0.0001, 0.004], 60)
    assert pace.slow is None


def test_a_worker_alone_is_never_slow() -> None:
    pace = Pace(["a"])
    steps(pace, [5.0], 60)
    assert pace.slow is None
