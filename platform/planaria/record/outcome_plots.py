"""Decisions in hindsight, drawn: predicted against realised gain, and regret over the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from planaria.record.canvas import (
    CHOICE_COLOURS,
    LINE,
    MAIN,
    MUTED,
    WIDE,
    Size,
    style_of,
    title_axes,
    to_svg,
)
from planaria.record.facts import short_number
from planaria.record.outcomes import KINDS, Outcome, Regret

if TYPE_CHECKING:  # matplotlib is slow to import, and only the report needs it
    from matplotlib.axes import Axes

MOST_MARKERS = 100
"""Of each kind, between shifts and after them; beyond that evenly chosen ones are drawn."""
MOST_STEPS = 500
"""Points of a line of regret; the sum so far is shown at as many places only."""
MOST_STRETCH = 4.0
"""Beyond this ratio of their lengths, predicted and realised have axes of different scale."""

T = TypeVar("T")


def draw_outcomes(found: Sequence[Outcome], size: Size) -> str:
    """Realised over predicted gain as one SVG element. `found` must not be empty.

    Between and after shifts have a panel each, since what a shift brings is an order of magnitude more.
    """
    import matplotlib
    from matplotlib.figure import Figure

    groups = {
        name: (marker, [o for o in found if o.after_shift == after])
        for name, marker, after in (("Between shifts", "o", False), ("After a shift", "^", True))
    }
    shown = {name: group for name, group in groups.items() if group[1]}
    with matplotlib.rc_context(style_of(size)):
        side_by_side = size is WIDE
        height = 3.5 if side_by_side else 3.0 * len(shown)
        figure = Figure(figsize=(size.inches, height), layout="constrained")
        figure.patch.set_alpha(0)
        rows, columns = (1, len(shown)) if side_by_side else (len(shown), 1)
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (name, (marker, members)) in zip(panels, shown.items(), strict=True):
            _draw_panel(axes, name, marker, members)
        return to_svg(figure, f"{size.name}-outcomes")


def draw_regret(regret: Regret, end: int, size: Size) -> str:
    """Both sums over the samples seen, as one SVG element."""
    import matplotlib
    from matplotlib.figure import Figure

    lines: list[tuple[Sequence[tuple[int, float]], str, str, Any, str]] = [
        (regret.estimated, "best − chosen, by its own estimate", MAIN, "-", "regret-estimated"),
        (regret.undelivered, "predicted − realised", CHOICE_COLOURS["shrink"], (0, (5, 1.5)), "regret-undelivered"),
    ]
    with matplotlib.rc_context(style_of(size)):
        figure = Figure(figsize=(size.inches, 2.7 if size is WIDE else 2.9), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        for steps, label, colour, dashes, name in lines:
            if steps:
                drawn = [(0, 0.0), *thinned(steps, MOST_STEPS), (max(end, steps[-1][0]), steps[-1][1])]
                samples, sums = zip(*drawn, strict=True)
                line = axes.plot(samples, sums, label=label, gid=name, color=colour, linestyle=dashes)[0]
                line.set(linewidth=1.8, drawstyle="steps-post")
        axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
        axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.7)
        axes.set_xlim(0, max([end, *(sample for steps, *_ in lines for sample, _ in steps)]) or 1)
        axes.xaxis.set_major_formatter(lambda x, _: short_number(x))
        axes.locator_params(axis="x", nbins=9 if size is WIDE else 4)
        axes.set_xlabel("samples seen")
        title_axes(axes, "Regret so far (sum, nats a row)", size, columns=2)
        return to_svg(figure, f"{size.name}-regret")


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly chosen, the last one among them."""
    if len(items) <= most:
        return list(items)
    return [items[len(items) * (i + 1) // most - 1] for i in range(most)]


def _draw_panel(axes: Axes, name: str, marker: str, members: Sequence[Outcome]) -> None:
    axes.patch.set_alpha(0)
    axes.set_title(f"{name} ({len(members):,})", loc="left", fontweight="bold", fontsize="medium")
    axes.axhline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=LINE, linewidth=0.8, zorder=0)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)), gid=f"diagonal-{marker}", zorder=1)
    for kind in KINDS:
        points = thinned([o for o in members if o.kind == kind], MOST_MARKERS)
        if points:
            # A ring in the page's colour keeps markers apart that lie on each other; hollow ones let others through.
            filled = CHOICE_COLOURS[kind] if marker == "o" else "none"
            axes.plot(
                [o.predicted for o in points],
                [o.realised for o in points],
                marker,
                color=CHOICE_COLOURS[kind],
                markerfacecolor=filled,
                markersize=6.5,
                markeredgewidth=1.6 if marker == "^" else 0.6,
                alpha=0.85,
                gid=f"outcomes-{kind}-{'after' if marker == '^' else 'between'}",
            )
    across, up = _ranges([o.predicted for o in members], [o.realised for o in members])
    axes.set_xlim(across)
    axes.set_ylim(up)
    axes.locator_params(nbins=5)
    axes.set_xlabel("gain predicted (nats a row)")
    axes.set_ylabel("gain realised")


def _ranges(across: Sequence[float], up: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """One range for both axes where the diagonal then still leaves room for the points; else each has its own."""
    each, both = (_range(across), _range(up)), _range([*across, *up])
    narrowest = min(high - low for low, high in each)
    return (both, both) if both[1] - both[0] <= MOST_STRETCH * narrowest else each


def _range(values: Sequence[float]) -> tuple[float, float]:
    """With zero, and room at both ends."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.1 * (high - low) or 0.01
    return low - margin, high + margin
