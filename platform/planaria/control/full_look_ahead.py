"""The judge that looks ahead on every candidate and corrects itself by its ledger. Nothing of it is meta-learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planaria.control.decide import choose
from planaria.control.judge import Look, Outcome, Situation, Verdict
from planaria.control.ledger import Ledger
from planaria.control.look_ahead import score
from planaria.errors import InputError
from planaria.policy import Controller


class FullLookAhead:
    """See planaria.control.judge.Judge."""

    least_looks = 6

    def __init__(self, settings: Controller) -> None:
        self.settings = settings
        self.ledger = Ledger()

    def judge(self, situation: Situation, look: Look) -> Verdict:
        candidates = situation.candidates[: max(1, situation.looks)]
        scored = tuple(score(candidates, look(range(len(candidates))), self.settings))
        bias = {} if situation.trigger.endswith("shift") else self.ledger.bias(situation.trigger)
        chosen, why = choose(scored, self.settings.certainty, bias)
        return Verdict(scored, chosen, why)

    def learn(self, outcome: Outcome) -> None:
        gain = outcome.fall - outcome.price_paid
        self.ledger.add(outcome.trigger, outcome.kind, outcome.predicted, gain)

    def inherit(self, state: Mapping[str, Any]) -> None:
        self.load_state(state)

    def state(self) -> dict[str, Any]:
        return {"ledger": self.ledger.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if "ledger" not in state:
            raise InputError("controller state: holds no ledger; it is that of another kind of controller")
        self.ledger = Ledger.from_state(state["ledger"])
