"""How a run looks on a terminal: a live panel while it goes on, plain lines where there is no terminal, a summary."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
CURVE_POINTS = 48
EVENTS_SHOWN = 6


class Screen:
    """Shows what `live.json` says, about once a second, until the run ends.

    Use as a context manager around the run, and pass the instance as its `progress`.
    """

    def __init__(self, console: Console, name: str, plain_every_s: float = 5.0) -> None:
        self._console = console
        self._name = name
        self._plain_every_s = plain_every_s
        self._shown_at = float("-inf")
        self._seen: dict[str, Any] = {}
        self._curve: deque[float] = deque(maxlen=CURVE_POINTS)
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._most_heads: list[int] = []
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
            self._live.update(Panel(Text("starting ..."), title=f"planaria · {self._name}", title_align="left"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, state: dict[str, Any]) -> None:
        news = events(self._seen, state)
        self._seen = state
        recent = _recent(state)
        if recent is not None:
            self._curve.append(recent)
        heads = list(state.get("heads") or [])
        self._most_heads = [max(pair) for pair in zip(heads, self._most_heads or heads, strict=False)]
        self._events.extend(news)
        if self._live:
            self._live.update(self._panel(state))
            return
        for line in news:
            self._console.print(line, highlight=False, soft_wrap=True)
        if time.monotonic() - self._shown_at >= self._plain_every_s:
            self._shown_at = time.monotonic()
            self._console.print(progress_line(state), highlight=False, soft_wrap=True)

    def _panel(self, state: Mapping[str, Any]) -> RenderableType:
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim")
        facts.add_column()
        facts.add_row("samples", _progress(state))
        facts.add_row(_measure(state), Text(f"{_score(state)}   {sparkline(list(self._curve), _rises(state))}"))
        facts.add_row("heads", head_map(list(state.get("heads") or []), self._most_heads))
        facts.add_row("model", f"revision {state.get('revision', 0)}, {_count(state.get('parameters'))} parameters")
        facts.add_row("so far", f"{_plural(state.get('shifts'), 'shift')}, {_plural(state.get('edits'), 'edit')}")
        parts: list[RenderableType] = [facts]
        if self._events:
            parts += [
                Text(""),
                *(Text(event, style="cyan", overflow="ellipsis", no_wrap=True) for event in self._events),
            ]
        title = f"planaria · {self._name} · {state.get('status', 'running')}"
        return Panel(Group(*parts), title=title, title_align="left", subtitle="Ctrl-C stops at a checkpoint")


def events(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What happened between two states: shifts seen, edits made, messages."""
    at = f"{_count(now.get('samples'))} samples: "
    news: list[str] = []
    if now.get("shifts", 0) > before.get("shifts", 0):
        news.append(f"{at}shift {now['shifts']} detected")
    if now.get("edits", 0) > before.get("edits", 0):
        change = f"{_heads(before)} to {_heads(now)}" if before.get("heads") else _heads(now)
        news.append(f"{at}heads {change} (revision {now.get('revision', 0)})")
    message = now.get("message")
    if message and message != before.get("message"):
        news.append(f"{at}{message}")
    return news


def progress_line(state: Mapping[str, Any]) -> str:
    """One line for logs and pipes."""
    total = state.get("total_samples")
    samples = f"{_count(state.get('samples'))}{f' of {_count(total)}' if total else ''} samples"
    return ", ".join(
        [
            samples,
            f"{_count(state.get('samples_per_second'))}/s",
            f"{_measure(state)} {_score(state)}",
            _plural(state.get("shifts"), "shift"),
            _plural(state.get("edits"), "edit"),
            f"heads {_heads(state)}",
        ]
    )


def sparkline(values: list[float], rises: bool = True) -> str:
    """A curve in one line of text, one character a value: from 0 to 1 where it rises, else from 0 to its largest."""
    if not values:
        return ""
    top = 1.0 if rises else max(values) or 1.0
    return "".join(BARS[min(len(BARS) - 1, max(0, int(value / top * len(BARS))))] for value in values)


def head_map(heads: list[int], most: list[int]) -> Text:
    """A row a layer: a block for every live head, and a faint one where a layer once had more."""
    rows = Text()
    for layer, (live, ever) in enumerate(zip(heads, most, strict=True)):
        rows.append(f"{'' if layer == 0 else chr(10)}layer {layer}  ", style="dim")
        rows.append("■ " * live, style="green")
        rows.append("□ " * (ever - live), style="dim")
        rows.append(str(live))
    return rows


def summary_table(summary: Mapping[str, Any]) -> Table:
    """What a finished run comes to. Rows whose values the summary lacks are left out."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _summary_rows(summary):
        if value is not None:
            table.add_row(name, value)
    return table


def _summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    def number(key: str, form: str = "{:,.3f}") -> str | None:
        value = summary.get(key)
        return None if value is None else form.format(value)

    def pair(first: str, last: str, form: str = "{}") -> str | None:
        if summary.get(first) is None or summary.get(last) is None:
            return None
        return f"{form.format(summary[first])} at first, {form.format(summary[last])} at last"

    parameters = pair("parameters_first", "parameters_last", "{:,}")
    mean = number("parameters_mean", "{:,.0f}")
    return [
        ("status", summary.get("status")),
        ("samples", number("samples", "{:,}")),
        ("accuracy as it went", number("prequential_accuracy")),
        ("mean error as it went", number("prequential_mae", "{:,.4g}")),
        ("accuracy at the end", number("final_accuracy")),
        ("mean error at the end", number("final_mae", "{:,.4g}")),
        ("forgetting", number("forgetting")),
        ("shifts detected", number("shifts", "{:,}")),
        ("edits", _edits(summary)),
        ("heads per layer", pair("heads_first", "heads_last")),
        ("parameters", f"{parameters}, {mean} on average" if parameters and mean else parameters),
        ("time", _time(summary)),
        ("restarts", number("restarts", "{:,}")),
    ]


def _edits(summary: Mapping[str, Any]) -> str | None:
    if summary.get("grows") is None:
        return None
    return f"{_plural(summary['grows'], 'growth')}, {_plural(summary.get('shrinks'), 'shrinking')}"


def _time(summary: Mapping[str, Any]) -> str | None:
    if summary.get("wall_seconds") is None:
        return None
    parts = [f"{summary['wall_seconds']:,.0f} s"]
    if summary.get("samples_per_second") is not None:
        parts.append(f"{_count(summary['samples_per_second'])} samples/s")
    if summary.get("decision_seconds") is not None:
        parts.append(f"{summary['decision_seconds']:,.1f} s of it deciding")
    return ", ".join(parts)


def _progress(state: Mapping[str, Any]) -> RenderableType:
    samples, total = state.get("samples") or 0, state.get("total_samples")
    speed = state.get("samples_per_second") or 0
    grid = Table.grid(padding=(0, 2))
    if not total:
        grid.add_row(_count(samples), f"{_count(speed)}/s")
        return grid
    left = f"{(total - samples) / speed:,.0f} s left" if speed else ""
    grid.add_row(
        f"{_count(samples)} of {_count(total)}",
        ProgressBar(total=total, completed=samples, width=24),
        f"{_count(speed)}/s",
        left,
    )
    return grid


def _rises(state: Mapping[str, Any]) -> bool:
    return "prequential_mae" not in state


def _measure(state: Mapping[str, Any]) -> str:
    return "accuracy" if _rises(state) else "mean error"


def _recent(state: Mapping[str, Any]) -> float | None:
    value = state.get("accuracy_recent" if _rises(state) else "mae_recent")
    return None if value is None else float(value)


def _score(state: Mapping[str, Any]) -> str:
    value = state.get("prequential_accuracy" if _rises(state) else "prequential_mae")
    if value is None:
        return "-"
    recent = _recent(state)
    return f"{value:.3f}" + (f" ({recent:.3f} of late)" if recent is not None else "")


def _heads(state: Mapping[str, Any]) -> str:
    return " ".join(str(live) for live in state.get("heads") or ["-"])


def _count(value: float | None) -> str:
    return f"{value or 0:,.0f}"


def _plural(count: int | None, name: str) -> str:
    return f"{_count(count)} {name}{'' if count == 1 else 's'}"
