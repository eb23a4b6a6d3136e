"""The judge with a meta-learned value: it trusts the value where it is sure, and looks ahead where it is not.

It keeps learning: what its own decisions brought in the run adapts the value. Kinds of edit that the value never
learned of are judged by looking ahead alone, as `full_look_ahead` judges all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.control.decide import choose
from planaria.control.features import features, scale_of
from planaria.control.judge import Known, Look, Outcome, Situation, Verdict
from planaria.control.look_ahead import Trial, score
from planaria.control.value import Outcomes, ValueEnsemble
from planaria.errors import InputError
from planaria.policy import Controller
from planaria.signals import Candidate

MOST_OUTCOMES = 64
"""The newest so many adapt the value."""

Floats = npt.NDArray[np.float64]


class LearnedJudge:
    """See planaria.control.judge.Judge."""

    least_looks = 0

    def __init__(self, settings: Controller, value: ValueEnsemble) -> None:
        self.settings, self.value = settings, value
        self.features_SX: list[list[float]] = []
        self.return_S: list[float] = []
        self.borrowed: list[Known] = []
        """What other runs have learned."""
        self.open: dict[int, tuple[list[float], float]] = {}
        """Features of what was chosen and the scale of its loss, by decision."""
        self._members = value.adapted(None)

    def judge(self, situation: Situation, look: Look) -> Verdict:
        every = situation.candidates
        known = self._known(every)
        foreign = [number for number in range(len(every)) if number not in known]
        situation = replace(situation, candidates=tuple(every[number] for number in known))
        before = features(situation, {})
        gain_K, error_K = self.value.gains(before, self._members, self.settings.memory_weight)
        candidates = _valued(situation, gain_K, error_K)
        candidates = [replace(c, predicted=c.value, predicted_error=c.standard_error) for c in candidates]
        unsure = [known[place] for place in self._unsure(candidates, situation.looks)]
        foreign = foreign[: max(0, situation.looks - max(1, len(unsure)))]
        looked = sorted({*unsure, 0, *foreign}) if unsure or foreign else []
        trials = dict(zip(looked, look(looked), strict=True)) if looked else {}
        if trials:
            seen_of = {place: trials[number] for place, number in enumerate(known) if number in trials}
            candidates = self._after_looking(situation, candidates, seen_of)
            shown = [candidates[0], *(every[number] for number in foreign)]
            candidates += score(shown, [trials[number] for number in (0, *foreign)], self.settings)[1:]
        chosen, why = choose(candidates, self.settings.certainty)
        place = candidates.index(chosen)
        if place < len(known):
            self.open[situation.number] = (before[place].tolist(), scale_of(situation.loss))
        seen = f"looked ahead on {len(looked) - 1} of {len(candidates) - 1}" if looked else "the learned value is sure"
        return Verdict(tuple(candidates), chosen, f"{why} ({seen})")

    def learn(self, outcome: Outcome) -> None:
        known = self.open.pop(outcome.number, None)
        if known is None:
            return
        self.open = {number: row for number, row in self.open.items() if number > outcome.number}
        row, scale = known
        self.features_SX = [*self.features_SX, row][-MOST_OUTCOMES:]
        self.return_S = [*self.return_S, outcome.fall / scale][-MOST_OUTCOMES:]
        self._adapt()

    def inherit(self, state: Mapping[str, Any]) -> None:
        self.load_state({**state, "open": [], "borrowed": []})

    def lend(self) -> list[Known]:
        """What it has learned from its own run, for others."""
        return list(zip(self.features_SX, self.return_S, strict=True))

    def borrow(self, known: Sequence[Known]) -> None:
        """Learn from what others lend, in place of what was borrowed before."""
        borrowed = [(list(row), value) for row, value in known]
        if borrowed != self.borrowed:
            self.borrowed = borrowed
            self._adapt()

    def state(self) -> dict[str, Any]:
        return {
            "borrowed": [[row, value] for row, value in self.borrowed],
            "features": self.features_SX,
            "returns": self.return_S,
            "open": [[number, row, scale] for number, (row, scale) in self.open.items()],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        try:
            self.features_SX = [[float(x) for x in row] for row in state["features"]]
            self.return_S = [float(x) for x in state["returns"]]
            self.open = {int(n): ([float(x) for x in row], float(scale)) for n, row, scale in state["open"]}
            self.borrowed = [([float(x) for x in row], float(value)) for row, value in state["borrowed"]]
            self._adapt()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"controller state: not that of a learned value ({error})") from None

    def _adapt(self) -> None:
        known = [*self.borrowed, *self.lend()][-MOST_OUTCOMES:]  # what it has seen itself counts first
        rows, returns = [row for row, _ in known], [value for _, value in known]
        outcomes = Outcomes(np.array(rows, np.float64), np.array(returns, np.float64))
        self._members = self.value.adapted(outcomes)

    def _known(self, candidates: Sequence[Candidate]) -> list[int]:
        """Numbers of the candidates of kinds that the value has learned of."""
        return [n for n, c in enumerate(candidates) if c.edit is None or c.edit["kind"] in self.value.edits]

    def _unsure(self, candidates: Sequence[Candidate], affordable: int) -> list[int]:
        """Keeping and the candidates that may be the best one, dearest doubt first; nothing where that is one."""
        doubt = self.settings.doubt
        sure_of = max(c.value - doubt * c.standard_error for c in candidates)
        possible = [n for n, c in enumerate(candidates) if c.value + doubt * c.standard_error >= sure_of]
        if len(possible) < 2 or affordable < 2:
            return []
        rivals = sorted((n for n in possible if n), key=lambda n: -candidates[n].value - candidates[n].standard_error)
        return sorted([0, *rivals[: min(self.settings.most_looks, affordable - 1)]])

    def _after_looking(
        self, situation: Situation, candidates: Sequence[Candidate], trials: Mapping[int, Trial]
    ) -> list[Candidate]:
        """Values of those that were looked ahead on, with what was seen; the others keep theirs."""
        gain_K, error_K = self.value.gains(features(situation, trials), self._members, self.settings.memory_weight)
        seen = _valued(situation, gain_K, error_K)
        judged = []
        for number, candidate in enumerate(candidates):
            trial = trials.get(number)
            if trial is None:
                judged.append(candidate)
                continue
            judged.append(
                replace(
                    candidate,
                    value=seen[number].value,
                    standard_error=seen[number].standard_error,
                    loss_recent=float(trial.recent_R.mean()),
                    loss_memory=float(trial.memory_M.mean()) if len(trial.memory_M) else float("nan"),
                )
            )
        return judged


def _valued(situation: Situation, gain_K: Floats, error_K: Floats) -> list[Candidate]:
    """Values in nats, price included."""
    scale, keep = scale_of(situation.loss), situation.candidates[0]
    return [
        replace(c, value=scale * float(gain) - (c.price - keep.price), standard_error=scale * float(error))
        for c, gain, error in zip(situation.candidates, gain_K, error_K, strict=True)
    ]
