"""The judge with a learned value: when it looks ahead, what it chooses, and what it keeps of its own outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planaria.control.full_look_ahead import FullLookAhead
from planaria.control.judge import Outcome, Situation
from planaria.control.judges import judge_for
from planaria.control.learned import MOST_OUTCOMES, LearnedJudge
from planaria.control.look_ahead import Trial
from planaria.control.value import ValueEnsemble
from planaria.errors import InputError
from planaria.policy import Controller
from planaria.signals import Candidate

HandMade = Callable[..., ValueEnsemble]
KEEP = Candidate("keep", None, "keep", (3,), 100, price=0.03)
GROW = Candidate("grow", {"kind": "grow_heads", "layer": 0, "heads": 1}, "keep", (4,), 120, price=0.03)
MORE = replace(GROW, name="grow by 2")
MOST = replace(GROW, name="grow by 3")
SHRINK = Candidate("shrink", {"kind": "shrink_heads", "layer": 0, "heads": [0]}, "keep", (2,), 80, price=0.03)
PART = Candidate("part", {"kind": "unshare", "part": "mlp", "layer": 0}, "keep", (3,), 120, price=0.05, prior=0.01)
SETTINGS = Controller(certainty=0.0)


class Looks:
    """Shows a loss for each candidate and notes on which it was looked ahead."""

    def __init__(self, *losses: float) -> None:
        self.losses = losses
        self.asked: list[list[int]] = []

    def __call__(self, numbers: Sequence[int]) -> list[Trial]:
        self.asked.append(list(numbers))
        return [Trial(np.full(8, self.losses[number], np.float32), np.zeros(0, np.float32)) for number in numbers]


def situation(*candidates: Candidate, number: int = 0, looks: int = 9, loss: float = 1.0) -> Situation:
    return Situation(number, 1_000, "thrift", loss, {"loss_fast": loss}, candidates, looks)


def outcome(number: int, fall: float = 0.2) -> Outcome:
    return Outcome(number, "thrift", "grow_heads", 0.1, fall, 0.0)


def numbers(judge: LearnedJudge, *candidates: Candidate) -> list[float]:
    """The values of the candidates without looking ahead."""
    seen = judge.judge(situation(*candidates, number=10_000, looks=0), Looks()).candidates
    judge.open.pop(10_000)
    return [candidate.value for candidate in seen]


def test_where_the_members_agree_the_value_is_trusted_and_nothing_is_looked_ahead_on(hand_made: HandMade) -> None:
    looks = Looks(1.0, 1.0, 1.0)
    verdict = LearnedJudge(SETTINGS, hand_made(2.0, 2.0)).judge(situation(KEEP, GROW, SHRINK), looks)
    assert verdict.chosen.name == "grow" and looks.asked == []
    assert verdict.chosen.value == verdict.chosen.predicted == pytest.approx(2 * 0.05, rel=1e-3)
    assert np.isnan(verdict.chosen.loss_recent)
    assert verdict.why.endswith("(the learned value is sure)")


def test_where_the_members_disagree_what_is_seen_decides(hand_made: HandMade) -> None:
    value = hand_made(-3.0, 3.0, looked=20.0)
    for loss, best in ((0.8, "grow"), (1.2, "keep")):
        looks = Looks(1.0, loss)
        verdict = LearnedJudge(SETTINGS, value).judge(situation(KEEP, GROW), looks)
        assert verdict.chosen.name == best and looks.asked == [[0, 1]]
        grown = verdict.candidates[1]
        assert grown.loss_recent == pytest.approx(loss)
        assert grown.predicted == pytest.approx(0, abs=1e-3) and abs(grown.value) > 0.1
        assert verdict.why.endswith("(looked ahead on 1 of 1)")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_candidates_are_looked_ahead_on_than_the_policy_allows_and_keep(hand_made: HandMade, most: int) -> None:
    looks = Looks(1.0, 1.0, 1.0, 1.0)
    settings = SETTINGS.model_copy(update={"most_looks": most})
    LearnedJudge(settings, hand_made(-3.0, 3.0)).judge(situation(KEEP, GROW, MORE, MOST), looks)
    assert len(looks.asked) == 1 and looks.asked[0][0] == 0 and len(looks.asked[0]) == most + 1


@pytest.mark.parametrize(("affordable", "looked"), [(0, 0), (1, 0), (2, 2), (3, 3)])
def test_no_more_is_looked_ahead_than_the_budget_pays(hand_made: HandMade, affordable: int, looked: int) -> None:
    looks = Looks(1.0, 1.0, 1.0, 1.0)
    judge = LearnedJudge(SETTINGS, hand_made(-3.0, 3.0))
    judge.judge(situation(KEEP, GROW, MORE, MOST, looks=affordable), looks)
    assert sum(map(len, looks.asked)) == looked


def test_only_what_may_be_the_best_is_looked_ahead_on(hand_made: HandMade) -> None:
    looks = Looks(1.0, 1.0, 1.0)
    LearnedJudge(SETTINGS, hand_made(-3.0, 3.0, shrink=-9.0)).judge(situation(KEEP, SHRINK, GROW), looks)
    assert looks.asked == [[0, 2]]


def test_a_judge_that_never_doubts_never_looks(hand_made: HandMade) -> None:
    looks = Looks(1.0, 1.0)
    settings = SETTINGS.model_copy(update={"doubt": 0.0})
    LearnedJudge(settings, hand_made(-3.0, 3.5)).judge(situation(KEEP, GROW), looks)
    assert looks.asked == []


def test_the_price_decides_between_equal_gains(hand_made: HandMade) -> None:
    judge = LearnedJudge(SETTINGS, hand_made(2.0, 2.0))
    dear, cheap = replace(GROW, name="dear", price=0.06), replace(GROW, name="cheap", price=0.05)
    verdict = judge.judge(situation(KEEP, dear, cheap), Looks())
    assert verdict.chosen.name == "cheap"
    assert [c.value for c in verdict.candidates] == pytest.approx([0, 0.1 - 0.03, 0.1 - 0.02], rel=1e-3)
    too_dear = replace(GROW, price=0.03 + 0.11)
    assert judge.judge(situation(KEEP, too_dear), Looks()).chosen.name == "keep"


def test_gains_grow_with_the_loss_and_prices_do_not(hand_made: HandMade) -> None:
    judge, dear = LearnedJudge(SETTINGS, hand_made(2.0, 2.0)), replace(GROW, price=0.03 + 0.15)
    chosen = [judge.judge(situation(KEEP, dear, loss=loss), Looks()).chosen.name for loss in (1.0, 2.0)]
    assert chosen == ["keep", "grow"]


def test_outcomes_move_the_next_values(hand_made: HandMade) -> None:
    judge = LearnedJudge(SETTINGS, hand_made(2.0, 2.0))
    before = numbers(judge, KEEP, GROW)
    for number in range(40):
        assert judge.judge(situation(KEEP, GROW, number=number), Looks()).chosen.name == "grow"
        judge.learn(outcome(number, fall=0.5))
    assert numbers(judge, KEEP, GROW)[1] > before[1]


def test_an_outcome_of_an_unknown_decision_is_ignored(hand_made: HandMade) -> None:
    judge = LearnedJudge(SETTINGS, hand_made(2.0, 2.0))
    judge.judge(situation(KEEP, GROW, number=3), Looks())
    before = json.dumps(judge.state())
    judge.learn(outcome(7))
    assert json.dumps(judge.state()) == before


def test_decisions_whose_outcome_was_given_up_are_forgotten_at_a_later_one(hand_made: HandMade) -> None:
    judge = LearnedJudge(SETTINGS, hand_made(2.0, 2.0))
    for number in range(4):
        judge.judge(situation(KEEP, GROW, number=number), Looks())
    judge.learn(outcome(2))
    assert set(judge.open) == {3}


def test_only_the_newest_outcomes_count(hand_made: HandMade) -> None:
    judge = LearnedJudge(SETTINGS, hand_made(2.0, 2.0))
    for number in range(MOST_OUTCOMES + 5):
        judge.judge(situation(KEEP, GROW, number=number), Looks())
        judge.learn(outcome(number, fall=number / 100))
    assert MOST_OUTCOMES == 64
    assert judge.state()["returns"] == pytest.approx([number / 100 for number in range(5, 69)])
    assert len(judge.state()["features"]) == 64


def experienced(value: ValueEnsemble) -> LearnedJudge:
    judge = LearnedJudge(SETTINGS, value)
    for number in range(6):
        judge.judge(situation(KEEP, GROW, SHRINK, number=number), Looks())
        judge.learn(outcome(number, fall=0.3))
    judge.judge(situation(KEEP, GROW, number=6), Looks())
    return judge


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(json.dumps(state))
    return loaded


def test_a_judge_that_was_saved_goes_on_as_it_would_have(hand_made: HandMade) -> None:
    value = hand_made(1.0, 2.0, looked=5.0)
    judge, again = experienced(value), LearnedJudge(SETTINGS, value)
    again.load_state(through_json(judge.state()))
    for one in (judge, again):
        one.learn(outcome(6, fall=0.4))
    verdicts = [one.judge(situation(KEEP, GROW, SHRINK, number=7), Looks(1.0, 0.9, 1.1)) for one in (judge, again)]
    assert repr(verdicts[0]) == repr(verdicts[1])
    assert judge.state() == again.state()


def test_what_is_inherited_are_outcomes_and_no_open_decisions(hand_made: HandMade) -> None:
    value = hand_made(1.0, 2.0)
    judge, heir = experienced(value), LearnedJudge(SETTINGS, value)
    heir.inherit(through_json(judge.state()))
    assert numbers(heir, KEEP, GROW) == numbers(judge, KEEP, GROW) != numbers(LearnedJudge(SETTINGS, value), KEEP, GROW)
    heir.learn(outcome(6))
    assert len(heir.state()["returns"]) == 6 and judge.open and not heir.open


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"ledger": {}},
        {"features": 5, "returns": [], "open": []},
        {"features": [[1.0, 2.0]], "returns": [0.1], "open": []},
        {"features": [["x"]], "returns": [0.1], "open": []},
        {"features": [], "returns": [], "open": [[1]]},
    ],
    ids=str,
)
def test_a_state_of_something_else_is_refused_in_one_line(hand_made: HandMade, state: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="controller state: not that of a learned value") as refused:
        LearnedJudge(SETTINGS, hand_made(1.0)).load_state(state)
    assert "\n" not in str(refused.value)


def test_the_states_of_the_two_judges_are_not_taken_for_each_other(hand_made: HandMade) -> None:
    learned, full = LearnedJudge(SETTINGS, hand_made(1.0)), FullLookAhead(SETTINGS)
    with pytest.raises(InputError, match="controller state: not that of a learned value"):
        learned.inherit(full.state())
    with pytest.raises(InputError, match="holds no ledger; it is that of another kind of controller"):
        full.inherit(learned.state())


def test_looking_ahead_on_everything_stops_where_the_budget_does() -> None:
    looks = Looks(1.0, 0.5, 0.1)
    verdict = FullLookAhead(SETTINGS).judge(situation(KEEP, GROW, MORE, looks=2), looks)
    assert looks.asked == [[0, 1]] and verdict.chosen.name == "grow"
    nothing = FullLookAhead(SETTINGS).judge(situation(KEEP, GROW, looks=0), Looks(1.0))
    assert nothing.chosen.name == "keep"


def test_the_policy_says_which_judge_there_is(hand_made: HandMade, tmp_path: Path) -> None:
    path = tmp_path / "value.safetensors"
    path.write_bytes(hand_made(1.0).to_bytes())
    assert isinstance(judge_for(Controller(kind="look_ahead")), FullLookAhead)
    learned = judge_for(Controller(kind="learned", value=str(path)))
    assert isinstance(learned, LearnedJudge) and learned.value.edits == {"grow_heads", "shrink_heads"}
    with pytest.raises(InputError, match="nowhere: no usable learned value"):
        judge_for(Controller(kind="learned", value="nowhere"))


def test_kinds_that_the_value_never_learned_of_are_judged_by_looking_ahead(hand_made: HandMade) -> None:
    judge = LearnedJudge(SETTINGS, hand_made(2.0, 2.0))
    looks = Looks(1.0, 0.5, 9.0)
    verdict = judge.judge(situation(KEEP, PART, GROW), looks)
    assert looks.asked == [[0, 1]], "of growing the value is sure"
    assert [c.name for c in verdict.candidates] == ["keep", "grow", "part"]
    assert verdict.chosen.name == "part"
    assert verdict.chosen.value == pytest.approx(SETTINGS.look_ahead_weight * 0.5 + 0.01 - 0.02)
    assert not judge.open, "the value cannot learn from what it has no features of"


@pytest.mark.parametrize("affordable", [0, 1])
def test_kinds_that_the_value_never_learned_of_are_left_out_where_nothing_can_be_looked_ahead_on(
    affordable: int, hand_made: HandMade
) -> None:
    judge, looks = LearnedJudge(SETTINGS, hand_made(2.0, 2.0)), Looks()
    verdict = judge.judge(situation(KEEP, PART, GROW, looks=affordable), looks)
    assert [c.name for c in verdict.candidates] == ["keep", "grow"] and looks.asked == []


def test_what_may_be_the_best_and_what_the_value_does_not_know_are_looked_ahead_on_together(
    hand_made: HandMade,
) -> None:
    looks = Looks(1.0, 9.0, 0.5)
    verdict = LearnedJudge(SETTINGS, hand_made(-3.0, 3.0, looked=20.0)).judge(situation(KEEP, PART, GROW), looks)
    assert looks.asked == [[0, 1, 2]]
    assert verdict.chosen.name == "grow" and verdict.chosen.loss_recent == 0.5
