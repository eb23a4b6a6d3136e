"""Looking ahead with learn2learn on a real model."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.control import Evidence, Trial, run_trial
from planaria.control.adapt import adam_rates, adapt, algorithms, fast_learner
from planaria.control.look_ahead import score
from planaria.learn import build_optimizer
from planaria.model import ElasticTransformer, build
from planaria.policy import Controller, Learner
from planaria.signals import Candidate

BLUEPRINT = Blueprint("classification", 16, 4, 32, (2, 2), 2, numeric=4)
SETTINGS = Controller(inner_steps=60, inner_rows=16)
KEEP = Candidate("keep", None, "keep", (2, 2), 100, price=0.01)


def _rows(count: int = 128) -> tuple[dict[str, Tensor], Tensor]:
    values = torch.randn(count, 4, generator=torch.Generator().manual_seed(4))
    return {"numeric": values}, (values[:, 0] > 0).long()


def _model(warm_steps: int = 5) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    model = build(BLUEPRINT)
    features, target = _rows()
    model.observe(features)
    optimizer = build_optimizer(model, Learner(learning_rate=0.01))
    for step in range(warm_steps):
        few = slice(step * 4, step * 4 + 8)
        optimizer.zero_grad()
        _row_loss(model, {"numeric": features["numeric"][few]}, target[few]).mean().backward()
        optimizer.step()
    return model, optimizer


def _row_loss(model: nn.Module, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(features), target, reduction="none")


def _evidence(memory: bool = True) -> Evidence:
    features, target = _rows()
    kept = 64 if memory else 0
    memory = {"numeric": features["numeric"][:kept]}
    return Evidence(features, target, 40, memory, target[:kept], kept // 2)


def _trial(seed: int = 1, memory: bool = True) -> Trial:
    model, optimizer = _model()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(_row_loss(model, *_rows()).mean(), parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    rates = adam_rates(parameters, optimizer, filled)
    return run_trial(
        KEEP, lambda candidate: (model, rates), _evidence(memory), _row_loss, SETTINGS, clip_norm=1.0, seed=seed
    )


def test_learn2learns_algorithms_load_without_its_heavy_parts() -> None:
    assert {"MAML", "MetaSGD", "GBML"} <= set(dir(algorithms()))


def test_adapting_moves_the_copy_and_leaves_the_model() -> None:
    model, _ = _model()
    before = copy.deepcopy(model.state_dict())
    learner = fast_learner(model, [torch.full_like(p, 0.05) for p in model.parameters()])
    first = _row_loss(learner.module, *_rows()).mean()
    for _ in range(5):
        adapt(learner, _row_loss(learner.module, *_rows()).mean(), clip_norm=1.0)
    assert _row_loss(learner.module, *_rows()).mean().item() < first.item()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_at_adams_rates_is_about_as_long_as_adams_own() -> None:
    model, optimizer = _model(warm_steps=30)
    features, target = _rows()
    parameters = list(model.parameters())
    loss = _row_loss(model, {"numeric": features["numeric"][:8]}, target[:8]).mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    rates = adam_rates(parameters, optimizer, None)
    plain = torch.cat([(rate * g).flatten() for rate, g in zip(rates, filled, strict=True)]).norm()
    before = torch.cat([p.detach().flatten() for p in parameters])
    for parameter, gradient in zip(parameters, filled, strict=True):
        parameter.grad = gradient
    optimizer.step()
    theirs = (torch.cat([p.detach().flatten() for p in parameters]) - before).norm()
    assert 0.1 < float(plain / theirs) < 3


def test_a_trial_learns_and_depends_on_its_seed_alone() -> None:
    one, again, other = _trial(1), _trial(1), _trial(2)
    assert np.array_equal(one.recent_R, again.recent_R) and np.array_equal(one.memory_M, again.memory_M)
    assert not np.array_equal(one.recent_R, other.recent_R)
    assert one.recent_R.mean() < 0.6 < np.log(2)


def test_a_trial_needs_no_memory() -> None:
    assert len(_trial(memory=False).memory_M) == 0


def test_value_is_the_paired_gain_minus_the_extra_price() -> None:
    grown = Candidate(
        "grow", {"kind": "grow_heads", "layer": 0, "heads": 1}, "keep", (3, 2), 120, price=0.03, prior=0.04
    )
    kept = Trial(np.array([1.0, 2.0], np.float32), np.array([1.0], np.float32))
    better = Trial(np.array([0.9, 1.9], np.float32), np.array([0.8], np.float32))
    settings = SETTINGS.model_copy(update={"memory_weight": 0.5, "look_ahead_weight": 0.5})
    keep, grow = score([KEEP, grown], [kept, better], settings)
    assert keep.value == 0
    assert grow.value == pytest.approx(0.5 * (0.1 + 0.5 * 0.2) + 0.04 - 0.02, abs=1e-6)
    assert grow.standard_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["adabelief", "meta_sgd"])
def test_rates_of_the_look_ahead_are_those_of_the_optimizer(name: str) -> None:
    model = build(BLUEPRINT)
    features, target = _rows()
    optimizer = build_optimizer(model, Learner(optimizer=name, learning_rate=0.01))
    for _ in range(3):
        optimizer.zero_grad()
        _row_loss(model, features, target).mean().backward()
        optimizer.step()
    parameters = list(model.parameters())
    for parameter, rate in zip(parameters, adam_rates(parameters, optimizer, None), strict=True):
        state = optimizer.state[parameter]
        if name == "meta_sgd":
            torch.testing.assert_close(rate, 0.01 * state["log_gain"].exp())
            continue
        square = state["exp_avg_var"] / (1 - 0.999**3) + (state["exp_avg"] / (1 - 0.9**3)).square()
        loud = square > 10 * square.mean()
        assert bool((rate > 0).all()) and bool((rate <= 0.01 / square.sqrt())[loud].all())
