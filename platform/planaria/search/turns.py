"""Population based training: who takes over whom, and with which settings. Pure.

Source: Jaderberg et al. 2017, "Population based training of neural networks" (arXiv 1711.09846): truncation selection,
and explore by perturbing or drawing anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planaria.errors import InputError
from planaria.ranges import Range, Ranges, Value
from planaria.train.turn import AT_ONCE, BY_EDITS, changes_in_flight


@dataclass(frozen=True)
class Takeover:
    """A trial goes on as another one, with settings of its own."""

    number: int
    parent: int
    settings: Mapping[str, Value]
    why: str


def check_turns(search: Ranges) -> None:
    """Raises InputError where a searched setting cannot change while a run goes on."""
    for key in search:
        section, _, rest = key.partition(".")
        if section != "policy" or not changes_in_flight(rest):
            raise InputError(
                f"search.{key}: cannot change while a run goes on, as algorithm pbt would have it; remove it, or "
                f"choose another algorithm (what can: {', '.join(f'policy.{k}' for k in sorted(AT_ONCE | BY_EDITS))})"
            )


def takeovers(
    scores: Mapping[int, float | None],
    settings: Mapping[int, Mapping[str, Value]],
    search: Ranges,
    *,
    share: float,
    resample: float,
    factor: float,
    seed: tuple[int, ...],
    rows: int,
) -> list[Takeover]:
    """By number. `scores` are of the rows since the last turn, higher is better, None of a trial that failed: those
    always take over another one. Equal seeds give equal answers."""
    living = [number for number, score in scores.items() if score is not None]
    ranked = sorted(living, key=lambda number: (-_score(scores, number), number))
    count = max(1, int(share * len(scores)))
    winners = ranked[:count]
    losers = {number for number, score in scores.items() if score is None}
    losers |= set(ranked[max(len(winners), len(ranked) - count) :])
    generator = np.random.default_rng(seed)
    found = []
    for number in sorted(losers):
        parent = winners[int(generator.integers(len(winners)))] if winners else number
        if parent == number:
            continue
        new = explored(settings[parent], search, resample, factor, generator)
        found.append(Takeover(number, parent, new, _why(number, parent, scores, settings[parent], new, rows)))
    return found


def explored(
    settings: Mapping[str, Value], search: Ranges, resample: float, factor: float, generator: np.random.Generator
) -> dict[str, Value]:
    """Settings near those, all within their ranges."""
    new: dict[str, Value] = {}
    for key, values in search.items():
        if not all(other in new and new[other] in wanted for other, wanted in values.when.items()):
            continue
        if key not in settings or generator.random() < resample:
            new[key] = _drawn(values, generator)
        else:
            new[key] = _perturbed(settings[key], values, factor, generator)
    return new


def _drawn(values: Range, generator: np.random.Generator) -> Value:
    if values.one_of is not None:
        return values.one_of[int(generator.integers(len(values.one_of)))]
    if values.integers is not None and not values.log:
        return int(generator.integers(*values.integers, endpoint=True))
    low, high = values.integers or values.between or (0, 0)
    if values.log:
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        drawn = float(generator.uniform(low, high))
    return round(drawn) if values.integers is not None else min(max(drawn, low), high)


def _perturbed(value: Value, values: Range, factor: float, generator: np.random.Generator) -> Value:
    if values.one_of is not None:
        if value not in values.one_of:
            return _drawn(values, generator)
        at = values.one_of.index(value) + int(generator.integers(-1, 1, endpoint=True))
        return values.one_of[min(max(at, 0), len(values.one_of) - 1)]
    assert isinstance(value, int | float)
    up = bool(generator.integers(2))
    moved = value * factor if up else value / factor
    if values.integers is None:
        assert values.between is not None
        return float(min(max(moved, values.between[0]), values.between[1]))
    whole = max(value + 1, math.ceil(moved)) if up else min(value - 1, math.floor(moved))
    return int(min(max(whole, values.integers[0]), values.integers[1]))


def _score(scores: Mapping[int, float | None], number: int) -> float:
    score = scores[number]
    assert score is not None
    return score


def _why(
    number: int,
    parent: int,
    scores: Mapping[int, float | None],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    rows: int,
) -> str:
    own = scores[number]
    against = "which failed" if own is None else f"{abs(own):.4g}"
    changed = [
        f"{key.removeprefix('policy.')} {_short(before.get(key))} -> {_short(value)}"
        for key, value in after.items()
        if before.get(key) != value
    ]
    became = ", ".join(changed) or "its settings unchanged"
    return (
        f"trial {number} ({against}) goes on as trial {parent} ({abs(_score(scores, parent)):.4g} over {rows:,} rows): "
        f"{became}"
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
