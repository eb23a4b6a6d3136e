"""Streams from a real S3 server on this machine."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.conftest import S3
from tests.stream.conftest import everything, example, opened, same, write

from planaria.errors import InputError

POLL = 0.02


def put(local: Path, uri: str) -> None:
    from pyarrow.fs import FileSystem

    filesystem, path = FileSystem.from_uri(uri)
    with filesystem.open_output_stream(path) as stream:
        stream.write(local.read_bytes())


def part(tmp_path: Path, name: str, first: int, rows: int = 40) -> Path:
    return write(tmp_path / name, {column: values[first : first + rows] for column, values in example(300).items()})


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow", "arrows"])
def test_every_format_gives_the_rows_that_it_gives_on_a_disk(ending: str, s3: S3, tmp_path: Path) -> None:
    bucket, source = s3.bucket(f"format-{ending}"), ending.removesuffix("s")
    for number in range(3):
        put(part(tmp_path / "in", f"{number}.{ending}", 40 * number), f"{bucket}/a/{number}.{ending}")
    put(part(tmp_path, f"other.{ending}", 200), f"{bucket}/b/0.{ending}")
    disk = opened(tmp_path / "in", source=source)
    whole, middle = everything(disk.read(0, 200)), everything(disk.read(50, 30))
    for path in (f"{bucket}/a", f"{bucket}/a/*.{ending}", f"{bucket}/[a]/?.{ending}?region=us-east-1"):
        there = opened(path, source=source)
        assert same(everything(there.read(0, 200)), whole)
        assert same(everything(there.read(50, 30)), middle)


def test_a_bucket_is_followed_while_files_arrive(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket("followed")
    put(part(tmp_path, "1.parquet", 0), f"{bucket}/in/1.parquet")
    stream = opened(f"{bucket}/in", follow=True, follow_poll_s=POLL)
    late = part(tmp_path, "2.parquet", 40)
    timer = threading.Timer(0.3, lambda: put(late, f"{bucket}/in/2.parquet"))
    timer.start()
    begun = time.monotonic()
    rows = everything(stream.read(0, 80))
    timer.join()
    assert time.monotonic() - begun > 0.25
    assert same(rows, everything(opened(write(tmp_path / "whole.parquet", example(300))).read(0, 80)))


def test_what_is_not_there_is_named_with_its_neighbour(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket("typing")
    put(part(tmp_path, "1.parquet", 0), f"{bucket}/elec/1.parquet")
    with pytest.raises(InputError) as error:
        opened(f"{bucket}/elek")
    assert str(error.value) == (
        "stream.path: s3://typing/elek is not there (did you mean 'elec'?); give a file, folder or glob"
    )
