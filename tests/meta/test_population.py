"""Models trained side by side are the models that are trained alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from planaria.blueprint import Blueprint, GrowHeads, ShrinkHeads
from planaria.learn import OptimizerFollower, build_optimizer
from planaria.meta.population import Population
from planaria.model import ElasticTransformer, build
from planaria.morph import operate
from planaria.policy import Learner

LEARNER = Learner(learning_rate=3e-3)
TABLE = Blueprint("classification", 16, 4, 32, (3,), 4, numeric=5)
PICTURE = Blueprint("classification", 16, 4, 32, (3, 2), 4, image_shape=(1, 4, 12), patch=4)
ROWS, FRESH = 12, 8


def _rows(blueprint: Blueprint, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if blueprint.image_shape is None:
        values = torch.randn(ROWS, blueprint.numeric, generator=generator)
        values[0, 0] = torch.nan
        features = {"numeric": values}
    else:
        features = {"image": torch.rand(ROWS, *blueprint.image_shape, generator=generator)}
    return features, torch.randint(0, 4, (ROWS,), generator=generator)


def _weight() -> Tensor:
    return torch.cat((torch.full((FRESH,), 1 / FRESH), torch.full((ROWS - FRESH,), 1 / (ROWS - FRESH))))


def _train_alone(model: ElasticTransformer, optimizer: torch.optim.Optimizer, seeds: range) -> Tensor:
    loss = torch.zeros(())
    for seed in seeds:
        features, target = _rows(model.blueprint, seed)
        if "numeric" in features:
            model.observe({"numeric": features["numeric"][:FRESH]})
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(features), target, reduction="none")
        (loss * _weight()).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LEARNER.clip_norm)
        optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("blueprint", [TABLE, PICTURE])
def test_a_member_learns_what_it_would_learn_alone_through_growth_and_removal(blueprint: Blueprint) -> None:
    alone = build(blueprint, 1)
    optimizer = build_optimizer(alone, LEARNER)
    population = Population(blueprint, most_heads=6, learner=LEARNER, size=2)
    for place, seed in enumerate((0, 1)):
        model = build(blueprint, seed)
        population.put(place, model, build_optimizer(model, LEARNER))
    for number, edit in enumerate((GrowHeads(0, 2), ShrinkHeads(0, (1, 3)), GrowHeads(0, 1))):
        seeds = range(number * 10, number * 10 + 10)
        expected = _train_alone(alone, optimizer, seeds)
        for seed in seeds:
            features, target = _rows(blueprint, seed)
            other, other_target = _rows(blueprint, seed + 100)
            both = {name: torch.stack((other[name], features[name])) for name in features}
            seen = population.step(both, torch.stack((other_target, target)), _weight().expand(2, -1), FRESH)
        assert torch.allclose(seen.loss_PB[1], expected, atol=2e-4)
        operate(alone, edit, seed=5, follow=OptimizerFollower(optimizer))
        model, state = population.take(1)
        operate(model, edit, seed=5, follow=OptimizerFollower(state))
        population.put(1, model, state)


def test_what_is_taken_out_is_what_was_put_in() -> None:
    model = build(TABLE, 3)
    optimizer = build_optimizer(model, LEARNER)
    _train_alone(model, optimizer, range(3))
    population = Population(TABLE, most_heads=6, learner=LEARNER, size=3)
    population.put(2, model, optimizer)
    population.keep([2])
    again, state = population.take(0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    for mine, theirs in zip(model.parameters(), again.parameters(), strict=True):
        before, after = optimizer.state[mine], state.state[theirs]
        assert all(torch.equal(before[slot], after[slot]) for slot in before)


def test_answering_does_not_learn() -> None:
    population = Population(PICTURE, most_heads=3, learner=LEARNER, size=1)
    model = build(PICTURE, 0)
    population.put(0, model, build_optimizer(model, LEARNER))
    features, target = _rows(PICTURE, 0)
    before = population.weights_PW.clone()
    loss = population.answer({name: column[None] for name, column in features.items()}, target[None])
    assert torch.equal(population.weights_PW, before)
    expected = torch.nn.functional.cross_entropy(model(features), target, reduction="none")
    assert torch.allclose(loss[0], expected, atol=1e-5)
