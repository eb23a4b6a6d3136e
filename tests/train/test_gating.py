"""Runs with gates: they reach their budget, and are the same run however it is cut or spread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.train.conftest import begun, everything, live

from planaria.active import active_flops, active_parameters
from planaria.blueprint import Gates, GrowHeads, SetGate, Share, ShrinkHeads
from planaria.job import Job
from planaria.train.lifelong import Lifelong

GATES: list[dict[str, Any]] = [
    {"kind": "hard_concrete", "per": "row"},
    {"kind": "hard_concrete", "per": "stream"},
    {"kind": "straight_through", "per": "row"},
    {"kind": "straight_through", "per": "stream"},
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 rows of one rule."""
    x = np.random.default_rng(0).normal(size=(6_000, 4)).astype(np.float32)
    label = np.where(x[:, 0] * x[:, 1] > 0, "yes", "no").astype(object)
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.table({**{f"x{at}": x[:, at] for at in range(4)}, "y": label}), path)
    return path


def _run(table: Path, gate: dict[str, Any] | None, samples: int, shards: int = 1, **learner: Any) -> Lifelong:
    values = {
        "stream": {
            "source": "parquet",
            "path": str(table),
            "features": {"numeric": ["x0", "x1", "x2", "x3"]},
            "target": "y",
        },
        "batch_rows": 32,
        "samples": samples,
        "model": {"width": 16, "layers": 2, "head_width": 4, "mlp_width": 32},
        "policy": {
            "heads": {"start": 2, "max": 4},
            "controller": {"kind": "none"},
            "gate": gate if gate is None else {"warm_up_samples": 320, **gate},
            "learner": {"learning_rate": 0.005, "memory": {"rows": 300}, **learner},
        },
        "scale": {"workers": 0, "shards": shards},
        "record": {"interval_samples": 320},
    }
    return begun(Job.model_validate(values))


@pytest.mark.parametrize("gate", GATES)
def test_the_rows_use_about_the_fraction_that_the_policy_asks_for(gate: dict[str, Any], table: Path) -> None:
    run = _run(table, {**gate, "active_fraction": 0.6}, 6_000, learning_rate=0.01)
    live(run)
    run.finish()
    rows = run.account.records.rows("steps")
    late = [float(np.mean(row["active_fraction"])) for row in rows[-6:]]
    assert float(np.mean(late)) == pytest.approx(0.6, abs=0.1)
    assert rows[0]["active_fraction"] == pytest.approx([1.0, 1.0], abs=0.05), "the pull had not begun"
    summary = run.summary("done")
    assert 0.5 < summary["active_fraction_mean"] < 0.95
    assert summary["parameters_active_mean"] < 0.95 * summary["parameters_mean"]
    assert summary["flops_per_sample_mean"] < 0.95 * run.blueprint.flops_per_sample
    assert np.mean([row["flops_per_sample"] for row in rows[-6:]]) < run.blueprint.flops_per_sample


@pytest.mark.parametrize("gate", GATES)
def test_a_run_with_gates_survives_edits_and_a_resume(gate: dict[str, Any], table: Path) -> None:
    whole, cut = _run(table, gate, 2_560), _run(table, gate, 2_560)
    gates = whole.blueprint.gates
    for run in (whole, cut):
        live(run, 15)
        run._edit(GrowHeads(0, 1), "test", "so that there is more")
        live(run, 25)
        run._edit(SetGate(None), "test", "so that all is open")
        live(run, 30)
        run._edit(SetGate(gates), "test", "so that less is")
        run._edit(ShrinkHeads(0, (1,)), "test", "so that there is less")
        run._edit(Share("attention", (0, 1)), "test", "so that they share")
        live(run, 40)
    again = _run(table, gate, 2_560)
    again.load_state(cut.state())
    for run in (again, whole):
        live(run)
    assert everything(again) == everything(whole)


@pytest.mark.parametrize("learner", [{}, {"loss": "a_gem"}, {"readout": {"features": 16}}])
@pytest.mark.parametrize("gate", GATES)
def test_gates_are_the_same_in_shards_but_for_rounding(
    gate: dict[str, Any], learner: dict[str, Any], table: Path
) -> None:
    one, four = (_run(table, gate, 640, shards, **{**learner, "learning_rate": 0.002}) for shards in (1, 4))
    for run in (one, four):
        live(run)
    rows = [run.account.records.rows("steps") for run in (one, four)]
    for name in ("loss", "parameters_active"):
        ours, theirs = ([row[name] for row in table] for table in rows)
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_gates_that_an_edit_brought_are_not_pulled_without_a_policy(table: Path) -> None:
    run = _run(table, None, 1_280)
    live(run, 5)
    assert run.gating.length(run.model) == 0 and run.gating.opened == ()
    run._edit(SetGate(Gates("straight_through", "row", 2)), "test", "to try them")
    live(run, 10)
    assert run.gating.price(run.row) == 0 and len(run.gating.opened) == 2 * (2 + 2)


def test_what_rows_use_is_counted_from_how_often_each_gate_was_open(table: Path) -> None:
    blueprint = _run(table, {"mlp_blocks": 2}, 320).blueprint
    open_to_all = [1.0] * 8
    assert active_parameters(blueprint, open_to_all) == blueprint.parameters
    assert active_flops(blueprint, open_to_all) == blueprint.flops_per_sample
    half_a_head = [0.5, *open_to_all[1:]]
    assert blueprint.parameters - active_parameters(blueprint, half_a_head) == 0.5 * 4 * 4 * 16
    assert blueprint.flops_per_sample - active_flops(blueprint, half_a_head) == 0.5 * blueprint.flops_of_head(0)
    no_block = [1.0, 1.0, 0.0, 0.0, *open_to_all[4:]]
    assert blueprint.parameters - active_parameters(blueprint, no_block) == 2 * 16 * 32 + 32
    assert blueprint.flops_per_sample - active_flops(blueprint, no_block) == blueprint.flops_of_mlp(0)
    shared = Share("mlp", (0, 1)).apply(blueprint)
    assert active_parameters(shared, no_block) == shared.parameters, "the other layer uses them"
