"""Runs whose last phase is quantised: it begins where the policy says, and the run is the same however it is cut."""

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

from planaria.blueprint import GrowHeads, Quantisation, Share, ShrinkHeads
from planaria.job import Job
from planaria.train.lifelong import Lifelong


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 rows of one rule."""
    x = np.random.default_rng(0).normal(size=(4_000, 4)).astype(np.float32)
    label = np.where(x[:, 0] * x[:, 1] > 0, "yes", "no").astype(object)
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.table({**{f"x{at}": x[:, at] for at in range(4)}, "y": label}), path)
    return path


def _run(table: Path, quantise: dict[str, Any] | None, samples: int = 960, shards: int = 1, **policy: Any) -> Lifelong:
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
            "quantise": quantise,
            "learner": {"learning_rate": 0.002, "memory": {"rows": 300}},
            **policy,
        },
        "scale": {"workers": 0, "shards": shards},
        "record": {"interval_samples": 320},
    }
    return begun(Job.model_validate(values))


@pytest.mark.parametrize(
    ("quantise", "first"),
    [({}, 24), ({"last_fraction": 0.5, "bits": 4}, 15), ({"from_samples": 330, "activations": "tensor"}, 11)],
)
def test_the_last_phase_begins_where_the_policy_says_and_is_a_revision(
    quantise: dict[str, Any], first: int, table: Path
) -> None:
    run, plain = _run(table, quantise), _run(table, None)
    for one in (run, plain):
        live(one, first)
    assert run.blueprint.quantisation is None and torch.equal(run.model.class_token_D, plain.model.class_token_D)
    live(run, first + 1)
    assert run.blueprint.quantisation == Quantisation(quantise.get("bits", 8), quantise.get("activations", "token"))
    live(run)
    run.finish()
    _, newest = run.account.records.rows("revisions")
    assert (newest["cause"], newest["step"], json.loads(newest["edit"])["kind"]) == ("quantise", first, "quantise")
    assert json.loads(newest["blueprint"])["quantisation"]["bits"] == quantise.get("bits", 8)


def test_a_run_that_is_quantised_from_its_first_row_has_one_revision(table: Path) -> None:
    run = _run(table, {"from_samples": 0}, 64)
    live(run)
    run.finish()
    assert run.blueprint.quantisation is not None and len(run.account.records.rows("revisions")) == 1


def test_predictions_after_the_switch_are_those_of_the_quantised_model(table: Path) -> None:
    run, plain = (_run(table, quantise) for quantise in ({"from_samples": 320, "bits": 4}, None))
    for one in (run, plain):
        live(one, 11)
    rows = run.stream.read(320, 32)
    features = {"numeric": torch.from_numpy(rows.select(slice(None))["numeric"])}
    differ = []
    for one in (run, plain):
        at = one.account.records.rows("steps")
        assert len(at) == 1, "the first interval ended before the switch"
        differ.append(one.model(features))
    assert not torch.allclose(differ[0], differ[1], atol=1e-4)
    losses = [one.account.interval.loss for one in (run, plain)]
    assert losses[0] != losses[1], "the rows were scored before they were learned from, and not alike"


@pytest.mark.parametrize("more", [{}, {"gate": {"warm_up_samples": 320}}, {"learner": {"renew": {"rate": 0.05}}}])
def test_a_run_survives_edits_and_a_resume_in_its_last_phase(more: dict[str, Any], table: Path) -> None:
    whole, cut = (_run(table, {"from_samples": 320}, 1_600, **more) for _ in range(2))
    for run in (whole, cut):
        live(run, 15)
        run._edit(GrowHeads(0, 1), "test", "so that there is more")
        live(run, 20)
        run._edit(ShrinkHeads(0, (1,)), "test", "so that there is less")
        run._edit(Share("attention", (0, 1)), "test", "so that they share")
        live(run, 30)
    again = _run(table, {"from_samples": 320}, 1_600, **more)
    again.load_state(cut.state())
    assert again.blueprint.quantisation is not None
    for run in (again, whole):
        live(run)
    assert everything(again) == everything(whole)


def test_a_row_s_rounding_does_not_depend_on_the_shard_that_it_is_in(table: Path) -> None:
    one, four = (_run(table, {"from_samples": 320}, 640, shards) for shards in (1, 4))
    for run in (one, four):
        live(run)
    losses = [[row["loss"] for row in run.account.records.rows("steps")] for run in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
