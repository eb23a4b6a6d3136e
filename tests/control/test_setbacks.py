"""A kind of edit that had to be taken back is left alone."""

from __future__ import annotations

import pytest

from planaria.control.setbacks import Setbacks

WAIT = 1_000


def test_a_kind_waits_twice_as_long_each_time_it_is_undone() -> None:
    setbacks, sample = Setbacks(WAIT), 0
    for wait in (WAIT, 2 * WAIT, 4 * WAIT):
        setbacks.undone("shrink_heads", sample)
        sample += wait
        assert setbacks.barred("shrink_heads", sample - 1) and not setbacks.barred("shrink_heads", sample)
        assert not setbacks.barred("grow_heads", sample - 1)


def test_edits_that_were_well_make_the_next_wait_shorter() -> None:
    setbacks = Setbacks(WAIT)
    setbacks.undone("shrink_heads", 0)
    for _ in range(3):
        setbacks.went_well("shrink_heads")
    setbacks.undone("shrink_heads", 50)
    assert setbacks.until == {"shrink_heads": 50 + WAIT}


@pytest.mark.parametrize(
    ("kinds", "barred"),
    [
        (["grow_heads", "shrink_heads"], "grow_heads"),
        (["shrink_heads", "grow_heads"], "shrink_heads"),
        (["grow_heads", "grow_heads"], None),
        (["restore", "shrink_heads"], None),
        (["recycle_head", "recycle_head"], None),
    ],
)
def test_only_the_opposite_takes_an_edit_back(kinds: list[str], barred: str | None) -> None:
    setbacks = Setbacks(WAIT)
    for kind in kinds:
        setbacks.chose(kind, 10)
    assert set(setbacks.until) == ({barred} if barred else set())


def test_it_comes_back_from_its_state() -> None:
    setbacks = Setbacks(WAIT)
    setbacks.undone("grow_heads", 3)
    setbacks.chose("shrink_heads", 4)
    assert Setbacks.from_state(setbacks.state()) == setbacks
