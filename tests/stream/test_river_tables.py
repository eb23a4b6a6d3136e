"""Tables that river brings along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from planaria.errors import InputError
from planaria.job import StreamSettings
from planaria.stream import open_stream
from planaria.stream.sets import river_tables


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path))
    return tmp_path


def test_a_real_table_comes_in_its_own_order_and_once_for_all_seeds(folder: Path) -> None:
    paths = {river_tables.fetch("phishing", seed) for seed in (0, 1)}
    assert paths == {folder / "phishing" / "rows.parquet"}
    table = pq.read_table(*paths)
    assert table.num_rows == 1_250
    assert table["target"].to_pylist()[:3] == ["True", "True", "True"]


def test_a_generated_table_is_a_function_of_the_seed() -> None:
    first, again, other = (
        river_tables._arrow(river_tables.TABLES["stagger_abrupt"], seed).to_pylist() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_abrupt_concepts_change_at_once_and_gradual_ones_are_mixed_around_the_change() -> None:
    for name, mixed in (("sea_abrupt", False), ("sea_gradual", True)):
        concept = np.array([place for _, place in river_tables.TABLES[name].rows(0)])
        assert (concept[:3_000] == 0).mean() > 0.99 and (concept[-3_000:] == 3).mean() > 0.99
        before = concept[4_500:5_000]
        assert ((before == 1).mean() > 0.1) == mixed
        assert (concept[5_000:5_500] == 0).any() == mixed


def test_words_are_categories_and_a_job_names_the_table_alone() -> None:
    stream = open_stream(StreamSettings(source="stagger_abrupt"), seed=3, base=Path.cwd(), hold_out_fraction=0.0)
    assert stream.fields.categorical == ("size", "color", "shape") and not stream.fields.numeric
    rows = stream.read(0, 64)
    assert len(rows) == 64 and len(stream.labels) == 2
    assert river_tables.fetch("stagger_abrupt", 3).exists()


def test_a_path_beside_a_tables_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"stream\.path: the set bananas brings its own; remove it"):
        open_stream(StreamSettings(source="bananas", path="x.parquet"), seed=0, base=Path.cwd(), hold_out_fraction=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", river_tables.TABLES)
def test_every_table_can_be_made_and_read(name: str) -> None:
    stream = open_stream(StreamSettings(source=name), seed=1, base=Path.cwd(), hold_out_fraction=0.0)
    assert len(stream.read(0, 500)) == 500
