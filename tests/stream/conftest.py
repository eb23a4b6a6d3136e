"""Small tables written in every format, and streams over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from planaria.errors import InputError
from planaria.job import StreamSettings
from planaria.signals import Rows
from planaria.stream import fetch, open_stream

Table = dict[str, Any]
Open = Callable[..., Any]


def write(path: Path, table: Table | pa.Table, *, group: int = 40) -> Path:
    """A file in the format that the name's ending says, in row groups (batches) of `group` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table if isinstance(table, pa.Table) else pa.table(table)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=group)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        new = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return path


def example(rows: int = 300, seed: int = 0) -> Table:
    """Numbers with gaps, a category with gaps, text labels of which a third comes late, contexts."""
    random = np.random.default_rng(seed)
    row = np.arange(rows)
    number = random.standard_normal(rows)
    number[::17] = np.nan
    return {
        "number": pa.array(number, mask=row % 23 == 0),
        "whole": random.integers(-5, 5, rows),
        "place": pa.array(
            np.array(["north", "south", "east", "west"])[random.integers(0, 4, rows)], mask=row % 13 == 0
        ),
        "label": np.where(row < rows // 2, np.where(row % 3 == 0, "b", "a"), np.where(row % 3 == 0, "c", "a")),
        "regime": np.where(row < rows // 3, "calm", np.where(row < 2 * rows // 3, "wild", "calm")),
    }


SETTINGS: dict[str, Any] = {
    "features": {"numeric": ["number", "whole"], "categorical": ["place"]},
    "target": "label",
    "context": "regime",
}


def opened(location: Path | str, /, *, seed: int = 0, hold_out: float = 0.1, **changes: Any) -> Any:
    """A stream over files of `example`; the source follows from the location's ending."""
    ending = Path(location).suffix
    source = {".csv": "csv", ".arrow": "arrow", ".arrows": "arrow"}.get(ending, "parquet")
    more = {"stop_waiting": changes.pop("stop_waiting")} if "stop_waiting" in changes else {}
    settings = StreamSettings.model_validate({"source": source, "path": str(location), **SETTINGS, **changes})
    return open_stream(settings, seed=seed, base=Path("/"), hold_out_fraction=hold_out, **more)


def everything(rows: Rows) -> dict[str, np.ndarray[Any, Any]]:
    """All that rows show, as arrays."""
    shown = {"target": rows.target, "held_out": rows.held_out, **rows.select(slice(None))}
    return shown if rows.context is None else {**shown, "context": rows.context}


def same(left: dict[str, np.ndarray[Any, Any]], right: dict[str, np.ndarray[Any, Any]]) -> bool:
    """Bit for bit, missing numbers included."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def joined(parts: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="session")
def fashion() -> None:
    """Skips where Fashion-MNIST is neither here nor can be fetched."""
    try:
        fetch("fashion_mnist")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path / "data"))
    return tmp_path / "data"
