"""What a campaign tried, as pictures: objectives against each other, and which settings went with which outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FRONT, PARALLEL = "front.png", "parallel.png"


def draw(
    trials: Sequence[Mapping[str, Any]],
    best: Sequence[Mapping[str, Any]],
    objectives: Mapping[str, str],
    importance: Mapping[str, Mapping[str, float]],
    folder: Path,
) -> None:
    """Write front.png and parallel.png for the trials that are done; nothing where there are none."""
    if not trials:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, figure in (
        (FRONT, _front(pyplot, trials, best, objectives, importance)),
        (PARALLEL, _parallel(pyplot, trials, best, objectives)),
    ):
        figure.savefig(folder / name, dpi=120, bbox_inches="tight")
        pyplot.close(figure)


def _front(
    pyplot: Any,
    trials: Sequence[Mapping[str, Any]],
    best: Sequence[Mapping[str, Any]],
    objectives: Mapping[str, str],
    importance: Mapping[str, Mapping[str, float]],
) -> Any:
    """The first objective over the second (or over the trials, where there is one), beside what mattered."""
    first, *others = objectives
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2))

    def across(trial: Mapping[str, Any]) -> float:
        return float(trial["metrics"][others[0]] if others else trial["number"])

    for shown, colour, label in ((trials, "#9aa5b1", "trials"), (best, "#d1495b", "not beaten")):
        ordered = sorted(shown, key=across)
        left.plot([across(t) for t in ordered], [t["metrics"][first] for t in ordered], "o", color=colour, label=label)
    for trial in best:
        left.annotate(
            str(trial["number"]), (across(trial), trial["metrics"][first]), textcoords="offset points", xytext=(5, 4)
        )
    left.set_xlabel(_words(others[0]) if others else "trial")
    left.set_ylabel(_words(first))
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    shares = importance.get(first, {})
    keys = list(shares)[::-1]
    right.barh([_label(key) for key in keys], [shares[key] for key in keys], color="#30638e")
    right.set_title(f"share of the variance of {_words(first)}" if keys else "too few trials to say what mattered")
    figure.tight_layout()
    return figure


def _parallel(
    pyplot: Any, trials: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]], objectives: Mapping[str, str]
) -> Any:
    """One line for each trial through its settings and objectives, each axis from its least to its greatest value."""
    settings = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    axes = [*settings, *objectives]
    columns = {key: [_of(trial, key) for trial in trials] for key in axes}
    places = {key: _places(values) for key, values in columns.items()}
    figure, axis = pyplot.subplots(figsize=(max(6.0, 1.9 * len(axes)), 4.2))
    marked = {trial["number"] for trial in best}
    for at, trial in sorted(enumerate(trials), key=lambda one: one[1]["number"] in marked):  # the best ones on top
        heights = [places[key][0][at] for key in axes]
        special = trial["number"] in marked
        axis.plot(range(len(axes)), heights, color="#d1495b" if special else "#9aa5b1", alpha=1.0 if special else 0.5)
    for at, key in enumerate(axes):
        axis.axvline(at, color="black", linewidth=0.6)
        for height, text in places[key][1]:
            axis.text(at + 0.03, height, text, fontsize=8, va="center")
    axis.set_xticks(range(len(axes)), [_label(key) for key in axes])
    axis.set_yticks([])
    axis.set_xlim(-0.1, len(axes) - 0.6)
    for side in ("top", "left", "right", "bottom"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    return figure


def _of(trial: Mapping[str, Any], key: str) -> Any:
    return trial["metrics"][key] if key in trial["metrics"] else trial["settings"].get(key, "as in the job")


def _places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights between 0 and 1, and the labels of the axis."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers:
        low, high = min(values), max(values)
        spread = (high - low) or 1.0
        return [(value - low) / spread for value in values], [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")][
            : 1 + (high > low)
        ]
    known = sorted({str(value) for value in values})
    height = {text: at / max(1, len(known) - 1) for at, text in enumerate(known)}
    return [height[str(value)] for value in values], [(height[text], text) for text in known]


def _label(key: str) -> str:
    """The last part of a dotted key; of a short one, which means little by itself, the part before it too."""
    *above, last = key.split(".")
    return _words(f"{above[-1]} {last}" if above and len(last) < 6 else last)


def _words(key: str) -> str:
    return key.replace("_", " ")
