"""Runs with adapters: a new concept gets one, rows find theirs, and the run is the same however it is cut or spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.train.conftest import begun, everything, live

from planaria.blueprint import GrowHeads, Share
from planaria.job import Job
from planaria.train.adapting import CAUSE
from planaria.train.lifelong import Lifelong

CONCEPT_ROWS = 2_560
CONCEPTS = (0, 1, 2, 0)
"""In the order in which they come."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three concepts, the first of which returns: inputs around other places, and another rule for each."""
    draws = np.random.default_rng(0)
    concept = np.repeat(CONCEPTS, CONCEPT_ROWS)
    x = draws.normal(size=(len(concept), 4)).astype(np.float32)
    label = np.where(x[np.arange(len(x)), concept] > 0, "yes", "no").astype(object)
    x[concept == 1, 3] += 5
    x[concept == 2, 2] -= 5
    x[::40, 1] = np.nan
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    columns = {f"x{at}": x[:, at] for at in range(4)}
    pq.write_table(pa.table({**columns, "y": label, "part": concept}), path)
    return path


def _run(
    table: Path,
    boundaries: str = "told",
    shards: int = 1,
    adapters: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **policy: Any,
) -> Lifelong:
    values = {
        "stream": {
            "source": "parquet",
            "path": str(table),
            "features": {"numeric": ["x0", "x1", "x2", "x3"]},
            "target": "y",
            "context": "part",
        },
        "batch_rows": 64,
        "model": {"width": 16, "layers": 2, "head_width": 4, "mlp_width": 32, **(model or {})},
        "policy": {
            "heads": {"start": 2, "max": 4},
            "controller": {"kind": "none"},
            "detector": {"boundaries": boundaries},
            "adapters": {"units": 4, "most": 4} if adapters is None else adapters,
            "learner": {"learning_rate": 0.005, "memory": {"rows": 300}},
            **policy,
        },
        "scale": {"workers": 0, "shards": shards},
        "record": {"interval_samples": 640},
    }
    return begun(Job.model_validate(values))


def _routed(run: Lifelong, context: int) -> float:
    """Share of a context's held-out rows that find the adapter of their concept."""
    held, router = run.evaluator.held_out(context), run.model.router
    assert held is not None and router is not None
    used = router(run._tensors(held[0])).argmax(1)
    return float((used == run.adapting.adapter_of[context]).float().mean())


@pytest.mark.parametrize("boundaries", ["told", "detected"])
def test_each_concept_gets_an_adapter_which_its_rows_find_and_returns_to(boundaries: str, table: Path) -> None:
    run = live(_run(table, boundaries))
    causes = [(row["cause"], json.loads(row["blueprint"])["adapters"]) for row in run.account.records.rows("revisions")]
    assert [adapters for cause, adapters in causes if cause == CAUSE] == [2, 3]
    assert run.adapting.adapter_of == {0: 0, 1: 1, 2: 2} and run.adapting.present == 0
    assert min(_routed(run, context) for context in (0, 1, 2)) > 0.95
    final = run.finish()
    assert max(error for error, _ in final.values()) < 0.2, "each by its own rule, without being told the context"


def test_a_run_with_adapters_survives_edits_and_a_resume(table: Path) -> None:
    policy: dict[str, Any] = {
        "gate": {"warm_up_samples": 640},
        "learner": {"learning_rate": 0.005, "memory": {"rows": 300}, "protect": {"kind": "ewc"}},
    }
    whole, cut = _run(table, **policy), _run(table, **policy)
    for run in (whole, cut):
        live(run, 50)
        run._edit(GrowHeads(0, 1), "test", "so that there is more")
        live(run, 60)
        run._edit(GrowHeads(1, 1), "test", "so that they can share")
        run._edit(Share("mlp", (0, 1)), "test", "so that they share")
        live(run, 97)
    again = _run(table, **policy)
    again.load_state(cut.state())
    for run in (again, whole):
        live(run)
    assert whole.blueprint.adapters == 3
    assert everything(again) == everything(whole)


@pytest.mark.parametrize(
    "learner",
    [
        {"loss": "er"},
        {"readout": {"features": 16}},
        {"protect": {"kind": "ewc"}},
        {"loss": "der++", "protect": {"kind": "lwf"}},
        {"loss": "a_gem", "renew": {"rate": 0.01}},
    ],
)
def test_adapters_are_the_same_in_shards_but_for_rounding(learner: dict[str, Any], table: Path) -> None:
    policy = {"learner": {"learning_rate": 0.001, "memory": {"rows": 300}, **learner}}
    one, two = (live(_run(table, "told", shards, **policy), 60) for shards in (1, 2))
    assert one.blueprint == two.blueprint and one.blueprint.adapters == 2
    assert one.adapting.adapter_of == two.adapting.adapter_of
    rows = [[row["loss"] for row in run.account.records.rows("steps")] for run in (one, two)]
    assert rows[0] == pytest.approx(rows[1], rel=2e-3)


def test_a_controller_that_edits_and_restores_goes_on_with_adapters(table: Path) -> None:
    controller = {
        "thrift_every_samples": 400,
        "wait_samples": 128,
        "inner_steps": 3,
        "inner_rows": 16,
        "certainty": 0.0,
    }
    budget = {"price": 1.0, "decision_fraction": 1.0}
    whole, cut = (_run(table, "detected", controller=controller, budget=budget) for _ in range(2))
    live(cut, 140)
    again = _run(table, "detected", controller=controller, budget=budget)
    again.load_state(cut.state())
    for run in (again, live(whole)):
        live(run)
    assert whole.blueprint.adapters >= 2
    assert len({row["cause"] for row in whole.account.records.rows("revisions")}) > 2, "and it edited"
    assert everything(again) == everything(whole)


def test_there_are_no_more_adapters_than_allowed_and_a_late_concept_uses_the_nearest(table: Path) -> None:
    run = live(_run(table, adapters={"units": 4, "most": 2}))
    assert run.blueprint.adapters == 2
    assert set(run.adapting.adapter_of) == {0, 1, 2} and run.adapting.adapter_of[2] in (0, 1)
    limit = run.blueprint.parameters - 1
    small = live(_run(table, budget={"parameters": limit}), 100)
    assert small.blueprint.adapters == 1, "a budget of parameters holds for adapters, too"


def test_after_pruning_no_adapter_makes_the_model_larger_again(table: Path) -> None:
    prune = {"from_samples": 640, "coarse": 0.2, "fine": 0.4, "steps": 2, "every_samples": 64}
    run = live(_run(table, prune=prune))
    ceiling = run.controller.ceiling
    assert ceiling is not None and run.blueprint.parameters <= ceiling
    assert run.blueprint.adapters == 1, "concepts that came later use the one that there is"


def test_one_adapter_without_a_shift_is_what_all_rows_use(table: Path) -> None:
    run = live(_run(table), 20)
    router = run.model.router
    assert router is not None
    features = run._tensors(run.stream.read(0, 64).select(slice(None)))
    assert torch.equal(router(features), torch.ones(64, 1))
    remembered = run._with_route({}, 2, np.zeros(3, np.int64))
    assert torch.equal(remembered["route"], torch.ones(5, 1))


@pytest.mark.slow
def test_a_compiled_run_with_adapters_learns_the_same(table: Path) -> None:
    plain = live(_run(table), 60)
    compiled = live(_run(table, model={"compile_after_rows": 320}), 60)
    losses = [[row["loss"] for row in run.account.records.rows("steps")] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert compiled.blueprint.adapters == 2
