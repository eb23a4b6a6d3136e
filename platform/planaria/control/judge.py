"""What a decision is judged from and by. A judge sees numbers and may ask for look-aheads; it touches no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from planaria.control.look_ahead import Trial
from planaria.signals import Candidate


@dataclass(frozen=True)
class Situation:
    """A decision before it is taken."""

    number: int
    """Of the decision within the run."""
    sample: int
    trigger: str
    loss: float
    """The present prequential loss in nats, the scale of all gains."""
    observation: Mapping[str, float]
    candidates: tuple[Candidate, ...]
    """The first one keeps everything as it is."""
    looks: int
    """How many candidates the decision budget lets look ahead."""


@dataclass(frozen=True)
class Verdict:
    """The candidates with their values, the choice and its reason."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate
    why: str


@dataclass(frozen=True)
class Outcome:
    """What became of a decision, once its horizon has passed."""

    number: int
    trigger: str
    kind: str
    """Of the chosen edit, see `decide.edit_kind`."""
    predicted: float
    """Value of the choice when it was made, in nats."""
    fall: float
    """Loss before the decision minus the mean loss over its horizon, in nats."""
    price_paid: float
    """Nats a row for capacity, beyond what keeping would have cost."""


Known = tuple[list[float], float]
"""Features of an edit that was made, and the return that came of it."""

Exchange = Callable[[list[Known]], list[Known] | None]
"""Lends what a run has learned and answers with what others lend; None where nobody answers."""

Look = Callable[[Sequence[int]], list[Trial]]
"""Look ahead on these candidates (by number); each one is charged to the decision budget."""


class Judge(Protocol):
    """Chooses among candidates, and learns from outcomes. Deterministic: equal on every worker."""

    least_looks: int
    """A decision waits until the budget pays for looking ahead on so many candidates."""

    def judge(self, situation: Situation, look: Look) -> Verdict: ...

    def learn(self, outcome: Outcome) -> None: ...

    def inherit(self, state: Mapping[str, Any]) -> None:
        """Begin with what the judge of another run had learned. Raises InputError where that was another kind."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError where the state is not this judge's."""
