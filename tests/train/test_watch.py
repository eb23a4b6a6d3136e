"""Steps of many rows: detectors, memory and readout see a sample of them, the model learns from all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.kills import job_for, write_table

from planaria.job import Job
from planaria.train.lifelong import Lifelong
from planaria.train.watch import Watch

from .conftest import begun, everything, live

ROWS, STRETCH, BATCH, WATCHED = 32_768, 8_192, 512, 128


def _job(table: Path, **scale: Any) -> Job:
    job = job_for(table, batch_rows=BATCH, scale={"workers": 0, "shards": 2, "watched_rows": WATCHED, **scale})
    asked = job.model_dump()
    asked["policy"]["learner"]["readout"] = {"features": 24}
    return Job.model_validate(asked)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "rows.parquet", ROWS, STRETCH)


@pytest.fixture(scope="module")
def whole(table: Path) -> Lifelong:
    return live(begun(_job(table)))


def test_small_steps_are_watched_whole(table: Path) -> None:
    watch = Watch(_job(table, watched_rows=BATCH))
    assert watch.among(7, 100).tolist() == list(range(100))


def test_whether_a_row_is_watched_follows_from_its_number_and_the_seed(table: Path) -> None:
    watch = Watch(_job(table))
    watched = watch.among(0, ROWS)
    assert abs(len(watched) - ROWS * WATCHED / BATCH) < 4 * np.sqrt(ROWS * WATCHED / BATCH)
    in_parts = [start + watch.among(start, 100) for start in range(0, ROWS, 100)]
    assert np.concatenate(in_parts)[: len(watched)].tolist() == watched.tolist()
    other = Watch(_job(table).model_copy(update={"seed": 4})).among(0, ROWS)
    assert len(np.intersect1d(watched, other)) < 0.4 * len(watched)


def test_first_steps_that_are_small_are_watched_whole(table: Path) -> None:
    watch = Watch(_job(table).model_copy(update={"batch_fraction": 0.1}))
    assert watch.among(0, 10 * WATCHED).tolist() == list(range(10 * WATCHED))
    assert 0.4 < len(watch.among(10 * 2 * WATCHED, 500)) / 500 < 0.6


def test_every_row_is_learned_from_and_scored_but_only_watched_ones_are_remembered(whole: Lifelong) -> None:
    totals = whole.account.totals
    assert totals.samples == ROWS and totals.row_number_sum == ROWS * (ROWS - 1) // 2
    arrival = whole.memory.arrival[: len(whole.memory)]
    assert len(arrival) == 300 and np.isin(arrival, whole.watch.among(0, ROWS)).all()
    assert whole.memory.seen < ROWS * WATCHED / BATCH * 1.1
    read = sum(sums.rows for sums in whole.reading.concepts.values())
    assert 0.9 < read / (ROWS * WATCHED / BATCH * (1 - whole.job.evaluation.hold_out_fraction)) < 1.1


def test_shifts_are_found_and_placed_where_they_are_in_the_stream(whole: Lifelong) -> None:
    shifts = whole.account.records.rows("shifts")
    assert [round(shift["onset_sample"] / STRETCH) for shift in shifts] == [1, 2, 3]
    for shift in shifts:
        assert abs(shift["onset_sample"] % STRETCH - STRETCH // 2) > STRETCH // 2 - BATCH
        assert shift["onset_sample"] < shift["sample"] <= shift["onset_sample"] + STRETCH // 2
    newest = whole.account.records.rows("shifts")[-1]["onset_sample"]
    after = whole.memory.arrival[: len(whole.memory)] >= newest + BATCH
    assert len(set(whole.memory.concept[: len(whole.memory)][after].tolist())) == 1


@pytest.mark.parametrize("step", [17, 40])
def test_a_run_cut_and_resumed_is_bit_identical(step: int, table: Path, whole: Lifelong) -> None:
    first, second = live(begun(_job(table)), step), begun(_job(table))
    second.load_state(first.state())
    assert everything(live(second)) == everything(whole)


def test_checkpoints_from_before_rows_were_sampled_are_read(table: Path) -> None:
    job = _job(table, watched_rows=BATCH)
    first, second = live(begun(job), 24), begun(job)
    parts = first.state()
    about = json.loads(parts["state.json"])
    del about["monitor"]["history"]["number"]
    second.load_state({**parts, "state.json": json.dumps(about).encode()})
    assert everything(live(second, 30)) == everything(live(first, 30))
