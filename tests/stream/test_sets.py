from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from planaria.errors import InputError
from planaria.job import StreamSettings
from planaria.stream import FETCHED, NAMES, fetch, open_stream
from planaria.stream.sets import fashion_mnist, weather


@pytest.fixture(scope="module")
def rain() -> Path:
    try:
        return fetch("weather")
    except InputError as error:
        pytest.skip(str(error))


def test_of_the_named_sets_two_need_the_network() -> None:
    assert FETCHED == ("fashion_mnist", "weather")
    assert {*FETCHED, "phishing", "sea_abrupt"} < set(NAMES)


def test_the_weathers_target_is_the_rain_of_the_next_hour(rain: Path) -> None:
    rows = pq.read_table(rain).to_pylist()
    assert len(rows) == 26_067
    when = {(row["origin"], row["time_hour"]): row for row in rows}
    checked = 0
    for row in rows:
        later = when.get((row["origin"], row["time_hour"] + datetime.timedelta(hours=1)))
        if later is not None:
            assert (row["next_hour"] == "rain") == (later["precip"] > 0)
            checked += 1
    assert checked > 26_000
    order = [(row["time_hour"], row["origin"]) for row in rows]
    assert order == sorted(order)


def test_the_weather_streams_in_the_order_of_time_with_months_as_contexts(rain: Path) -> None:
    stream = open_stream(StreamSettings(source="weather"), seed=0, base=Path("/"), hold_out_fraction=0.05)
    rows = stream.read(0, 30_000)
    assert len(rows) == stream.total_rows == 26_067
    assert rows.context is not None and (np.diff(rows.context) >= 0).all()
    assert stream.contexts == [str(month) for month in range(1, 13)]
    assert stream.labels == ["dry", "rain"] and stream.fields.categorical == ("origin",)
    assert "month" not in stream.fields.numeric
    own = open_stream(
        StreamSettings.model_validate(
            {"source": "parquet", "path": str(rain), "features": {"numeric": ["temp"]}, "target": "next_hour"}
        ),
        seed=0,
        base=Path("/"),
        hold_out_fraction=0.05,
    )
    assert (own.read(0, 30_000).target == rows.target).all()


def test_a_next_hour_that_was_not_recorded_leaves_no_row() -> None:
    header = "origin,month,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour\n"
    hours = [("B", 0, 0), ("A", 0, 0), ("A", 1, 0.3), ("A", 3, 0), ("A", 4, 0), ("B", 1, 0)]
    lines = [f"{origin},1,{hour},1,1,1,1,1,9,{rain},1,1,2013-01-01T{hour:02}:00:00Z\n" for origin, hour, rain in hours]
    table = weather.next_hour((header + "".join(lines)).encode())
    found = [tuple(row.values()) for row in table.select(["origin", "hour", "next_hour"]).to_pylist()]
    assert found == [("A", 0, "rain"), ("B", 0, "dry"), ("A", 3, "dry")]


def test_a_set_that_cannot_be_had_says_what_to_put_where(
    own_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no apt-get
    monkeypatch.setattr(fashion_mnist, "_HOMES", ("http://127.0.0.1:9/",))
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", own_data_folder / "none")
    with pytest.raises(InputError) as refusal:
        fetch("fashion_mnist")
    words = str(refusal.value)
    assert "fashion_mnist could not be fetched (tried" in words and "t10k-labels-idx1-ubyte.gz into" in words
    assert not list(own_data_folder.glob("*")) and "\n" not in words


def test_files_put_by_hand_must_be_the_published_ones(own_data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    monkeypatch.setattr(fashion_mnist, "_places", lambda scratch: iter([("by hand", lambda: iter([own_data_folder]))]))
    own_data_folder.mkdir()
    for name in fashion_mnist._FILES:
        (own_data_folder / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(InputError, match=r"could not be fetched \(tried by hand\)"):
        fetch("fashion_mnist")


@pytest.mark.usefixtures("fashion")
def test_fashion_mnist_is_mapped_and_has_its_known_first_labels() -> None:
    pools = fashion_mnist.open_pools()
    assert pools.train.rows == 60_000 and pools.test.rows == 10_000
    assert pools.train.target[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert not pools.train.columns["image"].flags.owndata
