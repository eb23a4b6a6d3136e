"""Boundaries that are told: what is reported, where, and as which concept."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planaria.detect import ShiftMonitor, ToldMonitor, build_monitor
from planaria.errors import InputError
from planaria.policy import Detector
from planaria.signals import Shift, StepReport


def reports(contexts: list[int], batch: int) -> Iterator[StepReport]:
    for step, start in enumerate(range(0, len(contexts), batch)):
        context_B = np.array(contexts[start : start + batch], np.int64)
        nothing = np.zeros(len(context_B), np.float32)
        yield StepReport(step, start, nothing, nothing, nothing, nothing[:, None], nothing[:, None], context_B)


def told(contexts: list[int], batch: int, monitor: ToldMonitor | None = None) -> list[Shift]:
    monitor = monitor or ToldMonitor()
    return [shift for report in reports(contexts, batch) if (shift := monitor.update(report)) is not None]


def test_a_policy_has_shifts_detected_unless_it_says_otherwise() -> None:
    assert isinstance(build_monitor(Detector(), "classification"), ShiftMonitor)
    assert isinstance(build_monitor(Detector(boundaries="told"), "classification"), ToldMonitor)


@pytest.mark.parametrize("batch", [1, 4, 5, 7])
def test_every_change_is_reported_at_its_row_and_in_its_step(batch: int) -> None:
    shifts = told([0] * 10 + [1] * 10 + [0] * 11 + [2] * 9, batch)
    assert [shift.sample for shift in shifts] == [shift.onset_sample for shift in shifts] == [10, 20, 31]
    assert [shift.step for shift in shifts] == [10 // batch, 20 // batch, 31 // batch]
    assert [(shift.kind, shift.concept) for shift in shifts] == [("abrupt", None), ("recurring", 0), ("abrupt", None)]
    assert {(shift.detector, shift.statistic, shift.threshold) for shift in shifts} == {("told", 1.0, 0.0)}


def test_the_concept_is_the_context_and_there_are_no_alarms() -> None:
    monitor = ToldMonitor()
    assert monitor.concept is None
    for report in reports([4] * 5 + [2] * 5 + [4] * 5, 5):
        monitor.update(report)
        assert report.context_B is not None and monitor.concept == report.context_B[-1]
        assert monitor.surely_since == report.start and monitor.alarm_onset is None


def test_of_several_changes_within_a_step_the_last_one_counts() -> None:
    shifts = told([0] * 6 + [1, 1, 2, 2, 2, 2] + [1] * 6, 6)
    assert [(shift.sample, shift.kind, shift.concept) for shift in shifts] == [
        (8, "abrupt", None),
        (12, "recurring", 1),
    ]
    assert told([0] * 6 + [0, 1, 1, 0, 0, 0] + [0] * 6, 6) == [], "a step that ends where it began is no shift"


def test_what_will_be_reported_is_known_before_the_step() -> None:
    monitor = ToldMonitor()
    for report in reports([0] * 7 + [1] * 7 + [0] * 6, 4):
        assert report.context_B is not None
        leaves = monitor.leaves(report.context_B)
        assert leaves == (monitor.update(report) is not None)


@given(contexts=st.lists(st.integers(0, 3), min_size=1, max_size=40), batch=st.integers(1, 6), cut=st.integers(0, 40))
def test_a_restored_monitor_goes_on_as_if_it_had_never_stopped(contexts: list[int], batch: int, cut: int) -> None:
    steps = list(reports(contexts, batch))
    whole, first, second = ToldMonitor(), ToldMonitor(), ToldMonitor()
    expected = [whole.update(report) for report in steps]
    before = [first.update(report) for report in steps[:cut]]
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert before + [second.update(report) for report in steps[cut:]] == expected
    assert second.state() == whole.state()


def test_a_state_of_a_detector_is_refused() -> None:
    with pytest.raises(InputError, match="met is missing; resume from an earlier checkpoint"):
        ToldMonitor().load_state({"concept": 1, "since": 0})
    with pytest.raises(InputError, match="concept is not one of those met"):
        ToldMonitor().load_state({"concept": 1, "since": 0, "met": [0]})
