"""What a run shows to those who watch a cluster: Ray's metrics endpoint, a dashboard, and a line for each decision."""

from __future__ import annotations

import json
import logging
import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planaria.job import Job
from planaria.record import read_rows
from planaria.train.folder import RunFolder
from planaria.train.gauges import GAUGES, HEADS, PREFIX, Gauges
from planaria.train.worker import run_here

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def _job(path: Path) -> Job:
    x = np.random.default_rng(0).normal(size=(3_000, 3)).astype(np.float32)
    label = np.where((x[:, 0] > 0) ^ (np.arange(3_000) >= 1_500), "yes", "no").astype(object)
    pq.write_table(pa.table({**{f"x{at}": x[:, at] for at in range(3)}, "y": label}), path)
    return Job.model_validate(
        {
            "stream": {
                "source": "parquet",
                "path": str(path),
                "features": {"numeric": ["x0", "x1", "x2"]},
                "target": "y",
            },
            "batch_rows": 32,
            "model": {"width": 8, "layers": 1, "head_width": 4, "mlp_width": 8},
            "policy": {
                "heads": {"start": 1, "max": 3, "cooldown_samples": 200},
                "controller": {"thrift_every_samples": 300, "wait_samples": 128},
            },
            "scale": {"workers": 0},
        }
    )


def test_every_decision_is_one_line_of_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.make()
    with caplog.at_level(logging.INFO, "planaria.decisions"):
        run_here(_job(tmp_path / "rows.parquet"), folder, tmp_path)
    lines = [json.loads(record.message) for record in caplog.records if record.name == "planaria.decisions"]
    made = read_rows(folder.path, "decisions")
    assert len(made) >= 3
    assert [line["number"] for line in lines] == [row["number"] for row in made]
    assert all(line["event"] == "decision" and line["run"] == "run" for line in lines)
    assert [(line["chosen"], line["why"]) for line in lines] == [(row["chosen"], row["why"]) for row in made]
    glance = folder.read_json(folder.live)
    assert glance["decisions"] == len(made) and glance["workers"] == 1 and glance["restarts"] == 0
    assert glance["lag_rows"] is None, "the stream follows nothing"


@pytest.mark.ray
def test_a_glance_is_on_rays_metrics_endpoint() -> None:
    import ray

    assert not ray.is_initialized()
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    try:
        gauges = Gauges("lifelong-1")
        gauges.show({"samples": 640, "prequential_accuracy": 0.75, "heads": [3, 1], "prequential_mae": float("nan")})
        port = ray.nodes()[0]["MetricsExportPort"]
        text = ""
        for _ in range(120):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            if "ray_planaria_heads" in text:
                break
            time.sleep(0.5)
    finally:
        ray.shutdown()
    found = re.findall(r"^ray_planaria_(\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE)
    assert {name: float(value) for name, _, value in found if name != "heads"} == {
        "samples": 640.0,
        "prequential_accuracy": 0.75,
    }
    assert sorted(float(value) for name, _, value in found if name == "heads") == [1.0, 3.0]
    assert 'run="lifelong-1"' in text and 'layer="1"' in text


def test_the_dashboard_shows_every_number_and_no_other() -> None:
    board = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["expr"] for one in board["annotations"]["list"]]
    shown = set(re.findall(r"ray_(\w+)\{", " ".join(asked)))
    assert shown == {PREFIX + name for name in (*GAUGES, HEADS)}
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places) and len({p["id"] for p in board["panels"]}) == len(places)
