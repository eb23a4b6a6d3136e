"""Giving a model gates, and taking them away. Legend: B rows, N heads, K blocks of an MLP, M hidden units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from planaria.active import gates_behind
from planaria.blueprint import PARTS, Blueprint
from planaria.model.gates import Watch
from planaria.model.transformer import ElasticTransformer, fresh_gate
from planaria.morph.follow import Follower


@torch.no_grad()
def set_gate(
    model: ElasticTransformer, after: Blueprint, follow: Follower, calibration: Mapping[str, Tensor] | None
) -> None:
    """`after` is the next blueprint. Gates that come are open to every row. Those that go leave on the output weights
    of their heads and blocks how far they were open to the rows of `calibration` on average, if there is one."""
    if after.gates is None:
        _take_away(model, follow, calibration)
        return
    for layer in range(after.layers):
        gate = fresh_gate(after, layer)
        assert gate is not None
        model.block(layer).gate = gate.to(model.output.bias.device)
        for name, parameter in gate.named_parameters():
            follow.added(f"blocks.{layer}.gate.{name}", parameter, None)


def _take_away(model: ElasticTransformer, follow: Follower, calibration: Mapping[str, Tensor] | None) -> None:
    if calibration is not None:
        _keep_averages(model, calibration)
    for layer in range(model.blueprint.layers):
        gate = model.block(layer).gate
        assert gate is not None
        for parameter in gate.parameters():
            follow.dropped(parameter)
        model.block(layer).gate = None


def _keep_averages(model: ElasticTransformer, calibration: Mapping[str, Tensor]) -> None:
    """Of weights that layers share the mean over these layers; what each differs by is scaled alike."""
    blueprint, gates = model.blueprint, model.blueprint.gates
    assert gates is not None
    mean_G = [open_BG.mean(0) for open_BG in openings(model, calibration)]
    for part in PARTS:
        for owner, layers in blueprint.groups(part).items():
            mean = torch.stack([mean_G[layer][gates_behind(blueprint, part, layer)] for layer in layers]).mean(0)
            if part == "attention":
                model.block(owner).attention.o.mul_(mean[:, None, None])
            else:
                mean = mean.repeat_interleave(blueprint.mlp_width_of(owner) // gates.blocks)
                model.block(owner).mlp.out.weight.mul_(mean)
            for layer in layers:
                difference = getattr(model.block(layer), f"{part}_difference")
                if difference is not None and part == "attention":
                    difference.left("o").mul_(mean[:, None, None])
                elif difference is not None:
                    difference.right("out").mul_(mean)


@torch.no_grad()
def openings(model: ElasticTransformer, features: Mapping[str, Tensor]) -> list[Tensor]:
    """For each layer how far each of its gates is open to each row. Shape [B, N + K] each."""
    gates = [model.block(layer).gate for layer in range(model.blueprint.layers)]
    watches = [Watch() for _ in gates]
    for gate, watch in zip(gates, watches, strict=True):
        assert gate is not None
        gate.watch = watch
    try:
        model.hidden(features)
    finally:
        for gate in gates:
            assert gate is not None
            gate.watch = None
    return [watch.open_BG for watch in watches if watch.open_BG is not None]
