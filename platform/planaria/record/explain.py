"""One decision on a terminal: what was seen, what could be done, what was chosen, and what it brought."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planaria.errors import InputError
from planaria.record.facts import Row, duration, known, plus, sentence, signed, thousands, words_of
from planaria.record.outcomes import chosen_option, gain_words, ground_words, looked_ahead
from planaria.record.tables import read_rows


def find_decision(folder: Path, step: int | None) -> Row:
    """The decision taken at a step, or the newest one. Raises InputError, naming the nearest, where there is none."""
    decisions = read_rows(folder, "decisions")
    if not decisions:
        raise InputError(f"{folder}: no decision was taken yet; the first one follows a shift, or some thousand rows")
    if step is None:
        return decisions[-1]
    found = next((row for row in decisions if row["step"] == step), None)
    if found is None:
        nearest = min(decisions, key=lambda row: abs(row["step"] - step))["step"]
        raise InputError(f"{folder}: no decision was taken at step {step}; the nearest is --step {nearest}")
    return found


def explanation(row: Row) -> RenderableType:
    """The decision as text and tables. Values are nats per row over keeping the model as it is."""
    outcome = "kept the model" if row["revision"] is None else f"led to revision {row['revision']}"
    realised = f"{gain_words(row)} nats a row" if known(row["gain_realised"]) else gain_words(row)
    took = f"took {duration(row['seconds'])}" if known(row["seconds"]) else "time not known"
    return Group(
        Text(f"Step {thousands(row['step'])}, sample {thousands(row['sample'])}, because of: {row['trigger']}"),
        Text(f"{row['chosen']}; {outcome}", style="bold"),
        Text(sentence(row["why"])),
        Text(""),
        _options(row),
        Text(""),
        _observation(row),
        Text(""),
        Text(f"predicted {signed(row['predicted'])} nats a row, brought {realised}; {ground_words(row)}, {took}"),
    )


def _options(row: Row) -> Table:
    """At most 120 columns wide: long names are folded. Text() keeps brackets in names from being read as markup."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("option", overflow="fold")
    table.add_column("heads", overflow="fold")
    for column in ("predicted ± error", "value ± s.e.", "price", "loss recent / remembered"):
        table.add_column(column, justify="right", no_wrap=True)
    chosen = chosen_option(row)
    for option in row["candidates"] or []:
        table.add_row(
            Text(str(option["name"])),
            Text(plus(option.get("heads") or [])),
            _with_error(option.get("predicted"), option.get("predicted_error")),
            _with_error(option.get("value"), option.get("standard_error")),
            f"{option['price']:.4f}" if known(option.get("price")) else "",
            _losses(option),
            style="bold" if option is chosen else None,
        )
    return table


def _with_error(value: Any, error: Any) -> str:
    if not known(value):
        return "not known"
    return signed(value) + (f" ± {error:.3f}" if known(error) else "")


def _losses(option: Mapping[str, Any]) -> str:
    if not looked_ahead(option):
        return "not looked ahead"
    losses = (option.get("loss_recent"), option.get("loss_memory"))
    return " / ".join(f"{loss:.4f}" if known(loss) else "none" for loss in losses)


def _observation(row: Row) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in (row["observation"] or {}).items():
        table.add_row(words_of(name), f"{value:,.4g}" if known(value) else "not known")
    return table
