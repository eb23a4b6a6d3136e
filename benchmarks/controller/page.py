"""Tables and picture of docs/controller.md from benchmarks/results: controller, regret and ablations (.json).

python -m benchmarks.controller.page            # prints the tables, writes docs/images/controller.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from benchmarks.controller import ablations, regret
from benchmarks.controller.compare import RESULTS, SIZES
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "controller.png"
_MARKERS = {
    "ours": ("*", "tab:red", 220),
    "full look-ahead": ("P", "tab:orange", 70),
    "tuned thresholds": ("s", "tab:blue", 50),
    "LinUCB": ("D", "tab:purple", 45),
    "always grow": ("^", "tab:green", 55),
    "random": ("o", "tab:gray", 45),
}


def main() -> None:
    results = json.loads(RESULTS.read_text())
    families = sorted({row["family"] for row in results["means"]})
    for line in [*costs(results["means"], families), "", *table(results["comparisons"], families)]:
        print(line)
    for path, lines in ((regret.RESULTS, regrets), (ablations.OUT, without)):
        if path.exists():
            print("", *lines(json.loads(path.read_text())), sep="\n")
    figure, axes = plt.subplots(1, len(families), figsize=(4.2 * len(families), 3.8), constrained_layout=True)
    for axis, family in zip(axes, families, strict=True):
        draw(axis, family, [row for row in results["means"] if row["family"] == family])
    axes[0].set_ylabel("prequential cross-entropy, nats")
    axes[-1].legend(fontsize=7)
    figure.savefig(IMAGE, dpi=110)


def costs(means: Sequence[Mapping[str, Any]], families: Sequence[str]) -> list[str]:
    """J, what it is made of, and what deciding cost, families side by side."""
    cells = {(row["family"], row["name"]): row for row in means}
    lines = [f"| J (loss; mean heads; cost of decisions) | {' | '.join(families)} |", f"|---|{'---|' * len(families)}"]
    for name in dict.fromkeys(row["name"] for row in means):
        shown = [cells[family, name] for family in families]
        texts = [f"{r['J']:.3f} ({r['loss']:.3f}; {r['heads']:.1f}; {100 * r['extra']:.0f}%)" for r in shown]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return lines


def table(comparisons: Sequence[Mapping[str, Any]], families: Sequence[str]) -> list[str]:
    """Ours minus each of the others, families side by side."""
    rivals = list(dict.fromkeys(row["against"] for row in comparisons))
    cells = {(row["family"], row["against"]): row for row in comparisons}
    lines = [f"| J of ours minus that of | {' | '.join(families)} |", f"|---|{'---|' * len(families)}"]
    for rival in rivals:
        shown = [cell(cells[family, rival]) for family in families]
        lines.append(f"| {rival} | {' | '.join(shown)} |")
    return lines


def regrets(results: Mapping[str, Any]) -> list[str]:
    """Nats lost per decision on the test families, by values with and without an inner loop."""
    names = ("keep", *(f"{mode}, {support} outcomes" for mode in ("anil", "pooled") for support in (0, 16)))
    lines = [
        f"| family | decisions | looked ahead | {' | '.join(names)} | ANIL - pooled after 16 |",
        f"|---|---|---|{'---|' * len(names)}---|",
    ]
    for row in results["regret"]:
        low, high = row["ci95"]
        lost = " | ".join(f"{row[name]:.4f}" for name in names)
        difference = f"{row['anil - pooled']:+.4f} [{low:+.4f}, {high:+.4f}]"
        looked = "yes" if row["looked"] else "no"
        lines.append(f"| `{row['family']}` | {row['decisions']} | {looked} | {lost} | {difference} |")
    return lines


def without(results: Mapping[str, Any]) -> list[str]:
    """What is lost without each part: of J in whole runs, and of regret per decision."""
    lines = ["| without | J without it minus J with it |", "|---|---|"]
    lines += [f"| {row['without']} | {cell(row)} |" for row in results["machinery"]]
    columns = [name for name in results["value"][0] if name != "value"]
    lines += ["", f"| value | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {row['value']} | {' | '.join(f'{row[name]:.4f}' for name in columns)} |" for row in results["value"]]
    return lines


def cell(row: Mapping[str, Any]) -> str:
    low, high = row["ci95"]
    text = f"{row['d_j_mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if high < 0 else text


def draw(axis: Axes, family: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Loss against heads: below and left is better."""
    by_name = {row["name"]: row for row in rows}
    fixed = [by_name[f"fixed at {heads}"] for heads in SIZES]
    axis.plot([r["heads"] for r in fixed], [r["loss"] for r in fixed], "k.-", linewidth=1, label="fixed sizes")
    for name, (marker, colour, size) in _MARKERS.items():
        if name in by_name:
            row = by_name[name]
            axis.scatter(row["heads"], row["loss"], marker=marker, c=colour, s=size, label=name, zorder=3)
    axis.set_title(family)
    axis.set_xlabel("mean heads")
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
