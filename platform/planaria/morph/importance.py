"""Which heads matter, and which layer would gain from more. Legend: B rows, N heads, C outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from planaria.blueprint import GrowHeads
from planaria.model.transformer import ElasticTransformer
from planaria.morph.surgery import operate

RowLoss = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]
"""(model, features, target [B]) -> loss of each row [B]."""


def head_importance(
    model: ElasticTransformer, features: Mapping[str, Tensor], target_B: Tensor, row_loss: RowLoss
) -> list[list[float]]:
    """Mean |dL/dscale| of each head's output over the rows, layer by layer; of shared heads, in all their layers
    together.

    Source: Michel et al. 2019 (arXiv 1905.10650), normalised within each layer.
    """
    owners = model.blueprint.owners("attention")
    attentions = [model.block(layer).attention for layer in model.blueprint.groups("attention")]
    scales = [torch.ones(len(target_B), a.heads, device=a.q.device, requires_grad=True) for a in attentions]
    for attention, scale_BN in zip(attentions, scales, strict=True):
        attention.head_scale_BN = scale_BN
    try:
        loss = row_loss(model, features, target_B).sum()
        gradients = torch.autograd.grad(loss, scales)
    finally:
        for attention in attentions:
            attention.head_scale_BN = None
    of_owner = dict(zip(model.blueprint.groups("attention"), gradients, strict=True))
    return [of_owner[owner].abs().mean(0).tolist() for owner in owners]


def growth_scores(
    model: ElasticTransformer, features: Mapping[str, Tensor], target_B: Tensor, row_loss: RowLoss, *, seed: int
) -> list[float]:
    """How strongly the loss pulls at a fresh head's output weights in each layer, relative to the live heads' there.

    Two fresh heads with zero outputs are tried in every layer of a copy: the function is unchanged, and the gradient
    at their output weights is the first-order gain of growing. Source: GradMax (Evci et al. 2022, arXiv 2201.05125).
    """
    trial = copy.deepcopy(model)
    groups = trial.blueprint.groups("attention")
    for layer in groups:
        operate(trial, GrowHeads(layer, 2), seed=seed + layer)
    outputs = [trial.block(layer).attention.o for layer in groups]
    gradients = torch.autograd.grad(row_loss(trial, features, target_B).mean(), outputs)
    strength = [gradient.flatten(1).norm(dim=1) for gradient in gradients]
    scores = [float(s[-2:].max() / s[:-2].mean().clamp(min=1e-12)) for s in strength]
    of_owner = dict(zip(groups, scores, strict=True))
    return [of_owner[owner] for owner in trial.blueprint.owners("attention")]
