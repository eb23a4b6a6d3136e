"""The controller between decisions: what it keeps, and what it charges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from planaria.blueprint import BEFORE_EDIT, Blueprint, edit_from_dict
from planaria.control import Controller, Evidence, Measurement, Trial
from planaria.control.controller import SETBACK_WAITS
from planaria.control.decide import edit_kind
from planaria.control.full_look_ahead import FullLookAhead
from planaria.control.judge import Look, Outcome, Situation, Verdict
from planaria.control.recall import RECALL
from planaria.control.rollback import ROLLBACK
from planaria.policy import Budget, Heads, Policy
from planaria.policy import Controller as ControllerSettings
from planaria.signals import Candidate, Decision, Shift, StepReport


def controller(**budget: float) -> Controller:
    policy = Policy(heads=Heads(start=6, max=10), budget=Budget.model_validate(budget))
    return Controller(policy, layers=2, seed=0, judge=FullLookAhead(policy.controller))


def live(run: Controller, rows: int, batch: int = 100) -> None:
    for at in range(0, rows, batch):
        loss_B = np.ones(batch, np.float32)
        run.observe(StepReport(0, at, loss_B, loss_B, loss_B, loss_B[:, None], loss_B[:, None]), passes=6 * batch)


def test_the_price_stays_where_no_mean_is_asked_for() -> None:
    run = controller(price=0.1)
    live(run, 50_000)
    assert run.price == 0.1


def test_the_price_rises_while_more_heads_are_used_than_may_be_and_falls_while_fewer_are() -> None:
    dear, cheap, right = (controller(price=0.1, mean_heads=mean) for mean in (4, 8, 6))
    for run in (dear, cheap, right):
        live(run, 10_000)
    assert dear.price == pytest.approx(0.1 + 2e-5 * 0.2 * 10_000)
    assert cheap.price == pytest.approx(0.1 - 2e-5 * 0.2 * 10_000)
    assert right.price == 0.1
    live(cheap, 100_000)
    assert cheap.price == 0, "and never below"


def test_the_price_is_part_of_the_state() -> None:
    run, again = controller(mean_heads=4), controller(mean_heads=4)
    live(run, 5_000)
    again.load_state(json.loads(json.dumps(run.state())))
    assert again.price == run.price > 0.1
    live(run, 1_000)
    live(again, 1_000)
    assert again.state() == run.state()


THRIFT, COOLDOWN, SCORING = 1_000, 200, 16
HELD_RECENT, HELD_MEMORY = 100, 50


class Queued:
    """A judge that chooses by how a name begins, or keeps, and looks ahead on as many candidates as it is told to."""

    least_looks = 0

    def __init__(self, *wanted: str, look_at: int = 0) -> None:
        self.wanted, self.look_at = list(wanted), look_at
        self.situations: list[Situation] = []
        self.learned: list[Outcome] = []

    def judge(self, situation: Situation, look: Look) -> Verdict:
        self.situations.append(situation)
        if self.look_at:
            look(range(self.look_at))
        wanted = self.wanted.pop(0) if self.wanted else "keep"
        chosen = next(c for c in situation.candidates if c.name.startswith(wanted))
        return Verdict(situation.candidates, replace(chosen, value=0.0), "as queued")

    def learn(self, outcome: Outcome) -> None:
        self.learned.append(outcome)

    def inherit(self, state: Mapping[str, Any]) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None: ...


class Still:
    """A bench on which every candidate shows the same, and the state before an edit is clearly better."""

    def __init__(self) -> None:
        self.blueprint = Blueprint("classification", 16, 4, 32, (3,), 4, numeric=8)
        self.kept: Mapping[int, Blueprint] = MappingProxyType({BEFORE_EDIT: self.blueprint})
        self.tried: list[str] = []

    def evidence(self, since_row: int) -> Evidence:
        def rows(count: int) -> tuple[dict[str, Tensor], Tensor]:
            return {"numeric": torch.zeros(count, 8)}, torch.zeros(count, dtype=torch.long)

        return Evidence(*rows(2 * HELD_RECENT), HELD_RECENT, *rows(2 * HELD_MEMORY), HELD_MEMORY)

    def measure(self, evidence: Evidence) -> Measurement:
        return Measurement([[1.0] * heads for heads in self.blueprint.heads], [1.0], None)

    def trials(self, candidates: list[Candidate], evidence: Evidence, seed: int) -> list[Trial]:
        self.tried += [candidate.name for candidate in candidates]
        return [Trial(np.ones(HELD_RECENT, np.float32), np.ones(HELD_MEMORY, np.float32)) for _ in candidates]

    def hindsight(
        self, concepts: Sequence[int], rows: int, remembered: int = 0, bias_fitted: bool = False
    ) -> list[Trial]:
        assert list(concepts) == [BEFORE_EDIT], "nothing else is kept that could be restored"
        return [Trial(np.full(rows, loss, np.float32), np.zeros(0, np.float32)) for loss in (1.0, 0.5)]

    def seconds(self) -> float:
        return 0.0


class Run:
    """A controller that lives through rows of a given loss."""

    def __init__(self, judge: Queued, price: float = 0.1, **budget: float) -> None:
        policy = Policy(
            heads=Heads(start=3, max=6, cooldown_samples=COOLDOWN),
            budget=Budget.model_validate({"price": price, **budget}),
            controller=ControllerSettings(thrift_every_samples=THRIFT, scoring_rows=SCORING),
        )
        self.controller = Controller(policy, layers=1, seed=0, judge=judge)
        self.bench = Still()
        self.row = 0
        self.decided: list[Decision] = []
        self.outcomes: list[tuple[int, float]] = []

    def live(self, rows: int, loss: float = 1.0, passes: int = 6, batch: int = 50) -> None:
        for _ in range(0, rows, batch):
            loss_B = np.full(batch, loss, np.float32)
            self.controller.observe(
                StepReport(0, self.row, loss_B, loss_B, loss_B, loss_B[:, None], loss_B[:, None]), passes * batch
            )
            self.row += batch
            self.outcomes += self.controller.outcomes(self.row)
            trigger = self.controller.due(self.row)
            if trigger == RECALL:  # nothing is kept: the normal decision follows
                assert self.controller.recall(self.row // batch, self.row, self.bench) is None
            elif trigger is not None:
                if trigger == ROLLBACK:
                    decision = self.controller.reconsider(self.row // batch, self.row, self.bench)
                else:
                    decision = self.controller.decide(trigger, self.row // batch, self.row, self.bench)
                self.controller.applied(decision, (0, 1))
                if decision.chosen.edit is not None:  # as the training loop does
                    self.bench.blueprint = edit_from_dict(decision.chosen.edit).apply(self.bench.blueprint)
                    if trigger == ROLLBACK:
                        self.controller.births = [[0] * heads for heads in self.bench.blueprint.heads]
                self.decided.append(decision)

    def shift(self) -> None:
        self.controller.shifted(Shift(0, self.row, "loss", "abrupt", 1.0, 1.0, self.row))


def waits(run: Run) -> list[int]:
    samples = [0, *(decision.sample for decision in run.decided)]
    return [after - before for before, after in pairwise(samples)]


def test_decisions_that_keep_the_model_double_the_wait_for_the_next_up_to_four_times() -> None:
    run = Run(Queued())
    run.live(20 * THRIFT)
    assert waits(run)[:5] == [THRIFT, 2 * THRIFT, 4 * THRIFT, 4 * THRIFT, 4 * THRIFT]


def test_an_edit_ends_the_patience() -> None:
    run = Run(Queued("keep", "keep", "grow layer 0 by 1"))
    run.live(12 * THRIFT)
    assert run.decided[2].chosen.edit is not None
    assert waits(run) == [THRIFT, 2 * THRIFT, 4 * THRIFT, THRIFT, 2 * THRIFT]


def test_a_shift_ends_the_patience() -> None:
    run = Run(Queued())
    run.live(7 * THRIFT)
    run.shift()
    run.live(3 * THRIFT)
    after = [(decision.trigger, decision.sample - 7 * THRIFT) for decision in run.decided[3:]]
    wait = run.controller.policy.controller.wait_samples
    assert after[0] == ("abrupt shift", -(-wait // 50) * 50)
    assert after[1] == ("thrift", after[0][1] + THRIFT), "a shift's decision that keeps is not held against the next"


def edited(*losses: tuple[int, float], wanted: Sequence[str]) -> Run:
    """A run that makes those edits, on rows of those losses."""
    run = Run(Queued(*wanted))
    for rows, loss in losses:
        run.live(rows, loss)
    return run


def offered(run: Run) -> list[set[str]]:
    """Kinds of edit, decision by decision."""
    return [{edit_kind(c) for c in situation.candidates} for situation in run.controller.judge.situations]  # type: ignore[attr-defined]


SHRINK, GROW = "shrink layer 0 by 1", "grow layer 0 by 1"


def test_an_edit_that_was_undone_is_not_offered_again_for_a_while() -> None:
    run = edited((THRIFT, 1.0), (THRIFT + 100, 3.0), (9 * THRIFT, 1.0), wanted=[SHRINK])
    first, _, undoing, *later = run.decided
    assert edit_kind(first.chosen) == "shrink_heads" and undoing.trigger == ROLLBACK
    assert undoing.chosen.edit is not None and undoing.chosen.edit["concept"] == BEFORE_EDIT
    for decision, kinds in zip(later, offered(run)[2:], strict=True):
        waited = decision.sample >= undoing.sample + SETBACK_WAITS * THRIFT
        assert ("shrink_heads" in kinds) == waited and "grow_heads" in kinds
    assert {"shrink_heads" in kinds for kinds in offered(run)[2:]} == {True, False}


def test_what_the_opposite_takes_back_is_not_offered_again_for_a_while() -> None:
    run = edited((4 * THRIFT, 1.0), wanted=[GROW, SHRINK])
    assert ["grow_heads" in kinds for kinds in offered(run)] == [True, True, False]
    assert all("shrink_heads" in kinds for kinds in offered(run))


def test_after_a_shift_the_opposite_takes_nothing_back() -> None:
    run = Run(Queued(GROW, "keep", SHRINK))
    run.live(int(1.5 * THRIFT))
    run.shift()
    run.live(4 * THRIFT)
    assert len(offered(run)) > 3 and all("grow_heads" in kinds for kinds in offered(run))


def test_setbacks_are_part_of_the_state() -> None:
    run, again = edited((2 * THRIFT, 1.0), wanted=[GROW, SHRINK]), Run(Queued())
    again.controller.load_state(json.loads(json.dumps(run.controller.state())))
    assert again.controller.setbacks == run.controller.setbacks
    assert again.controller.setbacks.barred("grow_heads", run.row)


def test_patience_is_part_of_the_state() -> None:
    run, again = Run(Queued()), Run(Queued())
    run.live(3 * THRIFT)
    again.controller.load_state(json.loads(json.dumps(run.controller.state())))
    again.row = run.row
    for one in (run, again):
        one.live(9 * THRIFT)
    assert run.controller.patience == again.controller.patience == 4
    assert [d.sample for d in again.decided] == [d.sample for d in run.decided[2:]]


def test_an_outcome_is_the_fall_of_the_loss_to_its_mean_over_the_horizon_minus_the_price_paid() -> None:
    judge = Queued("grow layer 0 by 1")
    run = Run(judge, price=0.12)
    run.live(THRIFT, loss=1.0)
    run.live(500, loss=0.8)
    assert run.outcomes == [] and judge.learned == []
    run.live(550, loss=0.4)
    mean = (500 * 0.8 + 550 * 0.4) / 1_050
    paid = 0.12 / 6
    assert run.outcomes == [(0, pytest.approx(1.0 - mean - paid, abs=1e-6))]
    learned = judge.learned[0]
    assert (learned.number, learned.trigger, learned.kind) == (0, "thrift", "grow_heads")
    assert learned.fall == pytest.approx(1.0 - mean, abs=1e-6) and learned.price_paid == pytest.approx(paid)


def test_keeping_has_an_outcome_too_and_pays_nothing() -> None:
    judge = Queued()
    run = Run(judge)
    run.live(THRIFT, loss=1.0)
    run.live(1_100, loss=0.7)
    assert run.outcomes == [(0, pytest.approx(0.3, abs=1e-6))]
    assert judge.learned[0].kind == "keep" and judge.learned[0].price_paid == 0


def test_an_outcome_that_a_shift_would_blur_is_given_up() -> None:
    judge = Queued("grow layer 0 by 1")
    run = Run(judge)
    run.live(THRIFT + 100)
    run.shift()
    run.live(700)
    assert judge.learned == [] and run.outcomes == []


EACH = ControllerSettings().inner_steps * ControllerSettings().inner_rows * 2 * 3 + HELD_RECENT + HELD_MEMORY


def test_looks_follow_the_decision_budget() -> None:
    first, rich, poor = (Run(Queued(), decision_fraction=fraction) for fraction in (0.1, 1.0, 0.1))
    first.live(THRIFT)
    rich.live(THRIFT, passes=60)
    poor.controller.passes_spent = Budget().decision_credit - 2 * 7 * SCORING - EACH
    poor.live(THRIFT)
    for run, earned in ((first, Budget().decision_credit), (rich, 60 * THRIFT)):
        assert isinstance(run.controller.judge, Queued)
        assert run.controller.judge.situations[0].looks == (earned - 7 * SCORING) // EACH
    assert isinstance(poor.controller.judge, Queued)
    assert [seen.looks for seen in poor.controller.judge.situations] == [1]


def test_a_decision_without_looks_costs_only_its_measuring_and_each_look_its_passes() -> None:
    for looks in (0, 1, 3):
        run = Run(Queued(look_at=looks))
        run.live(THRIFT)
        assert run.controller.passes_spent == 7 * SCORING + looks * EACH
        assert run.bench.tried == [candidate.name for candidate in run.decided[0].candidates[:looks]]


def test_no_decision_is_taken_that_the_budget_cannot_pay() -> None:
    run = Run(Queued(), decision_fraction=0.001)
    run.controller.passes_spent = Budget().decision_credit
    run.live(3 * THRIFT)
    run.shift()
    run.live(2 * THRIFT)
    assert run.decided == []
