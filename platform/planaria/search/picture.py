"""What a campaign tried, as pictures: objectives against each other, and which settings went with which outcome."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from planaria.record.canvas import INK, LINE, MAIN, MUTED, WIDE, Size, style_of, title_axes, to_svg
from planaria.record.facts import short_number

if TYPE_CHECKING:  # matplotlib is slow to import, and only pictures need it
    from matplotlib.axes import Axes

FRONT, PARALLEL = "front.png", "parallel.png"
MOST_LABELS = 24
"""More names of trials than these would cover each other."""
_BELOW = -0.14
"""Height of "as the job" on an axis of numbers, which go from 0 to 1."""

Trial = Mapping[str, Any]


class Colours(NamedTuple):
    trial: str
    best: str
    ink: str
    line: str


_PRINTED = Colours("#9aa5b1", "#d1495b", "black", "black")
_OF_THE_PAGE = Colours(MUTED, MAIN, INK, LINE)


def draw(
    trials: Sequence[Trial],
    best: Sequence[Trial],
    objectives: Mapping[str, str],
    importance: Mapping[str, Mapping[str, float]],
    folder: Path,
) -> None:
    """Write front.png and parallel.png for the trials that are done; nothing where there are none."""
    if not trials:
        return
    from matplotlib.figure import Figure

    first, *others = objectives
    figure = Figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _front(left, trials, best, objectives, others[0] if others else None, _PRINTED)
    left.legend(frameon=False)
    shares = importance.get(first, {})
    keys = list(shares)[::-1]
    right.barh([label(key) for key in keys], [shares[key] for key in keys], color="#30638e")
    right.set_title(f"share of the variance of {_words(first)}" if keys else "too few trials to say what mattered")
    figure.tight_layout()
    figure.savefig(folder / FRONT, dpi=120, bbox_inches="tight")

    figure = Figure(figsize=(max(6.0, 1.9 * len(_axes(trials, objectives))), 4.2))
    _parallel(figure.subplots(), trials, best, objectives, (), _PRINTED)
    figure.tight_layout()
    figure.savefig(folder / PARALLEL, dpi=120, bbox_inches="tight")


def draw_front(trials: Sequence[Trial], best: Sequence[Trial], objectives: Mapping[str, str], size: Size) -> str:
    """For a page, as one SVG element: the first objective over each of the others, or over the trials where there is
    one. `trials` must not be empty."""
    import matplotlib
    from matplotlib.figure import Figure

    _, *others = objectives
    columns = min(len(others), 2) if size is WIDE else 1
    rows = max(1, -(-len(others) // max(1, columns)))
    with matplotlib.rc_context(style_of(size)):
        figure = Figure(figsize=(size.inches, 3.6 * rows), layout="constrained")
        figure.patch.set_alpha(0)
        for at, axes in enumerate(figure.subplots(rows, max(1, columns), squeeze=False).flat):
            axes.patch.set_alpha(0)
            if at >= max(1, len(others)):
                axes.set_visible(False)
                continue
            _front(axes, trials, best, objectives, others[at] if others else None, _OF_THE_PAGE)
            title_axes(axes, "", size, columns=2)
        return to_svg(figure, f"front-{size.name}")


def draw_parallel(
    trials: Sequence[Trial], best: Sequence[Trial], objectives: Mapping[str, str], log: Sequence[str], size: Size
) -> str:
    """For a page, as one SVG element: a line for each trial through its settings and objectives. `log` are the settings
    whose ratios count."""
    import matplotlib
    from matplotlib.figure import Figure

    count, lying = len(_axes(trials, objectives)), size is not WIDE
    with matplotlib.rc_context(style_of(size)):
        height = 0.62 * count if lying else 4.4
        figure = Figure(figsize=(size.inches, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        _parallel(axes, trials, best, objectives, log, _OF_THE_PAGE, lying=lying)
        axes.tick_params(axis="x", labelrotation=28 if count > 7 else 0)
        return to_svg(figure, f"parallel-{size.name}")


def _front(
    axes: Axes,
    trials: Sequence[Trial],
    best: Sequence[Trial],
    objectives: Mapping[str, str],
    other: str | None,
    colours: Colours,
) -> None:
    """The first objective over another one, or over the trials, with the best so far."""
    first = next(iter(objectives))

    def across(trial: Trial) -> float:
        return float(trial["metrics"][other] if other else trial["number"])

    if other is None:
        better = max if objectives[first] == "max" else min
        in_turn = sorted(trials, key=across)
        so_far = list(accumulate((t["metrics"][first] for t in in_turn), better))
        axes.plot([across(t) for t in in_turn], so_far, drawstyle="steps-post", color=colours.line, linewidth=1.2)
    for shown, colour, name, size in ((trials, colours.trial, "trials", 5), (best, colours.best, "not beaten", 7)):
        ordered = sorted(shown, key=across)
        heights = [t["metrics"][first] for t in ordered]
        axes.plot([across(t) for t in ordered], heights, "o", color=colour, label=name, markersize=size)
    for trial in best[:MOST_LABELS]:
        place = (across(trial), trial["metrics"][first])
        axes.annotate(str(trial["number"]), place, textcoords="offset points", xytext=(5, 4), color=colours.ink)
    axes.set_xlabel(_words(other) if other else "trial")
    axes.set_ylabel(_words(first))
    if other and max(map(across, trials)) >= 10_000:
        axes.xaxis.set_major_formatter(lambda x, _: short_number(x))
        axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)


def _parallel(
    axis: Axes,
    trials: Sequence[Trial],
    best: Sequence[Trial],
    objectives: Mapping[str, str],
    log: Sequence[str],
    colours: Colours,
    *,
    lying: bool = False,
) -> None:
    """One line for each trial through its settings and objectives, each axis from its least to its greatest value. The
    axes stand beside each other, or lie below each other where there is little room."""
    keys = _axes(trials, objectives)
    places = {key: _places([_of(trial, key) for trial in trials], key in log) for key in keys}
    along = [-at if lying else at for at in range(len(keys))]
    marked = {trial["number"] for trial in best}
    for at, trial in sorted(enumerate(trials), key=lambda one: one[1]["number"] in marked):  # the best ones on top
        heights = [places[key][0][at] for key in keys]
        special = trial["number"] in marked
        line: dict[str, Any] = {"alpha": 1.0 if special else 0.4, "color": colours.best if special else colours.trial}
        axis.plot(*((heights, along) if lying else (along, heights)), linewidth=1.6, **line)
    for place, key in zip(along, keys, strict=True):
        (axis.axhline if lying else axis.axvline)(place, color=colours.line, linewidth=0.8)
        if lying:
            axis.text(_BELOW, place + 0.1, label(key), fontsize="small", fontweight="bold", color=colours.ink)
        for height, text in places[key][1]:
            if lying:
                axis.text(height, place - 0.08, text, fontsize="small", ha="center", va="top", color=colours.ink)
            else:
                axis.text(place + 0.03, height, text, fontsize="small", va="center", color=colours.ink)
    axis.set_xticks([] if lying else along, [] if lying else [label(key) for key in keys])
    axis.set_yticks([])
    if not lying:
        axis.set_xlim(-0.1, len(keys) - 0.5)
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(False)


def _axes(trials: Sequence[Trial], objectives: Mapping[str, str]) -> list[str]:
    return [*dict.fromkeys(key for trial in trials for key in trial["settings"]), *objectives]


def _of(trial: Trial, key: str) -> Any:
    """None where the trial had what the job has."""
    return trial["metrics"][key] if key in trial["metrics"] else trial["settings"].get(key)


def _places(values: Sequence[Any], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights between 0 and 1, and the labels of the axis; a setting that is as in the job lies below."""
    given = [value for value in values if value is not None]
    labels = [(_BELOW, "as the job")] if len(given) < len(values) else []
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        scaled = [math.log(value) if log else value for value in given]
        low, spread = min(scaled, default=0.0), (max(scaled, default=0.0) - min(scaled, default=0.0)) or 1.0
        height = {value: (at - low) / spread for value, at in zip(given, scaled, strict=True)}
        ends = sorted({min(given), max(given)}) if given else []
        labels += [(height[value], _figure(value)) for value in ends]
        return [_BELOW if value is None else height[value] for value in values], labels
    known = sorted({_shown(value) for value in given})
    places = {text: at / max(1, len(known) - 1) for at, text in enumerate(known)}
    return [_BELOW if value is None else places[_shown(value)] for value in values], labels + [
        (at, text) for text, at in places.items()
    ]


def _figure(value: float) -> str:
    return short_number(value) if abs(value) >= 1_000 else f"{value:.3g}"


def label(key: str) -> str:
    """The last part of a dotted key; of a short one, which means little by itself, the part before it too."""
    *above, last = key.split(".")
    return _words(f"{above[-1]} {last}" if above and len(last) < 6 else last)


def _words(key: str) -> str:
    return _shown(key.replace("_", " "))


def _shown(value: Any) -> str:
    """Short, and without the signs that mean something to matplotlib or in SVG."""
    return re.sub(r"[^\w .,+%()\[\]-]", " ", str(value))[:24]
