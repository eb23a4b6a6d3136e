"""Boundaries that the stream itself tells: nothing is detected."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.saved import Saved
from planaria.signals import TOLD, Shift, StepReport

logger = logging.getLogger(__name__)


class ToldMonitor:
    """Says what `ShiftMonitor` says, from each row's context alone. A concept's number is that of its context.

    A step that ends in another context than the one before reports one shift, at the first row of its last context:
    of several changes within a step, the last one counts.
    """

    alarm_onset: int | None = None
    """There are no alarms."""

    def __init__(self) -> None:
        self._concept: int | None = None
        self._since = 0
        self._met: set[int] = set()
        """Contexts of all rows so far."""

    @property
    def concept(self) -> int | None:
        """Context of the newest row; None before the first one."""
        return self._concept

    @property
    def surely_since(self) -> int:
        """First row of the present concept."""
        return self._since

    @property
    def contradicted(self) -> frozenset[int]:
        """None: rows are not compared."""
        return frozenset()

    def contradicted_by(self, concept: int) -> frozenset[int]:
        return frozenset()

    def assume(self, concept: int) -> None:
        """The model was restored to what it knew of a concept: the stream is where it is."""

    def adapted(self, sample: int) -> None:
        """The model was edited: nothing here follows it."""

    def leaves(self, context_B: npt.NDArray[np.int64]) -> bool:
        """Whether a shift will be reported for a step with rows of these contexts."""
        return self._concept is not None and int(context_B[-1]) != self._concept

    def update(self, report: StepReport) -> Shift | None:
        """The shift that happened within this step, if any."""
        context_B = report.context_B
        assert context_B is not None, "a context for each row"
        shifted, newest = self.leaves(context_B), int(context_B[-1])
        others = np.flatnonzero(context_B != newest)
        self._met.update(context_B[others].tolist())
        returned = newest in self._met
        self._met.add(newest)
        self._concept = newest
        if not shifted:
            return None
        self._since = report.start + (int(others[-1]) + 1 if len(others) else 0)
        logger.info("step %d: row %d is the first of context %d, as told", report.step, self._since, newest)
        return Shift(
            step=report.step,
            sample=self._since,
            detector=TOLD,
            kind="recurring" if returned else "abrupt",
            statistic=1.0,
            threshold=0.0,
            onset_sample=self._since,
            concept=newest if returned else None,
        )

    # -- state

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, JSON-able."""
        return {"concept": self._concept, "since": self._since, "met": sorted(self._met)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken. Raises InputError where it is not a state of told boundaries."""
        saved = Saved(state)
        self._since, self._met = saved.integer("since"), set(map(int, saved.numbers("met")))
        self._concept = saved.integer("concept") if saved.holds("concept") else None
        if self._concept is not None and self._concept not in self._met:
            raise saved.mistake("concept", "is not one of those met")
