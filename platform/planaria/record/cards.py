"""Decisions laid open: what was seen, what could be done, what each option promised, what was chosen and brought."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from planaria.record.facts import (
    EDIT_SYMBOLS,
    Row,
    Run,
    duration,
    known,
    plus,
    sentence,
    short_number,
    signed,
    thousands,
    words_of,
)
from planaria.record.outcomes import chosen_option, gain_words, ground_words, kind_of, looked_ahead, worth

MOST_CARDS = 24
MOST_OPTIONS = 9
FEWEST_OBSERVED, MOST_OBSERVED = 3, 6
FEWEST_TO_COMPARE = 4
"""Decisions that a run needs before an observation can be called usual."""
WIDEST_INTERVAL = 0.8
"""In spans of the chart's points: a longer interval is cut off, or it would press all points together."""


class Scale(NamedTuple):
    """What a chart's left and right ends stand for, in nats a row."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """In percent of the chart's width."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(1.0, max(0.0, share)), 2)


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, and their places in percent of the chart's width."""

    words: str
    at: float
    left: float
    width: float
    cut: bool
    """Does the interval run out of the chart?"""


@dataclass(frozen=True)
class Option:
    """A candidate of a decision: what was known of it before looking ahead, and after."""

    name: str
    heads: str
    chosen: bool
    detail: str
    learned: Estimate | None
    final: Estimate | None
    """None where it was not looked ahead."""


@dataclass(frozen=True)
class Observed:
    """A number that the decision saw, and what it usually is in this run ("" where that cannot be told)."""

    name: str
    value: str
    usual: str


@dataclass(frozen=True)
class Card:
    """A decision, laid open."""

    title: str
    style: str
    symbol: str
    sample: int
    trigger: str
    why: str
    zero: float
    """Where the chart's zero stands, in percent of its width."""
    groups: Sequence[tuple[str, Sequence[Option]]]
    """Those that were looked ahead, then those that were not; each best first."""
    left_out: int
    predicted: str
    realised: str
    seconds: str
    ground: str
    """How many candidates were looked ahead."""
    observed: Sequence[Observed]
    not_observed: int
    """How many more numbers the decision saw: those near what they usually are."""


def cards(run: Run, *, edits: bool) -> tuple[list[Card], int]:
    """The newest decisions that changed the model, or those that kept it; and how many older ones are left out."""
    chosen = [row for row in run.decisions if (kind_of(row) != "keep" or row["revision"] is not None) == edits]
    usual = _usual(run.decisions)
    return [_card(row, usual) for row in chosen[-MOST_CARDS:]], max(0, len(chosen) - MOST_CARDS)


def _card(row: Row, usual: Mapping[str, tuple[float, float]]) -> Card:
    options, picked, style = row["candidates"] or [], chosen_option(row), kind_of(row)
    ranked = sorted(options, key=worth, reverse=True)
    # Those that were looked ahead have the better numbers; the chosen one is shown in any case.
    ranked.sort(key=lambda option: (option is not picked, not looked_ahead(option)))
    shown = sorted(ranked[:MOST_OPTIONS], key=worth, reverse=True)
    scale = _scale(shown)
    names = [option["name"] for option in shown]
    tried = [option for option in shown if looked_ahead(option)]
    untried = [option for option in shown if not looked_ahead(option)]
    groups = [
        (title, [_option(o, o is picked, names.count(o["name"]) > 1, scale) for o in members])
        for title, members in (("looked ahead", tried), ("not looked ahead", untried))
        if members
    ]
    observation = row["observation"] or {}
    seen = sum(known(value) for value in observation.values())
    observed = _observed(observation, usual)
    return Card(
        title=_title(row, style),
        style=style,
        symbol=EDIT_SYMBOLS[style],
        sample=row["sample"],
        trigger=row["trigger"],
        why=sentence(row["why"]),
        zero=scale.place(0.0),
        groups=groups,
        left_out=len(options) - len(shown),
        predicted=signed(row["predicted"]),
        realised=gain_words(row),
        seconds=duration(row["seconds"]) if known(row["seconds"]) else "not known",
        ground=ground_words(row),
        observed=observed,
        not_observed=seen - len(observed),
    )


def _title(row: Row, style: str) -> str:
    if row["revision"] is not None:
        return f"revision {row['revision']}: {row['chosen']}"
    return "kept the model" if style == "keep" else str(row["chosen"])


def _option(option: Mapping[str, Any], chosen: bool, twins: bool, scale: Scale) -> Option:
    """`twins`: others have its name, and its treatment tells them apart."""
    treatment = str(option.get("treatment") or "keep")
    losses = [f"{label} {option[key]:.3f}" for key, label in _LOSSES if known(option.get(key))]
    size = [f"{thousands(option['parameters'])} parameters"] if known(option.get("parameters")) else []
    before, after = _points(option)
    return Option(
        name=f"{option['name']} ({treatment})" if twins else str(option["name"]),
        heads=plus(option.get("heads") or []),
        chosen=chosen,
        detail=", ".join([f"optimizer: {treatment}", *size, *losses]),
        learned=_estimate(before, scale),
        final=_estimate(after, scale),
    )


_LOSSES = (("loss_recent", "loss on recent rows"), ("loss_memory", "on remembered rows"))

Point = tuple[float, float]
"""A value and its standard error, 0 where that is not known."""


def _points(option: Mapping[str, Any]) -> tuple[Point | None, Point | None]:
    """What was known before looking ahead, and after; for one that was not looked ahead the former only."""
    final, learned = _point(option, "value", "standard_error"), _point(option, "predicted", "predicted_error")
    return (learned, final) if looked_ahead(option) else (learned or final, None)


def _point(option: Mapping[str, Any], value: str, error: str) -> Point | None:
    if not known(option.get(value)):
        return None
    return option[value], option[error] if known(option.get(error)) else 0.0


def _scale(options: Sequence[Mapping[str, Any]]) -> Scale:
    """From the worst to the best point with their intervals, zero among them."""
    points = [point for option in options for point in _points(option) if point is not None]
    values = [0.0, *(value for value, _ in points)]
    lowest, highest = min(values), max(values)
    room = WIDEST_INTERVAL * (highest - lowest) or math.inf
    low = max(lowest - room, min([0.0, *(value - error for value, error in points)]))
    high = min(highest + room, max([0.0, *(value + error for value, error in points)]))
    margin = 0.04 * (high - low) or 1.0
    return Scale(low - margin, high + margin)


def _estimate(point: Point | None, scale: Scale) -> Estimate | None:
    if point is None:
        return None
    value, error = point
    left, right = scale.place(value - error), scale.place(value + error)
    return Estimate(
        words=signed(value) + (f" ± {error:.3f}" if error > 0 else ""),
        at=scale.place(value),
        left=left,
        width=round(right - left, 2),
        cut=value - error < scale.low or value + error > scale.high,
    )


def _usual(decisions: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """By observation: its median over the run's decisions, and its mean distance from that."""
    if len(decisions) < FEWEST_TO_COMPARE:
        return {}
    seen: dict[str, list[float]] = {}
    for row in decisions:
        for name, value in (row["observation"] or {}).items():
            if known(value):
                seen.setdefault(name, []).append(float(value))
    medians = {name: statistics.median(values) for name, values in seen.items()}
    return {
        name: (medians[name], statistics.fmean(abs(value - medians[name]) for value in values))
        for name, values in seen.items()
    }


def _observed(observation: Mapping[str, Any], usual: Mapping[str, tuple[float, float]]) -> list[Observed]:
    """The handful that lies furthest from usual; the first few where nothing is known of that.

    What the trigger says already (shift_abrupt, ...) comes last.
    """

    def oddness(name: str) -> float:
        median, distance = usual.get(name, (0.0, 0.0))
        return abs(observation[name] - median) / distance if distance > 0 else 0.0

    names = [name for name, value in observation.items() if known(value)]
    names.sort(key=lambda name: (name.startswith("shift_"), -oddness(name)))
    odd = [
        name for i, name in enumerate(names[:MOST_OBSERVED]) if not usual or i < FEWEST_OBSERVED or oddness(name) > 1
    ]
    return [
        Observed(words_of(name), short_number(observation[name]), short_number(usual[name][0]) if name in usual else "")
        for name in odd
    ]
