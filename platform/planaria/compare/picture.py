"""compare.png: how each contestant's score went along the stream, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Left: scores along the stream, mean over seeds and the range between them. Right: score against speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (along, cost) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(2, 1), constrained_layout=True)
    for place, contestant in enumerate(results["contestants"]):
        colour = f"C{place % 10}"
        curves = [run["curve"] for run in results["runs"] if run["name"] == contestant["name"]]
        length = min(map(len, curves))
        if length:
            rows = np.array([point[0] for point in curves[0][:length]])
            scores = np.array([[point[1] for point in curve[:length]] for curve in curves])
            along.plot(rows, scores.mean(0), color=colour, label=contestant["name"], linewidth=1.4)
            along.fill_between(rows, scores.min(0), scores.max(0), color=colour, alpha=0.15, linewidth=0)
        half = contestant["score_ci95"] or 0.0
        cost.errorbar(contestant["samples_per_cpu_second"], contestant["score"], yerr=half, fmt="o", color=colour)
        cost.annotate(
            contestant["name"],
            (contestant["samples_per_cpu_second"], contestant["score"]),
            textcoords="offset points",
            xytext=(6, 4),
            fontsize=8,
        )
    along.set(xlabel="rows", ylabel=f"prequential {results['score']}", title=results["job"])
    along.legend(fontsize=8)
    cost.set(xlabel="samples per CPU second", xscale="log", title="mean and 95% interval")
    cost.margins(x=0.3)
    for axis in (along, cost):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
