"""The run's pulse: running averages of the prequential loss, from which decisions are observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from planaria.errors import InputError
from planaria.signals import StepScores

FAST_ROWS, MIDDLE_ROWS, SLOW_ROWS = 512, 2_048, 8_192


@dataclass
class Pulse:
    """Exponential averages over about FAST_ROWS, MIDDLE_ROWS and SLOW_ROWS rows, and marks of the last shift."""

    samples: int = 0
    loss_fast: float = 0.0
    loss_middle: float = 0.0
    loss_slow: float = 0.0
    """Begins anew at a shift."""
    loss_before: float = 0.0
    """The slow loss before the last shift; 0 until there was one."""
    error_fast: float = 0.0
    floor: float = float("inf")
    """The lowest fast loss since the last shift."""
    since_shift: int = 0

    def update(self, report: StepScores) -> None:
        rows = len(report.loss_B)
        loss, error = report.loss_sum / rows, report.error_sum / rows
        self.loss_fast = _average(self.loss_fast, loss, rows, FAST_ROWS, self.samples)
        self.loss_middle = _average(self.loss_middle, loss, rows, MIDDLE_ROWS, self.samples)
        self.loss_slow = _average(self.loss_slow, loss, rows, SLOW_ROWS, self.since_shift)
        self.error_fast = _average(self.error_fast, error, rows, FAST_ROWS, self.samples)
        self.samples += rows
        self.since_shift += rows
        if self.since_shift >= FAST_ROWS:
            self.floor = min(self.floor, self.loss_fast)

    def shifted(self) -> None:
        """A shift was reported: the slow average and the floor begin anew."""
        self.loss_before = self.loss_slow
        self.since_shift, self.floor = 0, float("inf")

    def observation(self) -> dict[str, float]:
        """Scale-free where it can be: jump, slope and distance from the floor are relative to the slow loss."""
        slow = max(self.loss_slow, 1e-6)
        return {
            "loss_fast": self.loss_fast,
            "loss_slow": self.loss_slow,
            "error_fast": self.error_fast,
            "loss_before": self.loss_before,
            "jump": (self.loss_fast - self.loss_before) / max(self.loss_before, 1e-6) if self.loss_before else 0.0,
            "slope": (self.loss_fast - self.loss_middle) / slow,
            "above_floor": (self.loss_fast - self.floor) / slow if self.floor != float("inf") else 0.0,
            "samples_since_shift": float(self.since_shift),
        }

    def state(self) -> dict[str, float | int | None]:
        return {**asdict(self), "floor": None if self.floor == float("inf") else self.floor}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Pulse:
        try:
            return Pulse(**{**state, "floor": float("inf") if state["floor"] is None else state["floor"]})
        except (TypeError, KeyError) as error:
            raise InputError(f"controller state: {error}; use an older checkpoint") from None


def _average(average: float, value: float, rows: int, horizon: int, seen: int) -> float:
    """Exponential average that starts as a plain mean: the weight of a batch is never below its share of `seen`."""
    weight = max(min(1.0, rows / horizon), rows / (seen + rows))
    return average + weight * (value - average)
