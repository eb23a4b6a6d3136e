"""The table that `planaria compare` ends with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Column, Table


def table(results: Mapping[str, Any]) -> Table:
    """A row a contestant; means over seeds and halves of their 95% intervals."""
    score, seeds = results["score"], len(results["seeds"])
    title = f"{results['job']}: mean ± half of the 95% interval, {seeds} seed{'s' * (seeds != 1)}"
    name = Column("", overflow="fold")  # names that differ at their end only must be seen whole
    shown = Table(name, f"prequential {score}", f"final {score}", "parameters", "samples per CPU second", title=title)
    for one in results["contestants"]:
        shown.add_row(
            one["name"],
            _cell(one, "score", ".4f"),
            _cell(one, "final", ".4f"),
            _cell(one, "parameters", ",.0f"),
            _cell(one, "samples_per_cpu_second", ",.0f"),
        )
    return shown


def _cell(one: Mapping[str, Any], column: str, form: str) -> str:
    value, half = one[column], one[f"{column}_ci95"]
    if value is None:
        return ""
    return f"{value:{form}}" if half is None else f"{value:{form}} ± {half:{form}}"
