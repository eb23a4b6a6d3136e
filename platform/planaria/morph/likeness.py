"""How alike layers are: which groups might share their weights, and which layer would rather have its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from planaria.blueprint import PARTS, Share, Unshare
from planaria.model.transformer import ElasticTransformer
from planaria.morph.importance import RowLoss
from planaria.morph.sharing import apart
from planaria.morph.surgery import operate


def distances(model: ElasticTransformer) -> dict[Share, float]:
    """For every edit that would join two groups: the distance between their weights over the length of their mean, with
    heads and hidden units in the order in which they are joined. 0 is equal, 2 is independent."""
    blueprint, found = model.blueprint, dict[Share, float]()
    for part in PARTS:
        for pair in combinations(blueprint.groups(part), 2):
            edit = Share(part, pair)
            try:
                edit.apply(blueprint)
            except ValueError:
                continue  # of unequal shapes
            found[edit] = apart(model, edit)
    return found


def strains(
    model: ElasticTransformer, features: Mapping[str, Tensor], target_B: Tensor, row_loss: RowLoss
) -> dict[Unshare, float]:
    """For every layer that shares: minus the cosine between the gradient that its own use of the shared weights has and
    that of the others' uses. Above 0 it pulls against them, and to first order a step gains by parting.

    Source: gradient conflict, as between tasks that share weights (Yu et al. 2020, arXiv 2001.06782).
    """
    shared = {(part, owner): group for part in PARTS for owner, group in model.blueprint.groups(part).items()}
    shared = {key: group for key, group in shared.items() if len(group) > 1}
    if not shared:
        return {}
    parted, found = copy.deepcopy(model), dict[Unshare, float]()
    for (part, _), group in shared.items():
        for layer in group[1:]:
            operate(parted, Unshare(part, layer), seed=0)
    loss = row_loss(parted, features, target_B).mean()
    for (part, _), group in shared.items():
        own = [list(getattr(parted.block(layer), part).parameters()) for layer in group]
        flat = torch.autograd.grad(loss, [p for one in own for p in one], retain_graph=True)
        of_layer = torch.stack([torch.cat([g.flatten() for g in one]) for one in _chunks(flat, len(own[0]))]).double()
        others = of_layer.sum(0) - of_layer
        cosine = torch.nn.functional.cosine_similarity(of_layer, others, dim=1)
        found |= {Unshare(part, layer): -float(value) for layer, value in zip(group, cosine, strict=True)}
    return found


def _chunks(flat: tuple[Tensor, ...], size: int) -> list[tuple[Tensor, ...]]:
    return [flat[at : at + size] for at in range(0, len(flat), size)]
