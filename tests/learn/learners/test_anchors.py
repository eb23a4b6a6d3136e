"""Weights that are pulled back to where they mattered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from planaria.errors import InputError
from planaria.learn import Anchors, build_anchors
from planaria.policy import Learner


def anchors(kind: str, **settings: float) -> Anchors:
    built = build_anchors(Learner.model_validate({"protect": {"kind": kind, **settings}}))
    assert built is not None
    return built


def step(
    held: Anchors, parameter: nn.Parameter, gradient: Sequence[float], moved: Sequence[float], rows: int
) -> Tensor:
    """What the optimizer would have seen."""
    parameter.grad = torch.tensor(gradient)
    held.pull([parameter])
    pulled = parameter.grad.clone()
    with torch.no_grad():
        parameter += torch.tensor(moved)
    held.stepped([parameter], rows)
    return pulled


def test_nothing_is_pulled_before_the_first_shift() -> None:
    parameter, held = nn.Parameter(torch.zeros(2)), anchors("ewc")
    assert step(held, parameter, [1.0, -1.0], [0.5, 0.5], rows=4).tolist() == [1.0, -1.0]
    assert step(held, parameter, [1.0, -1.0], [0.5, 0.5], rows=4).tolist() == [1.0, -1.0]


def test_ewc_pulls_by_rows_times_the_squared_gradient() -> None:
    parameter, held = nn.Parameter(torch.zeros(2)), anchors("ewc", weight=10.0)
    step(held, parameter, [2.0, 0.0], [0.0, 0.0], rows=4)
    held.settle([parameter])
    with torch.no_grad():
        parameter += 0.5
    importance = 0.01 * 4 * 2.0**2
    pulled = step(held, parameter, [0.0, 0.0], [0.0, 0.0], rows=4)
    torch.testing.assert_close(pulled, torch.tensor([10 * importance * 0.5, 0.0]))


def test_earlier_importance_decays_at_every_shift() -> None:
    parameter, held = nn.Parameter(torch.zeros(1)), anchors("ewc", decay=0.5)
    step(held, parameter, [1.0], [0.0], rows=1)
    held.settle([parameter])
    held.settle([parameter])
    assert held.slots[parameter]["importance"].tolist() == pytest.approx([0.005])


def test_si_credits_each_weight_with_what_its_moves_took_off_the_loss() -> None:
    parameter, held = nn.Parameter(torch.zeros(3)), anchors("si")
    step(held, parameter, [-2.0, -2.0, 2.0], [0.1, 0.0, 0.1], rows=8)
    held.settle([parameter])
    found = held.slots[parameter]
    torch.testing.assert_close(found["importance"], torch.tensor([0.2 / (0.01 + 1e-3), 0.0, 0.0]))
    torch.testing.assert_close(found["anchor"], parameter.detach())
    assert found["gathered"].tolist() == [0.0, 0.0, 0.0]


def test_rows_that_a_parameter_keeps_keep_their_anchors_and_new_ones_have_none() -> None:
    old, held = nn.Parameter(torch.zeros(3)), anchors("ewc")
    step(held, old, [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], rows=1)
    held.settle([old])
    new = nn.Parameter(torch.tensor([0.0, 0.0, 7.0]))

    held.replaced(old, new, torch.tensor([2, 0]))

    assert old not in held.slots
    assert held.slots[new]["importance"].tolist() == pytest.approx([0.09, 0.01, 0.0])
    assert held.slots[new]["anchor"].tolist() == [0.0, 0.0, 7.0]


def test_what_is_put_back_whole_begins_without_importance() -> None:
    old, held = nn.Parameter(torch.zeros(3)), anchors("ewc")
    step(held, old, [1.0, 2.0, 3.0], [0.0, 0.0, 0.0], rows=1)
    held.replaced(old, nn.Parameter(torch.ones(3)), torch.arange(0))
    assert not held.slots


def test_anchors_are_saved_by_name_and_come_back() -> None:
    parameter, held = nn.Parameter(torch.zeros(2)), anchors("si")
    step(held, parameter, [-1.0, -1.0], [0.1, 0.2], rows=2)
    again = anchors("si")
    again.load({"w": parameter}, held.tensors([("w", parameter)]))
    for slot, value in held.slots[parameter].items():
        assert torch.equal(again.slots[parameter][slot], value)


def test_anchors_of_another_model_are_refused() -> None:
    with pytest.raises(InputError, match="'anchor/w' fits no parameter of the model"):
        anchors("si").load({"w": nn.Parameter(torch.zeros(3))}, {"anchor/w": torch.zeros(2)})
