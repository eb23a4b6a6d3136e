"""What one contestant came to on one stream, and how a stream is scored along the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """Of one contestant with one seed. Scores are accuracies, or mean absolute errors of a regression."""

    name: str
    seed: int
    samples: int
    score: float
    """Over all rows, each predicted before it was learned from (prequential)."""
    final: float | None
    """On held-out rows of all contexts, at the end; None where a contestant cannot tell."""
    parameters: float | None
    """Mean over the rows; None where a contestant has none that are fixed."""
    cpu_seconds: float
    curve: list[tuple[int, float]]
    """(rows so far, score of the rows since the point before)."""


@dataclass
class Curve:
    """Scores of the rows between points, `interval` rows apart."""

    interval: int
    points: list[tuple[int, float]] = field(default_factory=list)
    rows: int = 0
    total: float = 0.0
    _open_rows: int = 0
    _open_total: float = 0.0

    def add(self, score: float) -> None:
        """The score of the next row."""
        self.rows, self.total = self.rows + 1, self.total + score
        self._open_rows, self._open_total = self._open_rows + 1, self._open_total + score
        if self._open_rows == self.interval:
            self.points.append((self.rows, self._open_total / self._open_rows))
            self._open_rows, self._open_total = 0, 0.0


def of_script(name: str, seed: int, found: Mapping[str, Any]) -> Outcome:
    """From what a learner's script in another interpreter printed."""
    return Outcome(
        name=name,
        seed=seed,
        samples=found["samples"],
        score=found["prequential_accuracy"],
        final=found["final_accuracy"],
        parameters=found["parameters"],
        cpu_seconds=found["cpu_seconds"],
        curve=[(rows, score) for rows, score in found["curve"]],
    )


def to_json(outcome: Outcome) -> dict[str, Any]:
    return {**outcome.__dict__, "curve": [list(point) for point in outcome.curve]}
