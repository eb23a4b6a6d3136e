"""What the controllers of several runs have learned, put together for another one to begin with. Pure: states are those
of judges (`Judge.state`), as a run's folder holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

State = Mapping[str, Any]


def learned_since(state: State, inherited: State | None) -> State:
    """What a run has learned itself, without what it began with."""
    if not inherited:
        return state
    if "ledger" in state:
        before = inherited.get("ledger", {})
        return {"ledger": {key: _without(tally, before.get(key)) for key, tally in state["ledger"].items()}}
    features, known = state["features"], inherited.get("features", [])
    # The oldest are dropped first, so that what is left of the inherited ones comes first.
    left = next(n for n in range(min(len(known), len(features)), -1, -1) if known[len(known) - n :] == features[:n])
    return {"features": features[left:], "returns": state["returns"][left:]}


def pooled(states: Sequence[State], kind: Literal["learned", "look_ahead", "none"]) -> dict[str, Any] | None:
    """For `Judge.inherit` of a controller of that kind, from states of that kind; None where nothing was learned."""
    if kind == "look_ahead":
        tallies: dict[str, list[float]] = {}
        for state in states:
            for key, tally in state.get("ledger", {}).items():
                tallies[key] = _with(tally, tallies.get(key))
        tallies = {key: tally for key, tally in tallies.items() if tally[0] > 0}
        return {"ledger": tallies} if tallies else None
    alike = [state for state in states if kind == "learned" and "features" in state]
    features = [row for state in alike for row in state["features"]]
    returns = [value for state in alike for value in state["returns"]]
    return {"features": features, "returns": returns, "open": [], "borrowed": []} if features else None


def _with(tally: Sequence[float], other: Sequence[float] | None) -> list[float]:
    """Counts and means of both together."""
    if other is None:
        return list(tally)
    count = tally[0] + other[0]
    means = [(tally[0] * a + other[0] * b) / count if count else 0.0 for a, b in zip(tally[1:], other[1:], strict=True)]
    return [count, *means]


def _without(tally: Sequence[float], other: Sequence[float] | None) -> list[float]:
    """Inverse of `_with`."""
    if other is None:
        return list(tally)
    count = tally[0] - other[0]
    means = [(tally[0] * a - other[0] * b) / count if count else 0.0 for a, b in zip(tally[1:], other[1:], strict=True)]
    return [count, *means]
