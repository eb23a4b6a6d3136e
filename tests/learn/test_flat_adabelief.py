"""AdaBelief against its formula, written out for one number at a time."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from planaria.learn import OptimizerFollower, clip_gradients, load_optimizer_tensors, optimizer_tensors
from planaria.learn.flat_adabelief import FlatAdaBelief

RATE = 0.01


def _parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in ((5, 3), (7,))]


def _optimizer(parameters: list[nn.Parameter], weight_decay: float = 0.0) -> FlatAdaBelief:
    return FlatAdaBelief([{"params": parameters}], lr=RATE, weight_decay=weight_decay)


def _step(optimizer: FlatAdaBelief, parameters: list[nn.Parameter], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=random)
    optimizer.step()


def test_it_steps_as_the_formula_says() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = _optimizer([parameter], weight_decay=0.1)
    value, mean, variance = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.2, 0.4, 0.4), start=1):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        variance = 0.999 * variance + 0.001 * (gradient - mean) ** 2
        unbiased = mean / (1 - 0.9**step), variance / (1 - 0.999**step)
        value = value * (1 - RATE * 0.1) - RATE * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)
        assert parameter.item() == pytest.approx(value, rel=1e-5)


def test_a_gradient_that_agrees_with_itself_is_followed_further_than_a_noisy_one_of_equal_size() -> None:
    sure, noisy = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = _optimizer([sure, noisy])
    for step in range(60):
        sure.grad, noisy.grad = torch.tensor([1.0]), torch.tensor([1.5 if step % 2 else -0.5])
        optimizer.step()
    assert sure.item() < 3 * noisy.item() < 0


def test_rows_that_are_kept_take_their_state_along_and_new_ones_have_the_others_variance() -> None:
    parameters = _parameters()
    optimizer = _optimizer(parameters)
    for seed in range(3):
        _step(optimizer, parameters, seed)
    old, kept = parameters[0], torch.tensor([3, 0])
    before = {slot: value.clone() for slot, value in optimizer.state[old].items()}
    parameters[0] = nn.Parameter(torch.cat((old.detach()[kept], torch.ones(1, 3))))
    OptimizerFollower(optimizer).replaced(old, parameters[0], kept)
    state = optimizer.state[parameters[0]]
    assert torch.equal(state["exp_avg"][:2], before["exp_avg"][kept]) and not bool(state["exp_avg"][2].any())
    torch.testing.assert_close(state["exp_avg_var"][2], before["exp_avg_var"][kept].mean(0))
    _step(optimizer, parameters, 3)
    assert {int(optimizer.state[p]["step"]) for p in parameters} == {4}


def test_what_was_saved_goes_on_with_equal_bits() -> None:
    parameters = _parameters()
    optimizer = _optimizer(parameters)
    _step(optimizer, parameters, 0)
    other = [copy.deepcopy(parameter) for parameter in parameters]
    resumed = _optimizer(other)
    named = [(str(at), parameter) for at, parameter in enumerate(parameters)]
    load_optimizer_tensors(resumed, {str(at): p for at, p in enumerate(other)}, optimizer_tensors(optimizer, named))
    _step(optimizer, parameters, 1)
    _step(resumed, other, 1)
    assert all(torch.equal(one, two) for one, two in zip(parameters, other, strict=True))


def test_gradients_are_clipped_together() -> None:
    parameters = _parameters()
    optimizer = _optimizer(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    assert clip_gradients(optimizer, 1.0) == pytest.approx(math.sqrt(22))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[parameters[1]]["exp_avg"], torch.full((7,), 0.1 / math.sqrt(22)))
