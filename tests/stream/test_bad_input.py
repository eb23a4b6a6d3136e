"""Every mistake gets one line: where, what, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.stream.conftest import example, opened, write

from planaria.errors import InputError, RunError
from planaria.job import StreamSettings
from planaria.stream import fetch, open_stream


def refused(location: Path | str, /, **changes: Any) -> str:
    with pytest.raises(InputError) as refusal:
        opened(location, **changes)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def breaks(stream: Any, rows: int = 1_000) -> str:
    with pytest.raises(RunError) as refusal:
        for start in range(0, rows, 50):
            stream.read(start, 50)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path / "good.parquet", example())


def test_a_missing_file_is_named_with_its_nearest_neighbour(good: Path) -> None:
    words = refused(good.parent / "god.parquet")
    assert "god.parquet is not there (did you mean 'good.parquet'?); give a file, folder or glob" in words


def test_a_missing_column_is_named_with_its_nearest_neighbour(good: Path) -> None:
    words = refused(good, target="lable")
    assert "good.parquet: has no column 'lable' (did you mean 'label'?); it has number, whole, place" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": {"numeric": ["place"]}}, "'place' holds text, but features.numeric needs numbers; convert it or"),
        (
            {"features": {"numeric": ["whole"]}, "target": "number"},
            "target 'number' holds decimal numbers, but labels must be whole numbers, text or",
        ),
        ({"task": "regression"}, "target 'label' holds text, but regression needs numbers; use task: classification"),
        ({"features": {}}, "stream.features: no column is named; list columns under numeric, categorical or image"),
        ({"target": None}, "stream.target: is missing; name the column to predict"),
        ({"target": "place"}, "stream.target: 'place' is also a feature; remove it from stream.features"),
        ({"context": "place"}, "stream.context: 'place' is also a feature or the target; it must be hidden"),
        ({"features": {"numeric": ["whole"], "categorical": ["whole"]}}, "stream.features: 'whole' is named twice"),
        (
            {"features": {"numeric": ["whole"], "image": {"column": "i", "shape": [2, 2]}}},
            "stream.features: an image and other columns together cannot be learned from; keep one of them",
        ),
        (
            {"features": {"image": {"column": "i", "shape": [2, 0]}}},
            "stream.features.image.shape: is [2, 0]; every size must be at least 1",
        ),
        ({"source": "parket"}, "stream.source: 'parket' is not known (did you mean 'parquet'?); use one of parquet, "),
        ({"source": "csv"}, "good.parquet: cannot be read as CSV"),
        ({"source": "arrow"}, "good.parquet: cannot be read as Arrow IPC"),
        ({"path": None}, "stream.path: is missing; name the parquet file, folder or glob"),
        ({"path": "nowhere://x/y"}, "stream.path: nowhere://x/y cannot be opened"),
        ({"follow": True}, "good.parquet is one file; name the folder in which new files arrive"),
        (
            {"follow": True, "scenario": {"contexts": [{"name": "a", "samples": 9}]}},
            "stream.follow: a scenario needs all rows at the start; remove follow or scenario",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(good: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(good, **changes)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "holds no parquet file (.parquet, .pq); correct it, or set follow: true" in refused(tmp_path)


def test_an_empty_stream_is_refused(tmp_path: Path) -> None:
    empty = pa.table(example(10)).slice(0, 0)
    assert "a.parquet holds no rows; give files with at least one" in refused(write(tmp_path / "a.parquet", empty))
    header = tmp_path / "a.csv"
    header.write_text("number,whole,place,label,regime\n")
    assert "a.csv holds no rows" in refused(header)
    (tmp_path / "b.csv").write_text("")
    assert "b.csv: cannot be read as CSV (Empty CSV file)" in refused(tmp_path / "b.csv")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", {**example(30), "label": ["same"] * 30})
    assert "stream.target: 'label' is 'same' in all 30 rows; a classifier needs at least two labels" in refused(path)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", example())
    path.write_bytes(path.read_bytes()[:-200])
    assert f"a.{ending}: cannot be read as" in refused(path)
    assert "it may be truncated or damaged: write it again or remove it" in refused(path)


def test_a_file_damaged_within_ends_the_run_and_names_the_row(tmp_path: Path) -> None:
    for part in range(2):
        table = {"x": np.random.default_rng(part).random(2_000), "y": np.arange(2_000) % 2}
        path = write(tmp_path / f"{part}.parquet", table, group=500)
    stream = opened(tmp_path, features={"numeric": ["x"]}, target="y", context=None)
    data = bytearray(path.read_bytes())
    data[9_000:12_000] = b"\xff" * 3_000
    path.write_bytes(data)
    words = breaks(stream, 4_000)
    assert "1.parquet: from row" in words and "it may be truncated or damaged" in words


def test_a_column_that_goes_missing_midway_is_refused_before_the_run(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", example())
    table = example()
    del table["whole"]
    write(tmp_path / "2.parquet", table)
    assert "2.parquet: has no column 'whole'" in refused(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        (
            "label",
            [1, 2] * 150,
            "column 'label' holds whole numbers, but the files before it hold text; write it with one",
        ),
        (
            "place",
            [1, 2] * 150,
            "column 'place' holds numbers, but the files before it hold text; write it with one type",
        ),
        ("number", ["a", "b"] * 150, "column 'number' holds text, but features.numeric needs numbers"),
    ],
)
def test_a_type_that_changes_midway_is_refused(tmp_path: Path, column: str, values: list[Any], words: str) -> None:
    write(tmp_path / "1.parquet", example())
    late = write(tmp_path / "2.parquet", {**example(), column: values})
    assert words in refused(tmp_path)
    data = late.read_bytes()
    late.unlink()
    stream = opened(tmp_path, follow=True)
    late.write_bytes(data)
    assert f"2.parquet: {words}" in breaks(stream)


def test_whole_numbers_that_become_decimals_midway_are_still_numbers(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", {**example(), "place": [1, 2, 3] * 100})
    write(tmp_path / "2.parquet", {**example(), "place": [2.0, np.nan, 1.0] * 100})
    stream = opened(tmp_path)
    assert stream.read(0, 3).select(slice(None))["categorical"][:, 0].tolist() == [1, 2, 3]
    assert stream.read(300, 3).select(slice(None))["categorical"][:, 0].tolist() == [2, 0, 1]


def test_a_csv_label_of_another_type_names_its_line(tmp_path: Path) -> None:
    rows = "".join(f"{n},1,north,{n % 2},calm\n" for n in range(200_000))
    (tmp_path / "a.csv").write_text("number,whole,place,label,regime\n" + rows + "1,1,north,maybe,calm\n")
    words = breaks(opened(tmp_path / "a.csv"), 210_000)
    assert "a.csv: after row " in words and "Row #200002" in words and "invalid value 'maybe'" in words


def test_a_csv_line_with_too_few_cells_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("number,whole,place,label,regime\n1,1,n,a,c\n1,1,n,b\n")
    assert "a.csv: cannot be read as CSV (CSV parse error: Row #3: Expected 5 columns, got 4" in refused(
        tmp_path / "a.csv"
    )


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("number,whole,place,label,regime,label\n1,1,n,a,c,b\n")
    assert "a.csv: 2 columns are called 'label'; rename all but one" in refused(tmp_path / "a.csv")


def test_a_missing_label_ends_the_run_and_names_the_row(tmp_path: Path) -> None:
    labels: list[str | None] = ["a", "b"] * 150
    labels[120] = None
    stream = opened(write(tmp_path / "a.parquet", {**example(), "label": labels}))
    assert len(stream.read(0, 120)) == 120
    assert breaks(stream) == f"{tmp_path}/a.parquet: row 121: 'label' is missing; drop the row or fill it"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_target_that_is_no_number_ends_the_run_and_names_the_row(tmp_path: Path, value: float) -> None:
    target = np.arange(300.0)
    target[77] = value
    stream = opened(write(tmp_path / "a.parquet", {**example(), "label": target}), task="regression")
    assert "a.parquet: row 78: target 'label' is missing or infinite; drop the row or fill it" in breaks(stream)


def test_an_identifier_as_target_ends_the_run(tmp_path: Path) -> None:
    rows = 70_000
    table = {"x": np.zeros(rows), "y": np.arange(rows)}
    stream = opened(
        write(tmp_path / "a.parquet", table, group=rows), features={"numeric": ["x"]}, target="y", context=None
    )
    assert "row 65537: 'y' has more than 65536 different values; name another column" in breaks(stream, rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "x.csv"}, "stream.path: the set fashion_mnist brings its own; remove it"),
        ({"target": "y"}, "stream.target: the set fashion_mnist brings its own; remove it"),
        ({"task": "regression"}, "stream.task: fashion_mnist has classes; use task: classification"),
    ],
)
def test_a_named_set_brings_its_own_columns(changes: dict[str, Any], words: str) -> None:
    settings = StreamSettings.model_validate({"source": "fashion_mnist", **changes})
    with pytest.raises(InputError, match=words):
        open_stream(settings, seed=0, base=Path("/"), hold_out_fraction=0.0)


def test_an_unknown_set_is_named_with_its_nearest_neighbour() -> None:
    with pytest.raises(InputError, match=r"'fashion' is not a named set \(did you mean 'fashion_mnist'\?\)"):
        fetch("fashion")
