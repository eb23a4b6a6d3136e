"""What is known of a run: its tables and summary, what can be counted in them, and how numbers read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

from planaria.signals import TOLD

Row = dict[str, Any]

SHIFT_SYMBOLS = {"abrupt": "▼", "gradual": "◆", "recurring": "●"}
EDIT_SYMBOLS = {
    "grow": "+",
    "shrink": "−",
    "recycle": "↻",
    "restore": "↶",
    "edit": "±",
    "treatment": "~",
    "keep": "=",
    "start": "○",
}
EDIT_STYLES = {
    "grow_heads": "grow",
    "shrink_heads": "shrink",
    "prune": "shrink",
    "recycle_head": "recycle",
    "restore": "restore",
}
"""By an edit's kind; any other is an "edit"."""


@dataclass(frozen=True)
class Run:
    """All that a run's folder holds."""

    name: str
    status: str
    """"running", "done", "stopped" or "failed"."""
    summary: Mapping[str, Any]
    steps: Sequence[Row]
    revisions: Sequence[Row]
    shifts: Sequence[Row]
    decisions: Sequence[Row]
    job_yaml: str = ""
    tracking_uri: str | None = None
    run_id: str | None = None

    @property
    def regression(self) -> bool:
        if "prequential_mae" in self.summary:
            return True
        return any(row["mae"] is not None for row in self.steps[-3:])

    @property
    def contexts_known(self) -> bool:
        return any(row["context"] is not None for row in self.steps)

    @property
    def told(self) -> bool:
        """Whether its shifts were told by the stream rather than detected."""
        return any(row["detector"] == TOLD for row in self.shifts)

    @property
    def samples(self) -> int:
        return int(self.summary.get("samples") or (self.steps[-1]["samples"] if self.steps else 0))

    def latest(self, column: str) -> Any:
        return self.steps[-1][column] if self.steps else None


@dataclass(frozen=True)
class Alarms:
    """How the alarms compare with the true changes, where contexts are known."""

    found: int
    changes: int | None
    """True changes; None where the summary does not tell."""
    false: int
    """Alarms that are not the first one after a true change."""
    median_delay: int | None


@dataclass(frozen=True)
class Edits:
    grows: int = 0
    shrinks: int = 0
    others: int = 0

    @property
    def total(self) -> int:
        return self.grows + self.shrinks + self.others


def compare_alarms(run: Run) -> Alarms:
    """The first alarm after each true change has a delay; any other has none."""
    delays = [row["delay"] for row in run.shifts if row["delay"] is not None]
    return Alarms(
        found=len(delays),
        changes=run.summary.get("true_changes"),
        false=len(run.shifts) - len(delays),
        median_delay=round(statistics.median(delays)) if delays else None,
    )


def count_edits(run: Run) -> Edits:
    """Edits by what they did to the number of heads: the summary's counts, or counted from the revisions kept."""
    changes = [_head_change(before, row) for before, row in pairwise(run.revisions) if row["edit"]]
    grows, shrinks = (
        run.summary.get("grows", changes.count("grow")),
        run.summary.get("shrinks", changes.count("shrink")),
    )
    return Edits(int(grows), int(shrinks), others=len(changes) - changes.count("grow") - changes.count("shrink"))


def _head_change(before: Row, row: Row) -> str:
    """ "grow" or "shrink"; any other word where the number of heads stayed."""
    if before["heads"] is None or row["heads"] is None:
        return edit_style(row["edit"])
    change = sum(row["heads"]) - sum(before["heads"])
    return "grow" if change > 0 else "shrink" if change < 0 else "neither"


def known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def thousands(value: float) -> str:
    return f"{int(value):,}"


def duration(seconds: float) -> str:
    """ "12 ms", "3 min 8 s", "5 h 12 min", "2 d 3 h"."""
    if 0 < seconds < 0.1:
        return f"{max(1, round(1_000 * seconds))} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // smaller} {smaller_name}"
    raise AssertionError("unreachable")


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def signed(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not known"
    text = f"{value:+.3f}"
    return "+0.000" if text == "-0.000" else text.replace("-", "−")


def short_number(value: float) -> str:
    """1,234 as "1.23k": three significant digits and a suffix."""
    if not math.isfinite(value):
        return "-"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def words_of(name: str) -> str:
    return name.replace("_", " ")


def sortable(value: Any) -> str:
    """What a browser can sort a cell by: the number itself, or nothing."""
    return repr(value) if known(value) else ""


def edit_style(edit: Any) -> str:
    kind = str(edit.get("kind", "")) if isinstance(edit, Mapping) else ""
    return EDIT_STYLES.get(kind, "edit")


def style_of_name(name: str) -> str:
    return next((style for style in (*EDIT_STYLES.values(), "keep") if name.startswith(style)), "edit")


def plus(heads: Sequence[int]) -> str:
    """[2, 3] as "2+3"; many layers as their sum, since nobody reads forty numbers at a glance."""
    return "+".join(map(str, heads)) if len(heads) <= 6 else f"{sum(heads)} in {len(heads)} layers"


def plural(count: int, one: str, many: str) -> str:
    return f"{thousands(count)} {one if count == 1 else many}"


def sentence(text: str | None) -> str:
    """With a capital and a full stop; empty where there is no text."""
    text = (text or "").strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text[-1:] in ('.', '') else '.'}"
