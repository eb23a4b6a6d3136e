"""The controller between decisions: what it keeps, and what it charges."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planaria.control import Controller
from planaria.control.full_look_ahead import FullLookAhead
from planaria.policy import Budget, Heads, Policy
from planaria.signals import StepReport


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
