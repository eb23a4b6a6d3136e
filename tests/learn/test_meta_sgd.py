"""Rates that are learned: the step and the slope are those of learn2learn's Meta-SGD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from planaria.control.adapt import algorithms
from planaria.learn import load_optimizer_tensors, optimizer_tensors, reset_moments
from planaria.learn.meta_sgd import MOST_GAIN, MetaSGD

RATE, META_RATE = 0.1, 0.05
INPUT, TARGET = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0)).unbind()


def _model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 3)


def _loss(model: nn.Module, half: int) -> Tensor:
    """On one half of the rows."""
    rows = slice(8 * half, 8 * half + 8)
    return nn.functional.mse_loss(model(INPUT[rows]), TARGET[rows])


def _optimizer(model: nn.Module, momentum: float = 0.0) -> MetaSGD:
    groups = [{"params": list(model.parameters())}]
    return MetaSGD(groups, lr=RATE, momentum=momentum, meta_rate=META_RATE, weight_decay=0.0)


def _step(model: nn.Module, optimizer: MetaSGD, half: int) -> None:
    optimizer.zero_grad()
    _loss(model, half).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_step_is_learn2learns_inner_step_and_rates_move_against_the_slope_that_it_finds() -> None:
    rates = nn.ParameterList([nn.Parameter(torch.full_like(p, RATE)) for p in _model().parameters()])
    learner = algorithms().MetaSGD(_model(), lrs=rates, first_order=True).clone()
    learner.adapt(_loss(learner, 0))
    model = _model()
    optimizer = _optimizer(model)
    _step(model, optimizer, 0)
    for ours, theirs in zip(model.parameters(), learner.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    slopes = torch.autograd.grad(_loss(learner, 1), list(rates))
    _step(model, optimizer, 1)
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        gain = optimizer.state[parameter]["log_gain"]
        assert torch.equal(gain.sign(), -slope.sign()), "a rate grows where a larger one would have lost less"
        assert gain.abs().max() <= META_RATE


def test_rates_grow_where_gradients_agree_shrink_where_they_alternate_and_stay_within_bounds() -> None:
    agreeing, alternating = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = MetaSGD([{"params": [agreeing, alternating]}], lr=0.001, momentum=0.0, meta_rate=0.5)
    for step in range(40):
        agreeing.grad, alternating.grad = torch.ones(1), torch.full((1,), (-1.0) ** step)
        optimizer.step()
    assert optimizer.state[agreeing]["log_gain"].item() == pytest.approx(MOST_GAIN)
    assert optimizer.state[alternating]["log_gain"].item() == pytest.approx(-MOST_GAIN)


def test_momentum_is_forgotten_but_learned_rates_are_not() -> None:
    model = _model()
    optimizer = _optimizer(model, momentum=0.9)
    for half in (0, 1, 0):
        _step(model, optimizer, half)
    gains = [optimizer.state[p]["log_gain"].clone() for p in model.parameters()]
    reset_moments(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, gain in zip(model.parameters(), gains, strict=True):
        assert torch.equal(optimizer.state[parameter]["log_gain"], gain) and bool(gain.any())
        assert not bool(optimizer.state[parameter]["exp_avg"].any())


def test_what_was_saved_goes_on_with_equal_bits() -> None:
    first, second = _model(), _model()
    optimizer = _optimizer(first, momentum=0.9)
    _step(first, optimizer, 0)
    second.load_state_dict(first.state_dict())
    resumed = _optimizer(second, momentum=0.9)
    saved = optimizer_tensors(optimizer, first.named_parameters())
    load_optimizer_tensors(resumed, dict(second.named_parameters()), saved)
    _step(first, optimizer, 1)
    _step(second, resumed, 1)
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))
