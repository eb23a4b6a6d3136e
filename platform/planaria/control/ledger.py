"""What the controller has learned from its own edits: predicted against realised, by trigger and kind of edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planaria.errors import InputError

PRIOR_OUTCOMES = 4
"""A kind of edit needs about this many outcomes before what it brought outweighs what was predicted."""


@dataclass
class Tally:
    count: int = 0
    predicted: float = 0.0
    realised: float = 0.0


@dataclass
class Ledger:
    tallies: dict[str, Tally] = field(default_factory=dict)

    def add(self, trigger: str, kind: str, predicted: float, realised: float) -> None:
        """Losses realised across a shift say more of the shift than of the edit: those are kept apart by trigger."""
        tally = self.tallies.setdefault(f"{trigger}/{kind}", Tally())
        tally.count += 1
        tally.predicted += (predicted - tally.predicted) / tally.count
        tally.realised += (realised - tally.realised) / tally.count

    def bias(self, trigger: str) -> dict[str, float]:
        """By kind of edit: how much more than predicted such edits brought, shrunken towards 0 while few are known.

        The loss also falls without an edit: what keeping brought is subtracted, and without it nothing is claimed.
        """
        keep = self.tallies.get(f"{trigger}/keep")
        if keep is None:
            return {}
        prefix = f"{trigger}/"
        return {
            key.removeprefix(prefix): (t.realised - t.predicted - keep.realised)
            * min(t.count, keep.count)
            / (min(t.count, keep.count) + PRIOR_OUTCOMES)
            for key, t in self.tallies.items()
            if key.startswith(prefix) and t is not keep
        }

    def state(self) -> dict[str, Any]:
        return {key: [t.count, t.predicted, t.realised] for key, t in self.tallies.items()}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Ledger:
        try:
            return Ledger({key: Tally(int(n), float(p), float(r)) for key, (n, p, r) in state.items()})
        except (TypeError, ValueError) as error:
            raise InputError(f"controller state: ledger is not usable ({error}); use an older checkpoint") from None
