"""Surgery: applying an edit to a live module and its optimizer state.

It is deterministic: every worker that starts from equal weights and calls it with the same edit and seed ends with
equal weights, so nothing needs to be sent. Gradients of a resized parameter are dropped (surgery happens between
steps). Weights that layers share have one owner, and an edit of one of these layers is one of all (see `sharing`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from planaria.blueprint import (
    AddAdapter,
    Blueprint,
    Edit,
    GrowHeads,
    GrowMlp,
    GrowOutputs,
    Part,
    Prune,
    Quantise,
    RecycleHead,
    Restore,
    SetGate,
    Share,
    ShrinkHeads,
    ShrinkMlp,
    Unshare,
)
from planaria.model.adapters import Adapters
from planaria.model.blocks import Block
from planaria.model.differences import Difference
from planaria.model.gates import Gate
from planaria.model.transformer import ElasticTransformer
from planaria.morph.follow import Follower, Followers
from planaria.morph.gating import set_gate
from planaria.morph.refit import refit_mlp_output, refit_output_projection
from planaria.morph.sharing import share, unshare

FRESH_HEAD_MOMENT = 1e-4
"""A fresh head's gradients are small, as its outputs are zero: under the second moments of heads that have long been
there it would hardly move. docs/decisions.md has the measurement."""


def operate(
    model: ElasticTransformer,
    edit: Edit,
    *,
    seed: int,
    follow: Follower | None = None,
    calibration: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Blueprint:
    """Apply the edit in place and return the new blueprint.

    `calibration` holds recent inputs: with them, shrinking and recycling refit output weights to what the lost heads
    or hidden units contributed, and sharing to what each layer gave before. `weights` is the state dict that a
    restoring edit puts back. Raises ValueError (before anything is touched) where the edit does not fit.
    """
    after = edit.apply(model.blueprint)
    follow = follow or Followers()
    if isinstance(edit, GrowHeads):
        _grow_heads(model, edit.layer, edit.heads, torch.Generator().manual_seed(seed), follow)
    elif isinstance(edit, ShrinkHeads):
        _shrink_heads(model, edit, follow, calibration)
    elif isinstance(edit, GrowMlp):
        _grow_mlp(model, edit, torch.Generator().manual_seed(seed), follow)
    elif isinstance(edit, ShrinkMlp):
        _shrink_mlp(model, edit, follow, calibration)
    elif isinstance(edit, Prune):
        for part in edit.parts:
            operate(model, part, seed=seed, follow=follow, calibration=calibration)
    elif isinstance(edit, GrowOutputs):
        _grow_outputs(model, edit.outputs, follow)
    elif isinstance(edit, RecycleHead):
        _recycle_head(model, edit, torch.Generator().manual_seed(seed), follow, calibration)
    elif isinstance(edit, Share):
        share(model, edit, after, follow, calibration)
    elif isinstance(edit, Unshare):
        unshare(model, edit, after, follow)
    elif isinstance(edit, SetGate):
        set_gate(model, after, follow, calibration)
    elif isinstance(edit, AddAdapter):
        _add_adapter(model, after, torch.Generator().manual_seed(seed), follow)
    elif isinstance(edit, Restore):
        _restore(model, weights, after, follow)
    elif isinstance(edit, Quantise):
        model.quantise(after.quantisation)
    else:
        raise TypeError(f"no surgery for {edit!r}")
    model.blueprint = after
    return after


def temper(model: ElasticTransformer, factor: float) -> None:
    """Scale the output layer down: after a shift an over-confident model unlearns slowly."""
    with torch.no_grad():
        model.output.weight.mul_(factor)
        model.output.bias.mul_(factor)


def _grow_heads(
    model: ElasticTransformer, layer: int, heads: int, generator: torch.Generator, follow: Follower
) -> None:
    attention = model.block(layer).attention
    for name, fresh in attention.fresh_heads(heads, generator).items():
        old = getattr(attention, name)
        _replace(attention, name, torch.arange(len(old), device=old.device), fresh, follow, FRESH_HEAD_MOMENT)
    for difference in _differences(model, "attention", layer):
        for name in difference.names:
            left = difference.left(name)
            fresh = left.new_zeros(heads * len(left) // (attention.heads - heads), *left.shape[1:])
            _replace(difference, f"{name}_left", torch.arange(len(left), device=left.device), fresh, follow)
    for gate in _gates(model, layer):
        for name, fresh in gate.fresh_heads(heads).items():
            old = getattr(gate, name)
            _replace(gate, name, torch.arange(len(old), device=old.device), fresh, follow)


def _shrink_heads(
    model: ElasticTransformer, edit: ShrinkHeads, follow: Follower, calibration: Mapping[str, Tensor] | None
) -> None:
    attention = model.block(edit.layer).attention
    shared = attention.queries_per_key
    removed = set(edit.heads)
    groups = [g for g in range(attention.heads // shared) if g * shared not in removed]
    if any((head in removed) != (head // shared not in groups) for head in range(attention.heads)):
        raise ValueError(f"heads of layer {edit.layer} share keys {shared} to one and go together")
    if calibration is not None:
        refit_output_projection(
            model, edit.layer, keep=[h for h in range(attention.heads) if h not in removed], inputs=calibration
        )
    keep_heads = torch.tensor([h for h in range(attention.heads) if h not in removed], device=attention.q.device)
    keep_groups = torch.tensor(groups, device=attention.q.device)
    for name in ("q", "kv", "o", "q_bias", "kv_bias"):
        if getattr(attention, name) is not None:
            _replace(attention, name, keep_groups if name.startswith("kv") else keep_heads, None, follow)
    for difference in _differences(model, "attention", edit.layer):
        for name in difference.names:
            _replace(difference, f"{name}_left", keep_groups if name == "kv" else keep_heads, None, follow)
    for gate in _gates(model, edit.layer):
        for name in ("heads", "heads_bias"):
            _replace(gate, name, keep_heads, None, follow)


def _recycle_head(
    model: ElasticTransformer,
    edit: RecycleHead,
    generator: torch.Generator,
    follow: Follower,
    calibration: Mapping[str, Tensor] | None,
) -> None:
    """The head goes as when it is removed, and a fresh one with zero outputs comes as the layer's last."""
    attention = model.block(edit.layer).attention
    fresh = attention.fresh_heads(1, generator)
    others = [head for head in range(attention.heads) if head != edit.head]
    if calibration is not None:
        refit_output_projection(model, edit.layer, keep=others, inputs=calibration)
    kept = torch.tensor(others, device=attention.q.device)
    for name, rows in fresh.items():
        _replace(attention, name, kept, rows, follow, FRESH_HEAD_MOMENT)
    for difference in _differences(model, "attention", edit.layer):
        for name in difference.names:
            left = difference.left(name)
            _replace(difference, f"{name}_left", kept, left.new_zeros(1, *left.shape[1:]), follow)
    for gate in _gates(model, edit.layer):
        for name, rows in gate.fresh_heads(1).items():
            _replace(gate, name, kept, rows, follow)


def _grow_mlp(model: ElasticTransformer, edit: GrowMlp, generator: torch.Generator, follow: Follower) -> None:
    """With zero outputs. They come last, or where blocks have gates, as the last ones of each block."""
    mlp, blocks = model.block(edit.layer).mlp, 1 if model.blueprint.gates is None else model.blueprint.gates.blocks
    width, live, fresh = mlp.into.in_features, len(mlp.into.bias), edit.units
    kept = torch.arange(live, device=mlp.into.bias.device)
    drawn = torch.randn(fresh, width, generator=generator) / width**0.5
    into_fresh = {"weight": drawn, "bias": torch.zeros(fresh)}
    for name, rows in into_fresh.items():
        _replace(mlp.into, name, kept, rows, follow, FRESH_HEAD_MOMENT)
    _replace(mlp.out, "weight", kept, mlp.out.weight.new_zeros(width, fresh), follow, FRESH_HEAD_MOMENT, dimension=1)
    for difference in _differences(model, "mlp", edit.layer):
        left, right = difference.left("into"), difference.right("out")
        _replace(difference, "into_left", kept, left.new_zeros(fresh, left.shape[1]), follow)
        _replace(difference, "out_right", kept, right.new_zeros(len(right), fresh), follow, dimension=1)
    if blocks > 1:
        old, new = kept.chunk(blocks), torch.arange(live, live + fresh, device=kept.device).chunk(blocks)
        _keep_units(
            model, edit.layer, torch.cat([part for pair in zip(old, new, strict=True) for part in pair]), follow
        )
    _note_units(model, edit.layer)


def _shrink_mlp(
    model: ElasticTransformer, edit: ShrinkMlp, follow: Follower, calibration: Mapping[str, Tensor] | None
) -> None:
    if calibration is not None:
        refit_mlp_output(model, edit.layer, edit.units, calibration)
    bias = model.block(edit.layer).mlp.into.bias
    kept = [unit for unit in range(len(bias)) if unit not in set(edit.units)]
    _keep_units(model, edit.layer, torch.tensor(kept, device=bias.device), follow)
    _note_units(model, edit.layer)


def _keep_units(model: ElasticTransformer, layer: int, kept: Tensor, follow: Follower) -> None:
    """Let the MLP have these of its hidden units, in this order."""
    mlp = model.block(layer).mlp
    _replace(mlp.into, "weight", kept, None, follow)
    _replace(mlp.into, "bias", kept, None, follow)
    _replace(mlp.out, "weight", kept, None, follow, dimension=1)
    for difference in _differences(model, "mlp", layer):
        _replace(difference, "into_left", kept, None, follow)
        _replace(difference, "out_right", kept, None, follow, dimension=1)


def _note_units(model: ElasticTransformer, layer: int) -> None:
    """nn.Linear keeps its sizes as numbers, too."""
    mlp = model.block(layer).mlp
    mlp.into.out_features = mlp.out.in_features = len(mlp.into.bias)


def _add_adapter(model: ElasticTransformer, after: Blueprint, generator: torch.Generator, follow: Follower) -> None:
    if model.router is None:
        model.give_adapters(after)
        model.to(model.output.bias.device)
    else:
        model.router.add_adapter()
    for layer in range(after.layers):
        adapters = model.block(layer).adapters
        assert adapters is not None
        if after.adapters == 1:
            adapters.reset_parameters(generator)
            for name, parameter in adapters.named_parameters():
                follow.added(f"blocks.{layer}.adapters.{name}", parameter, None)
            continue
        for name, rows in adapters.fresh(after.adapter_units, generator).items():
            old = getattr(adapters, name)
            _replace(adapters, name, torch.arange(len(old), device=old.device), rows, follow, FRESH_HEAD_MOMENT)


def _users(model: ElasticTransformer, part: Part, layer: int) -> list[Block]:
    """All layers that share that part with this one."""
    owners = model.blueprint.owners(part)
    return [model.block(at) for at in range(len(owners)) if owners[at] == owners[layer]]


def _differences(model: ElasticTransformer, part: Part, layer: int) -> list[Difference]:
    """Of all layers that share that part with this one."""
    found = [getattr(block, f"{part}_difference") for block in _users(model, part, layer)]
    return [difference for difference in found if difference is not None]


def _gates(model: ElasticTransformer, layer: int) -> list[Gate]:
    """Of all layers that share the attention of this one."""
    return [block.gate for block in _users(model, "attention", layer) if block.gate is not None]


def _restore(
    model: ElasticTransformer, weights: Mapping[str, Tensor] | None, after: Blueprint, follow: Follower
) -> None:
    """Every parameter is replaced, and none keeps optimizer state. Buffers come along: the running statistics of
    inputs and targets are what the weights were learned under, and with others the function would be another. A readout
    and a router stay: they have forgotten nothing. So do adapters that came since, which are other concepts'."""
    if weights is None:
        raise ValueError("nothing was kept that could be restored")
    attentions = [weights[f"blocks.{layer}.attention.q"] for layer in after.owners("attention")]
    known = len(weights["output.bias"])
    if tuple(map(len, attentions)) != after.heads or known > after.outputs:
        raise ValueError(f"what was kept has not {list(after.heads)} heads, or more than {after.outputs} outputs")
    units = [len(weights[f"blocks.{owner}.mlp.into.bias"]) for owner in after.owners("mlp")]
    if units != [after.mlp_width_of(layer) for layer in range(after.layers)]:
        raise ValueError(f"what was kept has {units} hidden units; a restoring edit says them")
    nothing = torch.arange(0, device=model.output.bias.device)
    before = dict(model.named_parameters())
    if _arrangement(after) != _arrangement(model.blueprint):
        model.arrange(after)
        model.to(nothing.device)
    for name, _ in list(model.named_parameters()):
        place, _, leaf = name.rpartition(".")
        module, old = model.get_submodule(place), before.pop(name, None)
        if isinstance(module, Adapters) and name not in weights:
            continue
        new = nn.Parameter(weights[name].to(model.output.bias, copy=True))
        setattr(module, leaf, new)
        if old is not None:
            follow.replaced(old, new, nothing)
        else:
            follow.added(name, new, None)
        if isinstance(module, Adapters) and old is not None and len(new) < len(old):
            kept = torch.arange(len(new), device=nothing.device)
            _replace(module, leaf, kept, old.detach()[len(new) :], follow, FRESH_HEAD_MOMENT)
    for gone in before.values():
        follow.dropped(gone)
    for owner in after.groups("mlp"):
        _note_units(model, owner)
    for name, buffer in model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])
    if known < after.outputs:
        _grow_outputs(model, after.outputs, follow)


def _arrangement(blueprint: Blueprint) -> tuple[object, ...]:
    """What says which parameters there are, whatever their shapes."""
    return blueprint.attention_of, blueprint.mlp_of, blueprint.gates


def _grow_outputs(model: ElasticTransformer, outputs: int, follow: Follower) -> None:
    """New classes start with zero weights and the lowest bias so far: known ones keep their order and ratios."""
    layer = model.output
    known = layer.bias.shape[0]
    kept = torch.arange(known, device=layer.bias.device)
    lowest = layer.bias.detach().min().expand(outputs - known).clone()
    _replace(layer, "weight", kept, layer.weight.new_zeros(outputs - known, layer.weight.shape[1]), follow)
    _replace(layer, "bias", kept, lowest, follow)
    if model.readout is not None:
        model.readout.grow_outputs(outputs)


def _replace(
    module: nn.Module,
    name: str,
    kept: Tensor,
    fresh: Tensor | None,
    follow: Follower,
    moment: float = 1.0,
    dimension: int = 0,
) -> None:
    old: nn.Parameter = getattr(module, name)
    rows = old.detach().index_select(dimension, kept)
    new = nn.Parameter(rows if fresh is None else torch.cat((rows, fresh.to(old)), dimension))
    setattr(module, name, new)
    follow.replaced(old, new, kept, moment, dimension)
