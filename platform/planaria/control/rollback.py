"""Rollback: an edit that turned out badly is undone. Pure: outcomes and scored candidates in, verdicts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planaria.signals import Candidate, Decision

ROLLBACK = "rollback"
"""Trigger of the decision that compares the state before an edit with the live one."""
ROLLBACK_ROWS = 512
"""Newest rows on which they are compared."""
LEAST_ERRORS = 2.0
"""By so many standard errors the state before must be better."""
CLEARLY = 0.1
"""Of the loss before the edit: an outcome is doubted where it stays behind its prediction by more than this."""


@dataclass
class HeldEdit:
    """The newest edit whose outcome is not known yet: the state before it is kept."""

    decision: int
    kind: str
    """Of the edit."""
    doubted: bool = False
    """Its outcome was bad: the two states are to be compared."""


def holds_before(decision: Decision) -> bool:
    """Whether the state before this decision is worth keeping: it changes the weights, and is no undoing itself."""
    chosen = decision.chosen
    return decision.trigger != ROLLBACK and (chosen.edit is not None or chosen.treatment == "temper")


def doubtful(predicted: float, realised: float, loss_before: float) -> bool:
    """Whether an outcome is bad enough to ask what would be without the edit: the loss also moves by itself."""
    return realised < 0 and predicted - realised > CLEARLY * loss_before


def verdict(candidates: Sequence[Candidate]) -> tuple[Candidate, str]:
    """Keep the live model, or put the state before the edit back where that is clearly better; and why."""
    keep, before = candidates
    if before.value > 0 and before.value > LEAST_ERRORS * before.standard_error:
        return before, f"without the last edit the model is worth {_nats(before)} more"
    return keep, f"the last edit turned out worse than predicted, but undoing it is worth {_nats(before)}"


def _nats(candidate: Candidate) -> str:
    return f"{candidate.value:+.4f} ± {candidate.standard_error:.4f} nats"
