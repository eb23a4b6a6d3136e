"""The model of what a step costs: found again where costs are known, and asked about workers it was not fitted on."""

from __future__ import annotations

import pytest
from benchmarks.scale import PARTS, ROWS_EACH, WATCHED, WORKERS, Point, fit, held_out, job, predict, steps_of
from benchmarks.scale import Told as OneOfMany
from benchmarks.soak import write_stream

from planaria.train.group import Alone


def _known(workers: int, rows_each: int) -> Point:
    rows, size = workers * rows_each, 300_000 + 44 * workers * rows_each
    spent = {
        "read": 0.2 + 0.0005 * rows,
        "draw": 0.1,
        "compute": 3.0 + 0.3 * rows_each,
        "sum": 0.0 if workers == 1 else 1.0 + 1e-6 * size * (workers - 1 if workers > 2 else 1),
        "update": 2.0 + 0.0002 * rows,
        "watch": 0.3 + 0.008 * min(rows, WATCHED),
        "rest": 0.2,
    }
    return Point(workers, rows_each, WATCHED, size, spent)


def test_costs_that_are_linear_are_found_and_foretold() -> None:
    points = [_known(workers, rows_each) for workers in WORKERS for rows_each in ROWS_EACH]
    for workers, ratios in held_out(points).items():
        assert ratios == pytest.approx([1.0] * len(ROWS_EACH), abs=0.02), workers
    model = fit(points)
    for workers in (64, 1_024):
        asked = _known(workers, 64)
        for part in set(PARTS) - {"sum"}:
            assert predict(model, asked)[part] == pytest.approx(asked.milliseconds[part], rel=0.05), part


def test_one_worker_of_many_computes_its_own_rows_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("data")
    write_stream(data, 20_000, 3)
    alone = steps_of(job(data, 1, 64, WATCHED), Alone(), 3, 1)
    of_many = steps_of(job(data, 32, 64, WATCHED), OneOfMany(32), 3, 1)
    assert (of_many.workers, of_many.rows) == (32, 2_048) and set(of_many.milliseconds) == set(PARTS)
    assert min(of_many.milliseconds.values()) > 0 and of_many.bytes > alone.bytes
