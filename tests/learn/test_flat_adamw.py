"""AdamW over buffers is AdamW, whatever surgery does to its parameters in between."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from planaria.learn import OptimizerFollower, load_optimizer_tensors, optimizer_tensors, reset_moments
from planaria.learn.flat_adamw import FlatAdamW

SHAPES = [(5, 3), (16, 4), (7,), (64,)]


def _parameters() -> list[nn.Parameter]:
    random = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]


def _optimizer(
    kind: type[FlatAdamW] | type[torch.optim.AdamW], parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    return kind([{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}], lr=0.01)


def _step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int, clip: float = 1e9) -> float:
    random = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=random)
    if isinstance(optimizer, FlatAdamW):
        length = optimizer.gather(clip)
    else:
        length = float(nn.utils.clip_grad_norm_(parameters, clip))
    optimizer.step()
    return length


class Pair:
    """The same parameters under both."""

    def __init__(self) -> None:
        self.flat, self.plain = _parameters(), _parameters()
        self.optimizers = _optimizer(FlatAdamW, self.flat), _optimizer(torch.optim.AdamW, self.plain)

    def step(self, seed: int, clip: float = 1e9) -> None:
        lengths = [
            _step(optimizer, list(parameters), seed, clip)
            for optimizer, parameters in zip(self.optimizers, (self.flat, self.plain), strict=True)
        ]
        assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)

    def same(self) -> None:
        for one, other in zip(self.flat, self.plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            states = [optimizer.state[p] for optimizer, p in zip(self.optimizers, (one, other), strict=True)]
            assert states[0].keys() == states[1].keys()
            for slot in states[0]:
                torch.testing.assert_close(states[0][slot], states[1][slot], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_it_steps_as_adamw_does(clip: float) -> None:
    pair = Pair()
    for seed in range(10):
        pair.step(seed, clip)
    pair.same()


def test_replaced_parameters_take_their_state_along() -> None:
    pair = Pair()
    for seed in range(3):
        pair.step(seed)
    kept = torch.tensor([3, 0])
    for parameters, optimizer in zip((pair.flat, pair.plain), pair.optimizers, strict=True):
        old = parameters[0]
        parameters[0] = nn.Parameter(torch.cat((old.detach()[kept], torch.ones(1, 3))))
        OptimizerFollower(optimizer).replaced(old, parameters[0], kept)
        fresh = parameters[3]
        parameters[3] = nn.Parameter(torch.zeros(4))
        OptimizerFollower(optimizer).replaced(fresh, parameters[3], torch.zeros(0, dtype=torch.int64))
    for seed in range(3, 6):
        pair.step(seed)
    pair.same()
    assert {int(pair.optimizers[0].state[p]["step"]) for p in pair.flat} == {3, 6}, "one began anew"


def test_moments_that_were_reset_begin_anew() -> None:
    pair = Pair()
    for seed in range(6):
        if seed == 3:
            for optimizer in pair.optimizers:
                reset_moments(optimizer)
        pair.step(seed)
    pair.same()


def test_what_was_saved_goes_on() -> None:
    pair = Pair()
    pair.step(0)
    named = [(str(at), parameter) for at, parameter in enumerate(pair.flat)]
    saved = {name: value.clone() for name, value in optimizer_tensors(pair.optimizers[0], named).items()}
    pair.step(1)
    for parameters, optimizer in zip((pair.flat, pair.plain), pair.optimizers, strict=True):
        load_optimizer_tensors(optimizer, {str(at): p for at, p in enumerate(parameters)}, saved)
    pair.step(2)
    pair.same()


def test_a_copy_leaves_the_original_alone() -> None:
    parameters = nn.ParameterList(_parameters())
    optimizer = _optimizer(FlatAdamW, list(parameters))
    _step(optimizer, list(parameters), 0)
    before = [parameter.detach().clone() for parameter in parameters]
    copied, copied_optimizer = copy.deepcopy((parameters, optimizer))
    _step(copied_optimizer, list(copied), 1)
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))
    _step(optimizer, list(parameters), 1)
    assert all(torch.equal(one, other) for one, other in zip(parameters, copied, strict=True)), "both go the same way"


def test_a_parameter_without_a_gradient_is_stepped_as_if_it_were_zero() -> None:
    parameters = _parameters()
    optimizer = _optimizer(FlatAdamW, parameters)
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    before = parameters[0].detach().clone()
    optimizer.step()
    torch.testing.assert_close(parameters[0].detach(), before * (1 - 0.01 * 0.01))


def test_it_does_not_load_the_compiler() -> None:
    script = (
        "import sys, torch\n"
        "from planaria.learn.flat_adamw import FlatAdamW\n"
        "FlatAdamW([{'params': [torch.nn.Parameter(torch.ones(3))]}], lr=0.1)\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
