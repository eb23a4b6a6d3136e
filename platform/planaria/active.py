"""What of a gated model its rows use: parameters and FLOPs, from the share of rows that each gate was open to.

Shares are given layer by layer, and within a layer those of its heads before those of its MLP blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from planaria.blueprint import PARTS, Blueprint, Part

Floats = npt.NDArray[np.float64]


def gate_sizes(blueprint: Blueprint) -> list[Floats]:
    """For each layer the parameters behind each gate. Biases of outputs have none: they are always used."""
    blocks = 0 if blueprint.gates is None else blueprint.gates.blocks
    head, unit = 4.0 * blueprint.head_width * blueprint.width, 2 * blueprint.width + 1
    block_of = [unit * blueprint.mlp_width_of(layer) / max(1, blocks) for layer in range(blueprint.layers)]
    return [np.repeat((head, block), (heads, blocks)) for heads, block in zip(blueprint.heads, block_of, strict=True)]


def gates_behind(blueprint: Blueprint, part: Part, layer: int) -> slice:
    """Which of the layer's gates are those of that part."""
    heads = blueprint.heads[layer]
    return slice(heads) if part == "attention" else slice(heads, None)


def active_parameters(blueprint: Blueprint, shares: Sequence[float]) -> float:
    """Parameters that a row uses, on average. Those that layers share count once, as those of the layer that uses most
    of them."""
    if blueprint.gates is None:
        return float(blueprint.parameters)
    by_layer, sizes, unused = _by_layer(blueprint, shares), gate_sizes(blueprint), 0.0
    for part in PARTS:
        for owner, layers in blueprint.groups(part).items():
            most = np.max([by_layer[layer][gates_behind(blueprint, part, layer)] for layer in layers], axis=0)
            unused += float(((1 - most) * sizes[owner][gates_behind(blueprint, part, owner)]).sum())
    return blueprint.parameters - unused


def active_flops(blueprint: Blueprint, shares: Sequence[float]) -> float:
    """FLOPs of a row's forward pass, on average."""
    if blueprint.gates is None:
        return float(blueprint.flops_per_sample)
    total = float(blueprint.flops_per_sample)
    for layer, share_G in enumerate(_by_layer(blueprint, shares)):
        heads = blueprint.heads[layer]
        total -= float((1 - share_G[:heads]).sum()) * blueprint.flops_of_head(layer)
        total -= float((1 - share_G[heads:]).sum()) * blueprint.flops_of_mlp(layer) / blueprint.gates.blocks
    return total


def active_fractions(blueprint: Blueprint, shares: Sequence[float]) -> list[float]:
    """For each layer the share of its gated parameters that a row uses, on average; 1 without gates."""
    if blueprint.gates is None:
        return [1.0] * blueprint.layers
    sizes = gate_sizes(blueprint)
    return [float((s * size).sum() / size.sum()) for s, size in zip(_by_layer(blueprint, shares), sizes, strict=True)]


def _by_layer(blueprint: Blueprint, shares: Sequence[float]) -> list[Floats]:
    ends = np.cumsum([blueprint.gates_of(layer) for layer in range(blueprint.layers)])[:-1]
    return np.split(np.asarray(shares, np.float64), ends)
