"""What is remembered of a run: four tables, bounded in memory and on disk however long the stream is.

`Records` lives in the training loop's state and therefore in every checkpoint, so that a resumed run goes on
with the records it fell back to. All columns are exactly once, except those that measure wall-clock time.
"""

from __future__ import annotations

import io
import json
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from planaria.errors import InputError, RunError
from planaria.plain_arrow import check_parquet, load_arrow
from planaria.plain_json import load_json
from planaria.signals import Decision, Shift

Row = dict[str, Any]

_MOST_BYTES = 256 << 20
"""Of a table. Thousands of intervals and events take a few MiB."""
_MOST_ROWS = 1 << 20


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


_INT, _FLOAT, _TEXT, _HEADS = pa.int64(), pa.float64(), pa.string(), pa.list_(pa.int32())
_SHARES = pa.list_(pa.float64())

SCHEMAS: dict[str, pa.Schema] = {
    # One row per reporting interval. `samples` and `wall_seconds` count from the start of the run, `prequential_*`
    # is the mean since then; `accuracy`, `loss`, `mae`, `rmse`, `samples_per_second`, `parameters_active`,
    # `active_fraction` (of each layer's gated parameters) and `flops_per_sample` belong to the interval.
    "steps": _schema(
        step=_INT,
        samples=_INT,
        wall_seconds=_FLOAT,
        loss=_FLOAT,
        accuracy=_FLOAT,
        mae=_FLOAT,
        rmse=_FLOAT,
        prequential_loss=_FLOAT,
        prequential_accuracy=_FLOAT,
        prequential_mae=_FLOAT,
        prequential_rmse=_FLOAT,
        samples_per_second=_FLOAT,
        parameters=_INT,
        heads=_HEADS,
        parameters_active=_FLOAT,
        active_fraction=_SHARES,
        flops_per_sample=_INT,
        context=_INT,
        revision=_INT,
    ),
    # One row per revision. `accuracy` to `samples_per_second` describe the time it lived; `last_step` is null while
    # it lives.
    "revisions": _schema(
        number=_INT,
        parent=_INT,
        step=_INT,
        last_step=_INT,
        sample=_INT,
        last_sample=_INT,
        cause=_TEXT,
        why=_TEXT,
        edit=_TEXT,
        blueprint=_TEXT,
        heads=_HEADS,
        parameters=_INT,
        flops_per_sample=_INT,
        scores=_TEXT,
        gain_predicted=_FLOAT,
        gain_realised=_FLOAT,
        accuracy=_FLOAT,
        mae=_FLOAT,
        rmse=_FLOAT,
        loss=_FLOAT,
        samples=_INT,
        samples_per_second=_FLOAT,
    ),
    # One row per alarm. `delay` is in samples since the true change that it is the first to notice;
    # null where it is not the first, where there was none, and where true changes are not known.
    "shifts": _schema(
        step=_INT,
        sample=_INT,
        detector=_TEXT,
        kind=_TEXT,
        statistic=_FLOAT,
        threshold=_FLOAT,
        onset_sample=_INT,
        delay=_INT,
        concept=_INT,
    ),
    # One row per decision, those that kept the model included. `revision` is the one it led to.
    "decisions": _schema(
        number=_INT,
        step=_INT,
        sample=_INT,
        trigger=_TEXT,
        observation=_TEXT,
        candidates=_TEXT,
        chosen=_TEXT,
        why=_TEXT,
        seconds=_FLOAT,
        predicted=_FLOAT,
        gain_realised=_FLOAT,
        revision=_INT,
    ),
}

JSON_COLUMNS = frozenset({"edit", "blueprint", "scores", "observation", "candidates"})
"""Given as values (mappings, lists, dataclasses), kept as JSON text."""

MAX_EVENTS = 2_000
"""Rows kept of revisions, shifts and decisions each."""

# As plain data: asking an Arrow schema for each cell is slow.
_KINDS = {table: [(field.name, field.type) for field in schema] for table, schema in SCHEMAS.items()}
_CASTS: dict[pa.DataType, Callable[[Any], Any]] = {
    _INT: operator.index,
    _FLOAT: float,
    _TEXT: str,
    _SHARES: lambda shares: [float(share) for share in shares],
    _HEADS: lambda heads: [operator.index(n) for n in heads],
}

_OF_THE_INTERVAL = ("loss", "accuracy", "mae", "parameters_active")
"""Columns of `steps` that are means over the interval's samples."""


class Records:
    """The tables of a run. Not thread-safe: they belong to the training loop of rank 0."""

    def __init__(self, interval_samples: int, max_intervals: int, max_events: int = MAX_EVENTS) -> None:
        if min(interval_samples, max_events) < 1 or max_intervals < 2:
            raise ValueError("interval_samples and max_events must be at least 1, max_intervals at least 2")
        self.interval_samples = interval_samples
        """Samples that a row of `steps` covers; doubles each time neighbouring rows are merged."""
        self._max_intervals = max_intervals
        self._max_events = max_events
        self._rows: dict[str, list[Row]] = {name: [] for name in SCHEMAS}
        self._dropped: dict[str, int] = dict.fromkeys(SCHEMAS, 0)
        self._unwritten: set[str] = set(SCHEMAS)

    def rows(self, table: str) -> Sequence[Row]:
        """The rows kept of "steps", "revisions", "shifts" or "decisions", oldest first."""
        return self._rows[table]

    def count(self, table: str) -> int:
        """How many revisions, shifts or decisions there were, those no longer kept included."""
        return len(self._rows[table]) + self._dropped[table]

    def add_interval(self, row: Mapping[str, Any]) -> None:
        """Add what the latest stretch of samples showed. Call it every `interval_samples` or as often as at first:
        rows that come more often than the current interval are merged into the last one."""
        rows, new = self._rows["steps"], _checked("steps", row)
        self._unwritten.add("steps")
        if rows:
            before = rows[-2]["samples"] if len(rows) > 1 else 0
            covered, added = rows[-1]["samples"] - before, new["samples"] - rows[-1]["samples"]
            if covered + added / 2 <= self.interval_samples and added > 0:
                rows[-1] = _merged(rows[-1], new, covered, added)
                return
        rows.append(new)
        if len(rows) > self._max_intervals:
            self._rows["steps"] = _halved(rows)
            self.interval_samples *= 2

    def open_revision(self, row: Mapping[str, Any]) -> None:
        """Add a revision that begins to live."""
        self._add_event("revisions", row)

    def close_revision(self, number: int, **values: Any) -> None:
        """Set what is known of a revision once another takes its place (last_step, accuracy, samples, ...).

        Raises KeyError where there is no such revision.
        """
        self._update("revisions", number, values)

    def add_shift(self, row: Mapping[str, Any]) -> None:
        self._add_event("shifts", row)

    def add_decision(self, row: Mapping[str, Any]) -> None:
        self._add_event("decisions", row)

    def set_gain_realised(self, decision: int, value: float) -> None:
        """Set what a decision brought in the end, in its row and in the row of the revision it led to.

        A decision that is no longer kept is passed over.
        """
        row = self._find("decisions", decision)
        if row is None:
            return
        self._update("decisions", decision, {"gain_realised": value})
        if row["revision"] is not None and self._find("revisions", row["revision"]) is not None:
            self._update("revisions", row["revision"], {"gain_realised": value})

    def state(self) -> bytes:
        """Everything, as one Arrow IPC stream."""
        names = list(SCHEMAS)
        header = {"interval_samples": self.interval_samples, "dropped": self._dropped}
        columns = {"name": names, "rows": [_to_ipc(name, self._rows[name]) for name in names]}
        schema = pa.schema([("name", _TEXT), ("rows", pa.large_binary())], metadata={"planaria": json.dumps(header)})
        return _ipc_bytes(pa.table(columns, schema=schema))

    def load_state(self, state: bytes) -> None:
        """Take over what `state()` returned. Raises KeyError, TypeError or ValueError where it is not that."""
        most_rows = max(self._max_intervals, self._max_events)
        table = load_arrow(state, _MOST_BYTES, len(SCHEMAS))
        header = json.loads(table.schema.metadata[b"planaria"])
        self.interval_samples = int(header["interval_samples"])
        self._dropped = {name: int(header["dropped"][name]) for name in SCHEMAS}
        kept = dict(zip(table["name"].to_pylist(), table["rows"].to_pylist(), strict=True))
        self._rows = {name: load_arrow(kept[name], _MOST_BYTES, most_rows).to_pylist() for name in SCHEMAS}
        self._unwritten = set(SCHEMAS)

    def write(self, folder: Path) -> None:
        """Write steps, revisions, shifts and decisions.parquet, each whole or not at all; unchanged ones are left.

        Raises RunError where the folder cannot be written.
        """
        for name in SCHEMAS:
            path = folder / f"{name}.parquet"
            if name in self._unwritten or not path.exists():
                table = pa.Table.from_pylist(self._rows[name], schema=SCHEMAS[name])
                write_atomically(path, partial(pq.write_table, table, compression="zstd"))
        self._unwritten.clear()

    def _add_event(self, table: str, row: Mapping[str, Any]) -> None:
        self._rows[table].append(_checked(table, row))
        self._unwritten.add(table)
        if len(self._rows[table]) > self._max_events:
            kept = _without_oldest(table, self._rows[table], self._max_events)
            self._dropped[table] += len(self._rows[table]) - len(kept)
            self._rows[table] = kept

    def _update(self, table: str, number: int, values: Mapping[str, Any]) -> None:
        row = self._find(table, number)
        if row is None:
            raise KeyError(f"{table}: there is no number {number}")
        row.update(_checked(table, {**row, **values}))
        self._unwritten.add(table)

    def _find(self, table: str, number: int) -> Row | None:
        return next((row for row in reversed(self._rows[table]) if row["number"] == number), None)


def shift_row(shift: Shift, delay: int | None) -> Row:
    """The row of a shift; `delay` in samples since the true change, None where unknown or a false alarm."""
    return {**asdict(shift), "delay": delay}


def decision_row(number: int, decision: Decision, revision: int | None) -> Row:
    """The row of a decision; `revision` is the one it led to, None where it kept the model."""
    return {
        "number": number,
        "step": decision.step,
        "sample": decision.sample,
        "trigger": decision.trigger,
        "observation": decision.observation,
        "candidates": decision.candidates,
        "chosen": decision.chosen.name,
        "why": decision.why,
        "seconds": decision.seconds,
        "predicted": decision.chosen.value,
        "revision": revision,
    }


def read_rows(folder: Path, table: str) -> list[Row]:
    """The rows of one table of a run's folder, JSON decoded; none where the file does not exist yet.

    Raises InputError where the file is broken.
    """
    path = folder / f"{table}.parquet"
    if not path.is_file():
        return []
    try:
        check_parquet(path, _MOST_BYTES, _MOST_ROWS)
        rows: list[Row] = pq.read_table(path, schema=SCHEMAS[table]).to_pylist()
        for row in rows:
            for column in JSON_COLUMNS & row.keys():
                row[column] = None if row[column] is None else load_json(row[column])
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: cannot be read ({reason}); resume the run to write it again") from None
    return rows


def to_json(value: Any) -> str:
    """JSON text with sorted keys. Dataclasses and numpy numbers are taken; NaN and infinities become null."""
    return json.dumps(_plain(value), sort_keys=True, allow_nan=False)


def write_atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Let `write` fill a neighbouring file, then rename it over `path`, in a run's folder. Raises RunError where that
    fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        what_to_do = f"free some space or mend the folder's rights, then `planaria resume {path.parent}`"
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); {what_to_do}") from None


def _checked(table: str, row: Mapping[str, Any]) -> Row:
    """A whole row in the schema's order. Arrow would drop an unknown column in silence; here it raises ValueError."""
    unknown = row.keys() - {name for name, _ in _KINDS[table]}
    if unknown:
        raise ValueError(f"{table}: unknown columns {sorted(unknown)}")
    return {name: _cell(name, kind, row.get(name)) for name, kind in _KINDS[table]}


def _cell(column: str, kind: pa.DataType, value: Any) -> Any:
    if value is None:
        return None
    if column in JSON_COLUMNS and not isinstance(value, str):
        return to_json(value)
    return _CASTS[kind](value)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy number
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _halved(rows: list[Row]) -> list[Row]:
    """Neighbouring pairs merged; the last row stays alone where their number is odd."""
    covered = [row["samples"] - before["samples"] for before, row in zip([{"samples": 0}, *rows], rows, strict=False)]
    merged = [
        _merged(rows[i], rows[i + 1], covered[i], covered[i + 1]) if i + 1 < len(rows) else rows[i]
        for i in range(0, len(rows), 2)
    ]
    return merged


def _merged(first: Row, second: Row, first_samples: int, second_samples: int) -> Row:
    """One row for two neighbours: means over the samples, and whatever describes a moment from the second."""
    weights = (first_samples, second_samples)
    row = dict(second)
    for name in _OF_THE_INTERVAL:
        row[name] = _mean(first[name], second[name], weights)
    row["rmse"] = _mean(first["rmse"], second["rmse"], weights, up=lambda x: x * x, down=math.sqrt)
    # Samples over seconds: the mean of the seconds per sample.
    speeds = first["samples_per_second"], second["samples_per_second"]
    if all(speed is not None and speed > 0 for speed in speeds):
        row["samples_per_second"] = _mean(*speeds, weights, up=lambda x: 1 / x, down=lambda x: 1 / x)
    return row


def _mean(
    first: float | None,
    second: float | None,
    weights: tuple[int, int],
    up: Callable[[float], float] = float,
    down: Callable[[float], float] = float,
) -> float | None:
    """Weighted mean on the scale that `up` leads to; of the one that is known where the other is null."""
    if first is None or second is None:
        return second if first is None else first
    a, b = weights
    return down((a * up(first) + b * up(second)) / (a + b))


def _without_oldest(table: str, rows: list[Row], keep: int) -> list[Row]:
    """The newest rows, an eighth below the limit so that this is rare.

    Decisions that changed nothing go first; the first revision, from which all others come, stays.
    """
    excess = len(rows) - (keep - keep // 8)
    if table == "decisions":
        idle = [i for i, row in enumerate(rows) if row["revision"] is None][:excess]
        gone = set(idle)
        rows = [row for i, row in enumerate(rows) if i not in gone]
        excess -= len(idle)
    first = 1 if table == "revisions" and keep > 1 else 0
    return rows[:first] + rows[first + excess :]


def _to_ipc(table: str, rows: list[Row]) -> bytes:
    return _ipc_bytes(pa.Table.from_pylist(rows, schema=SCHEMAS[table]))


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()
