"""Decisions in hindsight: how each was judged, what it brought, and what the run's regret adds up to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from planaria.record.facts import Row, duration, edit_style, known, plural, signed, style_of_name

KINDS = ("keep", "grow", "shrink", "recycle", "restore", "treatment", "edit")
"""What a decision may have chosen; "edit" is any other change of the model."""
FEWEST_FOR_CORRELATION = 3


@dataclass(frozen=True)
class Outcome:
    """A decision whose gain was measured, in nats a row."""

    sample: int
    kind: str
    after_shift: bool
    predicted: float
    realised: float


@dataclass(frozen=True)
class Agreement:
    """How predicted and realised gains compare."""

    count: int
    correlation: float | None
    """None for fewer than three decisions, and where one side is constant."""
    difference: float | None
    """Mean absolute, in nats a row."""


@dataclass(frozen=True)
class Regret:
    """Sums so far, as (sample, nats a row) after each decision."""

    estimated: Sequence[tuple[int, float]]
    """Best candidate's value minus the chosen one's, by the controller's own estimate."""
    undelivered: Sequence[tuple[int, float]]
    """Predicted minus realised gain, of decisions between shifts."""


@dataclass(frozen=True)
class Deliberation:
    """On what decisions rested, and their mean seconds (None where there are none)."""

    looked: int
    looked_seconds: float | None
    trusted: int
    """Decided by the learned values, without looking ahead on any candidate."""
    trusted_seconds: float | None
    neither: int
    """Nothing had been learned or looked at, or there was nothing but keeping."""


def looked_ahead(option: Mapping[str, Any]) -> bool:
    """Was it tried on a copy? Rows from before values were learned tell by having a value at all."""
    tried = known(option.get("loss_recent")) or known(option.get("loss_memory"))
    return tried or ("predicted" not in option and known(option.get("value")))


def chosen_option(row: Row) -> Mapping[str, Any] | None:
    """The candidate that was chosen. Of those with one name, which differ in treatment, that with the row's value."""
    named = [option for option in row["candidates"] or [] if option["name"] == row["chosen"]]
    if not known(row["predicted"]):
        return named[0] if named else None
    return min(named, key=lambda option: abs(worth(option) - row["predicted"]), default=None)


def worth(option: Mapping[str, Any]) -> float:
    """What the choice rested on; what was learned where that is not known, and minus infinity without either."""
    return next((option[key] for key in ("value", "predicted") if known(option.get(key))), -math.inf)


def kind_of(row: Row) -> str:
    """What the decision chose: one of KINDS."""
    option = chosen_option(row)
    if option is not None and option.get("edit") is not None:
        return edit_style(option["edit"])
    if option is None or row["revision"] is not None:
        return style_of_name(row["chosen"])
    return "keep" if (option.get("treatment") or "keep") == "keep" else "treatment"


def after_shift(row: Row) -> bool:
    """Did the stream itself change just before? Its outcome then tells more of that than of the choice."""
    return str(row["trigger"]).endswith("shift") or row["trigger"] == "new label"


def outcomes(decisions: Iterable[Row]) -> list[Outcome]:
    """Those whose predicted and realised gains are both known."""
    return [
        Outcome(row["sample"], kind_of(row), after_shift(row), row["predicted"], row["gain_realised"])
        for row in decisions
        if known(row["predicted"]) and known(row["gain_realised"])
    ]


def agreement(found: Sequence[Outcome]) -> Agreement:
    predicted, realised = [o.predicted for o in found], [o.realised for o in found]
    correlation = None
    if len(found) >= FEWEST_FOR_CORRELATION and min(_spread(predicted), _spread(realised)) > 0:
        correlation = statistics.correlation(predicted, realised)
    differences = [abs(o.predicted - o.realised) for o in found]
    return Agreement(len(found), correlation, statistics.fmean(differences) if differences else None)


def agreement_words(found: Sequence[Outcome]) -> str:
    """ "n = 12, correlation +0.41, mean absolute difference 0.013"."""
    numbers = agreement(found)
    if numbers.difference is None:
        return "n = 0"
    correlation = "not defined" if numbers.correlation is None else f"{numbers.correlation:+.2f}".replace("-", "−")
    return f"n = {numbers.count:,}, correlation {correlation}, mean absolute difference {numbers.difference:.3f}"


def regret(decisions: Iterable[Row]) -> Regret:
    """Both sums over the decisions, oldest first; those with an unknown side are passed over."""
    rows = list(decisions)
    estimated = [(row["sample"], gap) for row in rows if (gap := _gap(row)) is not None]
    undelivered = [(o.sample, o.predicted - o.realised) for o in outcomes(rows) if not o.after_shift]
    return Regret(_summed(estimated), _summed(undelivered))


def deliberation(decisions: Iterable[Row]) -> Deliberation:
    seconds: dict[str, list[float]] = {"looked": [], "trusted": [], "neither": []}
    for row in decisions:
        seconds[_ground(row)].append(float(row["seconds"]) if known(row["seconds"]) else math.nan)
    return Deliberation(
        looked=len(seconds["looked"]),
        looked_seconds=_mean_known(seconds["looked"]),
        trusted=len(seconds["trusted"]),
        trusted_seconds=_mean_known(seconds["trusted"]),
        neither=len(seconds["neither"]),
    )


def deliberation_words(found: Deliberation) -> str:
    """ "7 looked ahead (2.4 s each), 3 trusted the learned value alone (40 ms each)"."""
    parts = [
        (found.looked, "looked ahead", found.looked_seconds),
        (found.trusted, "trusted the learned value alone", found.trusted_seconds),
        (found.neither, "had neither", None),
    ]
    return ", ".join(
        f"{count:,} {words}" + (f" ({duration(seconds)} each)" if seconds is not None else "")
        for count, words, seconds in parts
        if count
    )


def ground_words(row: Row) -> str:
    """On what one decision rested."""
    options = row["candidates"] or []
    if _ground(row) == "looked":
        count = sum(looked_ahead(option) for option in options)
        return f"looked ahead on {count} of {plural(len(options), 'candidate', 'candidates')}"
    if _ground(row) == "trusted":
        return "trusted the learned value alone"
    return "neither looked ahead nor learned" if len(options) > 1 else "nothing to compare"


def gain_words(row: Row) -> str:
    """What it brought, or that nobody knows yet."""
    return signed(row["gain_realised"]) if known(row["gain_realised"]) else "not measured"


def _ground(row: Row) -> str:
    options = row["candidates"] or []
    if any(looked_ahead(option) for option in options):
        return "looked"
    # That keeping everything brings nothing is true by definition, not learned.
    changing = [o for o in options if o.get("edit") is not None or (o.get("treatment") or "keep") != "keep"]
    return "trusted" if any(known(option.get("predicted")) for option in changing) else "neither"


def _gap(row: Row) -> float | None:
    values = [float(option["value"]) for option in row["candidates"] or [] if known(option.get("value"))]
    if not values or not known(row["predicted"]):
        return None
    return max(0.0, max(values) - float(row["predicted"]))


def _summed(steps: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    totals = accumulate(amount for _, amount in steps)
    return [(sample, total) for (sample, _), total in zip(steps, totals, strict=True)]


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _mean_known(seconds: Sequence[float]) -> float | None:
    measured = [value for value in seconds if not math.isnan(value)]
    return statistics.fmean(measured) if measured else None
