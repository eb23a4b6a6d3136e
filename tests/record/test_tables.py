"""The tables: bounded, exact, and the same after a round trip."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from planaria.errors import InputError, RunError
from planaria.record import Records, decision_row, read_rows, shift_row
from planaria.record.tables import SCHEMAS
from planaria.signals import Candidate, Decision, Shift


def interval(number: int, **values: float) -> dict[str, object]:
    return {"step": 8 * number, "samples": 1_000 * number, "loss": float(number % 7), "heads": [2, 3], **values}


def test_an_endless_run_keeps_its_steps_bounded_and_their_means_exact() -> None:
    records = Records(1_000, 200)
    for number in range(1, 100_001):
        records.add_interval(interval(number, accuracy=(number % 10) / 10, wall_seconds=number / 4))
    rows = records.rows("steps")
    assert 100 <= len(rows) <= 200
    assert rows[-1]["samples"] == 100_000_000
    covered = np.diff([0, *(row["samples"] for row in rows)])
    assert covered.sum() == 100_000_000
    assert max(covered) <= 1.5 * records.interval_samples
    mean = np.average([row["accuracy"] for row in rows], weights=covered)
    assert mean == pytest.approx(np.mean([(n % 10) / 10 for n in range(1, 100_001)]))
    assert rows[-1]["wall_seconds"] == 25_000


def test_a_loop_that_reports_at_the_doubled_interval_gets_a_row_for_each_report() -> None:
    records = Records(1_000, 16)
    samples = 0
    for _ in range(38):
        samples += records.interval_samples
        records.add_interval({"step": samples, "samples": samples})
    interval_samples = records.interval_samples
    assert interval_samples == 8_000
    last = [row["samples"] for row in records.rows("steps")][-3:]
    assert np.diff(last).tolist() == [interval_samples] * 2


def test_merged_neighbours_weigh_by_their_samples() -> None:
    records = Records(100, 2)
    records.add_interval({"step": 1, "samples": 100, "rmse": 1.0, "samples_per_second": 100.0, "loss": 1.0})
    records.add_interval({"step": 2, "samples": 400, "rmse": 3.0, "samples_per_second": 300.0, "loss": None})
    records.add_interval({"step": 3, "samples": 500})
    first = records.rows("steps")[0]
    assert first["step"] == 2
    assert first["rmse"] == pytest.approx(math.sqrt((100 * 1 + 300 * 9) / 400))
    assert first["samples_per_second"] == pytest.approx(400 / (1 + 1))
    assert first["loss"] == 1.0


def test_the_state_brings_back_every_row_and_goes_on_alike(filled: Records) -> None:
    copy = Records(1, 4_000)
    copy.load_state(filled.state())
    for table in SCHEMAS:
        assert list(copy.rows(table)) == list(filled.rows(table))
        assert copy.count(table) == filled.count(table)
    assert copy.interval_samples == filled.interval_samples
    for records in (copy, filled):
        records.add_interval(interval(91))
        records.close_revision(5, accuracy=0.5)
    assert copy.state() == filled.state()


def test_what_is_written_is_what_is_read(filled: Records, tmp_path: Path) -> None:
    filled.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{table}.parquet" for table in SCHEMAS)
    assert read_rows(tmp_path, "steps") == list(filled.rows("steps"))
    decision = read_rows(tmp_path, "decisions")[0]
    assert decision["observation"]["loss_rise"] == 0.55
    assert {option["name"] for option in decision["candidates"]} >= {"keep", "grow layer 1 by 1"}


def test_a_later_write_shows_what_came_since(filled: Records, tmp_path: Path) -> None:
    filled.write(tmp_path)
    shifts = (tmp_path / "shifts.parquet").stat().st_mtime_ns
    filled.add_interval(interval(91))
    filled.write(tmp_path)
    assert read_rows(tmp_path, "steps")[-1]["samples"] == 91_000
    assert (tmp_path / "shifts.parquet").stat().st_mtime_ns == shifts


def test_a_folder_that_cannot_be_written_is_one_line_that_says_what_to_do(filled: Records, tmp_path: Path) -> None:
    (tmp_path / "steps.parquet").mkdir()
    with pytest.raises(RunError, match=r"steps\.parquet: cannot be written \(.+\); free some space") as error:
        filled._unwritten.add("steps")
        filled.write(tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_a_broken_table_is_an_input_error(filled: Records, tmp_path: Path) -> None:
    filled.write(tmp_path)
    path = tmp_path / "shifts.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"shifts\.parquet: cannot be read .*resume the run"):
        read_rows(tmp_path, "shifts")


def test_a_table_that_is_not_there_yet_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path, "steps") == []


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="steps: unknown columns"):
        Records(1_000, 16).add_interval({"step": 1, "samples": 1, "accurracy": 0.5})


def test_a_gain_is_noted_at_the_decision_and_at_its_revision() -> None:
    records = Records(1_000, 16)
    records.open_revision({"number": 1, "step": 0, "sample": 0})
    records.add_decision({"number": 0, "step": 0, "sample": 0, "chosen": "keep", "revision": None})
    records.add_decision({"number": 1, "step": 0, "sample": 0, "chosen": "grow", "revision": 1})
    records.set_gain_realised(0, 0.25)
    records.set_gain_realised(1, 0.5)
    assert [row["gain_realised"] for row in records.rows("decisions")] == [0.25, 0.5]
    assert records.rows("revisions")[0]["gain_realised"] == 0.5


def test_closing_a_revision_that_was_never_opened_is_refused() -> None:
    with pytest.raises(KeyError, match="no number 3"):
        Records(1_000, 16).close_revision(3, accuracy=0.5)


def test_endless_decisions_stay_bounded_and_those_that_edited_stay_longest() -> None:
    records = Records(1_000, 16, max_events=80)
    for number in range(1_000):
        revision = number // 25 if number % 25 == 0 else None
        records.add_decision({"number": number, "step": number, "sample": number, "revision": revision})
    rows = records.rows("decisions")
    assert len(rows) <= 80
    assert records.count("decisions") == 1_000
    assert [row["revision"] for row in rows if row["revision"] is not None] == list(range(40))
    assert rows[-1]["number"] == 999
    records.set_gain_realised(1, 0.5)  # forgotten: passed over


def test_endless_revisions_keep_the_first_and_the_newest() -> None:
    records = Records(1_000, 16, max_events=40)
    for number in range(500):
        records.open_revision({"number": number, "step": number, "sample": number})
    numbers = [row["number"] for row in records.rows("revisions")]
    assert len(numbers) <= 40
    assert numbers[0] == 0 and numbers[-20:] == list(range(480, 500))


def test_values_of_other_stages_become_rows() -> None:
    records = Records(1_000, 16)
    shift = Shift(3, 300, "adwin", "recurring", np.float64(2.5), 2.0, np.int64(250), concept=1)  # type: ignore[arg-type]
    records.add_shift(shift_row(shift, delay=None))
    keep = Candidate("keep", None, "keep", (2, 2), 100)
    observation = {"loss": float("nan"), "rise": np.float32(0.5)}
    decision = Decision(3, 300, "abrupt shift", keep, (keep,), "nothing better", observation, 0.1)
    records.add_decision(decision_row(0, decision, None))
    assert records.rows("shifts")[0]["onset_sample"] == 250
    row = records.rows("decisions")[0]
    assert row["observation"] == '{"loss": null, "rise": 0.5}'
    assert '"loss_recent": null' in row["candidates"]
