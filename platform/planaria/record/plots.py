"""The run over its samples: score, heads and cost, with the shifts that were detected."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from planaria.record.canvas import (
    BANDS,
    HEADS,
    INK,
    KIND_COLOURS,
    LINE,
    MAIN,
    MUTED,
    PAGE,
    SECOND,
    WIDE,
    Size,
    style_of,
    title_axes,
    to_svg,
)
from planaria.record.facts import Row, short_number
from planaria.signals import TOLD

if TYPE_CHECKING:  # matplotlib is slow to import, and only the report needs it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_MARKERS = {"abrupt": "v", "gradual": "D", "recurring": "o"}
KIND_DASHES: dict[str, Any] = {"abrupt": "-", "gradual": (0, (6, 3)), "recurring": (0, (1.5, 2))}

MOST_SEGMENTS = 300
"""Beyond this many edits the heads are drawn at as many places only."""
MOST_LABELS = 40
"""Beyond this many shifts or context bands their labels would cover each other, and are left out."""


class Band(NamedTuple):
    start: int
    end: int
    context: int


def draw_run(
    steps: Sequence[Row], shifts: Sequence[Row], revisions: Sequence[Row], *, regression: bool, size: Size
) -> str:
    """Score, heads per layer and cost over the samples seen, as one SVG element. `steps` must not be empty."""
    import matplotlib
    from matplotlib.figure import Figure

    layers = len(steps[-1]["heads"] or [])
    with matplotlib.rc_context(style_of(size)):
        figure = Figure()
        figure.patch.set_alpha(0)
        marks, score, heads, cost = _panels(figure, layers, size)
        end = steps[-1]["samples"]
        bands = context_bands(steps)
        _draw_shift_marks(marks, shifts)
        _draw_score(score, steps, regression, size)
        _draw_bands(score, bands, end, size)
        _draw_heads(heads, head_segments(steps, revisions), layers, end)
        _draw_cost(cost, steps, size)
        for axes in (score, heads, cost):
            axes.patch.set_alpha(0)
            _draw_shift_lines(axes, shifts)
        for axes in (score, heads):
            axes.tick_params(labelbottom=False)
        cost.set_xlim(0, end)
        cost.xaxis.set_major_formatter(lambda x, _: short_number(x))
        cost.locator_params(axis="x", nbins=9 if size is WIDE else 4)
        cost.set_xlabel("samples seen")
        return to_svg(figure, size.name)


def context_bands(steps: Sequence[Row]) -> list[Band]:
    """Stretches of samples that came from one true context; none where contexts are unknown."""
    bands: list[Band] = []
    before = 0
    for row in steps:
        context = row["context"]
        if context is not None and bands and bands[-1].context == context and bands[-1].end == before:
            bands[-1] = bands[-1]._replace(end=row["samples"])
        elif context is not None:
            bands.append(Band(before, row["samples"], context))
        before = row["samples"]
    return bands


def head_segments(steps: Sequence[Row], revisions: Sequence[Row]) -> list[tuple[int, int, list[int]]]:
    """(first sample, end, heads per layer) of each stretch in which the heads stayed as they were."""
    end = steps[-1]["samples"]
    starts = [(row["sample"], row["heads"]) for row in revisions if row["heads"] and row["sample"] < end]
    if not starts:
        starts = [(0, steps[0]["heads"])] if steps[0]["heads"] else []
        starts += [(a["samples"], b["heads"]) for a, b in pairwise(steps) if b["heads"] and a["heads"] != b["heads"]]
    changes = [start for i, start in enumerate(starts) if i == 0 or start[1] != starts[i - 1][1]]
    if len(changes) > MOST_SEGMENTS:
        began = [start for start, _ in changes]
        places = [end * i // MOST_SEGMENTS for i in range(MOST_SEGMENTS)]
        changes = [(place, changes[max(0, bisect_right(began, place) - 1)][1]) for place in places]
    return [(start, after, heads) for (start, heads), (after, _) in pairwise([*changes, (end, [])])]


def _panels(figure: Figure, layers: int, size: Size) -> list[Axes]:
    """Axes for marks, score, heads and cost, one below the other. All lengths in inches."""
    title, title_and_legend = 0.3, 0.3 if size is WIDE else 0.46
    heights = [0.22, 2.7, min(0.3 * max(1, layers), 3.4), 1.35]
    above = [title, title_and_legend, title, title_and_legend]
    left, right, bottom = 0.62, 0.14, 0.5
    figure.set_size_inches(size.inches, sum(heights) + sum(above) + bottom)
    top = figure.get_figheight()
    axes: list[Axes] = []
    for height, gap in zip(heights, above, strict=True):
        top -= gap + height
        place = (left / size.inches, top / figure.get_figheight())
        extent = ((size.inches - left - right) / size.inches, height / figure.get_figheight())
        axes.append(figure.add_axes((*place, *extent), sharex=axes[0] if axes else None))
    return axes


def _draw_shift_marks(axes: Axes, shifts: Sequence[Row]) -> None:
    """A strip above the panels: one numbered symbol per alarm, its shape telling the kind."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.patch.set_alpha(0)
    axes.set_ylim(0, 1)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    told = any(row["detector"] == TOLD for row in shifts)
    title = "Told shifts" if told else "Detected shifts" if shifts else "No shift detected"
    axes.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    for kind, colour in KIND_COLOURS.items():
        samples = [row["sample"] for row in shifts if row["kind"] == kind]
        axes.plot(samples, [0.15] * len(samples), KIND_MARKERS[kind], color=colour, ms=6, clip_on=False)
    for number, row in enumerate(shifts if len(shifts) <= MOST_LABELS else (), start=1):
        axes.annotate(str(number), (row["sample"], 0.15), (0, 5), textcoords="offset points", ha="center")


def _draw_shift_lines(axes: Axes, shifts: Sequence[Row]) -> None:
    place = axes.get_xaxis_transform()
    for kind, colour in KIND_COLOURS.items():
        samples = [row["sample"] for row in shifts if row["kind"] == kind]
        axes.vlines(samples, 0, 1, colour, KIND_DASHES[kind], transform=place, linewidth=1.1, alpha=0.85)


def _draw_score(axes: Axes, steps: Sequence[Row], regression: bool, size: Size) -> None:
    """What a row's prediction was worth before it was learned from: per interval, and the mean since the start."""
    samples = [row["samples"] for row in steps]
    shown: list[tuple[str, str, dict[str, Any]]] = (
        [
            ("mae", "MAE, interval", {"color": SECOND, "linewidth": 1.1}),
            ("prequential_mae", "MAE, mean", {"color": MAIN, "linewidth": 2.2}),
            ("prequential_rmse", "RMSE, mean", {"color": MAIN, "linewidth": 1.4, "linestyle": (0, (5, 2))}),
        ]
        if regression
        else [
            ("accuracy", "interval", {"color": SECOND, "linewidth": 1.3}),
            ("prequential_accuracy", "mean since the start", {"color": MAIN, "linewidth": 2.4}),
        ]
    )
    for column, label, line in shown:
        axes.plot(samples, [_number(row[column]) for row in steps], label=label, **line)
    title = "Prequential error (target's own units)" if regression else "Prequential accuracy (% right)"
    title_axes(axes, title, size, columns=len(shown))
    axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.7)
    if regression:
        axes.set_ylim(bottom=0)
        return
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f}")
    lowest = min((row["accuracy"] for row in steps if row["accuracy"] is not None), default=0.0)
    axes.set_ylim(max(0.0, lowest - 0.06), 1.0)


def _draw_bands(axes: Axes, bands: Sequence[Band], end: int, size: Size) -> None:
    """Shade the true contexts; a context that comes again has its earlier colour and number."""
    for band in bands:
        colour = BANDS[band.context % len(BANDS)]
        axes.axvspan(band.start, band.end, color=colour, alpha=0.16, linewidth=0, zorder=0)
        wide_enough = band.end - band.start > end * (0.02 if size is WIDE else 0.045)
        if len(bands) <= MOST_LABELS and wide_enough:
            middle = (band.start + band.end) / 2
            place = axes.get_xaxis_transform()
            axes.text(middle, 0.02, str(band.context), transform=place, ha="center", va="bottom", color=MUTED)


def _draw_heads(axes: Axes, segments: Sequence[tuple[int, int, list[int]]], layers: int, end: int) -> None:
    """A row per layer, first layer at the bottom: the darker, the more heads; the number where there is room."""
    axes.set_title("Attention heads in each layer", loc="left", fontweight="bold", fontsize="medium")
    most = max((max(heads) for _, _, heads in segments), default=1)
    spans: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for start, after, heads in segments:
        for layer, count in enumerate(heads):
            spans.setdefault((layer, count), []).append((start, after - start))
    for (layer, count), where in spans.items():
        strength = 0.12 + 0.78 * count / most
        axes.broken_barh(where, (layer - 0.44, 0.88), color=HEADS, alpha=strength, linewidth=0)
        for start, length in where:
            if length > end * 0.03:
                place, colour = (start + length / 2, layer), PAGE if strength > 0.55 else INK
                axes.text(*place, str(count), ha="center", va="center", color=colour, fontweight="bold", zorder=5)
    axes.set_ylim(-0.5, max(1, layers) - 0.5)
    every = max(1, math.ceil(layers / 12))
    axes.set_yticks(range(0, layers, every), [f"layer {i}" for i in range(0, layers, every)])
    axes.tick_params(left=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_cost(axes: Axes, steps: Sequence[Row], size: Size) -> None:
    """Parameters and FLOPs, each as a share of its own largest value, so that one axis serves both."""
    samples = [0, *(row["samples"] for row in steps)]
    kinds: list[tuple[str, str, str, Any]] = [
        ("parameters", "parameters", MAIN, "-"),
        ("flops_per_sample", "FLOPs a row", SECOND, (0, (4, 1.5))),
    ]
    lowest = 100.0
    for column, label, colour, dashes in kinds:
        values = [_number(row[column]) for row in steps]
        largest = max((v for v in values if math.isfinite(v)), default=0.0)
        if largest <= 0:
            continue
        shares = [100 * v / largest for v in (values[0], *values)]
        lowest = min(lowest, *(share for share in shares if math.isfinite(share)))
        name = f"{label} (100 = {short_number(largest)})"
        axes.plot(samples, shares, drawstyle="steps-pre", color=colour, linestyle=dashes, linewidth=1.8, label=name)
    title_axes(axes, "Cost (% of largest)", size, columns=2)
    axes.grid(axis="y", color=LINE, linewidth=0.6, alpha=0.7)
    axes.set_ylim(max(0.0, math.floor(lowest / 10) * 10 - 10), 104)
    axes.locator_params(axis="y", nbins=4)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
