"""Recall: is there a kept state that knows the present rows better than the live model does?

Pure: losses of the same rows in, candidates out. Legend: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.blueprint import Blueprint, Restore, edit_to_dict
from planaria.control.look_ahead import Trial
from planaria.signals import Candidate

RECALL = "recall"
"""What `due` answers when entries are to be scored; it leads to a decision only where one is restored."""
RECALL_ROWS = 256
"""Newest rows that entries are scored on for a normal decision, at most."""
SCREENED, FINALISTS = 8, 2
"""All entries are scored on one of so many of the newest rows; so many of the best on all of them."""
LEAST_GAIN = 0.1
"""Of the live model's loss: an entry must lose less by more than this."""
BATCHES = 8
"""Of consecutive rows, whose means tell the error of the mean of all."""
LEAST_ERRORS = 4.0
"""And by this many standard errors of the paired difference: an alarm may be chance, and there are many entries, looked
at several times."""
LEAST_ERRORS_SCREENED = 1.0
"""The same on the few rows of the screening."""

Price = Callable[[Blueprint], float]
"""Nats per row that a blueprint costs."""


@dataclass
class RecallWatch:
    """When entries are to be scored, and on which rows.

    From an alarm on again and again, always on the newest rows: a channel's estimate of the onset may lie hundreds of
    rows too early, and the first rows would then still be of the old concept. Once more, on more rows, when the alarm
    has turned out to be a shift.
    """

    onset: int | None = None
    """First row of the change for which entries are to be scored; None where none are."""
    confirmed: bool = False
    """A shift was reported for it."""
    tried: int = 0
    """Rows seen when entries were last scored."""
    alarm: int | None = None
    """Onset of the alarm that is being looked into."""
    restored: bool = False
    """An entry was restored on that alarm."""

    def alarmed(self, onset: int | None) -> None:
        """Onset of the present alarm, or None where there is none (any more)."""
        if onset is None:
            self.alarm, self.restored = None, False
            self.onset = self.onset if self.confirmed else None
        elif self.alarm is None:
            self.alarm, self.onset, self.confirmed, self.restored = onset, onset, False, False

    def shifted(self, onset: int) -> bool:
        """A shift was reported; returns whether an entry has been restored for it already."""
        dealt_with = self.restored
        self.onset, self.confirmed = (None, False) if dealt_with else (onset, True)
        self.alarm, self.restored, self.tried = None, False, 0
        return dealt_with

    def due(self, sample: int, wait_rows: int) -> bool:
        """Whether entries are to be scored now: `wait_rows` after the onset, and whenever as many have come again as
        there were then, so that a long alarm costs little."""
        if self.onset is None:
            return False
        return sample - max(self.onset, self.tried) >= max(wait_rows, self.tried - self.onset)

    def rows(self, sample: int, wait_rows: int) -> int:
        """On how many of the newest rows."""
        assert self.onset is not None
        return min(sample - self.onset, 2 * wait_rows if self.confirmed else wait_rows)

    def done(self, sample: int, restored: bool) -> None:
        """Entries were scored, and one of them perhaps restored."""
        self.tried, self.restored = sample, restored and self.alarm is not None
        if restored or self.confirmed:
            self.onset, self.confirmed = None, False

    def state(self) -> dict[str, Any]:
        return asdict(self)


def restoring(concept: int, kept: Blueprint, live: Blueprint, price: Price) -> Candidate:
    """The candidate that puts a kept state back. Nothing is known of its loss yet."""
    edit = Restore.of(concept, kept)
    after = edit.apply(live)
    return Candidate(edit.describe(), edit_to_dict(edit), "reset", after.heads, after.parameters, price=price(after))


def keeping(live: Blueprint, price: Price) -> Candidate:
    return Candidate("keep", None, "keep", live.heads, live.parameters, price=price(live))


def within(
    entries: Mapping[int, Blueprint], live: Blueprint, allowed: Callable[[Candidate], bool], price: Price
) -> list[Candidate]:
    """Keep, and every entry that stays within the limits."""
    offered = [restoring(concept, kept, live, price) for concept, kept in sorted(entries.items())]
    return [keeping(live, price), *(candidate for candidate in offered if allowed(candidate))]


def scored(candidates: Sequence[Candidate], trials: Sequence[Trial], memory_weight: float = 0.0) -> list[Candidate]:
    """Fill in losses, value and standard error from forward passes alone; the first one keeps the live model.

    value = gain in loss over the live model, paired (memory weighted) - the extra price of the heads. A loss of NaN
    says that the remembered row does not count for that candidate.
    """
    keep, kept = candidates[0], trials[0]
    filled = []
    for candidate, trial in zip(candidates, trials, strict=True):
        gain_R, gain_M = kept.recent_R - trial.recent_R, kept.memory_M - trial.memory_M
        gain_M = gain_M[~np.isnan(gain_M)]
        remembered_M = trial.memory_M[~np.isnan(trial.memory_M)]
        weight = memory_weight if len(gain_M) else 0.0
        gain = _mean(gain_R) + (weight * _mean(gain_M) if weight else 0.0)
        variance = _variance_in_time(gain_R) + (weight**2 * _variance_of_mean(gain_M) if weight else 0.0)
        filled.append(
            replace(
                candidate,
                loss_recent=_mean(trial.recent_R),
                loss_memory=_mean(remembered_M) if len(remembered_M) else math.nan,
                value=gain - (candidate.price - keep.price),
                standard_error=math.sqrt(variance),
            )
        )
    return filled


def best_kept(candidates: Sequence[Candidate]) -> Candidate | None:
    """The most valuable of the restoring candidates, if there are any."""
    return max(candidates[1:], key=lambda candidate: candidate.value, default=None)


def recalled(candidates: Sequence[Candidate]) -> Candidate | None:
    """The entry that is to be restored at once, if one is clearly better than the live model."""
    best = best_kept(candidates)
    return best if best is not None and best.value > 0 and clearly_better(best, candidates[0], LEAST_ERRORS) else None


def finalists(candidates: Sequence[Candidate]) -> list[Candidate]:
    """After the screening: the best of those that seem to know the newest rows better than the live model."""
    better = [c for c in candidates[1:] if clearly_better(c, candidates[0], LEAST_ERRORS_SCREENED)]
    return sorted(better, key=lambda candidate: -candidate.value)[:FINALISTS]


def clearly_better(candidate: Candidate, keep: Candidate, errors: float) -> bool:
    """On the newest rows, by a tenth of the live model's loss and by so many standard errors."""
    gain = keep.loss_recent - candidate.loss_recent
    return gain > LEAST_GAIN * keep.loss_recent and gain > errors * candidate.standard_error


def library_fit(candidates: Sequence[Candidate]) -> float:
    """Loss of the best entry over that of the live model, minus 1: negative where an entry knows better; 0 where there
    is none."""
    best = min((candidate.loss_recent for candidate in candidates[1:]), default=candidates[0].loss_recent)
    return best / candidates[0].loss_recent - 1 if candidates[0].loss_recent > 0 else 0.0


def in_words(keep: Candidate, best: Candidate, rows: int) -> str:
    """Why an entry is restored."""
    return (
        f"on the newest {rows} rows what was kept loses {best.loss_recent:.4f} nats, the live model "
        f"{keep.loss_recent:.4f}; worth {best.value:+.4f} ± {best.standard_error:.4f} nats"
    )


def _mean(values: npt.NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def _variance_in_time(values: npt.NDArray[np.float32]) -> float:
    """Of the mean of values in the order of time, by batch means: neighbours may be alike, as the hours of one rain."""
    count = min(BATCHES, len(values))
    if count < 2:
        return 0.0
    means = np.array([batch.mean(dtype=np.float64) for batch in np.array_split(values, count)])
    return float(means.var(ddof=1) / count)


def _variance_of_mean(values: npt.NDArray[np.float32]) -> float:
    return float(values.var(ddof=1, dtype=np.float64) / len(values)) if len(values) > 1 else 0.0
