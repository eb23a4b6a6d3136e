"""Which candidates a decision has. Pure: numbers in, values out. Legend: L layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planaria.blueprint import Blueprint, Edit, GrowHeads, ShrinkHeads, edit_to_dict
from planaria.policy import Budget, Heads
from planaria.signals import Candidate


@dataclass(frozen=True)
class Scores:
    """What surgery measured for this decision."""

    importance: Sequence[Sequence[float]]
    """Per layer and head: how much the loss depends on it."""
    growth: Sequence[float]
    """Per layer: how strongly the loss pulls at a fresh head, relative to the live ones."""
    mature: Sequence[Sequence[bool]]
    """Per layer and head: has it had time to integrate? Only mature heads may go."""


def propose(trigger: str, blueprint: Blueprint, scores: Scores, heads: Heads, budget: Budget) -> list[Candidate]:
    """Candidates within the limits; the first one keeps everything as it is.

    After a shift: ways to treat optimizer and output layer, and growth. Between shifts: removal of the heads that
    matter least, and growth.
    """
    shifted = trigger.endswith("shift")
    treatments = ("keep", "reset", "temper") if shifted else ("keep",)
    options: list[tuple[Edit | None, str]] = [(None, treatment) for treatment in treatments]
    for layer, count in _growable(blueprint, scores, heads, most=2 if shifted else 1):
        edit = GrowHeads(layer, count)
        options += [(edit, "keep"), (edit, "reset")] if shifted else [(edit, "keep")]
    if not shifted:
        options += [(edit, "keep") for edit in _removable(blueprint, scores, heads)]
    candidates = [_candidate(edit, treatment, blueprint, heads, budget) for edit, treatment in options]
    return [candidate for candidate in candidates if candidate.edit is None or fits(candidate, blueprint, budget)]


def price_of(blueprint: Blueprint, heads: Heads, budget: Budget) -> float:
    """Nats per row that the live heads must earn: the policy's price at full size, in proportion below."""
    return budget.price * sum(blueprint.heads) / (heads.max * blueprint.layers)


def fits(candidate: Candidate, blueprint: Blueprint, budget: Budget) -> bool:
    """Does it stay within the limits, or at least come closer to them than the present blueprint?"""
    if candidate.parameters < blueprint.parameters:
        return True
    after = _with_heads(blueprint, candidate.heads)
    within_parameters = budget.parameters is None or candidate.parameters <= budget.parameters
    within_flops = budget.flops_per_sample is None or after.flops_per_sample <= budget.flops_per_sample
    return within_parameters and within_flops


def _growable(blueprint: Blueprint, scores: Scores, heads: Heads, most: int) -> list[tuple[int, int]]:
    """(layer, heads to add): the layer whose loss pulls hardest at a fresh head, by one and up to `most`; then the next
    layer by one."""
    room = [layer for layer in range(blueprint.layers) if blueprint.heads[layer] < heads.max]
    ranked = sorted(room, key=lambda layer: -scores.growth[layer])
    options = (
        [(ranked[0], n) for n in range(1, most + 1) if blueprint.heads[ranked[0]] + n <= heads.max] if ranked else []
    )
    return options + [(layer, 1) for layer in ranked[1:2]]


def _removable(blueprint: Blueprint, scores: Scores, heads: Heads) -> list[Edit]:
    """The least important mature head of each of the two layers that would miss it least, and both of the least two."""
    options: list[tuple[float, Edit]] = []
    for layer, live in enumerate(blueprint.heads):
        importance = scores.importance[layer]
        mature = sorted((h for h in range(live) if scores.mature[layer][h]), key=lambda h: importance[h])
        if live > heads.min and mature:
            options.append((importance[mature[0]], ShrinkHeads(layer, (mature[0],))))
        if live > heads.min + 1 and len(mature) > 1:
            weakest = (mature[0], mature[1])
            options.append(
                (importance[weakest[0]] + importance[weakest[1]], ShrinkHeads(layer, tuple(sorted(weakest))))
            )
    return [edit for _, edit in sorted(options, key=lambda option: option[0])[:3]]


def _candidate(edit: Edit | None, treatment: str, blueprint: Blueprint, heads: Heads, budget: Budget) -> Candidate:
    after = blueprint if edit is None else edit.apply(blueprint)
    action = "keep" if edit is None else edit.describe()
    return Candidate(
        name=action if treatment == "keep" else f"{action}, {treatment}",
        edit=None if edit is None else edit_to_dict(edit),
        treatment=treatment,
        heads=after.heads,
        parameters=after.parameters,
        price=price_of(after, heads, budget),
    )


def _with_heads(blueprint: Blueprint, heads: Sequence[int]) -> Blueprint:
    return Blueprint(**{**vars(blueprint), "heads": tuple(heads)})
