"""What the learned controller is compared with. Each is a judge (planaria.control.judge.Judge) and gets its candidates
and measurements from the same controller, at the same times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.control.features import NAMES, features, scale_of
from planaria.control.judge import Look, Outcome, Situation, Verdict
from planaria.meta.experience import Experience
from planaria.meta.simulate import SimStream
from planaria.signals import Candidate

Floats = npt.NDArray[np.float64]


class Rival:
    """What rivals have in common: they look at nothing and keep no state between runs."""

    least_looks = 0

    def judge(self, situation: Situation, look: Look) -> Verdict:
        chosen = self.pick(situation)
        return Verdict(situation.candidates, chosen, "")

    def pick(self, situation: Situation) -> Candidate:
        raise NotImplementedError

    def learn(self, outcome: Outcome) -> None:
        """Most of them do not."""

    def inherit(self, state: Mapping[str, Any]) -> None:
        """Rivals begin with nothing."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Rivals are for benchmarks, which do not resume."""


class Keep(Rival):
    """The size it starts with, for ever."""

    def pick(self, situation: Situation) -> Candidate:
        return situation.candidates[0]


class AlwaysGrow(Rival):
    """One more head after every shift, while there is room."""

    def pick(self, situation: Situation) -> Candidate:
        return _grown(situation, "keep") if situation.trigger.endswith("shift") else situation.candidates[0]


class Random(Rival):
    """Any of the candidates, each as likely."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng((seed, 0x7A))

    def pick(self, situation: Situation) -> Candidate:
        return situation.candidates[int(self.random.integers(len(situation.candidates)))]


@dataclass(frozen=True)
class Thresholds:
    """Rules of thumb with numbers to tune."""

    grow_at_jump: float
    """After a shift: grow where the loss is above the one before by this share."""
    treatment: str
    """After a shift."""
    shrink_at_importance: float
    """Between shifts: remove the weakest head below this share of the mean importance."""
    per_price: float
    """The same limit rises by this much for every nat that all heads cost, relative to the loss."""
    most_heads: int

    @staticmethod
    def drawn(random: np.random.Generator) -> Thresholds:
        return Thresholds(
            grow_at_jump=float(random.choice([-0.5, 0.1, 0.5, 1.0, 1e9])),
            treatment=str(random.choice(["keep", "reset", "temper"])),
            shrink_at_importance=float(random.choice([0.0, 0.2, 0.4, 0.7])),
            per_price=float(random.choice([0.0, 1.0, 3.0])),
            most_heads=int(random.integers(2, 7)),
        )


class Threshold(Rival):
    def __init__(self, numbers: Thresholds, price: float) -> None:
        self.numbers, self.price = numbers, price

    def pick(self, situation: Situation) -> Candidate:
        numbers, seen = self.numbers, situation.observation
        keep = situation.candidates[0]
        if situation.trigger.endswith("shift"):
            if seen["jump"] > numbers.grow_at_jump and keep.heads[0] < numbers.most_heads:
                return _grown(situation, numbers.treatment)
            return next((c for c in situation.candidates if not c.edit and c.treatment == numbers.treatment), keep)
        limit = numbers.shrink_at_importance + numbers.per_price * self.price / scale_of(situation.loss)
        if seen["importance_lowest"] < limit:
            return _removal(situation)
        return keep


class LinUcb(Rival):
    """A linear contextual bandit over the same features (Li et al. 2010, arXiv 1003.0146), warm: it begins with every
    outcome that meta-training had, and goes on with those of its own choices."""

    def __init__(self, warm: tuple[Floats, Floats], mean_X: Floats, spread_X: Floats, optimism: float) -> None:
        self.gram_XX, self.moment_X = warm[0].copy(), warm[1].copy()
        self.mean_X, self.spread_X, self.optimism = mean_X, spread_X, optimism
        self.open: dict[int, tuple[Floats, float]] = {}

    def pick(self, situation: Situation) -> Candidate:
        rows_KX = _linear((features(situation, {}) - self.mean_X) / self.spread_X)
        scale, keep = scale_of(situation.loss), situation.candidates[0]
        weight_X = np.linalg.solve(self.gram_XX, self.moment_X)
        doubt_K = np.sqrt(np.einsum("kx,xk->k", rows_KX, np.linalg.solve(self.gram_XX, rows_KX.T)))
        price_K = np.array([c.price - keep.price for c in situation.candidates])
        best = int((rows_KX @ weight_X + self.optimism * doubt_K - price_K / scale).argmax())
        self.open[situation.number] = (rows_KX[best], scale)
        return situation.candidates[best]

    def learn(self, outcome: Outcome) -> None:
        if outcome.number not in self.open:
            return  # a concept was recalled, or an edit undone: not its choice
        row_X, scale = self.open.pop(outcome.number)
        self.gram_XX += np.outer(row_X, row_X)
        self.moment_X += row_X * np.clip(outcome.fall / scale, -3, 1)

    @staticmethod
    def warmed(experience: Experience, ridge: float = 1.0) -> tuple[tuple[Floats, Floats], Floats, Floats]:
        rows = experience.before_DKX[experience.there_DK].astype(np.float64)
        mean_X, spread_X = rows.mean(0), rows.std(0).clip(1e-3)
        rows = _linear((rows - mean_X) / spread_X)
        returned = np.clip(experience.return_DK[experience.there_DK], -3, 1)
        gram = rows.T @ rows + ridge * np.eye(rows.shape[1])
        return (gram, rows.T @ returned), mean_X, spread_X


class Oracle(Rival):
    """Knows how many heads the present concept needs, and goes there."""

    def __init__(self, stream: SimStream) -> None:
        self.stream = stream

    def pick(self, situation: Situation) -> Candidate:
        phase = int(np.searchsorted(self.stream.starts, situation.sample, side="right")) - 1
        wanted = self.stream.demand[phase]
        keep = situation.candidates[0]
        if wanted is None or wanted == keep.heads[0]:
            return keep
        return min(situation.candidates, key=lambda c: (abs(c.heads[0] - wanted), c.treatment == "keep"))


def _linear(rows_KX: Floats) -> Floats:
    """With a constant and the products that a linear value of an option needs: option x state."""
    rows_KX = rows_KX.clip(-6, 6)
    option = [at for at, name in enumerate(NAMES) if name.startswith("option_")]
    state = [NAMES.index(name) for name in ("loss_fast", "jump", "heads_log", "importance_lowest")]
    products = [rows_KX[:, [o]] * rows_KX[:, state] for o in option]
    return np.hstack((np.ones((len(rows_KX), 1)), rows_KX, *products))


def _grown(situation: Situation, treatment: str) -> Candidate:
    growths = [c for c in situation.candidates if c.edit and c.edit["kind"] == "grow_heads" and c.edit["heads"] == 1]
    treated = [c for c in growths if c.treatment == treatment]
    return (treated or growths or [situation.candidates[0]])[0]


def _removal(situation: Situation) -> Candidate:
    removals = [c for c in situation.candidates if c.edit and c.edit["kind"] == "shrink_heads"]
    return removals[0] if removals else situation.candidates[0]
