"""Which heads and hidden units a model would miss least: by the size of their weights, or by the loss's pull at them.

Legend: B rows, N heads or hidden units, W numbers that belong to one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from planaria.blueprint import Blueprint, GrowHeads, GrowMlp, Part, Prune
from planaria.model.transformer import ElasticTransformer
from planaria.morph.importance import RowLoss

Saliency = Mapping[tuple[Part, int], Sequence[float]]
"""How much a parameter of each head ("attention") or hidden unit ("mlp") matters, for the layers that own some."""


@torch.no_grad()
def magnitudes(model: ElasticTransformer) -> Saliency:
    """Root mean square of the weights of each head or unit, over the mean of its layer. Source: Li et al. 2017 (arXiv
    1608.08710)."""
    found = {}
    for key, parameters in _owned(model).items():
        size_N = _rows(key[0], parameters).square().mean(1).sqrt()
        found[key] = (size_N / size_N.mean().clamp(min=1e-12)).tolist()
    return found


def sensitivities(
    model: ElasticTransformer, batches: Sequence[tuple[Mapping[str, Tensor], Tensor]], row_loss: RowLoss
) -> Saliency:
    """Mean of |weight x gradient| over the weights of each head or unit, and over the batches: to first order, what
    the loss would change by without them. Source: Molchanov et al. 2019 (arXiv 1906.10771)."""
    owned = _owned(model)
    flat = [parameter for parameters in owned.values() for parameter in parameters]
    totals = {key: torch.zeros(len(parameters[0]), dtype=torch.float64) for key, parameters in owned.items()}
    for features, target_B in batches:
        found = torch.autograd.grad(row_loss(model, features, target_B).mean(), flat, allow_unused=True)
        gradients = iter([torch.zeros_like(p) if g is None else g for p, g in zip(flat, found, strict=True)])
        for (part, layer), parameters in owned.items():
            change_NW = _rows(part, [p.detach() * next(gradients) for p in parameters])
            totals[part, layer] += change_NW.abs().mean(1).cpu().double()
    return {key: (total_N / len(batches)).tolist() for key, total_N in totals.items()}


def least_missed(blueprint: Blueprint, saliency: Saliency, left: int, least_heads: int) -> Prune | None:
    """The heads and hidden units of least saliency, until `left` parameters of such (see `Blueprint.prunable`) stay, as
    nearly as whole ones can; None where that is none. Layers keep `least_heads` heads, and a hidden unit; blocks of
    units that have gates go on having one size."""
    ranked = sorted(
        (score, part, layer, numbers)
        for (part, layer), scores in saliency.items()
        for score, numbers in _pieces(part, scores, blueprint)
    )
    spare, taken = blueprint.prunable - left, set[tuple[float, Part, int, tuple[int, ...]]]()
    cost = {key: _cost(blueprint, *key) for key in saliency}
    room = {
        (part, layer): blueprint.heads[layer] - least_heads
        if part == "attention"
        else blueprint.mlp_width_of(layer) - _blocks(blueprint)
        for part, layer in saliency
    }
    for share in (1.0, 0.5):  # first what goes in full, then the one that comes nearest to the rest
        for piece in ranked:
            _, part, layer, numbers = piece
            key = part, layer
            if piece not in taken and share * cost[key] <= spare and room[key] >= len(numbers):
                spare, room[key] = spare - cost[key], room[key] - len(numbers)
                taken.add(piece)
    if not taken:
        return None
    gone = {key: [n for _, part, layer, numbers in taken if (part, layer) == key for n in numbers] for key in saliency}
    heads, units = (
        tuple(tuple(sorted(gone.get((part, layer), ()))) for layer in range(blueprint.layers))
        for part in ("attention", "mlp")
    )
    return Prune(heads, units)


def smallest_weights(model: ElasticTransformer, fraction: float) -> dict[str, Tensor]:
    """For the weights of heads and MLPs, by name: which of them stay (1) where that fraction of them all goes, the
    smallest ones (torch.nn.utils.prune)."""
    tried, names = copy.deepcopy(model), dict[str, tuple[nn.Module, str]]()
    for name, parameter in tried.named_parameters():
        place, _, leaf = name.rpartition(".")
        if parameter.dim() > 1 and place.endswith((".attention", ".mlp.into", ".mlp.out")):
            names[name] = tried.get_submodule(place), leaf
    prune.global_unstructured(list(names.values()), prune.L1Unstructured, amount=fraction)
    return {name: getattr(module, f"{leaf}_mask") for name, (module, leaf) in names.items()}


def _owned(model: ElasticTransformer) -> dict[tuple[Part, int], list[nn.Parameter]]:
    """What belongs to single heads and hidden units, of each layer that owns some."""
    found: dict[tuple[Part, int], list[nn.Parameter]] = {}
    for layer in model.blueprint.groups("attention"):
        attention = model.block(layer).attention
        found["attention", layer] = [attention.q, attention.kv, attention.o]
    for layer in model.blueprint.groups("mlp"):
        mlp = model.block(layer).mlp
        found["mlp", layer] = [mlp.get_parameter(name) for name in ("into.weight", "into.bias", "out.weight")]
    return found


def _rows(part: Part, tensors: Sequence[Tensor]) -> Tensor:
    """A row for each head or unit. Shape [N, W]."""
    if part == "attention":
        return torch.cat([tensor.flatten(1) for tensor in tensors], 1)
    into, bias, out = tensors
    return torch.cat((into, bias[:, None], out.t()), 1)


def _pieces(part: Part, scores: Sequence[float], blueprint: Blueprint) -> list[tuple[float, tuple[int, ...]]]:
    """What goes together, with its mean saliency: a head, a hidden unit, or one unit of each block that has a gate."""
    blocks = _blocks(blueprint) if part == "mlp" else 1
    size = len(scores) // blocks
    ranked = [
        sorted(range(block * size, (block + 1) * size), key=lambda number: scores[number]) for block in range(blocks)
    ]
    return [(sum(scores[n] for n in numbers) / blocks, numbers) for numbers in zip(*ranked, strict=True)]


def _blocks(blueprint: Blueprint) -> int:
    return 1 if blueprint.gates is None else blueprint.gates.blocks


def _cost(blueprint: Blueprint, part: Part, layer: int) -> int:
    """Parameters that a piece has, also in layers that share it."""
    blocks = _blocks(blueprint)
    grown = GrowHeads(layer, 1) if part == "attention" else GrowMlp(layer, blocks)
    return grown.apply(blueprint).parameters - blueprint.parameters
