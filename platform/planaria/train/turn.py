"""A policy that changes while the run goes on: which settings may, and the edits that take the model there.

Pure, but for asking which heads matter least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planaria.blueprint import PARTS, Blueprint, Edit, GrowHeads, Part, SetGate, Share, ShrinkHeads, Unshare
from planaria.policy import Policy

CAUSE = "pbt"
"""Of the revisions that begin with a turn."""

AT_ONCE = frozenset(
    {
        *(f"heads.{key}" for key in ("min", "max", "cooldown_samples")),
        *(f"budget.{key}" for key in ("parameters", "flops_per_sample", "price", "mean_heads")),
        *(f"budget.{key}" for key in ("decision_credit", "decision_fraction")),
        *(f"gate.{key}" for key in ("active_fraction", "weight", "warm_up_samples")),
        *(f"controller.{key}" for key in ("doubt", "most_looks", "thrift_every_samples", "wait_samples")),
        *(f"controller.{key}" for key in ("recall_samples", "inner_steps", "inner_rows", "scoring_rows")),
        *(f"controller.{key}" for key in ("held_back", "memory_weight", "capacity_gain", "look_ahead_weight")),
        "controller.certainty",
        *(f"learner.{key}" for key in ("loss", "alpha", "beta", "replay_ratio")),
        *(f"learner.{key}" for key in ("learning_rate", "weight_decay", "clip_norm")),
        "learner.protect.weight",
        "learner.protect.decay",
        "learner.renew.rate",
        "learner.renew.maturity_steps",
    }
)
"""What takes effect with the next step."""
BY_EDITS = frozenset(
    {"heads.start", "sharing.attention", "sharing.mlp", "gate", "gate.kind", "gate.per", "gate.mlp_blocks"}
)
"""What the blueprint fixes, and edits reach: of heads.start, all layers then have so many."""


@dataclass(frozen=True)
class Turn:
    """From `row` on, the job's policy is another one than until then."""

    row: int
    before: Policy
    why: str


def changes_in_flight(key: str) -> bool:
    """Whether a setting of a policy (its dotted key) may change while a run goes on."""
    return key in AT_ONCE or key in BY_EDITS


def next_edit(
    blueprint: Blueprint, before: Policy, after: Policy, importance: Callable[[], Sequence[Sequence[float]]]
) -> Edit | None:
    """The first edit on the way to what `after` asks for otherwise than `before` did; None at its end. `importance` is
    asked, where heads must go, how much each head of each layer matters."""
    gates = None if after.gate is None else after.gate.gates
    if gates != (None if before.gate is None else before.gate.gates) and gates != blueprint.gates:
        return SetGate(gates if blueprint.gates is None else None)
    for part in PARTS:
        if getattr(after.sharing, part) != getattr(before.sharing, part):
            edit = _towards_owners(blueprint, part, after.sharing.owners(part, blueprint.layers))
            if edit is not None:
                return edit
    if after.heads.start != before.heads.start:
        for layer in blueprint.groups("attention"):
            missing = after.heads.start - blueprint.heads[layer]
            if missing > 0:
                return GrowHeads(layer, missing)
            if missing < 0:
                of_head = importance()[layer]
                weakest = sorted(range(len(of_head)), key=lambda head: of_head[head])[:-missing]
                return ShrinkHeads(layer, tuple(sorted(weakest)))
    return None


def _towards_owners(blueprint: Blueprint, part: Part, wanted: Sequence[int]) -> Edit | None:
    """First what is shared and should not be is taken apart, then the rest is put together."""
    now, layers = blueprint.owners(part), range(blueprint.layers)
    for layer in layers:
        if any(now[other] == now[layer] and wanted[other] != wanted[layer] for other in layers):
            return Unshare(part, layer)
    for layer in layers:
        first = wanted[layer]
        if now[layer] == now[first]:
            continue
        lacking = blueprint.heads[first] - blueprint.heads[layer]
        if part == "attention" and lacking:
            return GrowHeads(layer if lacking > 0 else first, abs(lacking))
        return Share(part, (first, layer))
    return None
