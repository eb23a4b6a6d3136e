"""Which layers are alike, and which pull apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from planaria.blueprint import PARTS, Blueprint, GrowHeads, Part, Share, Unshare
from planaria.model import ElasticTransformer, build
from planaria.morph import distances, operate, strains

ALONE = Blueprint("classification", 16, 4, 24, (2, 2, 2), 4, image_shape=(1, 8, 8), patch=4)
SHARED = replace(ALONE, attention_of=(0, 0, 0), mlp_of=(0, 0, 2))


def _rows(count: int = 32, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((count, 1, 8, 8), generator=generator, dtype=torch.float64)
    return {"image": image}, torch.randint(0, 4, (count,), generator=generator)


def _row_loss(model: nn.Module, features: dict[str, Tensor], target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(features), target, reduction="none")


def _loss_after_a_step(model: ElasticTransformer) -> float:
    """Of plain gradient descent, from the same rows."""
    features, target = _rows()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(_row_loss(model, features, target).mean(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 1e-3 * gradient
        return float(_row_loss(model, features, target).mean())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", PARTS)
def test_strain_says_whether_a_step_gains_by_parting(part: Part, seed: int) -> None:
    model = build(replace(SHARED, attention_of=(0, 0, 2)), seed).double()
    found = strains(model, *_rows(), _row_loss)
    assert found.keys() == {Unshare(part, layer) for part in PARTS for layer in (0, 1)}
    parted = copy.deepcopy(model)
    operate(parted, Unshare(part, 1), seed=0)
    gain = _loss_after_a_step(model) - _loss_after_a_step(parted)
    assert (gain > 0) == (found[Unshare(part, 1)] > 0)


def test_a_model_whose_layers_share_nothing_has_no_strain_and_one_that_shares_all_no_pairs() -> None:
    assert strains(build(ALONE).double(), *_rows(), _row_loss) == {}
    assert distances(build(replace(SHARED, mlp_of=(0, 0, 0)))) == {}


def test_copies_are_near_and_layers_that_were_drawn_apart_are_far() -> None:
    model = build(SHARED)
    operate(model, Unshare("mlp", 1), seed=0)
    operate(model, Unshare("attention", 2), seed=0)
    order = torch.randperm(24)
    with torch.no_grad():  # the same units in another order
        mlp = model.block(1).mlp
        mlp.into.weight.copy_(mlp.into.weight[order])
        mlp.into.bias.copy_(mlp.into.bias[order])
        mlp.out.weight.copy_(mlp.out.weight[:, order])
    found = distances(model)
    assert found[Share("mlp", (0, 1))] == pytest.approx(0, abs=1e-6)
    assert found[Share("attention", (0, 2))] == pytest.approx(0, abs=1e-6)
    assert found[Share("mlp", (0, 2))] > 1


def test_groups_of_unequal_heads_are_no_pairs() -> None:
    model = build(ALONE)
    operate(model, GrowHeads(1, 1), seed=0)
    assert {edit.layers for edit in distances(model) if edit.part == "attention"} == {(0, 2)}
