"""Decisions laid open: what was seen, what could be done, what each option promised, what was chosen and brought."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planaria.record.facts import (
    EDIT_SYMBOLS,
    Row,
    Run,
    duration,
    known,
    plus,
    sentence,
    signed,
    style_of_name,
    thousands,
    words_of,
)
from planaria.record.plots import short_number

MOST_CARDS = 24


MOST_OPTIONS = 8


@dataclass(frozen=True)
class Option:
    """A candidate of a decision, with the places of its bar in percent of the chart's width."""

    name: str
    heads: str
    chosen: bool
    words: str
    """Predicted value and standard error; or that it was not scored."""
    detail: str
    left: float | None = None
    width: float = 0.0
    whisker_left: float = 0.0
    whisker_width: float = 0.0
    negative: bool = False


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
    options: Sequence[Option]
    left_out: int
    predicted: str
    realised: str
    seconds: str
    observation: Sequence[tuple[str, str]]


def cards(run: Run, *, edits: bool) -> tuple[list[Card], int]:
    """The newest decisions that edited the model, or those that kept it; and how many older ones are left out."""
    chosen = [row for row in run.decisions if (row["revision"] is not None) == edits]
    return [_card(row) for row in chosen[-MOST_CARDS:]], max(0, len(chosen) - MOST_CARDS)


def _card(row: Row) -> Card:
    options = sorted(row["candidates"] or [], key=_worth, reverse=True)
    # Of candidates with one name, which differ in treatment, the chosen one is that with the predicted value.
    named = [option for option in options if option["name"] == row["chosen"]]
    picked = min(named, key=lambda option: abs(_worth(option) - (row["predicted"] or 0.0)), default=None)
    others = [option for option in options if option is not picked]
    shown = sorted([picked, *others][:MOST_OPTIONS] if picked else others[:MOST_OPTIONS], key=_worth, reverse=True)
    ends = [0.0, *(end for option in shown for end in _ends(option))]
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    style = "keep" if row["revision"] is None else style_of_name(row["chosen"])
    outcome = "kept the model" if row["revision"] is None else f"revision {row['revision']}: {row['chosen']}"
    names = [option["name"] for option in shown]
    return Card(
        title=outcome,
        style=style,
        symbol=EDIT_SYMBOLS[style],
        sample=row["sample"],
        trigger=row["trigger"],
        why=sentence(row["why"]),
        zero=_place(0.0, low, high),
        options=[_option(o, o is picked, names.count(o["name"]) > 1, low, high) for o in shown],
        left_out=len(options) - len(shown),
        predicted=signed(row["predicted"]),
        realised=signed(row["gain_realised"]) if row["gain_realised"] is not None else "not measured",
        seconds=duration(row["seconds"]) if known(row["seconds"]) else "",
        observation=[(words_of(k), short_number(v)) for k, v in (row["observation"] or {}).items() if known(v)],
    )


def _worth(option: Mapping[str, Any]) -> float:
    return float(option["value"]) if known(option.get("value")) else -math.inf


def _ends(option: Mapping[str, Any]) -> tuple[float, ...]:
    if not known(option.get("value")):
        return ()
    error = option["standard_error"] if known(option.get("standard_error")) else 0.0
    return (option["value"] - error, option["value"] + error)


def _option(option: Mapping[str, Any], chosen: bool, twins: bool, low: float, high: float) -> Option:
    """`twins`: others have its name, and its treatment tells them apart."""
    name, heads = str(option["name"]), plus(option.get("heads") or [])
    treatment = str(option.get("treatment") or "keep")
    losses = [f"{label} {option[key]:.3f}" for key, label in _LOSSES if known(option.get(key))]
    size = [f"{thousands(option['parameters'])} parameters"] if known(option.get("parameters")) else []
    detail = ", ".join([f"optimizer: {treatment}", *size, *losses])
    if twins:
        name = f"{name} ({treatment})"
    ends = _ends(option)
    if not ends:
        return Option(name, heads, chosen, "not scored", detail)
    value, zero = _place(option["value"], low, high), _place(0.0, low, high)
    left, right = (_place(end, low, high) for end in ends)
    error = f" ± {option['standard_error']:.3f}" if right > left else ""
    return Option(
        name=name,
        heads=heads,
        chosen=chosen,
        words=f"{signed(option['value'])}{error}",
        detail=detail,
        left=min(value, zero),
        width=abs(value - zero),
        whisker_left=left,
        whisker_width=right - left,
        negative=option["value"] < 0,
    )


_LOSSES = (("loss_recent", "loss on recent rows"), ("loss_memory", "on remembered rows"))


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)
