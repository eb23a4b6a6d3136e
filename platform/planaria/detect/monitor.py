"""From step reports to shifts: the channels raise alarms, and the monitor tells what kind of change they mean."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.cells import Cells, pair_signs
from planaria.detect.channel import Channel, Evidence
from planaria.detect.contradiction import contradicts
from planaria.detect.history import History
from planaria.detect.kinds import CLEAR, course, drift, ramp_over_step
from planaria.detect.loss import LossDetector
from planaria.detect.moments import Matrix, Moments, normal_score
from planaria.detect.predictions import PredictionChannel
from planaria.detect.saved import Saved, pack
from planaria.detect.signature import LEAST_COVERAGE, Library, Signature
from planaria.detect.windows import WindowChannel
from planaria.policy import Detector
from planaria.signals import Shift, ShiftKind, StepReport, Task

logger = logging.getLogger(__name__)

IDENTIFY_ROWS = 256
"""Rows after an alarm that show whether it is borne out, and what kind of change it is."""
MAX_IDENTIFY_ROWS = 512
BORNE_OUT = 1.6
"""Normal score by which these rows must differ from the concept before them: a second look at fresh rows."""
BEFORE_ROWS = 1_024
"""Rows before the estimated onset that stand for the old concept."""
COURSE_ROWS = 1_536
"""Rows up to the identification that show the course of the change."""
SETTLED_ROWS = 1_024
"""Newest rows that the signature of a concept begins with."""
EXTEND_ROWS = 512
MOVING = 3.0
"""Normal score of the difference between the halves from which the stream is still on its way."""
MAX_SETTLE_ROWS = 6_000
"""After so long on its way, a stream that never rests is watched all the same."""
LAG_ROWS = 1_024
"""Rows join the signature of their concept this late, when a change among them would have been seen."""
LEARNED_AT_ONCE = 64
"""And at least so many together."""
WATCHED_AT_ONCE = 64
"""Rows of small steps wait until there are so many: looking at ten costs nearly what looking at these does."""


class ShiftMonitor:
    """Sees each step's report, in order, on every worker alike, and says when the stream has shifted.

    It gathers what is normal (settling), watches, and after an alarm looks at the rows that follow (identifying)
    until it knows the kind of the shift. Equal reports give equal shifts. About 1 ms for 128 rows; steps of fewer than
    64 rows are looked at together.

    Within, and in its settings, rows are counted as they are watched: a row's place is how many were watched before
    it. What is told to others are numbers of rows in the stream, of which some may not be watched.
    """

    def __init__(self, settings: Detector, task: Task, features: int = 32) -> None:
        self._settings = settings
        self._signs_KF = pair_signs(features)
        self._features = features
        self._cells = Cells(task)
        self._history = History(features)
        self._library = Library(features, settings.recurring_distance)
        self._channels: list[Channel] = self._build_channels(task)
        self._phase = "settling"
        self._settle_from = 0
        self._settle_until = self._settle_rows()
        self._alarm: Evidence | None = None
        self._alarm_sample = 0
        self._before = [Moments(features), Moments(features)]
        """Of inputs and of pairs, just before the latest alarm."""
        self._concept: int | None = None
        self._contradicted: frozenset[int] = frozenset()
        self._learned_until = 0
        self._waiting: list[StepReport] = []
        """Rows that were not looked at yet."""
        self._found: Shift | None = None
        """Not told yet."""

    def _build_channels(self, task: Task) -> list[Channel]:
        settings, features = self._settings, self._features
        channels: list[Channel] = []
        if settings.loss is not None:
            channels.append(LossDetector(settings.loss))
        if settings.inputs is not None:
            channels.append(WindowChannel("inputs", settings.inputs, features, lambda report: report.sketch_BF))
        if settings.pairs is not None:
            channels.append(WindowChannel("pairs", settings.pairs, features, self._pairs))
        if settings.predictions is not None:
            channels.append(PredictionChannel(settings.predictions, task))
        return channels

    @property
    def concept(self) -> int | None:
        """Number of the concept the stream is in, counted from 0; None while a new one settles."""
        return self._concept

    @property
    def alarm_onset(self) -> int | None:
        """Where the change began that the monitor is looking into; None while there is no alarm."""
        return None if self._alarm is None else self._onset(self._alarm)

    def _onset(self, alarm: Evidence) -> int:
        return self._history.number(max(alarm.onset_sample, self._settle_from))

    @property
    def surely_since(self) -> int:
        """After a shift: the row of its alarm, from which on all rows are of the new concept, or on their way to it."""
        return self._history.number(self._settle_from)

    @property
    def contradicted(self) -> frozenset[int]:
        """Earlier concepts that have other labels for the inputs of the present one."""
        return self._contradicted

    def contradicted_by(self, concept: int) -> frozenset[int]:
        """What `contradicted` is while the stream is in that concept; nothing of one that is no longer known."""
        return self._contradicted_by(self._library[concept], concept) if concept in self._library else frozenset()

    def assume(self, concept: int) -> None:
        """The model was restored to what it knew of a concept: until more is known, what that contradicts holds."""
        self._contradicted = self.contradicted_by(concept)

    def update(self, report: StepReport) -> Shift | None:
        """The shift that became known with this step's rows, if any."""
        assert report.sketch_BF.shape == (len(report.loss_B), self._features), "one sketch for each row"
        report = replace(report, start=self._history.seen + self._waiting_rows, row_B=report.number_B)
        if self._waiting and report.output_BC.shape[1] != self._waiting[0].output_BC.shape[1]:
            self._look()
        self._waiting.append(report)
        if self._waiting_rows >= WATCHED_AT_ONCE:
            self._look()
        found, self._found = self._found, None
        return found

    @property
    def _waiting_rows(self) -> int:
        return sum(len(waiting.loss_B) for waiting in self._waiting)

    def _look(self) -> None:
        """At all rows that wait."""
        if self._waiting:
            self._found = self._seen(_together(self._waiting)) or self._found
            self._waiting = []

    def _seen(self, report: StepReport) -> Shift | None:
        self._remember(report)
        evidence = [found for channel in self._channels if (found := channel.update(report)) is not None]
        if self._phase == "settling":
            if self._history.seen >= self._settle_until:
                self._settle()
            return None
        if self._phase == "watching":
            self._learn_concept()
            if evidence:
                self._raise_alarm(max(evidence, key=lambda found: found.statistic / found.threshold))
            return None
        if self._history.seen - self._alarm_sample < IDENTIFY_ROWS:
            return None
        return self._identify(report.step)

    def adapted(self, sample: int) -> None:
        """The model was edited or restarted after `sample` rows: what its loss and outputs were says nothing now."""
        self._look()
        for channel in self._channels:
            if channel.follows_model:
                channel.reset()
        logger.debug("sample %d: the model was adapted, its loss is watched anew", sample)

    # -- watching

    def _remember(self, report: StepReport) -> None:
        fixed = self._cells.fixed
        sketch = report.sketch_BF.astype(np.float32, copy=False)
        self._history.add(report.number_B, sketch, self._cells(report.target_B))
        if not fixed and self._cells.fixed:
            # Until now all targets looked alike: the rows so far are no reference.
            self._reset_channels()
            self._settle_from = self._history.seen

    def _pairs(self, report: StepReport) -> npt.NDArray[np.float32]:
        return self._views(report.start, self._history.seen)[1]

    def _learn_concept(self) -> None:
        until = self._history.seen - LAG_ROWS
        if until >= self._learned_until + LEARNED_AT_ONCE and self._concept is not None:
            self._library[self._concept].add(*self._history.between(self._learned_until, until))
            self._learned_until = until

    def _raise_alarm(self, evidence: Evidence) -> None:
        self._phase, self._alarm, self._alarm_sample = "identifying", evidence, self._history.seen
        onset = max(evidence.onset_sample, self._history.first + BEFORE_ROWS // 4)
        for before, rows_NF in zip(self._before, self._views(onset - BEFORE_ROWS, onset), strict=True):
            before.clear()
            before.add(rows_NF)

    # -- identifying

    def _identify(self, step: int) -> Shift | None:
        assert self._alarm is not None
        seen, alarm = self._history.seen, self._alarm
        fresh = self._signature(self._alarm_sample, seen)
        if not self._borne_out(fresh):
            self._withdraw(alarm)
            return None
        known = self._kind(fresh)
        if known is None:
            return None
        kind, concept = known
        shift = Shift(
            step=step,
            sample=self._history.number(seen),
            detector=alarm.detector,
            kind=kind,
            statistic=alarm.statistic,
            threshold=alarm.threshold,
            onset_sample=self._onset(alarm),
            concept=concept,
        )
        logger.info("step %d: %s shift, %s %.3g > %.3g", step, kind, alarm.detector, alarm.statistic, alarm.threshold)
        self._contradicted = self._contradicted_by(fresh, besides=concept)
        self._begin_settling(kind, concept)
        return shift

    def _borne_out(self, fresh: Signature) -> bool:
        """Whether rows that the alarm has not seen differ from the concept it left, in classes or within them."""
        assert self._concept is not None
        like = self._library[self._concept].compare(fresh)
        test = self._before[0].test
        within = normal_score(np.array(like.squared / test.scale), like.freedom * test.freedom_share)
        overall = test.scores(fresh.mean_F[None], np.array([float(fresh.rows)]))
        return like.coverage < LEAST_COVERAGE or max(float(within), float(overall[0])) > BORNE_OUT

    def _withdraw(self, alarm: Evidence) -> None:
        logger.info("sample %d: alarm of %s withdrawn, the rows after it are as before", self._row, alarm.detector)
        self._phase, self._alarm = "watching", None
        assert self._concept is not None
        self._contradicted = self._contradicted_by(self._library[self._concept], besides=self._concept)
        for channel in self._channels:
            if alarm.detector.startswith(channel.name):
                channel.dismiss()

    def _kind(self, fresh: Signature) -> tuple[ShiftKind, int | None] | None:
        """None where more rows would tell more surely."""
        if self._settings.recurring:
            nearest = self._library.nearest(fresh)
            if nearest is not None and nearest != self._concept:
                return "recurring", nearest
        seen = self._history.seen
        ratio = ramp_over_step(self._course(seen - COURSE_ROWS, IDENTIFY_ROWS))
        logger.debug("sample %d: a step leaves %.2f times the squared error of a ramp", self._row, ratio)
        if 1 / CLEAR < ratio < CLEAR and seen - self._alarm_sample < MAX_IDENTIFY_ROWS:
            return None
        return ("gradual" if ratio > 1 else "abrupt"), None

    def _course(self, start: int, newest: int) -> Matrix:
        """How the rows since `start` went, seen where the newest differ most from those before the alarm."""
        views = self._views(start, self._history.seen)
        differences = [
            before.test.scores(rows_NF[-newest:].mean(0, dtype=np.float64)[None], np.array([float(newest)]))[0]
            for before, rows_NF in zip(self._before, views, strict=True)
        ]
        widest = int(np.argmax(differences))
        return course(self._before[widest], views[widest], newest)

    def _views(self, start: int, end: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Inputs alone, and inputs paired with their targets."""
        sketch_NF, cell_N = self._history.between(start, end)
        return sketch_NF, sketch_NF * self._signs_KF[cell_N]

    # -- settling

    def _begin_settling(self, kind: ShiftKind, concept: int | None) -> None:
        seen, gradual = self._history.seen, kind == "gradual"
        self._phase, self._alarm, self._concept = "settling", None, concept
        self._settle_from = self._alarm_sample
        self._settle_until = seen + self._settle_rows() * (2 if gradual else 1)
        self._reset_channels()

    def _settle_rows(self) -> int:
        return max(self._settings.settle_samples, EXTEND_ROWS)

    def _settle(self) -> None:
        """Begin to watch, if the newest rows are of one distribution; wait for more rows otherwise."""
        seen = self._history.seen
        if seen - self._settle_from < MAX_SETTLE_ROWS and self._moving(max(self._settle_from, self._history.first)):
            self._settle_until = seen + EXTEND_ROWS
            self._reset_channels()
            return
        window = self._signature(max(self._settle_from, seen - SETTLED_ROWS), seen)
        known = self._library.nearest(window) if self._settings.recurring else None
        self._concept = self._library.enter(known, window)
        self._contradicted = self._contradicted_by(self._library[self._concept], besides=self._concept)
        self._learned_until = seen
        self._phase = "watching"
        for channel in self._channels:
            if channel.follows_model:
                channel.reset()
        logger.debug("sample %d: settled in concept %d", self._row, self._concept)

    def _moving(self, start: int) -> bool:
        """Whether the rows still go the way that led from the concept before, or any way in the first concept."""
        if self._before[0].count:
            return drift(self._course(start, (self._history.seen - start) // 2)) > MOVING
        for view_NF in self._views(start, self._history.seen):
            half = len(view_NF) // 2
            older = Moments(self._features)
            older.add(view_NF[:half])
            newer_F = view_NF[half:].mean(0, dtype=np.float64)
            if older.test.scores(newer_F[None], np.array([float(len(view_NF) - half)]))[0] > MOVING:
                return True
        return False

    # -- helpers

    @property
    def _row(self) -> int:
        """Number of the next row."""
        return self._history.number(self._history.seen)

    def _contradicted_by(self, present: Signature, besides: int | None) -> frozenset[int]:
        distance = self._settings.recurring_distance
        others = [number for number in self._library if number != besides]
        return frozenset(number for number in others if contradicts(self._library[number], present, distance))

    def _signature(self, start: int, end: int) -> Signature:
        signature = Signature(self._features)
        signature.add(*self._history.between(start, end))
        return signature

    def _reset_channels(self) -> None:
        for channel in self._channels:
            channel.reset()

    # -- state

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, JSON-able; about 1 MB."""
        return {
            "features": self._features,
            "phase": self._phase,
            "settle_from": self._settle_from,
            "settle_until": self._settle_until,
            "alarm": None if self._alarm is None else asdict(self._alarm),
            "alarm_sample": self._alarm_sample,
            "before": [moments.state() for moments in self._before],
            "concept": self._concept,
            "contradicted": sorted(self._contradicted),
            "learned_until": self._learned_until,
            "cells": self._cells.state(),
            "history": self._history.state(),
            "library": self._library.state(),
            "channels": {channel.name: channel.state() for channel in self._channels},
            "waiting": [_report_state(report) for report in self._waiting],
            "found": None if self._found is None else asdict(self._found),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken. Raises InputError where it is not a state of these settings."""
        saved = Saved(state)
        if saved.integer("features") != self._features:
            raise saved.mistake("features", f"is {saved.integer('features')}, but the sketch has {self._features}")
        if saved.text("phase") not in ("settling", "watching", "identifying"):
            raise saved.mistake("phase", f"is {saved.text('phase')!r}, which is no phase of a detector")
        self._phase = saved.text("phase")
        self._settle_from = saved.integer("settle_from")
        self._settle_until = saved.integer("settle_until")
        self._alarm = _load_evidence(saved.part("alarm")) if saved.holds("alarm") else None
        self._alarm_sample = saved.integer("alarm_sample")
        self._load_before(saved)
        self._concept = saved.integer("concept") if saved.holds("concept") else None
        self._contradicted = frozenset(map(int, saved.numbers("contradicted")))
        self._learned_until = saved.integer("learned_until")
        self._cells.load_state(saved.part("cells"))
        self._history.load_state(saved.part("history"))
        self._library.load_state(saved.part("library"))
        for channel in self._channels:
            channel.load_state(saved.part("channels").part(channel.name))
        self._waiting = [_load_report(part, self._features) for part in saved.parts("waiting")]
        self._found = Shift(**state["found"]) if saved.holds("found") else None
        if self._phase == "identifying" and self._alarm is None:
            raise saved.mistake("alarm", "is missing while one is being identified")
        if self._phase == "identifying" and min(before.count for before in self._before) < 2:
            raise saved.mistake("before", "has no rows from before the alarm")
        if self._phase != "settling" and self._concept not in self._library:
            raise saved.mistake("concept", "is not in the library")

    def _load_before(self, saved: Saved) -> None:
        parts = saved.parts("before")
        if len(parts) != len(self._before):
            raise saved.mistake("before", f"has {len(parts)} parts where {len(self._before)} belong")
        for moments, part in zip(self._before, parts, strict=True):
            moments.load_state(part)


def _load_evidence(saved: Saved) -> Evidence:
    return Evidence(
        saved.text("detector"), saved.number("statistic"), saved.number("threshold"), saved.integer("onset_sample")
    )


def _together(reports: Sequence[StepReport]) -> StepReport:
    """As if they had been one step."""
    if len(reports) == 1:
        return reports[0]
    joined = {name: np.concatenate([getattr(report, name) for report in reports]) for name in (*_COLUMNS, "number_B")}
    joined["row_B"] = joined.pop("number_B")
    return StepReport(step=reports[-1].step, start=reports[0].start, **joined)


_COLUMNS = ("loss_B", "error_B", "target_B", "output_BC", "sketch_BF")


def _report_state(report: StepReport) -> dict[str, Any]:
    numbers = {"step": report.step, "start": report.start, "row_B": pack(report.number_B)}
    return {**numbers, **{name: pack(getattr(report, name)) for name in _COLUMNS}}


def _load_report(saved: Saved, features: int) -> StepReport:
    classes = saved.part("target_B").text("dtype") == np.dtype(np.int64).str
    target = saved.array("target_B", np.int64 if classes else np.float32, (None,))
    rows = len(target)
    return StepReport(
        saved.integer("step"),
        saved.integer("start"),
        saved.array("loss_B", np.float32, (rows,)),
        saved.array("error_B", np.float32, (rows,)),
        target,
        saved.array("output_BC", np.float32, (rows, None)),
        saved.array("sketch_BF", np.float32, (rows, features)),
        row_B=saved.array("row_B", np.int64, (rows,)) if saved.holds("row_B") else None,
    )
