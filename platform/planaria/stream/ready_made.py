"""Ready-made kinds of scenario spelled out as contexts, and long tails of classes. Pure.

Source of the long tail: Cui et al. 2019, "Class-balanced loss" (arXiv 1901.05555); of context lengths that follow it:
Liu et al. 2022, "Long-tailed class incremental learning" (arXiv 2210.00266), ordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.errors import InputError
from planaria.job import Change, Scenario

Label = str | int


def changes_of(scenario: Scenario, labels: Sequence[Label]) -> list[Change]:
    """The contexts of a scenario in order, those of a ready-made kind spelled out; `labels` are the source's."""
    changes = list(scenario.contexts) if scenario.kind == "contexts" else _made(scenario, labels)
    return changes if scenario.imbalance == 1 else _long_tailed(changes, scenario, labels)


def places_in_groups(scenario: Scenario, labels: Sequence[Label]) -> npt.NDArray[np.int64] | None:
    """What each class becomes where only its place within its context's group counts; None where classes stay."""
    if scenario.kind != "domain_incremental":
        return None
    place_of = {label: place for group in _groups(scenario, labels) for place, label in enumerate(group)}
    return np.array([place_of[label] for label in labels], np.int64)


def _made(scenario: Scenario, labels: Sequence[Label]) -> list[Change]:
    common = {
        "samples": scenario.samples_per_context,
        "transition_samples": scenario.transition_samples,
        "blur": scenario.blur,
    }
    numbers = range(scenario.count)
    turns: list[dict[str, Any]]
    if scenario.kind == "permuted":
        turns = [{"transform": "permute_pixels" if number else "none", "variant": number} for number in numbers]
    elif scenario.kind == "rotated":
        angles = [360.0 * number / scenario.count for number in numbers]
        turns = [{"transform": "rotate", "degrees": angle} if angle else {} for angle in angles]
    else:
        turns = [{"classes": group} for group in _groups(scenario, labels)]
    return [Change.model_validate({"name": f"{scenario.kind}_{n}", **common, **turn}) for n, turn in enumerate(turns)]


def _groups(scenario: Scenario, labels: Sequence[Label]) -> list[tuple[Label, ...]]:
    """The labels in order, in `count` groups."""
    kind, count = scenario.kind, scenario.count
    if not labels:
        raise InputError(f"stream.scenario.kind: {kind} needs classes; use task: classification or another kind")
    if count > len(labels):
        raise InputError(f"stream.scenario.count: is {count}, but there are only {len(labels)} labels; lower it")
    if kind == "domain_incremental" and len(labels) > 1 and (len(labels) % count or count == len(labels)):
        possible = [str(groups) for groups in range(1, len(labels)) if len(labels) % groups == 0]
        raise InputError(
            f"stream.scenario.count: is {count}, but domain_incremental needs groups of equally many labels, at least "
            f"two, and there are {len(labels)}; choose {' or '.join(possible)}"
        )
    return [tuple(group) for group in np.array_split(np.array(_in_order(labels), object), count)]


def _in_order(labels: Sequence[Label]) -> list[Label]:
    return sorted(labels, key=lambda label: (isinstance(label, str), label))


def _long_tailed(changes: list[Change], scenario: Scenario, labels: Sequence[Label]) -> list[Change]:
    """The contexts with a weight for every label that is drawn. Where each has classes of its own, its length follows
    their share, so that the whole stream has the long tail, and the mean length is what was asked for."""
    if not labels:
        raise InputError("stream.scenario.imbalance: needs classes; use task: classification or remove imbalance")
    drawn = {str(label) for change in changes for label in (labels if change.classes is None else change.classes)}
    falling = [str(label) for label in _in_order(labels) if str(label) in drawn]
    steps = max(1, len(falling) - 1)
    weight = {label: scenario.imbalance ** (-rank / steps) for rank, label in enumerate(falling)}
    if scenario.kind in ("class_incremental", "domain_incremental"):
        shares = [sum(weight[str(label)] for label in change.classes or ()) for change in changes]
        changes = _with_lengths(changes, shares, scenario)
    tailed = []
    for change in changes:
        given = change.class_weights or {}
        both = {**given, **{label: share * given.get(label, 1.0) for label, share in weight.items()}}
        tailed.append(change.model_copy(update={"class_weights": both}))
    return tailed


def _with_lengths(changes: list[Change], shares: list[float], scenario: Scenario) -> list[Change]:
    """As many rows in all, in proportion to the shares."""
    rows = sum(change.samples for change in changes)
    ends = np.rint(np.cumsum(shares) / sum(shares) * rows).astype(np.int64)
    lengths = np.diff(ends, prepend=0).tolist()
    needed = max(1, scenario.transition_samples)
    for change, length in zip(changes, lengths, strict=True):
        if length < needed:
            raise InputError(
                f"stream.scenario.imbalance: {scenario.imbalance:g} leaves context '{change.name}' {length} rows, but "
                f"it needs {needed}; lower imbalance or transition_samples, or raise samples_per_context"
            )
    return [change.model_copy(update={"samples": n}) for change, n in zip(changes, lengths, strict=True)]
