"""Rows in memory: a stream of them is the stream of the files or the set, also where a checkpoint changes hands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from planaria.job import StreamSettings
from planaria.signals import Stream
from planaria.stream import Loaded, load_stream, open_stream
from planaria.stream.loaded import about

ROWS = 700
SCENARIO = {"contexts": [{"name": "a", "samples": 500}, {"name": "b", "samples": 90}]}


def table(first: int) -> pa.Table:
    draws = np.random.default_rng(first)
    numbers = draws.normal(size=ROWS)
    numbers[::17] = np.nan
    return pa.table(
        {
            "number": pa.array(numbers, from_pandas=True),
            "count": draws.integers(0, 50, ROWS),
            "word": draws.choice(["red", "green", "blue"], ROWS),
            "label": draws.choice(["yes", "no", "maybe"], ROWS),
            "where": np.where(np.arange(ROWS) < 300, "here", "there"),
            "unused": draws.normal(size=ROWS),
        }
    )


WRITERS: dict[str, Callable[[pa.Table, str], object]] = {
    "csv": lambda rows, path: pyarrow.csv.write_csv(rows, path),
    "arrow": lambda rows, path: pyarrow.feather.write_feather(rows, path, chunksize=256),
    "parquet": lambda rows, path: pyarrow.parquet.write_table(rows, path, row_group_size=256),
}


def settings(folder: Path, source: str, **changes: Any) -> StreamSettings:
    for at in (0, 1):
        WRITERS[source](table(at), str(folder / f"part-{at}.{source}"))
    values = {
        "source": source,
        "path": str(folder),
        "features": {"numeric": ["number", "count"], "categorical": ["word"]},
        "target": "label",
        "context": "where",
        **changes,
    }
    return StreamSettings.model_validate(values)


def opened(stream: StreamSettings, seed: int, loaded: Loaded | None) -> Stream:
    return open_stream(stream, seed=seed, base=Path.cwd(), hold_out_fraction=0.1, loaded=loaded)


def load(stream: StreamSettings, seed: int, most_bytes: int = 1 << 30) -> Loaded | None:
    return load_stream(stream, seed=seed, base=Path.cwd(), most_bytes=most_bytes)


def everything(stream: Stream, start: int = 0) -> list[Any]:
    read = []
    while len(rows := stream.read(start, 96)):
        read += [rows.target, rows.context, rows.held_out, *rows.select(slice(None)).values()]
        start += len(rows)
    return [np.asarray(part).tolist() for part in read if part is not None]


@pytest.mark.parametrize("source", list(WRITERS))
@pytest.mark.parametrize(
    "scenario", [None, {"contexts": [{"name": "a", "samples": 500}, {"name": "b", "samples": 90}]}]
)
def test_rows_in_memory_are_those_of_the_files(
    source: str, scenario: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path / "data"))
    (tmp_path / "rows").mkdir()
    given = settings(tmp_path / "rows", source, scenario=scenario, **({"context": None} if scenario else {}))
    loaded = load(given, seed=3)
    assert loaded is not None and loaded.is_of(given, 3)
    ours, theirs = opened(given, 3, loaded), opened(given, 3, None)
    first, second = everything(ours), everything(theirs)
    assert str(first) == str(second), "NaN is not equal to itself"
    assert ours.state() == theirs.state() and ours.counts == theirs.counts and ours.total_rows == theirs.total_rows
    again = opened(given, 3, loaded)
    again.load_state(theirs.state())
    assert str(everything(again, 480)) == str(everything(theirs, 480)), "a checkpoint changes hands"


def test_rows_of_another_stream_are_not_taken(tmp_path: Path) -> None:
    given = settings(tmp_path, "csv")
    other = given.model_copy(
        update={"target": "word", "features": given.features.model_copy(update={"categorical": ()})}
    )
    loaded = load(given, seed=3)
    assert loaded is not None and not loaded.is_of(other, 3)
    assert opened(other, 3, loaded).read(0, 8).target.tolist() == opened(other, 3, None).read(0, 8).target.tolist()
    assert about(given, 3) == about(given, 4), "the seed changes nothing of what files hold"


def test_what_is_too_large_or_without_end_is_not_loaded(tmp_path: Path) -> None:
    given = settings(tmp_path, "parquet")
    assert load(given, seed=0, most_bytes=1_000) is None
    assert load(given.model_copy(update={"follow": True}), seed=0) is None
