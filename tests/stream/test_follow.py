from __future__ import annotations

import functools
import json
import logging
import operator
import threading
import time
from pathlib import Path

import pytest
from tests.stream.conftest import everything, example, opened, same, write

POLL = 0.02


def part(folder: Path, name: str, first: int, rows: int = 40) -> Path:
    """Rows of the example, complete at once: written under another name first."""
    table = {column: values[first : first + rows] for column, values in example(300).items()}
    return write(folder / f".{name}", table).rename(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_a_read_waits_for_rows_that_are_not_there_yet(folder: Path) -> None:
    part(folder, "1.parquet", 0)
    stream = opened(folder, follow=True, follow_poll_s=POLL)
    writer = threading.Timer(0.3, lambda: (part(folder, "2.parquet", 40), part(folder, "3.parquet", 80)))
    writer.start()
    begun = time.monotonic()
    rows = everything(stream.read(0, 110))
    writer.join()
    assert time.monotonic() - begun > 0.25
    assert same(rows, everything(opened(write(folder.parent / "whole.parquet", example(300))).read(0, 110)))


def test_a_request_to_stop_ends_the_waiting_with_what_is_there(folder: Path) -> None:
    part(folder, "1.csv", 0)
    stop = threading.Event()
    stream = opened(folder, source="csv", follow=True, follow_poll_s=60.0, stop_waiting=stop.is_set)
    threading.Timer(0.2, stop.set).start()
    begun = time.monotonic()
    assert len(stream.read(0, 64)) == 40
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("source", ["parquet", "csv", "arrow"])
def test_available_counts_what_is_there_without_waiting(folder: Path, source: str) -> None:
    stream = opened(folder, source=source, follow=True, follow_poll_s=POLL)
    assert stream.available(0) == 0
    part(folder, f"1.{source}", 0)
    assert stream.available(0) == 40
    stream.read(0, 30)
    part(folder, f"2.{source}", 40)
    assert stream.available(30) == 50
    assert stream.total_rows is None


def test_the_rows_numbers_do_not_depend_on_when_files_arrive(folder: Path) -> None:
    stream = opened(folder, follow=True, follow_poll_s=POLL, stop_waiting=lambda: True)
    parts = []
    for number in range(5):
        part(folder, f"{number}.parquet", 40 * number)
        parts += (stream.read(sum(map(len, parts)), 32).target.tolist(),)
    late = opened(folder, follow=True)
    assert functools.reduce(operator.iadd, parts, []) == late.read(0, 160).target.tolist()


def test_a_file_that_sorts_before_what_was_read_is_left_out_also_after_a_resume(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part(folder, "1.parquet", 0)
    part(folder, "3.parquet", 80)
    stream = opened(folder, follow=True, follow_poll_s=POLL, stop_waiting=lambda: True)
    assert len(stream.read(0, 80)) == 80
    part(folder, "2.parquet", 40)
    with caplog.at_level(logging.WARNING):
        assert len(stream.read(80, 10)) == 0
    assert "2.parquet came after 3.parquet was read: ignored; new files' names must sort last" in caplog.text
    part(folder, "4.parquet", 120)
    resumed = opened(folder, follow=True, follow_poll_s=POLL, stop_waiting=lambda: True)
    resumed.load_state(json.loads(json.dumps(stream.state())))
    assert same(everything(resumed.read(60, 60)), everything(stream.read(60, 60)))


def test_files_that_are_behind_the_stream_may_be_removed_before_a_resume(folder: Path) -> None:
    for number in range(3):
        write(folder / f"{number}.parquet", example(3_000, seed=number), group=1_000)
    stream = opened(folder, follow=True, stop_waiting=lambda: True)
    for start in range(0, 8_000, 1_000):
        stream.read(start, 1_000)
    state = json.loads(json.dumps(stream.state()))
    assert [name for name, _ in state["tape"]["files"]] == ["1.parquet", "2.parquet"]
    (folder / "0.parquet").unlink()
    resumed = opened(folder, follow=True, stop_waiting=lambda: True)
    resumed.load_state(state)
    assert same(everything(resumed.read(8_000, 1_000)), everything(stream.read(8_000, 1_000)))
    assert same(everything(resumed.read(4_904, 100)), everything(stream.read(4_904, 100)))
