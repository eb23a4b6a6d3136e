"""Letting layers share weights, and giving a layer its own again.

Giving a layer its own keeps the model's outputs. Sharing keeps them as far as can be: heads and hidden units may come
in any order, so those of one group are first matched to those of the other; the shared weights are then the mean over
the layers, and what each layer differs from it is kept as far as the blueprint's `difference_rank` goes. On recent
inputs, output weights are then fitted to what all these layers gave before. Source of matching before averaging: Git
Re-Basin (Ainsworth et al. 2022, arXiv 2209.04836); of the fit: RegMean (Jin et al. 2023, arXiv 2212.09849).

Legend: B rows, Q query tokens, N heads, H head width, M hidden units, D width, K inputs of the output weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from planaria.blueprint import Blueprint, Part, Share, Unshare
from planaria.model.attention import ElasticAttention
from planaria.model.blocks import Mlp
from planaria.model.differences import Difference
from planaria.model.transformer import ElasticTransformer, fresh_difference
from planaria.morph.follow import Follower
from planaria.morph.refit import change_for, hidden_units


@torch.no_grad()
def unshare(model: ElasticTransformer, edit: Unshare, after: Blueprint, follow: Follower) -> None:
    """The layer gets a copy, and what it differed by goes into that. `after` is the next blueprint."""
    part, layer = edit.part, edit.layer
    group = model.blueprint.groups(part)[model.blueprint.owners(part)[layer]]
    shared = _part(model, part, layer)
    own = copy.deepcopy(shared)
    model.block(layer).own(part, own)
    for (name, new), source in zip(own.named_parameters(), shared.parameters(), strict=True):
        new.grad = None
        follow.added(f"blocks.{layer}.{part}.{name}", new, source)
    rest = [other for other in group if other != layer]
    model.block(rest[0]).own(part, shared)
    for other in rest[1:]:
        model.block(other).borrow(part, shared)
    for other in group:
        if not after.differs(part, other):
            _fold(model, part, other, follow)


@torch.no_grad()
def share(
    model: ElasticTransformer,
    edit: Share,
    after: Blueprint,
    follow: Follower,
    calibration: Mapping[str, Tensor] | None = None,
) -> None:
    """See the head of this file. `after` is the next blueprint. Behind gates nothing is fitted: what they close in one
    layer they need not close in the other."""
    part, before = edit.part, model.blueprint
    first, second = sorted(before.owners(part)[layer] for layer in edit.layers)
    groups = before.groups(part)
    kept, gone = _part(model, part, first), _part(model, part, second)
    calls: list[_Call] = []
    if calibration is not None and before.gates is None:
        calls = _calls(model, part, (*groups[first], *groups[second]), calibration)
    order, blocks = _matching(kept, gone, 0 if before.gates is None else before.gates.blocks)
    wanted = {layer: _effective(model, part, layer) for layer in groups[first]}
    wanted |= {layer: _reordered(_effective(model, part, layer), order) for layer in groups[second]}
    mean = {name: torch.stack([one[name] for one in wanted.values()]).mean(0) for name in wanted[first]}
    for name, parameter in kept.named_parameters():
        parameter.copy_(mean[name])
    for old in gone.parameters():
        follow.dropped(old)
    for layer in groups[second]:
        model.block(layer).borrow(part, kept)
        _reorder_gate(model, part, layer, order if part == "attention" else blocks, follow)
    for layer in wanted:
        _differ(model, part, layer, {name: wanted[layer][name] - mean[name] for name in mean}, after, follow)
    if calls:
        _fit_output(model, kept, part, calls)


@dataclass(frozen=True)
class _Call:
    """One layer's use of its attention or MLP."""

    layer: int
    input: tuple[Tensor, ...]
    output_BQD: Tensor


def _calls(model: ElasticTransformer, part: Part, layers: Sequence[int], inputs: Mapping[str, Tensor]) -> list[_Call]:
    """What these layers' parts read and gave on `inputs`."""
    owners, seen = model.blueprint.owners(part), []
    for owner in sorted({owners[layer] for layer in layers}):
        given: list[tuple[tuple[Tensor, ...], Tensor]] = []

        def note(module: nn.Module, read: tuple[Any, ...], gave: Tensor, given: list[Any] = given) -> None:
            given.append((tuple(one for one in read if isinstance(one, Tensor)), gave))

        handle = _part(model, part, owner).register_forward_hook(note)
        try:
            model.hidden(inputs)
        finally:
            handle.remove()
        users = [layer for layer in range(model.blueprint.layers) if owners[layer] == owner]
        seen += [_Call(layer, *one) for layer, one in zip(users, given, strict=True)]
    return seen


def _fit_output(model: ElasticTransformer, shared: nn.Module, part: Part, calls: Sequence[_Call]) -> None:
    """Change the shared output weights so that every layer gives as nearly what it gave before as it can."""
    hidden, missing = [], []
    for call in calls:
        difference = _difference(model, part, call.layer)
        if isinstance(shared, ElasticAttention):
            mixed: list[tuple[Tensor, Tensor]] = []
            shared.kept = mixed
            try:
                now_BQD = shared(*call.input, difference=difference)
            finally:
                shared.kept = None
            hidden.append(mixed[0][0].flatten(2).flatten(0, 1))
        else:
            assert isinstance(shared, Mlp)
            now_BQD = shared(*call.input, difference)
            hidden.append(hidden_units(shared, call.input[0], difference))
        missing.append((call.output_BQD - now_BQD).flatten(0, 1))
    change_KD = change_for(torch.cat(hidden).double(), torch.cat(missing).double())
    output = shared.o if isinstance(shared, ElasticAttention) else shared.get_parameter("out.weight")
    output.add_((change_KD.view_as(output) if isinstance(shared, ElasticAttention) else change_KD.t()).to(output.dtype))


@torch.no_grad()
def apart(model: ElasticTransformer, edit: Share) -> float:
    """How far from each other what the edit would join is: the distance over the length of the mean of both."""
    part, before = edit.part, model.blueprint
    first, second = sorted(before.owners(part)[layer] for layer in edit.layers)
    kept, gone = _part(model, part, first), _part(model, part, second)
    order, _ = _matching(kept, gone, 0 if before.gates is None else before.gates.blocks)
    one, other = _effective(model, part, first), _reordered(_effective(model, part, second), order)
    distance, length = (
        sum(float(tensor.double().square().sum()) for tensor in tensors)
        for tensors in (
            [one[name] - other[name] for name in one],
            [(one[name] + other[name]) / 2 for name in one],
        )
    )
    return math.sqrt(distance / max(length, 1e-24))


def _differ(
    model: ElasticTransformer,
    part: Part,
    layer: int,
    wanted: Mapping[str, Tensor],
    after: Blueprint,
    follow: Follower,
) -> None:
    """Let the layer differ from the shared weights as it is wanted, as far as the blueprint allows."""
    difference = _difference(model, part, layer)
    if difference is None:
        difference = fresh_difference(after, part, layer)
        if difference is None:
            return
        difference.to(next(iter(wanted.values())).device)
        setattr(model.block(layer), f"{part}_difference", difference)
        for name, new in difference.named_parameters():
            follow.added(f"blocks.{layer}.{part}_difference.{name}", new, None)
    for name in difference.names:
        difference.fit(name, wanted[_full_name(part, name)])


def _fold(model: ElasticTransformer, part: Part, layer: int, follow: Follower) -> None:
    """What the layer, which shares with no other, differed by becomes a part of its weights."""
    difference = _difference(model, part, layer)
    if difference is None:
        return
    weights = dict(_part(model, part, layer).named_parameters())
    for name in difference.names:
        weight = weights[_full_name(part, name)]
        weight.copy_(difference.added(name, weight))
    for old in difference.parameters():
        follow.dropped(old)
    setattr(model.block(layer), f"{part}_difference", None)


def _effective(model: ElasticTransformer, part: Part, layer: int) -> dict[str, Tensor]:
    """Copies of the weights and biases that the layer works with."""
    weights = {name: value.detach().clone() for name, value in _part(model, part, layer).named_parameters()}
    difference = _difference(model, part, layer)
    for name in () if difference is None else difference.names:
        assert difference is not None
        weights[_full_name(part, name)] = difference.added(name, weights[_full_name(part, name)])
    return weights


def _matching(kept: nn.Module, other: nn.Module, blocks: int) -> tuple[Tensor, Tensor]:
    """Which head or hidden unit of `other` is most like each one of `kept`, each taken once; and which block of hidden
    units, where blocks have gates: then units keep together."""
    alike = _units(kept) @ _units(other).t()
    if not blocks or isinstance(kept, ElasticAttention):
        return _assigned(alike), torch.arange(blocks, device=alike.device)
    pairs = [list(row.chunk(blocks, 1)) for row in alike.chunk(blocks)]
    within = [[_assigned(part) for part in row] for row in pairs]
    size = len(alike) // blocks
    at = torch.arange(size, device=alike.device)
    best = torch.stack(
        [torch.stack([pairs[a][b][at, within[a][b]].sum() for b in range(blocks)]) for a in range(blocks)]
    )
    order = _assigned(best)
    return torch.cat([b * size + within[a][b] for a, b in enumerate(order.tolist())]), order


def _assigned(alike: Tensor) -> Tensor:
    _, order = linear_sum_assignment(alike.cpu().numpy(), maximize=True)
    return torch.as_tensor(order, device=alike.device)


def _reorder_gate(model: ElasticTransformer, part: Part, layer: int, order: Tensor, follow: Follower) -> None:
    """Gates go where their heads or blocks went."""
    gate = model.block(layer).gate
    if gate is None:
        return
    for name in ("heads", "heads_bias") if part == "attention" else ("blocks", "blocks_bias"):
        old: nn.Parameter = getattr(gate, name)
        new = nn.Parameter(old.detach().index_select(0, order))
        setattr(gate, name, new)
        follow.replaced(old, new, order)


def _units(module: nn.Module) -> Tensor:
    """All that makes each head or hidden unit, scaled to a length of 1. Shape [N or M, any]."""
    if isinstance(module, ElasticAttention):
        rows = torch.cat([module.q.flatten(1), module.kv.flatten(1), module.o.flatten(1)], 1)
    else:
        assert isinstance(module, Mlp)
        rows = torch.cat([module.into.weight, module.into.bias[:, None], module.out.weight.t()], 1)
    return nn.functional.normalize(rows.double(), dim=1)


def _reordered(weights: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """With heads or hidden units in that order."""
    changed = dict(weights)
    for name in changed:
        if name in ("q", "kv", "o", "q_bias", "kv_bias", "into.weight", "into.bias"):
            changed[name] = changed[name].index_select(0, order)
        elif name == "out.weight":
            changed[name] = changed[name].index_select(1, order)
    return changed


def _part(model: ElasticTransformer, part: Part, layer: int) -> nn.Module:
    module: nn.Module = getattr(model.block(layer), part)
    return module


def _difference(model: ElasticTransformer, part: Part, layer: int) -> Difference | None:
    difference: Difference | None = getattr(model.block(layer), f"{part}_difference")
    return difference


def _full_name(part: Part, name: str) -> str:
    """Of a weight that differs, within its part."""
    return name if part == "attention" else f"{name}.weight"
