"""Runs that are told the boundaries of their stream: the classic protocol of continual learning."""

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

import planaria
from planaria.errors import InputError
from planaria.job import Job
from planaria.stream import open_stream
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

PHASE, CHANGES = 330, [330, 660, 990]
"""Phases A B A C; a batch of 32 rows does not divide them."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draws = np.random.default_rng(0)
    kind = draws.integers(0, 4, 4 * PHASE)
    x = (draws.normal(size=(4, 6)) * 1.2)[kind] + draws.normal(size=(len(kind), 6))
    columns = {f"x{at}": x[:, at].astype(np.float32) for at in range(6)}
    phase = np.array(["A", "B", "A", "C"])[np.arange(len(kind)) // PHASE]
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.table({**columns, "y": kind % 2 + 2 * (phase == "C"), "phase": phase}), path)
    return path


def job(table: Path, boundaries: str = "told", learner: dict[str, Any] | None = None, **changes: Any) -> Job:
    return Job.model_validate(
        {
            "stream": {
                "source": "parquet",
                "path": str(table),
                "features": {"numeric": [f"x{at}" for at in range(6)]},
                "target": "y",
                "context": "phase",
                **changes.pop("stream", {}),
            },
            "seed": 3,
            "batch_rows": 32,
            "model": {"width": 16, "layers": 1, "head_width": 4, "mlp_width": 32},
            "policy": {
                "heads": {"start": 2, "max": 3},
                "detector": {"boundaries": boundaries},
                "controller": {"kind": "none"},
                "learner": {"memory": {"rows": 100}, **(learner or {"protect": {"kind": "ewc"}})},
            },
            "scale": {"workers": 0},
            **changes,
        }
    )


def opened(asked: Job) -> Lifelong:
    stream = open_stream(asked.stream, seed=asked.seed, base=Path.cwd(), hold_out_fraction=0.02)
    return Lifelong(asked, stream, Alone(), torch.device("cpu"))


def live(run: Lifelong, steps: int | None = None) -> Lifelong:
    if run.row == 0:
        run.begin()
    while (steps is None or run.step < steps) and run.take_step() is not None:
        pass
    return run


def everything(run: Lifelong) -> dict[str, Any]:
    """All of a run's state that no clock has touched."""
    parts: dict[str, Any] = dict(run.state())
    about = json.loads(parts.pop("state.json"))
    for clocked in ("interval", "life"):
        about["account"].pop(clocked)
    for clocked in ("wall_seconds", "decision_seconds", "cpu_seconds", "energy_joules"):
        about["account"]["totals"].pop(clocked)
    parts.pop("records.arrow")
    return {"about": about, "shifts": list(run.account.records.rows("shifts")), **parts}


def test_a_run_reports_exactly_the_true_changes_without_delay(table: Path) -> None:
    run = live(opened(job(table)))
    shifts = run.account.records.rows("shifts")
    assert [row["sample"] for row in shifts] == [row["onset_sample"] for row in shifts] == CHANGES
    assert [row["step"] for row in shifts] == [change // 32 for change in CHANGES]
    assert [row["delay"] for row in shifts] == [0, 0, 0]
    assert [(row["kind"], row["concept"]) for row in shifts] == [("abrupt", None), ("recurring", 0), ("abrupt", None)]
    summary = run.summary("done")
    assert summary["shifts"] == summary["true_changes"] == 3


def test_remembered_rows_carry_the_context_they_came_from(table: Path) -> None:
    run = live(opened(job(table)))
    phase = run.memory.arrival[: run.memory.rows] // PHASE
    assert (run.memory.concept[: run.memory.rows] == np.array([0, 1, 0, 2])[phase]).all()


def test_a_readout_keeps_a_regression_for_each_context(table: Path) -> None:
    run = live(opened(job(table, learner={"readout": {"features": 40}})))
    assert {key for key, sums in run.reading.concepts.items() if sums.rows > 0.5} == {0, 1, 2}
    assert run.reading.concepts[0].rows > 1.8 * run.reading.concepts[1].rows


def test_old_knowledge_is_protected_before_anything_new_is_learned(table: Path) -> None:
    run = live(opened(job(table)), CHANGES[0] // 32)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    learn, anchored = run._learn, []

    def watched(*arguments: Any) -> Any:
        assert run.protection.anchors is not None
        anchored.append(run.protection.anchors.tensors(list(run.model.named_parameters())))
        return learn(*arguments)

    run._learn = watched  # type: ignore[method-assign]
    run.take_step()
    kept = {name: value for name, value in anchored[0].items() if "anchor" in name}
    assert kept
    for name, old in before.items():
        (anchor,) = [value for key, value in kept.items() if name in key and value.shape == old.shape][:1]
        assert torch.equal(anchor, old), name


@pytest.mark.parametrize(
    "learner",
    [
        {"protect": {"kind": "ewc"}},
        {"protect": {"kind": "si", "weight": 0.1}},
        {"protect": {"kind": "lwf"}},
        {"readout": {"features": 40}},
    ],
)
@pytest.mark.parametrize("step", [1, 10, 11, 25])
def test_a_run_cut_around_a_boundary_and_resumed_is_bit_identical(
    learner: dict[str, Any], step: int, table: Path
) -> None:
    asked = job(table, learner=learner)
    whole = live(opened(asked))
    resumed = opened(asked)
    resumed.load_state(live(opened(asked), step).state())
    assert everything(live(resumed)) == everything(whole)


def test_shards_see_the_same_shifts_and_the_same_curve_but_for_rounding(table: Path) -> None:
    one, four = (live(opened(job(table, scale={"workers": 0, "shards": n}))) for n in (1, 4))
    assert one.account.records.rows("shifts") == four.account.records.rows("shifts")
    assert one.account.totals.loss == pytest.approx(four.account.totals.loss, rel=1e-3)
    assert one.monitor.state() == four.monitor.state()


@pytest.mark.slow
def test_two_workers_are_told_the_same_as_one_and_end_with_equal_bits(table: Path, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(job(table, scale={"workers": 0, "shards": 2}).model_dump_json())
    script = str(Path(__file__).with_name("returning_member.py"))

    def answers(size: int) -> list[Any]:
        call = [str(size), str(tmp_path / f"meeting-{size}"), str(tmp_path / "job.json"), str(4 * PHASE)]
        members = [
            subprocess.Popen([sys.executable, script, str(rank), *call], stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        return [json.loads(member.communicate(timeout=240)[0].splitlines()[-1]) for member in members]

    (alone,), both = answers(1), answers(2)
    assert both == [alone, alone]


def test_where_boundaries_are_detected_no_stage_sees_a_context(table: Path) -> None:
    run, seen = opened(job(table, boundaries="detected")), []
    update = run.monitor.update
    run.monitor.update = lambda report: seen.append(report.context_B) or update(report)  # type: ignore
    live(run, 12)
    assert seen == [None] * 12


def test_a_decision_follows_a_boundary_like_any_other_shift(table: Path) -> None:
    asked = job(table)
    controller = asked.policy.controller.model_copy(update={"kind": "look_ahead", "wait_samples": 64})
    run = live(opened(asked.model_copy(update={"policy": asked.policy.model_copy(update={"controller": controller})})))
    triggers = [row["trigger"] for row in run.account.records.rows("decisions")]
    assert [trigger for trigger in triggers if trigger.endswith("shift")][:1] == ["abrupt shift"]


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ({"context": None}, "is told, but the stream has no contexts that change; name a column as stream.context"),
        (
            {"context": None, "scenario": {"contexts": [{"name": "a", "samples": 900}]}},
            "is told, but the stream has no contexts that change",
        ),
    ],
)
def test_a_stream_without_boundaries_is_refused_before_anything_is_written(
    stream: dict[str, Any], words: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path / "data"))
    out = tmp_path / "run"
    with pytest.raises(InputError) as refusal:
        planaria.run(job(table, stream=stream), out=out)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert not out.exists()
    planaria.run(job(table, "detected", stream=stream, samples=64), out=out)
    assert (out / "summary.json").exists()
