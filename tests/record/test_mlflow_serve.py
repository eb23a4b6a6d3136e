"""`mlflow models serve` answers over HTTP as the live model does: the command of docs/record.md, as a user gives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import planaria
from planaria.record import serve

_START_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that grew and removed heads."""
    place = tmp_path_factory.mktemp("evolved")
    random, count = np.random.default_rng(0), 6_000
    x, city = random.normal(size=(count, 3)), random.choice(["oslo", "rome"], count)
    label = np.where(x[:, 0] * x[:, 1] * np.where(np.arange(count) < count // 2, 1, -1) > 0, "up", "down")
    columns = {"a": np.where(x[:, 2] > 1.5, np.nan, x[:, 0]), "b": x[:, 1], "c": x[:, 2], "city": city, "label": label}
    pq.write_table(pa.table(columns), place / "table.parquet")
    job = planaria.Job.model_validate(
        {
            "name": "evolved",
            "stream": {
                "source": "parquet",
                "path": str(place / "table.parquet"),
                "features": {"numeric": ["a", "b", "c"], "categorical": ["city"]},
                "target": "label",
            },
            "model": {"width": 16, "layers": 2, "mlp_width": 16},
            "scale": {"workers": 0},
            "policy": {
                "heads": {"start": 3, "max": 4, "cooldown_samples": 300},
                "budget": {"price": 0.1},
                "controller": {"kind": "look_ahead", "thrift_every_samples": 500, "certainty": 0.0},
            },
        }
    )
    planaria.run(job, out=place / "run")
    return place / "run"


@contextmanager
def _served(run: Path, log: Path) -> Iterator[str]:
    """The address of the server that MLflow's command starts; it is stopped by its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/evolved@newest"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    source = str(Path(planaria.__file__).parents[1])
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{run / 'mlflow.db'}", "PYTHONPATH": source, "PATH": path}
    with log.open("w") as told:
        server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=told, stderr=told, start_new_session=True
        )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_TIMEOUT_S
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=5):
                    break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # its own session: the command and the server below it
        server.wait(30)


def _post(address: str, content: Any) -> list[Any]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        predictions: list[Any] = json.load(answer)["predictions"]
    return predictions


@pytest.mark.slow
def test_mlflow_models_serve_answers_as_the_live_model_of_an_evolved_run(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["grows"] and summary["shrinks"], "or it would be no evolved model"
    random = np.random.default_rng(1)
    rows = pd.DataFrame(random.normal(size=(64, 3)), columns=["a", "b", "c"])
    rows["city"] = random.choice(["oslo", "rome", "bergen"], 64)  # one that the stream never had
    rows.loc[::7, "b"] = np.nan
    expected = serve.load(run / "model").predict(rows).tolist()
    assert set(expected) == {"up", "down"}
    with _served(run, tmp_path / "log") as address:
        for count in (1, 7, 64):
            table = json.loads(rows[:count].to_json(orient="split", index=False))
            assert _post(address, {"dataframe_split": table}) == expected[:count]
        with pytest.raises(urllib.error.HTTPError) as refused:
            _post(address, {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.0, 2.0, 3.0]]}})
        assert refused.value.code == 400 and b"column 'city' is missing" in refused.value.read()
