"""Rollback: which edits are watched, which outcomes are doubted, and what is undone; births through edits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planaria.blueprint import BEFORE_EDIT, Edit, GrowHeads, RecycleHead, Restore, ShrinkHeads, edit_to_dict
from planaria.control.births import births_after
from planaria.control.rollback import ROLLBACK, doubtful, holds_before, verdict
from planaria.signals import Candidate, Decision

KEEP = Candidate("keep", None, "keep", (2, 3), 1_000)
GROW = replace(KEEP, name="grow", edit=edit_to_dict(GrowHeads(0, 1)))
UNDO = replace(KEEP, name="undo the last edit", edit=edit_to_dict(Restore(BEFORE_EDIT, (2, 3))))


@pytest.mark.parametrize(
    ("trigger", "chosen", "held"),
    [
        ("thrift", GROW, True),
        ("thrift", KEEP, False),
        ("abrupt shift", replace(KEEP, treatment="temper"), True),
        ("abrupt shift", replace(KEEP, treatment="reset"), False),
        (ROLLBACK, UNDO, False),
    ],
)
def test_the_state_is_kept_before_what_changes_the_weights(trigger: str, chosen: Candidate, held: bool) -> None:
    assert holds_before(Decision(0, 0, trigger, chosen, (KEEP, chosen), "")) == held


@pytest.mark.parametrize(
    ("predicted", "realised", "doubted"),
    [(0.1, -0.2, True), (0.1, 0.0, False), (0.02, -0.05, False), (-0.3, -0.3, False), (0.5, 0.1, False)],
)
def test_an_outcome_is_doubted_where_it_is_bad_and_far_from_its_prediction(
    predicted: float, realised: float, doubted: bool
) -> None:
    assert doubtful(predicted, realised, loss_before=1.0) == doubted


@pytest.mark.parametrize(("value", "error", "undone"), [(0.1, 0.04, True), (0.1, 0.06, False), (-0.1, 0.0, False)])
def test_an_edit_is_undone_where_the_state_before_it_is_better_by_two_errors(
    value: float, error: float, undone: bool
) -> None:
    chosen, why = verdict([KEEP, replace(UNDO, value=value, standard_error=error)])
    assert (chosen.edit is not None) == undone and f"{value:+.4f}" in why


@pytest.mark.parametrize(
    ("edit", "births"),
    [
        (GrowHeads(0, 2), [[1, 2, 9, 9], [3, 4, 5]]),
        (ShrinkHeads(1, (0, 2)), [[1, 2], [4]]),
        (RecycleHead(1, 0), [[1, 2], [4, 5, 9]]),
    ],
)
def test_births_follow_the_heads(edit: Edit, births: list[list[int]]) -> None:
    assert births_after(edit, [[1, 2], [3, 4, 5]], sample=9, owners=(0, 1)) == births
