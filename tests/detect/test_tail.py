"""The newest rows of an endless sequence."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planaria.detect.tail import Tail


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(-5, 900)), max_size=12))
def test_it_holds_what_was_added_and_not_yet_dropped(turns: list[tuple[int, int]]) -> None:
    tail, held, next_row = Tail(np.zeros((0, 2), np.float32)), np.zeros((0, 2), np.float32), 0
    for added, dropped in turns:
        rows = np.arange(next_row, next_row + 2 * added, dtype=np.float32).reshape(added, 2)
        next_row += 2 * added
        tail.add(rows)
        tail.drop(dropped)
        held = np.concatenate((held, rows))[max(0, dropped) :]
        assert np.array_equal(tail.rows, held) and len(tail) == len(held)
