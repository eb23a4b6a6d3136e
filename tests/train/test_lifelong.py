"""The loop in one process: learns, edits itself, and is the same run however it is cut or spread."""

from __future__ import annotations

import gc
import itertools
import json
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from planaria.blueprint import GrowHeads, Share, Unshare
from planaria.control.library import Entry, Snapshot
from planaria.errors import InputError, RunError
from planaria.job import Job
from planaria.model import load_model
from planaria.record import read_rows
from planaria.stream import open_stream
from planaria.train import keeper
from planaria.train.folder import RunFolder
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong
from planaria.train.worker import run_here

POLICY: dict[str, Any] = {
    "heads": {"start": 2, "min": 1, "max": 4, "cooldown_samples": 300},
    "controller": {
        "thrift_every_samples": 400,
        "wait_samples": 128,
        "inner_steps": 3,
        "inner_rows": 16,
        "certainty": 0.0,
    },
    "learner": {"memory": {"rows": 300}, "learning_rate": 0.005},
    "budget": {"price": 1.0, "decision_fraction": 1.0},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 rows whose rule turns round halfway; a third label appears late."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(4_000, 4)).astype(np.float32)
    x[2_000:] += 2.5
    label = np.where((x[:, 0] * x[:, 1] > 0) ^ (np.arange(4_000) >= 2_000), "yes", "no").astype(object)
    label[3_000::10] = "maybe"
    x[::50, 2] = np.nan
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    columns = {f"x{at}": x[:, at] for at in range(4)}
    pq.write_table(
        pa.table({**columns, "y": label, "value": x[:, 0] * 100 + 7, "part": np.arange(4_000) // 2_000}), path
    )
    return path


def _job(table: Path, policy: dict[str, Any] | None = None, **changes: Any) -> Job:
    stream = {
        "source": "parquet",
        "path": str(table),
        "features": {"numeric": ["x0", "x1", "x2", "x3"]},
        "target": "y",
        "context": "part",
        **changes.pop("stream", {}),
    }
    values = {
        "stream": stream,
        "seed": 3,
        "batch_rows": 32,
        "model": {"width": 16, "layers": 2, "head_width": 4, "mlp_width": 32},
        "policy": {**POLICY, **(policy or {})},
        "scale": {"workers": 0},
        "record": {"interval_samples": 200},
        **changes,
    }
    return Job.model_validate(values)


def _open(job: Job) -> Lifelong:
    stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=job.evaluation.hold_out_fraction)
    return Lifelong(job, stream, Alone(), torch.device("cpu"))


def _live(run: Lifelong, steps: int | None = None) -> None:
    while (steps is None or run.step < steps) and run.take_step() is not None:
        pass


CLOCKS = {"wall_seconds", "decision_seconds", "cpu_seconds", "energy_joules", "samples_per_second", "seconds"}


def _timeless(value: Any) -> Any:
    """Without what a clock measured."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [_timeless(item) for item in value] if isinstance(value, (list, tuple)) else value


def _everything(run: Lifelong) -> dict[str, Any]:
    parts = run.state()
    about = _timeless(json.loads(parts.pop("state.json")))
    tables = {
        name: _timeless(list(run.account.records.rows(name))) for name in ("steps", "revisions", "shifts", "decisions")
    }
    parts.pop("records.arrow")
    return {"about": about, "tables": tables, **parts}


@pytest.fixture(scope="module")
def whole(table: Path) -> Lifelong:
    run = _open(_job(table))
    run.begin()
    _live(run)
    return run


def test_the_run_learns_sees_the_shift_and_edits_itself(table: Path, whole: Lifelong) -> None:
    copy = _open(_job(table))
    copy.load_state(whole.state())
    summary = copy.summary("done", copy.finish())
    assert summary["samples"] == 4_000 and summary["rows_lost"] == summary["rows_repeated"] == 0
    assert summary["prequential_accuracy"] > 0.6
    assert summary["shifts"] >= 1
    assert summary["grows"] + summary["shrinks"] >= 1
    assert set(summary["accuracy_per_context"]) == {"0", "1"}
    assert whole.stream.labels == sorted(whole.stream.labels, key=whole.stream.labels.index)
    assert whole.blueprint.outputs == 3
    causes = [row["cause"] for row in whole.account.records.rows("revisions")]
    assert causes[0] == "start" and "new label" in causes
    assert [row["number"] for row in whole.account.records.rows("revisions")] == list(range(summary["revisions"]))


def test_every_revision_says_what_it_came_from_and_how_long_it_lived(whole: Lifelong) -> None:
    rows = whole.account.records.rows("revisions")
    for before, after in itertools.pairwise(rows):
        assert after["parent"] == before["number"]
        assert before["last_sample"] == after["sample"]
        assert before["samples"] == after["sample"] - before["sample"]


@pytest.mark.parametrize("step", [1, 17, 40, 63, 77, 94, 101, 110, 118, 124])
def test_a_run_cut_at_any_step_and_resumed_is_bit_identical(step: int, table: Path, whole: Lifelong) -> None:
    first = _open(_job(table))
    first.begin()
    _live(first, step)
    second = _open(_job(table))
    second.load_state(first.state())
    _live(second)
    assert _everything(second) == _everything(whole)


def test_shards_change_the_curve_only_by_rounding(table: Path) -> None:
    still = {"controller": {"kind": "none"}}
    one, four = (_open(_job(table, still, samples=640, scale={"workers": 0, "shards": n})) for n in (1, 4))
    for run in (one, four):
        run.begin()
        _live(run)
    losses = [[row["loss"] for row in run.account.records.rows("steps")] for run in (one, four)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize(
    "learner",
    [
        {"loss": "der++"},
        {"loss": "er_ace"},
        {"loss": "a_gem"},
        {"loss": "naive", "memory": {"rows": 0}},
        {"loss": "naive", "protect": {"kind": "ewc"}},
        {"protect": {"kind": "si", "weight": 0.1}},
        {"protect": {"kind": "lwf"}},
        {"renew": {"rate": 0.001}},
        {"optimizer": "sgd", "learning_rate": 0.01},
        {"optimizer": "adabelief"},
        {"optimizer": "meta_sgd", "learning_rate": 0.3},
        {"replay_ratio": 0.0},
        {"readout": {"features": 60}},
        {"readout": {"features": 60, "half_lives": [200]}, "loss": "naive", "memory": {"rows": 0}},
    ],
)
def test_every_learner_learns(learner: dict[str, Any], table: Path) -> None:
    run = _open(
        _job(table, {"learner": {"learning_rate": 0.005, **learner}, "controller": {"kind": "none"}}, samples=1_920)
    )
    run.begin()
    _live(run)
    assert run.controller.pulse.loss_fast < np.log(2)


PROTECTED: list[dict[str, Any]] = [
    {"optimizer": "adabelief", "renew": {"rate": 0.01, "maturity_steps": 10}},
    {"optimizer": "meta_sgd", "learning_rate": 0.1},
    {"loss": "a_gem"},
    {"renew": {"rate": 0.01, "maturity_steps": 10}},
    {"memory": {"rows": 100, "kind": "loss_aware"}},
    {"memory": {"rows": 100, "kind": "ring"}},
    *({"protect": {"kind": kind, "weight": 0.1}} for kind in ("ewc", "si", "lwf")),
    {"memory": {"rows": 100}, "readout": {"features": 40, "concepts": 2, "half_lives": [300]}},
]


@pytest.mark.parametrize("learner", PROTECTED)
def test_what_protects_survives_shifts_edits_and_a_resume(learner: dict[str, Any], table: Path) -> None:
    job = _job(table, {"learner": {**POLICY["learner"], **learner}})
    whole, cut = _open(job), _open(job)
    for run in (whole, cut):
        run.begin()
        _live(run, 80)
        assert run.account.totals.shifts >= 1
        run._edit(GrowHeads(0, 1), "test", "so that there is an edit after the shift")
        run.controller.births[0].append(run.row)
        _live(run, 90)
    again = _open(job)
    again.load_state(cut.state())
    for run in (again, whole):
        _live(run)
    assert _everything(again) == _everything(whole)


@pytest.mark.parametrize("learner", [{}, {"renew": {"rate": 0.01, "maturity_steps": 10}}, {"protect": {"kind": "si"}}])
def test_layers_that_share_survive_edits_and_a_resume(learner: dict[str, Any], table: Path) -> None:
    sharing = {"attention": "all", "mlp": "all", "difference_rank": 2}
    job = _job(table, {"sharing": sharing, "learner": {**POLICY["learner"], **learner}})
    whole, cut = _open(job), _open(job)
    for run in (whole, cut):
        run.begin()
        assert run.blueprint.attention_of == run.blueprint.mlp_of == (0, 0)
        _live(run, 60)
        run._edit(Unshare("mlp", 0), "test", "so that a layer has its own")
        _live(run, 20)
        run._edit(Share("mlp", (0, 1)), "test", "and shares again")
        _live(run, 10)
    again = _open(job)
    again.load_state(cut.state())
    for run in (again, whole):
        _live(run)
    assert _everything(again) == _everything(whole)


@pytest.mark.parametrize("kind", ["learned", "look_ahead"])
def test_the_controller_parts_layers_at_shifts_and_joins_them_for_thrift(kind: str, table: Path) -> None:
    """With prices and worths that leave no doubt."""
    sharing = {"attention": "all", "mlp": "all", "regroup": {"price": 0.0, "gain": 0.9}}
    heads = {**POLICY["heads"], "max": 2, "min": 2}
    policy = {"sharing": sharing, "heads": heads, "controller": {**POLICY["controller"], "kind": kind}}
    job = _job(table, policy)
    whole, cut = _open(job), _open(job)
    for run in (whole, cut):
        run.begin()
    _live(cut, 80)
    again = _open(job)
    again.load_state(cut.state())
    for run in (whole, again):
        _live(run)
    assert _everything(again) == _everything(whole)
    kinds = [json.loads(row["edit"])["kind"] for row in whole.account.records.rows("revisions") if row["edit"]]
    assert "unshare" in kinds and "share" not in kinds
    assert whole.blueprint.attention_of == () or whole.blueprint.mlp_of == ()
    dear = _open(_job(table, {**policy, "sharing": {"regroup": {"price": 5.0, "gain": 0.0}}}))
    dear.begin()
    _live(dear)
    assert dear.blueprint.attention_of == (0, 0) or dear.blueprint.mlp_of == (0, 0)


@pytest.mark.parametrize("learner", PROTECTED)
def test_what_protects_is_the_same_in_shards_but_for_rounding(learner: dict[str, Any], table: Path) -> None:
    steady = {**POLICY["learner"], "learning_rate": 0.002}  # larger steps let rounding grow tenfold in ten of them
    policy = {"learner": {**steady, **learner}, "controller": {"kind": "none"}}
    # Of a seed with which rounding grows late, where hidden units are begun anew.
    one, four = (_open(_job(table, policy, seed=5, samples=2_560, scale={"workers": 0, "shards": n})) for n in (1, 4))
    for run in (one, four):
        run.begin()
        _live(run)
        assert run.account.totals.shifts >= 1
    losses = [[row["loss"] for row in run.account.records.rows("steps")] for run in (one, four)]
    assert losses[0][:8] == pytest.approx(losses[1][:8], abs=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=0.1), "rounding grows at the shift"


def test_the_readouts_sums_are_those_of_all_rows_however_concepts_were_told_apart(table: Path) -> None:
    policy = {"learner": {**POLICY["learner"], "readout": {"features": 40, "ridge": 1.0}}}
    run = _open(_job(table, policy))
    run.begin()
    _live(run)
    assert run.account.totals.shifts >= 1 and run.model.readout is not None
    assert len(run.reading.concepts) >= 2
    features, target = run._decode(run.stream.read(0, 4_000))
    assert 0 < 4_000 - len(target) < 400, "the others are those to judge by"
    described = run.model.readout.describe(features).double()
    gram = torch.stack([sums.gram_DD for sums in run.reading.concepts.values()]).sum(0)
    torch.testing.assert_close(gram, described.T @ described, rtol=1e-5, atol=1e-2)
    counts = torch.stack([sums.cross_DC[-1] for sums in run.reading.concepts.values()]).sum(0)
    torch.testing.assert_close(counts, torch.bincount(target).double(), rtol=1e-6, atol=1e-3)


def test_a_readout_that_no_remembered_row_judges_learns_every_row(table: Path) -> None:
    readout = {"features": 40, "ridge": 1.0, "memory_weight": 0}
    policy = {"controller": {"kind": "none"}, "learner": {**POLICY["learner"], "readout": readout}}
    run = _open(_job(table, policy, samples=1_280))
    run.begin()
    _live(run)
    assert not run.reading.withheld and run._judged(64) == 0
    learned = 1_280 - int(run.stream.read(0, 1_280).held_out.sum())
    assert sum(float(sums.gram_DD[-1, -1]) for sums in run.reading.concepts.values()) == pytest.approx(learned)


@pytest.mark.parametrize("stream", [{"target": "y"}, {"target": "value", "task": "regression"}])
def test_a_readout_makes_the_first_rows_easier(stream: dict[str, str], table: Path) -> None:
    still = {"controller": {"kind": "none"}}
    learners = [POLICY["learner"], {**POLICY["learner"], "readout": {"features": 100}}]
    runs = [_open(_job(table, {**still, "learner": one}, stream=stream, samples=1_024)) for one in learners]
    for run in runs:
        run.begin()
        _live(run)
    bare, read = (np.mean([row["loss"] for row in run.account.records.rows("steps")[1:]]) for run in runs)
    assert read < 0.95 * bare


@pytest.mark.parametrize("target", [{"target": "y"}, {"target": "value", "task": "regression"}])
def test_a_kept_model_that_only_expects_other_frequencies_knows_no_better(target: dict[str, str], table: Path) -> None:
    run = _open(_job(table, stream=target))
    run.begin()
    _live(run, 40)
    snapshot = Snapshot.of(run.model, run.blueprint, run.controller.births, run.row)
    bias = next(name for name in snapshot.weights if name.endswith("output.bias"))
    leaning = snapshot.weights[bias].clone()
    leaning[0] += 2
    run.recollection.library.entries[7] = Entry(replace(snapshot, weights={**snapshot.weights, bias: leaning}), 0)

    as_it_is = [trial.recent_R.mean() for trial in run.hindsight([7], 128)]
    fitted = [trial.recent_R.mean() for trial in run.hindsight([7], 128, bias_fitted=True)]

    assert as_it_is[1] > 1.2 * as_it_is[0]
    assert fitted[1] == pytest.approx(fitted[0], rel=0.1)


def test_regression_is_scored_in_the_targets_units(table: Path) -> None:
    run = _open(_job(table, stream={"target": "value", "task": "regression"}, samples=1_920))
    run.begin()
    _live(run)
    summary = run.summary("done", run.finish())
    assert summary["prequential_mae"] < 80, "the target's mean absolute deviation is about 80"
    assert summary["final_mae"] < summary["prequential_mae"]
    assert "prequential_accuracy" not in summary


def test_a_loss_that_is_not_finite_stops_the_run_in_words(table: Path) -> None:
    run = _open(_job(table, {"learner": {"optimizer": "sgd", "learning_rate": 1e38, "clip_norm": 1e30}}))
    run.begin()
    with pytest.raises(RunError, match=r"the loss is not finite; lower policy\.learner\.learning_rate"):
        _live(run)


def test_parts_of_another_run_are_refused(table: Path, whole: Lifelong) -> None:
    other = _open(_job(table))
    with pytest.raises(InputError, match="resume it with its own"):
        other.load_state({**whole.state(), "state.json": b"{}"})


def test_a_run_in_this_process_leaves_what_is_promised(table: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    summary = run_here(_job(table, samples=960), folder, Path.cwd())
    assert summary["status"] == "done"
    for name in (
        "steps.parquet",
        "revisions.parquet",
        "shifts.parquet",
        "decisions.parquet",
        "summary.json",
        "live.json",
    ):
        assert (tmp_path / name).exists(), name
    assert json.loads((tmp_path / "summary.json").read_text())["restarts"] == 0
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pt", ".pickle")]


def test_a_run_that_ended_leaves_its_memory_at_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when Python next looks for what holds each other: a run is some hundred MB."""
    begun: list[weakref.ref[Lifelong]] = []
    begin = Lifelong.begin

    def noted(run: Lifelong) -> bool:
        begun.append(weakref.ref(run))
        return begin(run)

    monkeypatch.setattr(Lifelong, "begin", noted)
    gc.collect()
    gc.disable()
    try:
        run_here(_job(table, samples=256), RunFolder(tmp_path), tmp_path)
        assert [run() for run in begun] == [None]
    finally:
        gc.enable()


def test_a_stop_mark_stops_at_a_checkpoint_and_the_rest_follows(
    table: Path, tmp_path: Path, whole: Lifelong, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "GLANCE_EVERY_S", 0.1)
    folder = RunFolder(tmp_path)
    folder.make()
    folder.stop_mark.touch()
    job = _job(table, storage={"checkpoint_every_s": 1_000})
    stopped = run_here(job, folder, Path.cwd())
    assert stopped["status"] == "stopped" and stopped["samples"] < 4_000
    folder.stop_mark.unlink()
    done = run_here(job, folder, Path.cwd())
    assert done["status"] == "done" and done["samples"] == 4_000
    assert done["prequential_loss"] == whole.account.totals.loss / 4_000
    assert done["restarts"] == 1


def test_revisions_that_lived_long_enough_are_kept_as_models(table: Path, tmp_path: Path) -> None:
    record = {"interval_samples": 200, "register_after_samples": 300, "register_newest": 2}
    run_here(_job(table, record=record), RunFolder(tmp_path), Path.cwd())
    rows = [row for row in read_rows(tmp_path, "revisions")[:-1] if row["samples"] >= 300]
    expected = [f"revision-{row['number']:05d}-{row['last_sample']:012d}" for row in rows][-2:]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == expected
    model, encoding = load_model(tmp_path / "models" / expected[-1])
    assert asdict(model.blueprint)["heads"] == tuple(rows[-1]["heads"])
    assert set(encoding["labels"]) <= {"yes", "no", "maybe"}
