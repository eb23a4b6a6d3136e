"""Random policies: each is refused when it is read, or its run edits, resumes, is exported and reported as any other.

What is drawn are all techniques beside each other: sharing, gates, adapters, pruning, rounding, losses and memories,
protection, renewal, readout, optimizers and controllers.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from tests.train.conftest import begun, everything, live

import planaria
from planaria.blueprint import Edit, GrowHeads, GrowMlp, Share, ShrinkHeads, ShrinkMlp, Unshare
from planaria.errors import InputError
from planaria.job import Job
from planaria.settings import parse
from planaria.train.lifelong import Lifelong

ROWS, SHIFT, STEPS = 480, 220, 30
LAYERS = 3


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two concepts of four numbers, of which some are missing."""
    x = np.random.default_rng(0).normal(size=(ROWS, 4))
    score = x[:, 0] - x[:, 1] * np.where(np.arange(ROWS) < SHIFT, 1, -1)
    x[SHIFT:] += 3
    x[::17, 3] = np.nan
    label = np.where(score > 0.5, "high", np.where(score < -0.5, "low", "middle")).astype(object)
    columns = {f"x{at}": x[:, at] for at in range(4)} | {
        "label": label,
        "score": score,
        "part": np.arange(ROWS) >= SHIFT,
    }
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def _some(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Each field is there or not."""
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in fields.items()})


GROUPINGS = ["none", "all", "pairs", "cycle", "sandwich", [0, 0, 2]]
POLICIES = st.fixed_dictionaries(
    {
        "heads": st.just({"start": 2, "max": 4, "cooldown_samples": 48}),
        "controller": st.sampled_from(
            [
                {"kind": kind, "thrift_every_samples": 100, "wait_samples": 64, "recall_samples": 32, "inner_steps": 2}
                for kind in ("none", "look_ahead", "learned")
            ]
        ),
        "detector": _some(boundaries=["told", "detected"], settle_samples=[64]),
        "initialisation": st.sampled_from(["normal", "orthogonal"]),
        "learner": st.fixed_dictionaries(
            {"memory": _some(kind=["reservoir", "class_balanced", "ring", "loss_aware"], rows=[0, 60, 200])},
            optional={
                "loss": st.sampled_from(["naive", "er", "er_ace", "der", "der++", "a_gem"]),
                "protect": st.sampled_from([{"kind": kind} for kind in ("ewc", "si", "lwf")]),
                "renew": st.just({"rate": 0.01, "maturity_steps": 5}),
                "readout": st.sampled_from([{"features": 16}, {"features": 8, "half_lives": [100], "concepts": 2}]),
                "optimizer": st.sampled_from(["adamw", "adabelief", "meta_sgd", "sgd"]),
                "replay_ratio": st.sampled_from([0.0, 0.5, 1.0]),
            },
        ),
    },
    optional={
        "sharing": _some(
            attention=GROUPINGS, mlp=GROUPINGS, difference_rank=[0, 2], regroup=[None, {"price": 0.02, "gain": 0.05}]
        ),
        "gate": _some(
            kind=["straight_through", "hard_concrete"], per=["row", "stream"], mlp_blocks=[1, 2], warm_up_samples=[64]
        ),
        "adapters": st.just({"units": 3, "most": 3}),
        "prune": _some(
            from_samples=[64], every_samples=[48], steps=[2], fine=[0.2, 0.6], unstructured=[0.3], fine_by=["magnitude"]
        ),
        "quantise": st.sampled_from(
            [{"from_samples": 200}, {"last_fraction": 0.5, "bits": 4, "activations": "tensor"}]
        ),
    },
)
"""Also those that do not fit together."""


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    task, target = draw(st.sampled_from([("classification", "label"), ("regression", "score")]))
    return {
        "stream": {
            "source": "parquet",
            "features": {"numeric": ["x0", "x1", "x2", "x3"]},
            "target": target,
            "task": task,
            "context": "part",
        },
        "batch_rows": 16,
        "samples": ROWS,
        "model": {"width": 16, "layers": LAYERS, "head_width": 4, "mlp_width": 24},
        "policy": draw(POLICIES),
        "scale": {"workers": 0, "shards": draw(st.sampled_from([1, 2]))},
        "record": {"interval_samples": 160},
        "storage": {"checkpoint_every_s": 1},
        "evaluation": {"rows_per_context": 40},
    }


AS_DRAWN = (Phase.explicit, Phase.generate)
"""To make a failing policy smaller would take as long as many more policies."""
EDITS: st.SearchStrategy[list[Edit]] = st.lists(
    st.sampled_from(
        [
            GrowHeads(0, 1),
            ShrinkHeads(1, (0,)),
            GrowMlp(2, 2),
            ShrinkMlp(0, (0, 3)),
            Share("mlp", (0, 1)),
            Share("attention", (1, 2)),
            Unshare("mlp", 1),
            Unshare("attention", 2),
        ]
    ),
    max_size=3,
)


def _read(values: dict[str, Any], table: Path) -> Job | None:
    """None where the policy is refused, in one line that says what and what to do."""
    values = {**values, "stream": {**values["stream"], "path": str(table)}}
    try:
        job = parse(Job, values, "job.yaml")
        event("run")
        return job
    except InputError as error:
        line = str(error)
        assert "\n" not in line and line.startswith("job.yaml: policy"), line
        assert any(word in line for word in (";", "remove", "set", "give", "choose", "raise")), line
        event("refused")
        return None


def _edit(run: Lifelong, edits: list[Edit]) -> None:
    for edit in edits:
        try:
            edit.apply(run.blueprint)
        except ValueError:
            continue  # has no sense for what the run has become
        owners = run.blueprint.owners("attention")
        run._edit(edit, "test", "drawn")
        run.controller.edited(edit, owners, run.row)


def _is_one_run_however_it_is_cut(job: Job, edits: list[Edit], cut_at: int) -> None:
    whole, cut = begun(job), begun(job)
    for run in (whole, cut):
        live(run, 12)
        _edit(run, edits)
    live(cut, cut_at)
    again = begun(job)
    again.load_state(cut.state())
    for run in (whole, again):
        live(run)
        assert run.step == STEPS
    assert everything(whole) == everything(again)
    assert whole.blueprint == whole.model.blueprint
    assert sum(p.numel() for p in whole.model.parameters()) == whole.blueprint.parameters


@settings(max_examples=10, phases=AS_DRAWN)
@given(jobs(), EDITS, st.integers(13, STEPS - 1))
def test_any_policy_is_refused_in_one_line_or_is_the_same_run_after_a_resume(
    table: Path, values: dict[str, Any], edits: list[Edit], cut_at: int
) -> None:
    if job := _read(values, table):
        _is_one_run_however_it_is_cut(job, edits, cut_at)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@settings(max_examples=120, phases=AS_DRAWN)
@given(jobs(), EDITS, st.integers(13, STEPS - 1))
def test_many_policies_are_the_same_run_after_a_resume(
    table: Path, values: dict[str, Any], edits: list[Edit], cut_at: int
) -> None:
    if job := _read(values, table):
        _is_one_run_however_it_is_cut(job, edits, cut_at)


def _is_exported_and_reported(job: Job) -> None:
    with tempfile.TemporaryDirectory() as place:
        result = planaria.run(job, out=Path(place) / "run")
        assert result.summary["status"] == "done" and result.summary["samples"] == ROWS
        assert "</html>" in result.report.read_text()
        made = planaria.export(result.folder, "safetensors")
        assert made.difference == 0
        blueprint = json.loads((Path(made.path) / "blueprint.json").read_text())
        assert len(blueprint["heads"]) == LAYERS


@settings(max_examples=2, phases=AS_DRAWN)
@given(jobs())
def test_the_run_of_any_policy_is_exported_and_reported(table: Path, values: dict[str, Any]) -> None:
    if job := _read(values, table):
        _is_exported_and_reported(job)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@settings(max_examples=20, phases=AS_DRAWN)
@given(jobs())
def test_runs_of_many_policies_are_exported_and_reported(table: Path, values: dict[str, Any]) -> None:
    if job := _read(values, table):
        _is_exported_and_reported(job)
