"""What a fresh model's weights are. Legend: N heads, H head width, D width."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from planaria.model.adapters import Adapters
from planaria.model.attention import ElasticAttention
from planaria.model.blocks import Mlp
from planaria.model.differences import Difference
from planaria.model.inputs import ImageInput

if TYPE_CHECKING:
    from planaria.model.transformer import ElasticTransformer

Initialisation = Literal["normal", "orthogonal"]


def draw(model: ElasticTransformer, initialisation: Initialisation, generator: torch.Generator) -> None:
    """normal: every weight is normal, with the variance of 1 over the number of inputs.

    orthogonal: projections and MLPs have orthogonal rows (or columns, where there are more rows) of the same mean
    square; those that write into the residual stream are scaled by 1 / sqrt(2 x layers) besides, as there are two for
    each layer; the patch embedding's rows are normal, scaled to a norm of 1. Source: Saxe et al. 2014 (arXiv
    1312.6120); the scale by depth is GPT-2's.
    """
    nn.init.normal_(model.class_token_D, std=0.02, generator=generator)
    model.input.reset_parameters(generator)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
    for layer in model.blueprint.groups("attention"):
        model.block(layer).attention.reset_parameters(generator)
    for module in model.modules():
        if isinstance(module, (Difference, Adapters)):
            module.reset_parameters(generator)
    if initialisation == "orthogonal":
        _draw_orthogonal(model, generator)


@torch.no_grad()
def _draw_orthogonal(model: ElasticTransformer, generator: torch.Generator) -> None:
    writing = 1 / math.sqrt(2 * model.blueprint.layers)
    for module in model.modules():
        if isinstance(module, ElasticAttention):
            _orthogonal(module.q.view(-1, module.width), generator)
            for half in module.kv.unbind(1):  # keys, then values
                half.copy_(_orthogonal(half.reshape(-1, module.context_width).clone(), generator).view_as(half))
            mixed_into = module.o.view(-1, module.width).t()  # a matrix from heads to the stream, as it is used
            mixed_into.copy_(_orthogonal(mixed_into.clone(), generator) * writing)
        elif isinstance(module, Mlp):
            _orthogonal(module.into.weight, generator)
            _orthogonal(module.out.weight, generator).mul_(writing)
        elif isinstance(module, ImageInput):
            weight = module.embed.weight
            weight.div_(weight.norm(dim=1, keepdim=True))


def _orthogonal(weight: Tensor, generator: torch.Generator) -> Tensor:
    """In place; the mean square of a row is 1 over its length, as it is of a normal one."""
    rows, columns = weight.shape
    nn.init.orthogonal_(weight, gain=math.sqrt(max(1.0, rows / columns)), generator=generator)
    return weight
