"""The values that cross from one stage to the next: stream -> detect -> control -> morph -> train -> record.

Shape legend: B rows of the global batch, C classes (1 for regression), F sketch features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Task = Literal["classification", "regression"]
ShiftKind = Literal["abrupt", "gradual", "recurring"]
TOLD = "told"
"""Detector of a shift that the stream itself told of: its statistic is 1, its threshold 0."""
Features = dict[str, npt.NDArray[Any]]
"""Model inputs by name, rows first: {"image": uint8 or float32 [B, channels, height, width]} or
{"numeric": float32 [B, columns], NaN where missing; "categorical": int64 [B, columns], 0 for other or missing}."""


@dataclass(frozen=True)
class Fields:
    """What every row of a stream holds. Fixed while the stream lives."""

    task: Task
    image_shape: tuple[int, int, int] | None = None
    """channels, height, width; None for a table."""
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    categories: int = 64
    """Ids of each categorical column lie in [0, categories)."""


class Rows(Protocol):
    """Consecutive rows of a stream, decoded as late as possible."""

    @property
    def start(self) -> int:
        """Number of the first row in the stream."""

    @property
    def target(self) -> npt.NDArray[Any]:
        """int64 class numbers in order of first appearance, or float32 values. Shape [B]."""

    @property
    def context(self) -> npt.NDArray[np.int64] | None:
        """Which distribution each row comes from, where that is known. For evaluation, and for told boundaries."""

    @property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """True where a row is kept for evaluation: scored, but never learned from. Shape [B]."""

    def __len__(self) -> int: ...

    def select(self, index: npt.NDArray[np.int64] | slice) -> Features:
        """Decode (and transform) the chosen rows; the cost is that of the chosen rows alone."""


class Stream(Protocol):
    """Rows in arrival order. The same (seed, row number) always gives the same row."""

    @property
    def fields(self) -> Fields: ...

    @property
    def labels(self) -> list[str | int]:
        """Labels seen so far; a class number is an index into it. Empty for regression."""

    def read(self, start: int, count: int) -> Rows:
        """Up to `count` rows from `start`; fewer (perhaps none) only where the stream ends.

        `start` may lie up to LOOK_BACK_ROWS behind the furthest row read.
        A stream that follows a folder blocks until rows arrive or `stop_waiting()` turns true,
        and then returns fewer rows.
        """

    @property
    def contexts(self) -> list[str]:
        """Names of the contexts known so far; a context number is an index into it. For evaluation only."""

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """What was handled silently, per column: "missing" and "infinite" numbers, "unseen" categories, and those of
        an "overflow", for which no number was left."""

    @property
    def total_rows(self) -> int | None:
        """Length of the stream, where it is known and finite. For progress only."""

    def available(self, start: int) -> int:
        """How many rows are known to exist from `start`; a following stream looks for new files, and may cap it."""

    def held_out(self, context: int, count: int) -> Rows | None:
        """Up to `count` rows set apart for evaluating one context; None where the stream itself flags them."""

    def change_before(self, row: int) -> int | None:
        """First row of the true change that most recently began at or before `row`, where contexts are known."""

    def state(self) -> dict[str, Any]:
        """JSON-able: labels and categories seen, counts of missing and unseen values."""

    def load_state(self, state: Mapping[str, Any]) -> None: ...


LOOK_BACK_ROWS = 4096


@dataclass(frozen=True)
class StepScores:
    """How well the rows of one global step were answered before it learned (test-then-train). Equal on every worker."""

    step: int
    start: int
    """Number of the batch's first row."""
    loss_B: npt.NDArray[np.float32]
    """Cross-entropy in nats, or the squared error in units of the target's running variance."""
    error_B: npt.NDArray[np.float32]
    """1 where the predicted class is wrong, or the absolute error in the target's own units."""

    @cached_property
    def loss_sum(self) -> float:
        return float(self.loss_B.sum(dtype=np.float64))

    @cached_property
    def error_sum(self) -> float:
        return float(self.error_B.sum(dtype=np.float64))


@dataclass(frozen=True)
class StepReport(StepScores):
    """What a global step showed of those rows that are watched, which are all where there are few; B of them."""

    target_B: npt.NDArray[Any]
    output_BC: npt.NDArray[np.float32]
    """Logits, or the prediction in the target's own units."""
    sketch_BF: npt.NDArray[np.float32]
    """Fixed random features of the inputs: they do not change as the model learns."""
    context_B: npt.NDArray[np.int64] | None = None
    """Which distribution each row of the step comes from, watched or not, where the policy has boundaries told; hidden
    otherwise."""
    row_B: npt.NDArray[np.int64] | None = None
    """Numbers of the rows in the stream, ascending; None where they follow `start` without a gap."""

    @property
    def number_B(self) -> npt.NDArray[np.int64]:
        """Numbers of the rows in the stream."""
        return self.start + np.arange(len(self.loss_B)) if self.row_B is None else self.row_B


@dataclass(frozen=True)
class Shift:
    """A change of the stream's distribution, detected or told."""

    step: int
    sample: int
    """Rows seen when it was reported; of a change that was told, the rows before it."""
    detector: str
    kind: ShiftKind
    statistic: float
    """The evidence, in the detector's own unit, at the time of the alarm."""
    threshold: float
    """The alarm is raised where the statistic passes this."""
    onset_sample: int
    """The detector's estimate of where the change began."""
    concept: int | None = None
    """Number of the earlier concept that a recurring shift returns to."""


@dataclass(frozen=True)
class Candidate:
    """One option of a decision, and what looking ahead showed of it. Losses in nats per row; NaN: not looked ahead."""

    name: str
    """"keep", "grow layer 1 by 1", "shrink layer 0 by 1"."""
    edit: dict[str, Any] | None
    """The edit as JSON; None keeps the blueprint."""
    treatment: str
    """What happens to the optimizer's moments and the output layer: "keep", "reset", "temper"."""
    heads: tuple[int, ...]
    parameters: int
    loss_recent: float = float("nan")
    loss_memory: float = float("nan")
    price: float = 0.0
    """What its capacity costs, in nats."""
    prior: float = 0.0
    """Gain expected of its capacity after the look-ahead's short horizon, in nats (only where nothing is learned)."""
    value: float = float("nan")
    """What the choice rests on: gain over keeping everything as it is, in nats, price included."""
    standard_error: float = float("nan")
    facts: dict[str, float] = field(default_factory=dict)
    """What was known of it beforehand: the growth score of its layer, the importance of the heads that would go, ..."""
    predicted: float = float("nan")
    """In the same unit, the learned value before any looking ahead."""
    predicted_error: float = float("nan")
    """Standard deviation of `predicted`."""


@dataclass(frozen=True)
class Decision:
    """What the controller chose, from what, and why."""

    step: int
    sample: int
    trigger: str
    """"abrupt shift", "gradual shift", "recurring shift", "thrift", "rollback" or "new label"."""
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    why: str
    observation: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
