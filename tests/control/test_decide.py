from __future__ import annotations

from dataclasses import replace

import pytest

from planaria.blueprint import Blueprint, edit_from_dict
from planaria.control.decide import choose
from planaria.control.propose import Scores, price_of, propose
from planaria.policy import Budget, Heads
from planaria.signals import Candidate

BLUEPRINT = Blueprint("classification", 16, 4, 32, (2, 3), 10, image_shape=(1, 28, 28), patch=7)
HEADS = Heads(start=2, min=1, max=4)
SCORES = Scores(
    importance=[[0.5, 0.1], [0.3, 0.2, 0.01]], growth=[0.5, 2.0], mature=[[True, True], [True, True, False]]
)
KEEP = Candidate("keep", None, "keep", (2, 3), 1_000, price=0.01, value=0.0, standard_error=0.0)
GROW = Candidate(
    "grow layer 1 by 1", {"kind": "grow_heads", "layer": 1, "heads": 1}, "keep", (2, 4), 1_100, price=0.012
)


def _grow(value: float, error: float) -> Candidate:
    return replace(GROW, value=value, standard_error=error)


def test_keeping_wins_where_nothing_else_is_possible() -> None:
    chosen, why = choose([KEEP], certainty=1.0)
    assert chosen is KEEP and "nothing else is possible" in why


@pytest.mark.parametrize(("value", "error", "edits"), [(0.05, 0.01, True), (0.05, 0.06, False), (-0.01, 0.0, False)])
def test_an_edit_must_beat_keeping_by_more_than_its_error(value: float, error: float, edits: bool) -> None:
    chosen, why = choose([KEEP, _grow(value, error)], certainty=1.0)
    assert (chosen.edit is not None) == edits
    assert f"{value:+.4f} ± {error:.4f} nats" in why


def test_the_best_of_several_is_chosen_and_its_price_is_named() -> None:
    chosen, why = choose([KEEP, _grow(0.05, 0.0), _grow(0.09, 0.0)], certainty=1.0)
    assert chosen.value == 0.09
    assert "0.0020 nats paid for capacity" in why


def test_what_edits_were_found_to_bring_moves_the_choice() -> None:
    assert choose([KEEP, _grow(0.05, 0.0)], 1.0, {"grow_heads": -0.06})[0].edit is None
    assert choose([KEEP, _grow(-0.01, 0.0)], 1.0, {"grow_heads": 0.06})[0].edit is not None


def test_after_a_shift_growth_and_treatments_are_proposed_and_no_removal() -> None:
    names = [candidate.name for candidate in propose("abrupt shift", BLUEPRINT, SCORES, HEADS, Budget())]
    assert names[:3] == ["keep", "keep, reset", "keep, temper"]
    assert "grow layer 1 by 1" in names and "grow layer 0 by 1, reset" in names
    assert not any("shrink" in name for name in names)


def test_between_shifts_only_mature_heads_may_go_the_least_important_first() -> None:
    candidates = propose("thrift", BLUEPRINT, SCORES, HEADS, Budget())
    removals = [c.edit for c in candidates if c.edit is not None and c.edit["kind"] == "shrink_heads"]
    assert removals[0] == {"kind": "shrink_heads", "layer": 0, "heads": [1]}
    assert {"kind": "shrink_heads", "layer": 1, "heads": [1]} in removals
    assert all(2 not in edit["heads"] for edit in removals if edit["layer"] == 1)


def test_no_candidate_leaves_the_limits_on_heads() -> None:
    full = replace(BLUEPRINT, heads=(4, 1))
    scores = Scores([[0.1, 0.2, 0.3, 0.4], [0.1]], [9.0, 1.0], [[True] * 4, [True]])
    for trigger in ("abrupt shift", "thrift"):
        for candidate in propose(trigger, full, scores, HEADS, Budget()):
            assert all(1 <= heads <= 4 for heads in candidate.heads), candidate


@pytest.mark.parametrize("budget", [Budget(parameters=BLUEPRINT.parameters), Budget(flops_per_sample=1)])
def test_no_growth_beyond_the_budget(budget: Budget) -> None:
    for candidate in propose("abrupt shift", BLUEPRINT, SCORES, HEADS, budget):
        assert candidate.edit is None
    assert any(c.edit is not None for c in propose("thrift", BLUEPRINT, SCORES, HEADS, budget)), "shrinking is allowed"


def test_the_price_is_that_of_the_live_heads() -> None:
    budget = Budget(price=0.08)
    assert price_of(BLUEPRINT, HEADS, budget) == pytest.approx(0.08 * 5 / 8)
    for candidate in propose("thrift", BLUEPRINT, SCORES, HEADS, budget):
        after = BLUEPRINT if candidate.edit is None else edit_from_dict(candidate.edit).apply(BLUEPRINT)
        assert candidate.heads == after.heads
        assert candidate.parameters == after.parameters
        assert candidate.price == pytest.approx(price_of(after, HEADS, budget))
