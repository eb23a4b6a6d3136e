from __future__ import annotations

import math
from dataclasses import replace

import pytest

from planaria.blueprint import Blueprint, GrowHeads, RecycleHead, Share, ShrinkHeads, Unshare, edit_from_dict
from planaria.control.decide import choose
from planaria.control.propose import Scores, long_run_gain, price_of, propose
from planaria.policy import Budget, Heads, Policy, Regrouping, Sharing
from planaria.signals import Candidate

BLUEPRINT = Blueprint("classification", 16, 4, 32, (2, 3), 10, image_shape=(1, 28, 28), patch=7)
POLICY = Policy(heads=Heads(start=2, min=1, max=4))
HEADS = POLICY.heads
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
    names = [candidate.name for candidate in propose("abrupt shift", BLUEPRINT, SCORES, 1.0, POLICY, 0.1)]
    assert names[:2] == ["keep", "keep, reset"]
    assert names[2:4] == ["grow layer 1 by 1", "grow layer 0 by 1"], "layer 1 pulls harder but has room for one"
    assert names[4:] == ["grow layer 1 by 1, reset"], "what grows may also begin without the old momentum"
    assert not any("shrink" in name for name in names)


def test_a_model_that_is_worse_than_ignorant_may_be_tempered() -> None:
    for loss, offered in ((2.0, False), (2.5, True)):
        names = [candidate.name for candidate in propose("abrupt shift", BLUEPRINT, SCORES, loss, POLICY, 0.1)]
        assert ("keep, temper" in names) == offered, "ten classes: ignorance costs 2.3 nats"


def test_between_shifts_only_mature_heads_may_go_the_least_important_first() -> None:
    candidates = propose("thrift", BLUEPRINT, SCORES, 1.0, POLICY, 0.1)
    removals = [c.edit for c in candidates if c.edit is not None and c.edit["kind"] == "shrink_heads"]
    assert removals[0] == {"kind": "shrink_heads", "layer": 0, "heads": [1]}
    assert {"kind": "shrink_heads", "layer": 1, "heads": [1]} in removals
    assert all(2 not in edit["heads"] for edit in removals if edit["layer"] == 1)


def test_no_candidate_leaves_the_limits_on_heads() -> None:
    full = replace(BLUEPRINT, heads=(4, 1))
    scores = Scores([[0.1, 0.2, 0.3, 0.4], [0.1]], [9.0, 1.0], [[True] * 4, [True]])
    for trigger in ("abrupt shift", "thrift"):
        for candidate in propose(trigger, full, scores, 1.0, POLICY, 0.1):
            assert all(1 <= heads <= 4 for heads in candidate.heads), candidate


@pytest.mark.parametrize("budget", [Budget(parameters=BLUEPRINT.parameters), Budget(flops_per_sample=1)])
def test_no_growth_beyond_the_budget(budget: Budget) -> None:
    policy = Policy(heads=HEADS, budget=budget)
    for candidate in propose("abrupt shift", BLUEPRINT, SCORES, 1.0, policy, 0.1):
        assert candidate.edit is None
    assert any(c.edit is not None for c in propose("thrift", BLUEPRINT, SCORES, 1.0, policy, 0.1)), (
        "shrinking is allowed"
    )


def test_the_price_is_that_of_the_live_heads() -> None:
    assert price_of(BLUEPRINT, POLICY, 0.08) == pytest.approx(0.08 * 5 / 8)
    for candidate in propose("thrift", BLUEPRINT, SCORES, 1.0, POLICY, 0.08):
        after = BLUEPRINT if candidate.edit is None else edit_from_dict(candidate.edit).apply(BLUEPRINT)
        assert candidate.heads == after.heads
        assert candidate.parameters == after.parameters
        assert candidate.price == pytest.approx(price_of(after, POLICY, 0.08))


def test_capacity_is_expected_to_pay_less_the_more_there_is() -> None:
    few, many = (replace(BLUEPRINT, heads=heads) for heads in ((1, 1), (4, 4)))
    scores = Scores([[1.0] * 4] * 2, [1.0, 1.0], [[True] * 4] * 2)
    gains = [long_run_gain(GrowHeads(0, 1), blueprint, scores, 0.06) for blueprint in (few, many)]
    assert gains[0] > gains[1] > 0
    assert long_run_gain(GrowHeads(0, 2), few, scores, 0.06) == pytest.approx(0.06), "twice the heads, the whole gain"
    assert long_run_gain(None, few, scores, 0.06) == 0


def test_a_dead_head_is_expected_to_be_missed_by_nobody() -> None:
    assert long_run_gain(ShrinkHeads(1, (2,)), BLUEPRINT, SCORES, 0.06) > long_run_gain(
        ShrinkHeads(1, (0,)), BLUEPRINT, SCORES, 0.06
    )
    assert -0.002 < long_run_gain(ShrinkHeads(1, (2,)), BLUEPRINT, SCORES, 0.06) < 0


DEAD = Scores(importance=[[0.5, 0.1], [0.3, 0.2, 0.01]], growth=[0.5, 2.0], mature=[[True] * 2, [True] * 3])


def test_a_mature_head_that_does_nothing_may_be_recycled_between_shifts() -> None:
    def recycled(trigger: str, scores: Scores) -> list[object]:
        found = propose(trigger, BLUEPRINT, scores, 1.0, POLICY, 0.1)
        return [c.edit for c in found if c.edit is not None and c.edit["kind"] == "recycle_head"]

    assert recycled("thrift", DEAD) == [{"kind": "recycle_head", "layer": 1, "head": 2}]
    assert recycled("thrift", SCORES) == [], "not while it is young"
    assert recycled("abrupt shift", DEAD) == []
    used = replace(DEAD, importance=[[0.5, 0.1], [0.3, 0.2, 0.02]])
    assert recycled("thrift", used) == [], "a tenth of the mean is where dead begins"


def test_recycling_is_among_the_candidates_that_are_tried_and_costs_no_capacity() -> None:
    keep, recycle, *others = propose("thrift", BLUEPRINT, DEAD, 1.0, POLICY, 0.1)
    assert recycle.price == keep.price and recycle.heads == keep.heads and len(others) <= 5
    assert (
        0
        < long_run_gain(RecycleHead(1, 2), BLUEPRINT, DEAD, 0.06)
        < long_run_gain(GrowHeads(1, 1), replace(BLUEPRINT, heads=(2, 2)), DEAD, 0.06)
    )


PAIRED = replace(BLUEPRINT, heads=(2, 2, 2), attention_of=(0, 0, 2), mlp_of=(0, 0, 2))
REGROUPS = POLICY.model_copy(update={"sharing": Sharing(regroup=Regrouping(price=0.1, gain=0.02))})
ALIKE = Scores(
    [[1.0, 1.0]] * 3,
    [1.0] * 3,
    [[True, True]] * 3,
    distance={Share("mlp", (0, 2)): 0.9, Share("attention", (0, 2)): 0.4},
    strain={Unshare("mlp", 0): -0.2, Unshare("attention", 1): 0.3, Unshare("attention", 0): 0.1},
)


@pytest.mark.parametrize(("trigger", "edits"), [("abrupt shift", ["unshare"]), ("thrift", ["unshare", "share"])])
def test_a_shift_may_part_layers_and_between_shifts_they_may_join(trigger: str, edits: list[str]) -> None:
    found = [c for c in propose(trigger, PAIRED, ALIKE, 1.0, REGROUPS, 0.1) if "share" in str(c.edit)]
    assert [c.edit["kind"] for c in found if c.edit] == edits
    assert found[0].edit == {"kind": "unshare", "part": "attention", "layer": 1} and found[0].facts["strain"] == 0.3
    assert all("share" not in str(c.edit) for c in propose(trigger, PAIRED, ALIKE, 1.0, POLICY, 0.1))


def test_parameters_have_a_price_and_a_worth_where_layers_may_regroup() -> None:
    whole = replace(PAIRED, attention_of=(), mlp_of=())
    of_heads = price_of(whole, POLICY, 0.08)
    assert price_of(whole, REGROUPS, 0.08) == pytest.approx(of_heads + 0.1)
    assert price_of(PAIRED, REGROUPS, 0.08) == pytest.approx(of_heads + 0.1 * PAIRED.parameters / whole.parameters)
    parts = Unshare("mlp", 1)
    doublings = math.log2(parts.apply(PAIRED).parameters / PAIRED.parameters)
    assert long_run_gain(parts, PAIRED, ALIKE, 5.0, 0.02) == pytest.approx(0.02 * doublings)
