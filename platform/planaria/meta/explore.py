"""The judge that gathers experience: it tries what a better judge would not, and looks at everything now and then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from planaria.control.judge import Judge, Look, Outcome, Situation, Verdict


class Exploring:
    """Chooses at random in `randomness` of the decisions (as `inner` would in the others), and looks ahead on every
    candidate in `share` of them, for which the episode then follows all candidates."""

    least_looks = 0

    def __init__(self, inner: Judge | None, seed: int, share: float, randomness: float) -> None:
        self.inner, self.share, self.randomness = inner, share, randomness
        self.random = np.random.default_rng((seed, 0xE8))

    def judge(self, situation: Situation, look: Look) -> Verdict:
        candidates = situation.candidates
        wants_all, wants_random = self.random.random(2) < (self.share, self.randomness)
        place = int(self.random.integers(len(candidates)))
        verdict = Verdict(candidates, candidates[place], "to see what happens")
        if self.inner is not None and not wants_random:
            acted = self.inner.judge(situation, look)
            # Candidates that it left out, being of kinds unknown to it, are followed all the same.
            verdict = Verdict(candidates, acted.chosen, acted.why)
        if wants_all:
            look(range(len(candidates)))
        return verdict

    def learn(self, outcome: Outcome) -> None:
        if self.inner is not None:
            self.inner.learn(outcome)

    def inherit(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept: exploring is for simulations."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept: exploring is for simulations."""
