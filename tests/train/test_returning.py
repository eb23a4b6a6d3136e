"""Concepts that return are restored, and edits that harm are undone: whole runs in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from planaria.job import Job
from planaria.learn import DOUBTFUL, optimizer_tensors
from planaria.signals import Candidate, Decision
from planaria.stream import open_stream
from planaria.train import workbench
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

PHASE = 2_560
CLASSES = 5


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clouds of points in phases A B A B: in B every cloud has another name."""
    draws = np.random.default_rng(0)
    kind = draws.integers(0, CLASSES, 4 * PHASE)
    x = (draws.normal(size=(CLASSES, 6)) * 1.2)[kind] + draws.normal(size=(len(kind), 6))
    phase = np.arange(len(kind)) // PHASE
    label = np.where(phase % 2 == 0, kind, (kind + 1) % CLASSES)
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    columns = {f"x{at}": x[:, at].astype(np.float32) for at in range(6)}
    pq.write_table(pa.table({**columns, "y": label, "phase": phase % 2}), path)
    return path


def job(table: Path, **controller: Any) -> Job:
    return Job.model_validate(
        {
            "stream": {
                "source": "parquet",
                "path": str(table),
                "features": {"numeric": [f"x{at}" for at in range(6)]},
                "target": "y",
                "context": "phase",
            },
            "seed": 3,
            "batch_rows": 32,
            "model": {"width": 16, "layers": 2, "head_width": 4, "mlp_width": 32},
            "policy": {
                "heads": {"start": 2, "max": 4, "cooldown_samples": 400},
                "controller": {"thrift_every_samples": 600, "inner_steps": 2, "inner_rows": 16, **controller},
                "learner": {"memory": {"rows": 300}, "learning_rate": 0.005},
            },
            "scale": {"workers": 0},
        }
    )


def opened(asked: Job) -> Lifelong:
    stream = open_stream(asked.stream, seed=asked.seed, base=Path.cwd(), hold_out_fraction=0.0)
    return Lifelong(asked, stream, Alone(), torch.device("cpu"))


def live(run: Lifelong, until_row: int = 4 * PHASE) -> np.ndarray[Any, Any]:
    """Whether each row was predicted correctly."""
    learn, right = run._learn, []

    def watched(*arguments: Any) -> Any:
        seen, *others = learn(*arguments)
        right.append(1 - seen.error_B)
        return seen, *others

    run._learn = watched  # type: ignore[method-assign]
    while run.row < until_row and run.take_step() is not None:
        pass
    run._learn = learn  # type: ignore[method-assign]
    return np.concatenate(right) if right else np.zeros(0)


@pytest.fixture(scope="module")
def whole(table: Path) -> tuple[Lifelong, np.ndarray[Any, Any]]:
    run = opened(job(table))
    run.begin()
    return run, live(run)


def test_a_concept_that_returns_is_restored_and_is_as_good_as_it_was(whole: tuple[Lifelong, Any]) -> None:
    run, right = whole
    restored = [row for row in run.account.records.rows("revisions") if "restore" in (row["edit"] or "")]
    assert [json.loads(row["edit"])["concept"] for row in restored] == [0, 1]
    assert [row["cause"] for row in restored] == ["recurring shift"] * 2
    for row, change in zip(restored, (2 * PHASE, 3 * PHASE), strict=True):
        assert change < row["sample"] <= change + 300
    former = right[PHASE - 500 : PHASE].mean()
    assert right[2 * PHASE + 300 : 2 * PHASE + 800].mean() > 0.9 * former > 0.6
    assert run.summary("done")["restores"] == 2


def test_a_restore_is_a_decision_like_any_other(whole: tuple[Lifelong, Any]) -> None:
    run, _ = whole
    rows = [row for row in run.account.records.rows("decisions") if row["chosen"].startswith("restore")]
    assert [row["trigger"] for row in rows] == ["recurring shift"] * 2
    for row in rows:
        losses = {one["name"]: one["loss_recent"] for one in json.loads(row["candidates"])}
        assert 0.9 * losses["keep"] > losses[row["chosen"]] == min(losses.values())
        assert json.loads(row["observation"])["library_fit"] < -0.1
    shifts = run.account.records.rows("shifts")
    decided = [row for row in run.account.records.rows("decisions") if row["trigger"].endswith("shift")]
    assert len(decided) <= len(shifts), "a change that was dealt with is not decided again"


def test_contradicting_rows_are_told_apart(whole: tuple[Lifelong, Any]) -> None:
    run, _ = whole
    assert run.memory.excluded == {0, DOUBTFUL}
    arrived, known = run.memory.arrival // PHASE % 2, run.memory.concept != DOUBTFUL
    assert (run.memory.concept == arrived)[known].mean() > 0.98 and known.mean() > 0.9


def parts(run: Lifelong) -> dict[str, Any]:
    """All of a run's state that no clock has touched."""
    state = dict(run.state())
    about = json.loads(state.pop("state.json"))
    for clocked in ("wall_seconds", "decision_seconds", "cpu_seconds", "energy_joules"):
        about["account"]["totals"].pop(clocked)
    about["account"].pop("interval"), about["account"].pop("life")
    state.pop("records.arrow")
    return {"about": about, **state}


@pytest.mark.parametrize("row", [2_720, 3_200, 5_184, 5_248, 5_312, 5_632, 7_808])
def test_a_run_cut_around_a_change_and_resumed_is_bit_identical(
    row: int, table: Path, whole: tuple[Lifelong, Any]
) -> None:
    first, second = opened(job(table)), opened(job(table))
    first.begin()
    live(first, row)
    second.load_state(first.state())
    live(second)
    assert parts(second) == parts(whole[0])


@pytest.mark.slow
def test_two_workers_restore_the_same_as_one_and_end_with_equal_bits(table: Path, tmp_path: Path) -> None:
    asked, rows = job(table), 2 * PHASE + 320
    asked = asked.model_copy(update={"scale": asked.scale.model_copy(update={"shards": 2})})
    (tmp_path / "job.json").write_text(asked.model_dump_json())
    script = str(Path(__file__).with_name("returning_member.py"))

    def answers(size: int) -> list[Any]:
        call = [str(size), str(tmp_path / f"meeting-{size}"), str(tmp_path / "job.json"), str(rows)]
        members = [
            subprocess.Popen([sys.executable, script, str(rank), *call], stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        return [json.loads(member.communicate(timeout=240)[0].splitlines()[-1]) for member in members]

    (alone,), both = answers(1), answers(2)
    assert both == [alone, alone]
    assert any("restore" in (edit or "") for edit in alone[1])


def test_without_a_library_nothing_is_kept_restored_or_left_out(table: Path) -> None:
    run = opened(job(table, library=0))
    run.begin()
    live(run, 2 * PHASE + 1_024)
    assert not run.recollection.library.entries and not run.recollection.library.rolling
    assert not run.memory.excluded
    assert not any("restore" in (row["edit"] or "") for row in run.account.records.rows("revisions"))


def tempered(run: Lifelong) -> Decision:
    keep = Candidate("keep", None, "keep", run.blueprint.heads, run.blueprint.parameters, value=0.0)
    chosen = Candidate("keep, temper", None, "temper", run.blueprint.heads, run.blueprint.parameters, value=0.05)
    return Decision(run.step, run.row, "thrift", chosen, (keep, chosen), "because the test says so")


def carry_out(run: Lifelong, decision: Decision) -> None:
    run.controller.decisions += 1
    run._carry_out(decision)


@pytest.fixture
def calm(table: Path) -> Lifelong:
    """A run that has learned the first concept, and makes no decisions of its own."""
    run = opened(job(table, thrift_every_samples=100_000))
    run.begin()
    live(run, 1_280)
    return run


def test_an_edit_that_harms_is_undone_and_everything_is_as_it_was(
    calm: Lifelong, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in calm.model.state_dict().items()}
    moments = {k: v.clone() for k, v in optimizer_tensors(calm.optimizer, calm.model.named_parameters()).items()}
    monkeypatch.setattr(workbench, "TEMPER", -1.0)  # says the opposite of what it knows
    carry_out(calm, tempered(calm))
    for group in calm.optimizer.param_groups:
        group["lr"] = 0.0  # and does not learn better
    again = opened(calm.job)
    again.load_state(calm.state())
    assert again.recollection.before is not None
    while calm.controller.held is not None:
        calm.take_step()
    rows = calm.account.records.rows("decisions")
    assert [row["trigger"] for row in rows] == ["thrift", "rollback"]
    assert rows[1]["chosen"] == "undo the last edit" and rows[0]["sample"] + 1_024 <= rows[1]["sample"]
    assert calm.account.records.rows("revisions")[-1]["cause"] == "rollback"
    learned = {name for name, _ in calm.model.named_parameters()}
    assert all(torch.equal(v, before[name]) for name, v in calm.model.state_dict().items() if name in learned)
    restored = optimizer_tensors(calm.optimizer, calm.model.named_parameters())
    assert restored.keys() == moments.keys() and all(torch.equal(v, moments[k]) for k, v in restored.items())
    assert calm.recollection.before is None, "once it is put back it need not be kept"


def test_an_edit_that_does_no_harm_is_let_be(calm: Lifelong, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "TEMPER", 0.95)
    carry_out(calm, tempered(calm))
    assert calm.recollection.before is not None
    live(calm, 2_400)
    assert calm.recollection.before is None and calm.controller.held is None
    assert [row["trigger"] for row in calm.account.records.rows("decisions")] == ["thrift"]


def test_a_shift_makes_what_was_kept_before_an_edit_worthless(calm: Lifelong, monkeypatch: pytest.MonkeyPatch) -> None:
    live(calm, 2_400)
    monkeypatch.setattr(workbench, "TEMPER", 0.95)
    carry_out(calm, tempered(calm))
    live(calm, PHASE + 64)
    assert calm.recollection.before is not None
    live(calm, PHASE + 640)
    assert calm.recollection.before is None
