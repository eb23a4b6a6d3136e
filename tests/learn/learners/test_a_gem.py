"""The gradient that does not raise the loss on remembered rows."""

from __future__ import annotations

import pytest
import torch

from planaria.learn import project


@pytest.mark.parametrize(
    ("fresh", "reference", "expected"),
    [
        ([1.0, 2.0], [3.0, 0.0], [1.0, 2.0]),
        ([-1.0, 2.0], [3.0, 0.0], [0.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0], [1.0, 2.0]),
        ([-2.0, -2.0], [1.0, 1.0], [0.0, 0.0]),
    ],
)
def test_only_what_goes_against_the_replayed_rows_is_taken_off(
    fresh: list[float], reference: list[float], expected: list[float]
) -> None:
    assert project(torch.tensor(fresh), torch.tensor(reference)).tolist() == expected
