"""What happens to a stream whatever model lives on it: which rows are replayed, and which shifts are reported.

Working it out once lets many models live through the same stream for little more than their own steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planaria.detect import ShiftMonitor, Sketch
from planaria.detect.monitor import IDENTIFY_ROWS
from planaria.learn import ReplayMemory
from planaria.meta.simulate import SimStream
from planaria.policy import Detector, Memory
from planaria.signals import Features, Shift, ShiftKind, StepReport

Integers = npt.NDArray[np.int64]
Reports = tuple[dict[int, Shift], dict[int, int]]
"""Shifts by the step at whose end they are reported, and onsets of alarms by step."""
BATCH_ROWS = 16
REPLAY_ROWS = 16
_REMEMBERED = Memory(rows=500)
_WATCHED = Detector(loss=None)
"""All of a run's channels but that of the loss, which would need the model."""
_REAL_ROWS = ("digits", "segments", "fashion", "weather", "virtual", "recurring")
"""Families of real rows. Their shifts are found by the real detectors; those of generated rows, which show only in the
loss, are reported after a delay like the one measured for it."""
REPLAYED = ("digits", "segments", "fashion", "virtual")
"""Families in which old rows mostly stay true. Where the rule of labels changes, replay would hold on to the old."""
_DELAY_ROWS = (150, 700)
"""Between a change and its report: the middle nine tenths of what docs/detection.md has."""
_SOONEST_ALARM_ROWS = 48
_MISSED, _WRONG_KIND = 0.02, 0.1
_NEWEST_ROWS = 512


@dataclass(frozen=True)
class Script:
    """Legend: S steps, R rows replayed a step."""

    steps: int
    replayed_SR: Integers
    """Row numbers; the first step has none to replay, and repeats its own. R may be 0."""
    replays_S: Integers
    """How many of its R each step learns from."""
    mean_of_replayed: bool
    """Whether replayed rows together weigh as much as the fresh ones; otherwise each weighs as much as a fresh one."""
    shifts: dict[int, Shift]
    """By the step at whose end they are reported."""
    alarms: dict[int, int]
    """Onset of the alarm that is being looked into, by step; steps without one are not there."""
    writes_W3: Integers
    """Step, slot and row of everything that entered the memory, in order."""
    seed: int

    def rows(self, step: int) -> Integers:
        """What a step learns from: its fresh rows, then replayed ones."""
        return np.concatenate((rows_of_step(step), self.replayed_SR[step, : self.replays_S[step]]))

    def replay_weight(self, step: int) -> float:
        """Of each replayed row in the objective, where each fresh one has 1 / BATCH_ROWS."""
        return 1 / int(self.replays_S[step]) if self.mean_of_replayed else 1 / BATCH_ROWS

    def memory(self, step: int) -> ReplayMemory:
        """The memory as it is before a step, its only column being the row number."""
        memory = _memory(self.seed)
        written = self.writes_W3[: np.searchsorted(self.writes_W3[:, 0], step)]
        table = np.zeros(memory.capacity, np.int64)
        table[written[:, 1]] = written[:, 2]
        memory.columns = {"row": table}
        memory.rows = int(written[:, 1].max(initial=-1)) + 1
        return memory


def write_script(stream: SimStream, extra_rows: float = 0.0) -> Script:
    """So many `extra_rows` a step, on average, are learned from again beyond what is usual: from memory where there is
    one, otherwise from the newest rows."""
    steps = len(stream.target) // BATCH_ROWS
    extra_S = np.diff(np.floor(extra_rows * np.arange(steps + 1)).astype(np.int64))
    most = int(extra_S.max(initial=0))
    shifts, alarms = _found(stream, steps) if stream.family in _REAL_ROWS else _reported(stream)
    if stream.family not in REPLAYED:
        again = _newest(stream, steps, most)
        return Script(steps, again, extra_S, False, shifts, alarms, np.empty((0, 3), np.int64), stream.seed)
    memory, replay_rows = _memory(stream.seed), REPLAY_ROWS + most
    replayed = np.empty((steps, replay_rows), np.int64)
    writes, offered_B = [], np.ones(BATCH_ROWS, np.bool_)
    for step in range(steps):
        rows = rows_of_step(step)
        slots = memory.draw(replay_rows, step)
        replayed[step] = memory.columns["row"][slots] if len(slots) else np.resize(rows, replay_rows)
        target_B = stream.target[rows]
        chosen = memory.choose(int(rows[0]), target_B, offered_B)
        if chosen:
            at, into = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
            memory.store(into, {"row": rows[at]}, target_B[at], np.zeros((len(at), 1), np.float32))
            writes.append(np.stack((np.full(len(at), step), into, rows[at]), 1))
    replays_S = REPLAY_ROWS + extra_S
    return Script(steps, replayed, replays_S, True, shifts, alarms, np.concatenate(writes), stream.seed)


def _newest(stream: SimStream, steps: int, rows: int) -> Integers:
    """Rows drawn from the newest ones, of the step itself while there are no others."""
    random = np.random.default_rng((stream.seed, 0xE7))
    first_S = np.maximum(np.arange(steps) * BATCH_ROWS, BATCH_ROWS)
    back_SR = random.integers(1, np.minimum(first_S, _NEWEST_ROWS)[:, None] + 1, (steps, rows))
    return np.asarray(first_S[:, None] - back_SR, np.int64)


def _found(stream: SimStream, steps: int) -> Reports:
    """By the detectors that need no model."""
    monitor, sketch_NF = ShiftMonitor(_WATCHED, "classification"), _sketch(stream)
    nothing_B = np.zeros(BATCH_ROWS, np.float32)
    shifts, alarms = {}, {}
    for step in range(steps):
        rows = rows_of_step(step)
        seen = StepReport(
            step, int(rows[0]), nothing_B, nothing_B, stream.target[rows], nothing_B[:, None], sketch_NF[rows]
        )
        shift = monitor.update(seen)
        if shift is not None:
            shifts[step] = shift
        elif monitor.alarm_onset is not None:
            alarms[step] = monitor.alarm_onset
    return shifts, alarms


def _reported(stream: SimStream) -> Reports:
    """True changes, late, and now and then missed or taken for another kind. Before each there was an alarm."""
    random = np.random.default_rng((stream.seed, 0xDE7))
    shifts, alarms = {}, {}
    for number, row in enumerate(stream.starts[1:], start=1):
        late = int(random.integers(*_DELAY_ROWS)) + stream.gradual_rows[number] // 2
        step, seen_before = (row + late) // BATCH_ROWS, stream.contexts[number] in stream.contexts[:number]
        kind: ShiftKind = "recurring" if seen_before else "gradual" if stream.gradual_rows[number] else "abrupt"
        if random.random() < _WRONG_KIND:
            kind = "abrupt"
        if random.random() < _MISSED:
            continue
        alarm = max(row + _SOONEST_ALARM_ROWS, step * BATCH_ROWS - IDENTIFY_ROWS) // BATCH_ROWS
        alarms.update(dict.fromkeys(range(alarm, step), row))
        shifts[step] = Shift(
            step=step,
            sample=(step + 1) * BATCH_ROWS,
            detector="simulated",
            kind=kind,
            statistic=1.0,
            threshold=1.0,
            onset_sample=row,
            concept=stream.contexts[number] if kind == "recurring" else None,
        )
    return shifts, alarms


def rows_of_step(step: int) -> Integers:
    """The fresh rows that a step learns from."""
    return np.arange(step * BATCH_ROWS, (step + 1) * BATCH_ROWS)


def _memory(seed: int) -> ReplayMemory:
    return ReplayMemory(_REMEMBERED, "classification", seed, hold_back=True)


def _sketch(stream: SimStream) -> npt.NDArray[np.float32]:
    sketch = Sketch(stream.fields, stream.seed)
    first: Features = {name: column[:256] for name, column in stream.features.items()}
    sketch.fit(first)
    return sketch(stream.features)
