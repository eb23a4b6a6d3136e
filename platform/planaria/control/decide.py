"""The choice itself. Pure: scored candidates in, the chosen one and the reason out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from planaria.signals import Candidate


def choose(
    candidates: Sequence[Candidate], certainty: float, learned_bias: Mapping[str, float] | None = None
) -> tuple[Candidate, str]:
    """The candidate that beats keeping by the most, if any does by `certainty` standard errors.

    `learned_bias` (by kind of edit, see `edit_kind`) is what such edits were found to bring beyond their prediction.
    """
    keep = candidates[0]
    bias = learned_bias or {}

    def margin(candidate: Candidate) -> float:
        return candidate.value + bias.get(edit_kind(candidate), 0.0) - certainty * candidate.standard_error

    best = max(candidates[1:], key=margin, default=None)
    if best is None:
        return keep, "nothing else is possible within the limits"
    learned = bias.get(edit_kind(best), 0.0)
    known = f", and such edits brought {learned:+.4f} more than predicted" if learned else ""
    if margin(best) <= 0:
        return keep, f"nothing beats keeping: the best, {best.name}, is worth {_nats(best)}{known}"
    saved = keep.price - best.price
    cost = f", {abs(saved):.4f} nats {'saved' if saved > 0 else 'paid'} for capacity" if saved else ""
    return best, f"{best.name} is worth {_nats(best)} more than keeping{cost}{known}"


def edit_kind(candidate: Candidate) -> str:
    """ "grow_heads", "shrink_heads", ... or "keep"."""
    return "keep" if candidate.edit is None else str(candidate.edit["kind"])


def _nats(candidate: Candidate) -> str:
    return f"{candidate.value:+.4f} ± {candidate.standard_error:.4f} nats"
