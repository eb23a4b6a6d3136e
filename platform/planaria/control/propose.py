"""Which candidates a decision has. Pure: numbers in, values out. Legend: L layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from planaria.blueprint import (
    Blueprint,
    Edit,
    GrowHeads,
    RecycleHead,
    Share,
    ShrinkHeads,
    Unshare,
    edit_to_dict,
)
from planaria.policy import Budget, Heads, Policy
from planaria.signals import Candidate

DEAD_BELOW = 0.1
"""Of its layer's mean importance: a mature head below this may be begun anew. Continual backpropagation replaces units
by their utility in the same way (Dohare et al. 2024, Nature 632); here a head is the unit."""


@dataclass(frozen=True)
class Scores:
    """What surgery measured for this decision."""

    importance: Sequence[Sequence[float]]
    """Per layer and head: how much the loss depends on it."""
    growth: Sequence[float]
    """Per layer: how strongly the loss pulls at a fresh head, relative to the live ones."""
    mature: Sequence[Sequence[bool]]
    """Per layer and head: has it had time to integrate? Only mature heads may go."""
    distance: Mapping[Share, float] = field(default_factory=dict)
    """Where layers may regroup: how far apart the weights are that each of these edits would join."""
    strain: Mapping[Unshare, float] = field(default_factory=dict)
    """Where layers may regroup: how hard each of these layers pulls against those that it shares with."""


def propose(
    trigger: str, blueprint: Blueprint, scores: Scores, loss: float, policy: Policy, price: float
) -> list[Candidate]:
    """Candidates within the limits at the present loss and price; the first one keeps everything as it is.

    After a shift: ways to treat optimizer and output layer, and growth with and without them. Between shifts: growth,
    removal of the heads that matter least, and a fresh start for a head that does not matter at all. Where layers may
    regroup: weights of its own for the layer that pulls most against those that it shares with, and between shifts one
    set of weights for the two groups that are most alike.
    """
    shifted = trigger.endswith("shift")
    treatments = ["keep", "reset"] if shifted else ["keep"]
    if shifted and loss > _loss_of_ignorance(blueprint):
        treatments.append("temper")
    options: list[tuple[Edit | None, str]] = [(None, treatment) for treatment in treatments]
    growth = _growth(blueprint, scores, policy.heads)
    if not shifted:
        options += [(edit, "keep") for edit in _recycling(blueprint, scores)]
    options += [(edit, "keep") for edit in growth]
    if shifted:  # what grows then learns faster without the old momentum, and without the old certainty
        options += [(edit, treatments[-1]) for edit in growth[:1]]
    if not shifted:
        options += [(edit, "keep") for edit in _removal(blueprint, scores, policy.heads)]
    if policy.sharing.regroup is not None:
        options += [(edit, "keep") for edit in _parting(scores)]
        if not shifted:
            options += [(edit, "keep") for edit in _joining(scores)]
    candidates = [_candidate(edit, treatment, blueprint, scores, loss, policy, price) for edit, treatment in options]
    return [
        candidate for candidate in candidates if candidate.edit is None or fits(candidate, blueprint, policy.budget)
    ]


def _loss_of_ignorance(blueprint: Blueprint) -> float:
    """What a model loses that knows nothing: one that loses more is sure of what is no longer so."""
    return math.log(max(2, blueprint.outputs)) if blueprint.task == "classification" else 1.0


def price_of(blueprint: Blueprint, policy: Policy, price: float) -> float:
    """Nats per row that the live heads must earn: the price at full size, in proportion below. Where layers may
    regroup, also what the parameters must: their price where no layer shares, in proportion below."""
    of_heads = price * sum(blueprint.heads) / (policy.heads.max * blueprint.layers)
    regroup = policy.sharing.regroup
    return of_heads if regroup is None else of_heads + regroup.price * blueprint.parameters / _unshared(blueprint)


def _unshared(blueprint: Blueprint) -> int:
    """Parameters if every layer had its own."""
    return replace(blueprint, attention_of=(), mlp_of=(), difference_rank=0).parameters


def fits(candidate: Candidate, blueprint: Blueprint, budget: Budget) -> bool:
    """Does it stay within the limits, or at least come closer to them than the present blueprint?"""
    if candidate.parameters < blueprint.parameters:
        return True
    after = _with_heads(blueprint, candidate.heads)
    within_parameters = budget.parameters is None or candidate.parameters <= budget.parameters
    within_flops = budget.flops_per_sample is None or after.flops_per_sample <= budget.flops_per_sample
    return within_parameters and within_flops


def long_run_gain(
    edit: Edit | None, blueprint: Blueprint, scores: Scores, doubling_gain: float, regrouping_gain: float = 0.0
) -> float:
    """What the edit's change of capacity is expected to bring once it has been learned with, in nats.

    The loss falls by about `doubling_gain` whenever all heads double (docs/controller.md has the measurement). A head
    that goes takes along its share of that, in proportion to its importance within the layer. It falls by about
    `regrouping_gain` whenever the parameters double because layers no longer share them.
    """
    if edit is None:
        return 0.0
    if isinstance(edit, Share | Unshare):
        return regrouping_gain * math.log2(edit.apply(blueprint).parameters / blueprint.parameters)
    before, after = sum(blueprint.heads), sum(edit.apply(blueprint).heads)
    if isinstance(edit, RecycleHead):  # as if the head had not been there, as far as it was not used
        unused = 1 - min(1.0, _relative(scores.importance[edit.layer])[edit.head])
        return doubling_gain * math.log2(before / (before - unused))
    gain = doubling_gain * math.log2(after / before)
    if isinstance(edit, ShrinkHeads):
        importance = scores.importance[edit.layer]
        removed = sum(importance[head] for head in edit.heads) / len(edit.heads)
        gain *= min(1.0, removed / max(sum(importance) / len(importance), 1e-12))
    return gain


def _growth(blueprint: Blueprint, scores: Scores, heads: Heads) -> list[GrowHeads]:
    """The layer whose loss pulls hardest at a fresh head, by one and by two; then the next layer by one."""
    room = [layer for layer in blueprint.groups("attention") if blueprint.heads[layer] < heads.max]
    ranked = sorted(room, key=lambda layer: -scores.growth[layer])
    most = heads.max - blueprint.heads[ranked[0]] if ranked else 0
    options = [GrowHeads(ranked[0], count) for count in (1, 2) if count <= most]
    return options + [GrowHeads(layer, 1) for layer in ranked[1:2]]


def _recycling(blueprint: Blueprint, scores: Scores) -> list[Edit]:
    """The deadest mature head of all, if there is one below DEAD_BELOW. A layer's only head is never dead."""
    dead: list[tuple[float, int, int]] = []
    for layer in blueprint.groups("attention"):
        live = blueprint.heads[layer]
        relative = _relative(scores.importance[layer])
        heads = [head for head in range(live) if scores.mature[layer][head] and relative[head] < DEAD_BELOW]
        dead += [(relative[head], layer, head) for head in heads if live > 1]
    return [RecycleHead(layer, head) for _, layer, head in sorted(dead)[:1]]


def _relative(importance: Sequence[float]) -> list[float]:
    """Each head's importance over its layer's mean."""
    mean = max(sum(importance) / len(importance), 1e-12)
    return [one / mean for one in importance]


def _removal(blueprint: Blueprint, scores: Scores, heads: Heads) -> list[Edit]:
    """The mature head that its layer would miss least, in each of the two layers that would miss it least."""
    options: list[tuple[float, Edit]] = []
    for layer in blueprint.groups("attention"):
        live, importance = blueprint.heads[layer], scores.importance[layer]
        mature = [head for head in range(live) if scores.mature[layer][head]]
        if live > heads.min and mature:
            weakest = min(mature, key=lambda head: importance[head])
            options.append((importance[weakest], ShrinkHeads(layer, (weakest,))))
    return [edit for _, edit in sorted(options, key=lambda option: option[0])[:2]]


def _parting(scores: Scores) -> list[Edit]:
    """Weights of its own for the layer that pulls hardest against those that it shares with, or least along."""
    return [*sorted(scores.strain, key=lambda edit: -scores.strain[edit])[:1]]


def _joining(scores: Scores) -> list[Edit]:
    """One set of weights for the two groups that are most alike."""
    return [*sorted(scores.distance, key=lambda edit: scores.distance[edit])[:1]]


def _candidate(
    edit: Edit | None,
    treatment: str,
    blueprint: Blueprint,
    scores: Scores,
    loss: float,
    policy: Policy,
    price: float,
) -> Candidate:
    after = blueprint if edit is None else edit.apply(blueprint)
    action = "keep" if edit is None else edit.describe()
    regroup = policy.sharing.regroup
    gains = policy.controller.capacity_gain * loss, 0.0 if regroup is None else regroup.gain * loss
    return Candidate(
        name=action if treatment == "keep" else f"{action}, {treatment}",
        edit=None if edit is None else edit_to_dict(edit),
        treatment=treatment,
        heads=after.heads,
        parameters=after.parameters,
        price=price_of(after, policy, price),
        prior=long_run_gain(edit, blueprint, scores, *gains),
        facts=facts_of(edit, blueprint, scores),
    )


def facts_of(edit: Edit | None, before: Blueprint, scores: Scores) -> dict[str, float]:
    """Numbers without a scale: heads relative to those there are, scores relative to the layer's live heads."""
    if edit is None:
        return {}
    facts = {"doublings": math.log2(sum(edit.apply(before).heads) / sum(before.heads))}
    if isinstance(edit, GrowHeads):
        facts |= {"share_of_layer": edit.heads / before.heads[edit.layer], "growth": scores.growth[edit.layer]}
    elif isinstance(edit, ShrinkHeads):
        relative = _relative(scores.importance[edit.layer])
        removed = sum(relative[head] for head in edit.heads)
        facts |= {"share_of_layer": len(edit.heads) / before.heads[edit.layer], "importance": removed}
    elif isinstance(edit, RecycleHead):
        relative = _relative(scores.importance[edit.layer])
        facts |= {"share_of_layer": 1 / before.heads[edit.layer], "importance": relative[edit.head]}
    elif isinstance(edit, Share):
        facts |= {"distance": scores.distance[edit]}
    elif isinstance(edit, Unshare):
        facts |= {"strain": scores.strain[edit]}
    return facts


def _with_heads(blueprint: Blueprint, heads: Sequence[int]) -> Blueprint:
    return replace(blueprint, heads=tuple(heads))
