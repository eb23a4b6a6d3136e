from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stream.conftest import everything, example, joined, opened, same, write

ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    for ending in ("parquet", "csv", "arrow", "arrows"):
        write(folder / f"whole.{ending}", example(ROWS))
    return folder


@pytest.mark.parametrize("ending", ["csv", "arrow", "arrows"])
def test_every_format_gives_the_rows_that_parquet_gives(folder: Path, ending: str) -> None:
    expected = opened(folder / "whole.parquet")
    stream = opened(folder / f"whole.{ending}")
    assert same(everything(stream.read(0, ROWS)), everything(expected.read(0, ROWS)))
    assert stream.labels == expected.labels == ["b", "a", "c"]
    assert stream.contexts == ["calm", "wild"]
    assert stream.counts == expected.counts


def test_missing_numbers_are_nan_and_counted(folder: Path) -> None:
    stream = opened(folder / "whole.parquet")
    features = stream.read(0, ROWS).select(slice(None))
    gaps = {row for row in range(ROWS) if row % 17 == 0 or row % 23 == 0}
    assert set(np.flatnonzero(np.isnan(features["numeric"][:, 0]))) == gaps
    assert stream.counts["missing"] == {"number": len(gaps), "whole": 0, "place": len(range(0, ROWS, 13))}
    assert (features["categorical"][::13] == 0).all()
    assert features["numeric"].dtype == np.float32 and features["categorical"].dtype == np.int64


def test_infinite_and_too_large_numbers_are_missing_and_counted(tmp_path: Path) -> None:
    table = example(20)
    table["whole"] = np.array([np.inf, -np.inf, 1e300, *range(17)])
    stream = opened(write(tmp_path / "a.parquet", table))
    assert np.isnan(stream.read(0, 20).select(slice(0, 3))["numeric"][:, 1]).all()
    assert stream.counts["infinite"] == {"number": 0, "whole": 3}


def test_categories_beyond_the_capacity_share_zero_and_are_counted(tmp_path: Path) -> None:
    table = example(40)
    table["place"] = [f"place {row % 8}" for row in range(40)]
    stream = opened(write(tmp_path / "a.parquet", table), categories=4)
    categories = stream.read(0, 40).select(slice(None))["categorical"][:, 0]
    assert categories[:8].tolist() == [1, 2, 3, 0, 0, 0, 0, 0]
    assert stream.counts["overflow"] == {"place": 25}
    assert stream.counts["unseen"] == {"place": 3}


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow", "arrows"])
@pytest.mark.parametrize("labels", [[7, 3, 11], [True, False, True], ["x", "y", "z"]])
def test_labels_of_every_type_are_numbered_as_they_come(tmp_path: Path, ending: str, labels: list[object]) -> None:
    table = {**example(30), "label": labels * 10}
    stream = opened(write(tmp_path / f"a.{ending}", table))
    rows = stream.read(0, 30)
    assert stream.labels == list(dict.fromkeys(labels))
    assert [stream.labels[number] for number in rows.target] == labels * 10


def test_labels_are_known_only_once_a_row_shows_them(folder: Path) -> None:
    stream = opened(folder / "whole.parquet")
    stream.read(0, ROWS // 2)
    assert stream.labels == ["b", "a"]
    assert stream.read(ROWS // 2, 1).target.tolist() == [2]
    assert stream.labels == ["b", "a", "c"]


def test_a_regression_has_float_targets_and_no_labels(tmp_path: Path) -> None:
    table = {**example(50), "label": np.arange(50) / 2}
    stream = opened(write(tmp_path / "a.csv", table), task="regression")
    rows = stream.read(0, 50)
    assert rows.target.dtype == np.float32 and rows.target.tolist() == (np.arange(50) / 2).tolist()
    assert stream.labels == []


def test_the_stream_ends_after_its_last_row(folder: Path) -> None:
    stream = opened(folder / "whole.parquet")
    assert stream.total_rows == ROWS
    assert len(stream.read(ROWS - 10, 64)) == 10
    assert len(stream.read(ROWS, 64)) == 0
    assert stream.available(ROWS - 10) == 10
    empty = stream.read(ROWS + 5, 64).select(slice(None))
    assert empty["numeric"].shape == (0, 2) and empty["categorical"].shape == (0, 1)


def test_contexts_tell_where_the_true_changes_are(folder: Path) -> None:
    stream = opened(folder / "whole.parquet")
    stream.read(0, 150)
    stream.read(150, 150)
    assert [stream.change_before(row) for row in (0, 99, 100, 199, 200, 299)] == [None, None, 100, 100, 200, 200]


def test_held_out_rows_depend_on_the_seed_and_the_row_alone(folder: Path) -> None:
    first, second = opened(folder / "whole.parquet"), opened(folder / "whole.parquet")
    whole = first.read(0, ROWS).held_out
    assert 10 < whole.sum() < 60
    assert (second.read(100, 50).held_out == whole[100:150]).all()
    assert (opened(folder / "whole.parquet", seed=1).read(0, ROWS).held_out != whole).any()
    assert not opened(folder / "whole.parquet", hold_out=0.0).read(0, ROWS).held_out.any()


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow", "arrows"])
@given(cuts=st.lists(st.integers(1, ROWS - 1), max_size=8, unique=True))
def test_slices_put_together_are_the_whole(folder: Path, ending: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), ROWS]
    stream, whole = opened(folder / f"whole.{ending}"), opened(folder / f"whole.{ending}")
    parts = [everything(stream.read(a, b - a)) for a, b in itertools.pairwise(edges)]
    assert same(joined(parts), everything(whole.read(0, ROWS)))
    assert stream.counts == whole.counts


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow", "arrows"])
@settings(max_examples=20)
@given(at=st.integers(1, ROWS - 1), back=st.integers(0, ROWS), batch=st.integers(1, 70))
def test_a_resumed_stream_goes_on_as_if_it_had_never_stopped(
    tmp_path_factory: pytest.TempPathFactory, ending: str, at: int, back: int, batch: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"parts-{ending}"
    if not folder.exists():
        for part in range(5):
            table = {name: values[part * 60 : part * 60 + 60] for name, values in example(ROWS).items()}
            write(folder / f"part-{part}.{ending}", table, group=25)
    source = {"csv": "csv", "parquet": "parquet"}.get(ending, "arrow")
    whole = opened(folder, source=source)
    for start in range(0, at, batch):
        whole.read(start, min(batch, at - start))
    resumed = opened(folder, source=source)
    resumed.load_state(whole.state())
    start = max(0, at - back)
    for stream in (resumed, whole):  # What was read before may be read again, and changes nothing.
        stream.read(start, at - start)
    assert same(everything(resumed.read(at, ROWS)), everything(whole.read(at, ROWS)))
    assert resumed.state() == whole.state()


def test_rows_read_again_are_not_counted_again(folder: Path) -> None:
    stream = opened(folder / "whole.parquet")
    stream.read(0, 200)
    state = stream.state()
    before = everything(stream.read(50, 100))
    stream.read(150, 50)
    assert stream.state() == state
    assert same(everything(stream.read(50, 100)), before)


def test_changing_what_was_read_changes_nothing_that_is_read_later(folder: Path) -> None:
    stream = opened(folder / "whole.parquet")
    before = everything(stream.read(0, 50))
    rows = stream.read(0, 50)
    for values in (rows.target, rows.held_out, *rows.select(slice(None)).values()):
        values[:] = 0
    assert same(everything(stream.read(0, 50)), before)


def test_available_sees_far_enough_for_large_batches(tmp_path: Path) -> None:
    table = {"x": np.zeros(50_000), "y": np.arange(50_000) % 2}
    path = write(tmp_path / "a.parquet", table, group=7_000)
    stream = opened(path, features={"numeric": ["x"]}, target="y", context=None)
    assert stream.available(0) == 50_000 and stream.available(49_000) == 1_000
    assert len(stream.read(0, 40_000)) == 40_000


def test_a_row_within_a_parquet_file_is_reached_without_reading_what_lies_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    groups: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def noted(self: pq.ParquetFile, *args: object, **kwargs: object) -> object:
        groups.extend(kwargs["row_groups"])  # type: ignore[arg-type]
        return iterate(self, *args, **kwargs)

    path = write(tmp_path / "a.parquet", example(300), group=50)
    stream = opened(path)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    stream.read(230, 10)
    assert groups == [4, 5]


def test_files_are_read_in_the_order_of_their_names_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    for name, value in (("b/2", 3.0), ("a", 1.0), ("b/1", 2.0), ("_hidden", 9.0), (".dot", 9.0)):
        write(tmp_path / f"{name}.parquet", {**example(4), "whole": [value] * 4})
    (tmp_path / "c.parquet.tmp").write_bytes(b"not yet")
    (tmp_path / "notes.txt").write_text("not a table")
    numbers = opened(tmp_path).read(0, 99).select(slice(None))["numeric"][:, 1]
    assert numbers.tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert len(opened(tmp_path / "*.parquet").read(0, 99)) == 4
    assert len(opened(tmp_path / "**/*.parquet").read(0, 99)) == 12
    assert len(opened(f"file://{tmp_path}/b/[1].parquet").read(0, 99)) == 4


def test_csv_may_be_compressed_or_have_another_delimiter(tmp_path: Path) -> None:
    import gzip

    plain = write(tmp_path / "a.csv", example(30))
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "a.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "b.csv").write_text(plain.read_text().replace(",", ";"))
    expected = everything(opened(plain).read(0, 30))
    assert same(everything(opened(tmp_path / "zipped", source="csv").read(0, 30)), expected)
    assert same(everything(opened(tmp_path / "b.csv", delimiter=";").read(0, 30)), expected)


def test_a_quoted_na_in_csv_is_text_and_a_bare_one_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('number,whole,place,label,regime\n1,NA,"NA",a,x\n,2,NA,b,x\n')
    features = opened(path).read(0, 2).select(slice(None))
    assert np.isnan(features["numeric"]).tolist() == [[False, True], [True, False]]
    assert features["categorical"][:, 0].tolist() == [1, 0]
