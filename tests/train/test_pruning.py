"""Runs that prune: on schedule, as far as asked, and the same run however it is cut or spread."""

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

import planaria
from planaria.blueprint import Blueprint, GrowHeads, Prune, ShrinkHeads, ShrinkMlp
from planaria.job import Job
from planaria.policy import Policy
from planaria.record import read_rows, write_report
from planaria.train.pruning import Masks, Stage, stages

PRUNE: dict[str, Any] = {"from_samples": 640, "coarse": 0.2, "fine": 0.6, "steps": 3, "every_samples": 320}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6,000 rows of one rule."""
    x = np.random.default_rng(0).normal(size=(6_000, 4)).astype(np.float32)
    label = np.where(x[:, 0] * x[:, 1] > 0, "yes", "no").astype(object)
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.table({**{f"x{at}": x[:, at] for at in range(4)}, "y": label}), path)
    return path


def _job(table: Path, prune: dict[str, Any] | None = PRUNE, shards: int = 1, **policy: Any) -> Job:
    features = {"numeric": ["x0", "x1", "x2", "x3"]}
    learner = {"learning_rate": 0.005, "memory": {"rows": 300}, **policy.pop("learner", {})}
    values = {
        "stream": {"source": "parquet", "path": str(table), "features": features, "target": "y"},
        "batch_rows": 32,
        "samples": 2_560,
        "model": {"width": 16, "layers": 2, "head_width": 4, "mlp_width": 32},
        "policy": {
            "heads": {"start": 4, "max": 6},
            "controller": {"kind": "none"},
            "prune": prune,
            "learner": learner,
            **policy,
        },
        "scale": {"workers": 0, "shards": shards},
        "record": {"interval_samples": 320},
    }
    return Job.model_validate(values)


def test_stages_are_coarse_then_fine_then_single_weights() -> None:
    prune = {"from_samples": 100, "coarse": 0.2, "fine": 0.8, "steps": 2, "every_samples": 50, "unstructured": 0.5}
    first, second, third, last = stages(Policy.model_validate({"prune": prune, "controller": {"kind": "none"}}))
    assert first == Stage(100, "magnitude", 0.2) and last == Stage(250, "magnitude", 0.5, single=True)
    assert (second.sample, second.by, third.sample, third.by) == (150, "sensitivity", 200, "sensitivity")
    assert second.gone == pytest.approx(0.6) and third.gone == pytest.approx(0.8)  # 0.8, 0.4 and 0.2 are left
    assert stages(Policy.model_validate({"prune": {"coarse": 0.3, "fine": 0.3}})) == [Stage(10_000, "magnitude", 0.3)]
    (only, *_) = stages(Policy.model_validate({"prune": {"coarse": 0}}))
    assert only.by == "sensitivity" and only.sample == 10_000
    assert stages(Policy()) == []


def test_a_run_prunes_as_far_as_it_is_asked_and_says_why(table: Path) -> None:
    run, plain = begun(_job(table)), begun(_job(table, None))
    whole = run.blueprint.prunable
    for one in (run, plain):
        live(one)
    assert run.blueprint.prunable == pytest.approx(0.4 * whole, abs=16.5), "half a hidden unit"
    assert sum(p.numel() for p in run.model.parameters()) == run.blueprint.parameters < 0.6 * plain.blueprint.parameters
    rows = [row for row in run.account.records.rows("revisions") if row["cause"] == "prune"]
    assert [row["sample"] for row in rows] == [640, 960, 1_280, 1_600]
    assert "stage 1 of 4, by magnitude" in rows[0]["why"] and "until 20% of the" in rows[0]["why"]
    assert "by sensitivity" in rows[1]["why"] and "recent and remembered rows go" in rows[3]["why"]
    assert all(json.loads(row["edit"])["kind"] == "prune" for row in rows)
    assert run.summary("done")["parameters_largest"] == plain.summary("done")["parameters_largest"]
    late = [one.account.records.rows("steps")[-1]["accuracy"] for one in (run, plain)]
    assert late[0] > late[1] - 0.1 and late[0] > 0.75


VARIANTS: list[dict[str, Any]] = [
    {},
    {"prune": {**PRUNE, "unstructured": 0.5}},
    {"prune": {**PRUNE, "fine_by": "magnitude"}, "learner": {"renew": {"rate": 0.01, "maturity_steps": 5}}},
    {"gate": {"per": "stream", "warm_up_samples": 320}},
    {"sharing": {"mlp": "all", "difference_rank": 2}, "learner": {"protect": {"kind": "si", "weight": 0.1}}},
    {"learner": {"readout": {"features": 16}, "loss": "a_gem"}},
    {"controller": {"kind": "learned", "thrift_every_samples": 320}, "heads": {"start": 4, "cooldown_samples": 200}},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant) or "plain")
def test_a_run_that_prunes_is_the_same_run_after_a_resume(variant: dict[str, Any], table: Path) -> None:
    job = _job(table, **variant)
    whole, cut = begun(job), begun(job)
    live(cut, 46)
    assert cut.pruning.done == 3
    again = begun(job)
    again.load_state(cut.state())
    live(again, 70)
    last = begun(job)
    last.load_state(again.state())
    for run in (last, whole):
        live(run)
    assert everything(last) == everything(whole)
    assert last.pruning.done == len(last.pruning.stages)


def test_pruning_is_the_same_in_shards_but_for_rounding(table: Path) -> None:
    one, four = (begun(_job(table, shards=shards, learner={"learning_rate": 0.002})) for shards in (1, 4))
    for run in (one, four):
        live(run, 45)
    assert one.blueprint == four.blueprint and one.blueprint.mlp_widths
    losses = [[row["loss"] for row in run.account.records.rows("steps")] for run in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    "learner",
    [
        {"optimizer": "sgd"},
        {"optimizer": "meta_sgd", "learning_rate": 0.3},
        {"optimizer": "adabelief"},
        {"protect": {"kind": "ewc"}},
        {},
    ],
)
def test_single_weights_that_went_stay_at_zero_while_the_others_learn(learner: dict[str, Any], table: Path) -> None:
    prune = {"from_samples": 640, "coarse": 0.0, "fine": 0.0, "unstructured": 0.7}
    run = begun(_job(table, prune, learner=learner))
    live(run, 21)
    weight = run.model.block(0).mlp.into.weight
    zero, before = weight == 0, weight.detach().clone()
    masked = run.pruning.masks.of
    total = sum(mask.numel() for mask in masked.values())
    assert sum(int((p == 0).sum()) for p in masked) == pytest.approx(0.7 * total, abs=1)
    live(run)
    weight = run.model.block(0).mlp.into.weight
    assert bool((weight[zero] == 0).all()) and not torch.equal(weight, before)
    assert sum(int((p == 0).sum()) for p in masked) == pytest.approx(0.7 * total, abs=1)
    (row,) = (row for row in run.account.records.rows("revisions") if row["cause"] == "prune")
    assert "(70%) stay at zero" in row["why"]


def test_masks_follow_their_rows_through_surgery(table: Path) -> None:
    run = begun(_job(table, {"from_samples": 320, "coarse": 0.0, "fine": 0.0, "unstructured": 0.5}))
    live(run, 11)
    mlp = run.model.block(0).mlp
    zero = (mlp.out.weight == 0)[:, [0, *range(2, 32)]]
    run._edit(Prune(((0,),), ((1,),)), "test", "so that masks have to follow")
    run._edit(GrowHeads(1, 1), "test", "and so that some have none")
    assert torch.equal(run.model.block(0).mlp.out.weight == 0, zero)
    live(run, 15)
    assert torch.equal(run.model.block(0).mlp.out.weight == 0, zero)
    assert bool((run.model.block(1).attention.o[-1] != 0).all()), "what is new has all its weights"
    held = {id(p) for p in run.model.parameters()}
    assert all(id(p) in held and mask.shape == p.shape for p, mask in run.pruning.masks.of.items())
    assert isinstance(run.pruning.masks, Masks)


@pytest.mark.parametrize("kind", ["learned", "look_ahead"])
def test_a_controller_does_not_grow_back_what_was_pruned(kind: str, table: Path) -> None:
    controller = {"kind": kind, "thrift_every_samples": 200, "capacity_gain": 0.9}
    policy = {"heads": {"start": 4, "max": 8, "cooldown_samples": 100}, "budget": {"price": 0.0}}
    job = _job(table, {**PRUNE, "every_samples": 160}, controller=controller, **policy).model_copy(
        update={"samples": 4_800}
    )
    run = begun(job)
    most = run.blueprint.parameters
    while run.take_step() is not None:
        most = run.controller.ceiling or most
        assert run.controller.ceiling is None or run.blueprint.parameters <= most
    assert run.pruning.done == 4 and run.account.totals.decisions > 3
    after = [row for row in run.account.records.rows("decisions") if row["sample"] > 1_200]
    offered = [option for row in after for option in json.loads(row["candidates"])]
    assert offered and all(option["parameters"] <= most for option in offered)
    assert [len(layer) for layer in run.controller.births] == list(run.blueprint.heads)


def test_what_is_known_of_hidden_units_goes_with_them(table: Path) -> None:
    run = begun(_job(table, None, learner={"renew": {"rate": 1e-6, "maturity_steps": 5}}))
    live(run, 10)
    renewal = run.renewing.renewal
    assert renewal is not None
    known = renewal.magnitude_U.clone()
    run._edit(Prune(((0,),), ((), (0, 31))), "test", "so that two are gone")
    run._edit(ShrinkMlp(0, (3,)), "test", "and a third")
    run._edit(ShrinkHeads(0, (0,)), "test", "which has nothing to do with it")
    kept = [*range(3), *range(4, 32), *range(33, 63)]
    assert torch.equal(renewal.magnitude_U, known[kept]) and renewal.widths == [31, 30]
    live(run, 20)
    assert bool((renewal.age_U == 20).all())


@pytest.fixture(scope="module")
def pruned(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that pruned."""
    out = tmp_path_factory.mktemp("pruned") / "run"
    planaria.run(_job(table), out=out)
    return out


def test_a_pruned_run_is_reported_and_exported(pruned: Path) -> None:
    page = write_report(pruned).read_text()
    assert "by sensitivity: heads and hidden units with the least |weight x gradient|" in page
    assert page.count("prune") >= 4
    made = planaria.export(pruned, "safetensors")
    assert made.difference == 0
    blueprint = Blueprint.from_json((Path(made.path) / "blueprint.json").read_text())
    assert blueprint.mlp_widths and blueprint.parameters < 0.6 * read_rows(pruned, "revisions")[0]["parameters"]


def test_the_store_has_the_widths_of_each_revision(pruned: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{pruned / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("planaria")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=50)
    widths = {run.info.run_name: run.data.params.get("blueprint.mlp_widths") for run in runs}
    last = read_rows(pruned, "revisions")[-1]
    assert json.loads(widths[f"revision {last['number']}"] or "") == last["blueprint"]["mlp_widths"]
