"""What tests of surgery have in common: small pictures that can be learned, and what must hold after any edit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.model import ElasticTransformer, build


def pictures(count: int = 32, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Of 8 x 8 pixels in four classes of brightness."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return {"image": image}, (image.float().mean((1, 2, 3)) / 32).long() % 4


def row_loss(model: nn.Module, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(features), target, reduction="none")


def train(model: ElasticTransformer, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        row_loss(model, *pictures(seed=step)).mean().backward()
        optimizer.step()


def fits(model: ElasticTransformer, optimizer: torch.optim.Optimizer) -> None:
    """Counted, known to the optimizer and built anew as the blueprint says."""
    blueprint = model.blueprint
    assert sum(p.numel() for p in model.parameters()) == blueprint.parameters
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in optimizer.state} <= set(held)
    for parameter, state in optimizer.state.items():
        assert all(value.shape == parameter.shape for value in state.values() if value.dim())
    for layer in blueprint.groups("mlp"):
        mlp = model.block(layer).mlp
        assert mlp.into.out_features == mlp.out.in_features == blueprint.mlp_width_of(layer)
    twin = build(Blueprint.from_json(blueprint.to_json()))
    twin.load_state_dict(load(save(dict(model.state_dict()))))
    assert torch.equal(twin(pictures()[0]), model(pictures()[0]))
