"""One decision on a terminal: what was seen, what could be done, what was chosen, and what it brought."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planaria.errors import InputError
from planaria.record.facts import Row, duration, known, plus, sentence, signed, thousands, words_of
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
    realised = "not measured" if row["gain_realised"] is None else f"{signed(row['gain_realised'])} nats a row"
    return Group(
        Text(f"Step {thousands(row['step'])}, sample {thousands(row['sample'])}, because of: {row['trigger']}"),
        Text(f"{row['chosen']}; {outcome}", style="bold"),
        Text(sentence(row["why"])),
        Text(""),
        _options(row),
        Text(""),
        _observation(row),
        Text(""),
        Text(f"predicted {signed(row['predicted'])} nats a row, brought {realised}; took {duration(row['seconds'])}"),
    )


def _options(row: Row) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("option", "heads", "value", "± s.e.", "price", "loss on recent", "on remembered"):
        table.add_column(column, justify="left" if column in ("option", "heads") else "right", no_wrap=True)
    for option in row["candidates"] or []:
        numbers = [option.get(name) for name in ("standard_error", "price", "loss_recent", "loss_memory")]
        table.add_row(
            option["name"],
            plus(option.get("heads") or []),
            signed(option.get("value")),
            *(f"{value:.4f}" if known(value) else "" for value in numbers),
            style="bold" if option["name"] == row["chosen"] else None,
        )
    return table


def _observation(row: Row) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for name, value in (row["observation"] or {}).items():
        table.add_row(words_of(name), f"{value:,.4g}" if known(value) else "not known")
    return table
