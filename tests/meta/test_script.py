"""What happens to a stream whatever lives on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from planaria.learn import ReplayMemory
from planaria.meta.families import SimStream, make_stream
from planaria.meta.script import BATCH_ROWS, REPLAY_ROWS, Script, write_script
from planaria.policy import Memory

Short = Callable[[str, int, int], SimStream]
ROWS = 3_200


def assert_in_the_past(script: Script) -> None:
    first_S1 = np.arange(script.steps)[:, None] * BATCH_ROWS
    assert script.replayed_SR.min() >= 0
    assert (script.replayed_SR[1:] < first_S1[1:]).all()
    assert (script.replayed_SR[0] < BATCH_ROWS).all()


@pytest.mark.parametrize("extra", [0, 16])
def test_replayed_rows_lie_in_the_past(short: Short, extra: int) -> None:
    script = write_script(short("digits", 1, ROWS), extra)
    assert script.replayed_SR.shape == (ROWS // BATCH_ROWS, REPLAY_ROWS + extra)
    assert script.replay_weight(0) == 1 / (REPLAY_ROWS + extra)
    assert_in_the_past(script)


def test_where_labels_change_their_rule_nothing_is_replayed(short: Short) -> None:
    script = write_script(short("tables", 1, ROWS))
    assert script.replayed_SR.shape == (ROWS // BATCH_ROWS, 0)
    assert len(script.memory(script.steps)) == 0


def test_extra_rows_are_among_the_newest_of_those_already_seen(short: Short) -> None:
    script = write_script(short("tables", 1, ROWS), extra_rows=24)
    assert script.replayed_SR.shape == (ROWS // BATCH_ROWS, 24)
    assert_in_the_past(script)
    first_S1 = np.arange(script.steps)[:, None] * BATCH_ROWS
    assert (first_S1 - script.replayed_SR).max() <= 512
    assert (first_S1 - script.replayed_SR).max() > 400, "and not always the very newest"


@pytest.mark.parametrize(("family", "usual"), [("digits", REPLAY_ROWS), ("tables", 0)])
def test_extra_rows_may_be_a_fraction_of_a_row_a_step(short: Short, family: str, usual: int) -> None:
    script = write_script(short(family, 1, ROWS), extra_rows=1.3)
    counts = [len(script.rows(step)) - BATCH_ROWS - usual for step in range(script.steps)]
    assert set(counts) == {1, 2} and sum(counts) == 1.3 * script.steps
    for step, count in enumerate(counts):
        assert script.replay_weight(step) == (1 / (usual + count) if usual else 1 / BATCH_ROWS)
    assert_in_the_past(script)


def test_the_memory_before_a_step_is_that_of_a_run_that_came_so_far(short: Short) -> None:
    stream = short("digits", 1, ROWS)
    script = write_script(stream)
    lived = ReplayMemory(Memory(rows=500), "classification", stream.seed, hold_back=True)
    for step in range(script.steps):
        if step in (0, 1, 7, 40, 120, script.steps - 1):
            told = script.memory(step)
            assert len(told) == len(lived)
            for slots, expected in ((told.draw(64, step), lived.draw(64, step)), (told.held(99, 0), lived.held(99, 0))):
                assert np.array_equal(slots, expected)
            if len(lived):
                replayed = lived.columns["row"][lived.draw(REPLAY_ROWS, step)]
                assert np.array_equal(script.replayed_SR[step], replayed)
                assert np.array_equal(told.columns["row"][: len(told)], lived.columns["row"][: len(lived)])
        for row in range(step * BATCH_ROWS, (step + 1) * BATCH_ROWS, BATCH_ROWS):
            rows = np.arange(row, row + BATCH_ROWS)
            for at, slot in lived.choose(row, stream.target[rows], np.ones(BATCH_ROWS, np.bool_)):
                one = rows[at : at + 1]
                lived.store(np.array([slot]), {"row": one}, stream.target[one], np.zeros((1, 1), np.float32))
    assert len(lived) == 500


def test_what_is_held_back_is_never_replayed(short: Short) -> None:
    script = write_script(short("digits", 1, ROWS))
    memory = script.memory(script.steps)
    held = memory.columns["row"][memory.held(1_000, 0)]
    since = script.writes_W3[:, 0][np.isin(script.writes_W3[:, 2], held)].min()
    assert len(held) > 50
    assert not np.isin(script.replayed_SR[since + 1 :], held).any()


@pytest.mark.parametrize("seed", range(12))
def test_simulated_reports_come_after_the_change_that_they_report(seed: int) -> None:
    stream = make_stream("tables", seed)
    for step, shift in write_script(stream).shifts.items():
        assert shift.step == step and shift.sample == (step + 1) * BATCH_ROWS
        assert shift.onset_sample in stream.starts[1:]
        assert 150 <= shift.sample - shift.onset_sample < 700 + 2 * BATCH_ROWS + 1_500 // 2
        number = stream.starts.index(shift.onset_sample)
        if shift.kind == "recurring":
            assert stream.contexts[number] in stream.contexts[:number] and shift.concept == stream.contexts[number]
        else:
            assert shift.concept is None


def test_most_changes_are_reported_and_some_are_missed() -> None:
    true = reported = 0
    for seed in range(80):
        stream = make_stream("tables", seed)
        true, reported = true + len(stream.starts) - 1, reported + len(write_script(stream).shifts)
    assert 0.9 * true < reported < true


def test_equal_streams_give_equal_scripts(short: Short) -> None:
    one, again = (write_script(short("digits", 2, ROWS), 4) for _ in range(2))
    assert np.array_equal(one.replayed_SR, again.replayed_SR) and np.array_equal(one.writes_W3, again.writes_W3)
    assert one.shifts == again.shifts
