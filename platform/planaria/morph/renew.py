"""Beginning a hidden unit of a block anew. The number of parameters stays the same."""

from __future__ import annotations

import torch
from torch import Tensor

from planaria.model.transformer import ElasticTransformer


@torch.no_grad()
def renew_unit(
    model: ElasticTransformer,
    optimizer: torch.optim.Optimizer,
    layer: int,
    unit: int,
    mean_activation: float,
    generator: torch.Generator,
) -> None:
    """Fresh incoming weights, drawn as at the start; zero outgoing ones, so that it disturbs nothing. What it added on
    average goes into the bias of what comes next. Its optimizer state begins without momentum, and with the mean second
    moment of the other units (Adam's step count is the tensor's: from zero it would take several times its steps)."""
    block = model.block(layer)
    incoming, outgoing = block.mlp.into, block.mlp.out
    fresh_D = torch.empty(incoming.in_features).normal_(std=incoming.in_features**-0.5, generator=generator)
    outgoing.bias.add_(outgoing.weight[:, unit], alpha=mean_activation)
    incoming.weight[unit] = fresh_D.to(incoming.weight)
    incoming.bias[unit] = 0
    outgoing.weight[:, unit] = 0
    owners = model.blueprint.owners("mlp")
    for user in range(len(owners)):
        difference = model.block(user).mlp_difference if owners[user] == layer else None
        if difference is not None:
            difference.left("into")[unit] = 0
            difference.right("out")[:, unit] = 0
    _forget(optimizer, incoming.weight, 0, unit)
    _forget(optimizer, incoming.bias, 0, unit)
    _forget(optimizer, outgoing.weight, 1, unit)


def _forget(optimizer: torch.optim.Optimizer, parameter: Tensor, dimension: int, unit: int) -> None:
    for slot, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            place = value.select(dimension, unit)
            place.copy_(value.mean(dimension) if slot.startswith("exp_avg_") else torch.zeros_like(place))
