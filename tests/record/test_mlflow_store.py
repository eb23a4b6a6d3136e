"""Recording into real MLflow stores: everything once, whatever happens in between."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planaria.blueprint import Blueprint
from planaria.errors import InputError
from planaria.model import build, save_model
from planaria.record import MlflowRecorder, Records, read_rows, write_report, write_report_for_run
from planaria.record.stored_run import flatten

JOB = {
    "name": "weather",
    "seed": 3,
    "stream": {"path": "s3://key:pa55@bucket/rows", "features": {"numeric": ["rain", "wind"]}, "target": None},
    "record": {"tracking_uri": "postgresql://u:pa55@db/x", "register_model": True},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests: making one takes seconds. Each test has an experiment of its own in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def database(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri.removeprefix("sqlite:///"))


def held(uri: str, experiment: str) -> dict[str, list[tuple[Any, ...]]]:
    """What the store holds of an experiment, ids and clock times aside."""
    runs = (
        "SELECT r.run_uuid FROM runs r JOIN experiments e ON r.experiment_id = e.experiment_id "
        f"WHERE e.name = '{experiment}'"
    )
    queries = {
        "runs": f"SELECT name, status FROM runs WHERE run_uuid IN ({runs}) ORDER BY 1, 2",
        "metrics": f"SELECT r.name, m.key, m.step, m.value FROM metrics m JOIN runs r ON r.run_uuid = m.run_uuid "
        f"WHERE m.run_uuid IN ({runs}) ORDER BY 1, 2, 3, 4",
        "params": f"SELECT r.name, p.key, p.value FROM params p JOIN runs r ON r.run_uuid = p.run_uuid "
        f"WHERE p.run_uuid IN ({runs}) ORDER BY 1, 2",
    }
    with database(uri) as connection:
        return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def with_model(folder: Path) -> Path:
    blueprint = Blueprint("classification", 16, 4, 16, (1, 2), 3, image_shape=(1, 8, 8), patch=4)
    encoding = {"fields": {"image_shape": [1, 8, 8]}, "labels": ["boot", "coat", "bag"], "stream": {}}
    save_model(build(blueprint), folder / "model", encoding)
    return folder


def test_a_whole_run_is_one_parent_and_a_nested_run_per_revision(
    store: str, make_run: Callable[..., Path], filled: Records
) -> None:
    folder = make_run()
    write_report(folder)
    recorder = MlflowRecorder(store, "whole", folder)
    run_id = recorder.start("weather", JOB)
    assert run_id is not None and recorder.run_id == run_id
    assert recorder.sync() and recorder.finish("done")
    assert not recorder.pending()
    content = held(store, "whole")
    assert content["runs"] == [(f"revision {n}", "FINISHED") for n in range(8)] + [("weather", "FINISHED")]
    metrics = content["metrics"]
    stream = {step: value for name, key, step, value in metrics if (name, key) == ("weather", "prequential_accuracy")}
    assert stream == {row["step"]: row["prequential_accuracy"] for row in filled.rows("steps")}
    revision = {key: (step, value) for name, key, step, value in metrics if name == "revision 3"}
    row = filled.rows("revisions")[3]
    assert revision["accuracy"] == (row["last_step"], row["accuracy"])
    assert revision["gain_realised"][1] == row["gain_realised"]
    assert revision["first_step"][1] == row["step"] and revision["parameters"][1] == row["parameters"]
    shifts = sorted((key, step, value) for name, key, step, value in metrics if key.startswith("shift_"))
    assert len(shifts) == 7 and shifts[0] == ("shift_abrupt", 90, 23.5)
    assert ("weather", "final_accuracy", 703, 0.812) in metrics
    params = {(name, key): value for name, key, value in content["params"]}
    assert params["weather", "stream.features.numeric"] == '["rain", "wind"]'
    assert params["revision 3", "heads"] == "[3, 4]" and params["revision 3", "blueprint.width"] == "64"
    assert params["revision 3", "cause"] == "gradual shift" and params["revision 3", "parent"] == "2"
    assert "pa55" not in str(content)
    assert json.loads((folder / "summary.json").read_text())["mlflow_run_id"] == run_id


def test_sending_again_or_from_a_new_recorder_stores_nothing_twice(store: str, make_run: Callable[..., Path]) -> None:
    folder = make_run()
    first = MlflowRecorder(store, "again", folder)
    first.start("weather", JOB)
    assert first.finish("done") and first.finish("done") and first.sync()
    before = held(store, "again")
    second = MlflowRecorder(store, "again", folder)
    assert second.start("weather", JOB) == first.run_id
    assert second.sync() and second.finish("done")
    assert held(store, "again") == before


def test_a_run_that_grows_is_sent_bit_by_bit_and_ends_like_one_sent_at_once(
    store: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "growing"
    for until in (0, 8_000, 13_000, 40_000, 76_000, 90_000):
        grown = make_run("grown", status="running", until=until) if until < 90_000 else make_run("grown")
        shutil.copytree(grown, folder, dirs_exist_ok=True)
        if until in (0, 40_000):  # the driver begins, and begins again after a crash
            recorder = MlflowRecorder(store, "bits", folder)
            assert recorder.start("weather", JOB)
        assert recorder.sync()
        statuses = dict(held(store, "bits")["runs"])
        assert statuses["weather"] == "RUNNING"
        if until == 40_000:
            assert statuses["revision 2"] == "FINISHED" and statuses["revision 3"] == "RUNNING"
    assert recorder.finish("done")
    at_once = MlflowRecorder(store, "once", make_run("once"))
    at_once.start("weather", JOB)
    assert at_once.finish("done")
    assert held(store, "bits") == held(store, "once")


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_at_any_call_leaves_a_run_that_is_completed_once(
    store: str, make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    from mlflow import MlflowClient

    folder = make_run("calls", until=30_000, status="stopped")
    whole = MlflowRecorder(store, f"undisturbed {every}", folder)
    whole.start("weather", JOB)
    assert whole.finish("stopped")
    expected = held(store, f"undisturbed {every}")
    names = ("create_run", "log_batch", "log_text", "set_terminated", "log_artifact")
    real = {name: getattr(MlflowClient, name) for name in names}
    calls = 0
    for crash_at in range(2, 99, every):
        calls = 0

        def counting(name: str, after: bool, limit: int = crash_at) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == limit and not after:
                    raise ConnectionError("cut before the store heard of it")
                result = real[name](*args, **options)
                if calls == limit:
                    raise ConnectionError("cut before the store's answer came")
                return result

            return call

        for name in names:
            monkeypatch.setattr(MlflowClient, name, counting(name, after=crash_at % 2 == 0))
        (folder / "mlflow.json").unlink(missing_ok=True)
        experiment = f"crash {every} {crash_at}"
        cut = MlflowRecorder(store, experiment, folder, retry_s=0.0)
        cut.start("weather", JOB)
        finished = cut.finish("stopped") if not cut.pending() else False
        crashed = calls >= crash_at
        for name in names:
            monkeypatch.setattr(MlflowClient, name, real[name])
        if not finished:
            again = MlflowRecorder(store, experiment, folder)
            assert again.start("weather", JOB) and again.finish("stopped")
        assert held(store, experiment) == expected, f"cut at call {crash_at}"
        if not crashed:
            break
    assert calls > 10 and not crashed


def test_a_store_that_is_down_never_stops_the_run_and_gets_everything_later(
    make_run: Callable[..., Path], tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, place = make_run(), tmp_path / "volume"
    place.touch()  # a file where the store's folder should be
    uri = f"sqlite:///{place}/mlflow.db"
    recorder = MlflowRecorder(uri, "down", folder, retry_s=0.0)
    with caplog.at_level(logging.INFO, logger="planaria.record"):
        assert recorder.start("weather", JOB) is None
        assert not recorder.sync() and not recorder.finish("done")
        assert recorder.pending()
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1 and "records are kept in" in warnings[0] and "\n" not in warnings[0]
        place.unlink()
        place.mkdir()
        shutil.copy(store.removeprefix("sqlite:///"), place / "mlflow.db")  # the volume is mounted
        assert recorder.sync() and recorder.finish("done")
        assert "is back, all records are sent" in caplog.text
    assert not recorder.pending()
    assert len(held(uri, "down")["runs"]) == 9


def test_a_store_that_is_down_is_left_alone_for_a_while(make_run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "volume").touch()
    recorder = MlflowRecorder(f"sqlite:///{tmp_path}/volume/mlflow.db", "down", make_run(), retry_s=3_600)
    assert recorder.start("weather", JOB) is None
    (tmp_path / "volume").unlink()
    assert not recorder.sync()
    assert not (tmp_path / "volume").exists()


def test_a_closed_port_never_stops_the_run(make_run: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recorder = MlflowRecorder(f"http://ann:pa55@127.0.0.1:{port}", "down", make_run(), retry_s=0.0)
    with caplog.at_level(logging.WARNING, logger="planaria.record"):
        assert recorder.start("weather", JOB) is None
        assert not recorder.finish("failed") and recorder.pending()
    assert f"http://ann:***@127.0.0.1:{port} cannot be written (Connection refused)" in caplog.text


def test_a_run_that_failed_and_goes_on_keeps_its_run(store: str, make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(make_run("early", until=30_000, status="failed", reason="a disk was full"), folder)
    first = MlflowRecorder(store, "resumed", folder)
    first.start("weather", JOB)
    assert first.finish("failed")
    statuses = dict(held(store, "resumed")["runs"])
    assert statuses == {"weather": "FAILED", "revision 0": "FINISHED", "revision 1": "FINISHED", "revision 2": "FAILED"}
    shutil.copytree(make_run("late", status="running", until=40_000), folder, dirs_exist_ok=True)
    (folder / "summary.json").unlink()
    second = MlflowRecorder(store, "resumed", folder)
    assert second.start("weather", {**JOB, "seed": 4}) == first.run_id
    statuses = dict(held(store, "resumed")["runs"])
    assert statuses["weather"] == "RUNNING" and statuses["revision 3"] == "RUNNING"
    assert statuses["revision 2"] == "FINISHED"


def test_the_embedded_store_lies_in_the_folder_and_its_model_can_be_loaded(make_run: Callable[..., Path]) -> None:
    import mlflow

    folder = with_model(make_run(name="a/b: c"))
    recorder = MlflowRecorder(None, "planaria", folder)
    recorder.start("a/b: c", {})
    assert recorder.finish("done") and recorder.finish("done")
    assert (folder / "mlflow.db").exists() and any((folder / "mlartifacts").iterdir())
    assert json.loads((folder / "mlflow.json").read_text())["tracking_uri"] == "embedded"
    with sqlite3.connect(folder / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT name, version FROM model_versions").fetchall() == [("a-b- c", 1)]
    packed = [path for path in folder.rglob("mlartifacts/models/**/*") if path.is_file()]
    assert not [path for path in packed if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".py")]
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    try:
        loaded = [mlflow.pyfunc.load_model(f"models:/a-b- c{which}") for which in ("@newest", "/latest", "/1")]
    finally:
        mlflow.set_tracking_uri(None)
    answers = [model.predict(np.zeros((2, 8, 8), np.uint8)).tolist() for model in loaded]
    assert answers[0] == answers[1] == answers[2] and set(answers[0]) <= {"boot", "coat", "bag"}


def test_a_report_can_be_written_from_the_store_alone(
    store: str, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_run()
    recorder = MlflowRecorder(store, "report", folder)
    run_id = recorder.start("weather", JOB)
    assert run_id is not None and recorder.finish("done")
    shutil.rmtree(folder)
    page = write_report_for_run(run_id, store, tmp_path / "page.html").read_text()
    assert "7 true changes found" in page and f"MLflow run <code>{run_id}</code>" in page
    assert "hunter2" not in page


def test_a_run_that_the_store_does_not_know_is_an_input_error(store: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run 0123 cannot be read .*; correct the id or the URI"):
        write_report_for_run("0123", store, tmp_path / "page.html")


def test_long_values_are_cut_and_names_are_ones_that_mlflow_takes() -> None:
    flat = flatten({"a": {"b c": "x" * 900, "ü/../": 1}, "empty": {}, "none": None, "list": [1, 2]})
    assert len(flat["a.b c"]) == 500 and flat["a.b c"].endswith("…")
    assert flat["empty"] == "{}" and flat["none"] == "null" and flat["list"] == "[1, 2]"
    assert not any(".." in name or "ü" in name for name in flat)


def test_a_thousand_intervals_are_sent_in_few_calls(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    records = Records(1_000, 4_000)
    for number in range(1, 1_001):
        records.add_interval({"step": number, "samples": 1_000 * number, "loss": 0.5, "heads": [2, 2]})
    records.write(tmp_path)
    sizes: list[int] = []
    real = MlflowClient.log_batch

    def counting(client: Any, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> Any:
        sizes.append(len(metrics))
        return real(client, run_id, metrics, params, tags)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    recorder = MlflowRecorder(store, "many", tmp_path)
    recorder.start("many", {})
    assert recorder.finish("done")
    assert max(sizes) <= 1_000 and len(sizes) < 12
    assert len([1 for row in held(store, "many")["metrics"] if row[1] == "samples"]) == 1_000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], str]]:
    """A real MLflow server in this process, that can be stopped and started again on its port."""
    place = f"sqlite:///{tmp_path}/server.db"
    for name, value in {
        "_MLFLOW_SERVER_FILE_STORE": place,
        "_MLFLOW_SERVER_REGISTRY_STORE": place,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(tmp_path / "artifacts"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }.items():
        monkeypatch.setenv(name, value)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.server import app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[Any] = []

    def switch(on: bool) -> str:
        if on:
            running.append(make_server("127.0.0.1", port, app, threaded=True))
            threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        elif running:
            running[-1].shutdown()
            running.pop().server_close()
        return f"http://127.0.0.1:{port}"

    yield switch
    switch(False)


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_holds_everything_once(
    server: Callable[[bool], str], make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import mlflow

    folder, uri = with_model(make_run()), server(False)
    recorder = MlflowRecorder(uri, "http", folder, retry_s=0.0)
    assert recorder.start("weather", JOB) is None
    server(True)
    assert recorder.sync()
    server(False)
    assert not recorder.finish("done") and recorder.pending()
    server(True)
    late = MlflowRecorder(uri, "http", folder)
    assert late.start("weather", JOB) == recorder.run_id
    assert late.finish("done") and late.finish("done")
    content = held(f"sqlite:///{tmp_path}/server.db", "http")
    assert len(content["runs"]) == 9
    assert len(content["metrics"]) == len(set(content["metrics"]))
    samples = [row for row in content["metrics"] if row[1] == "samples" and row[0] == "weather"]
    assert len(samples) == len(read_rows(folder, "steps"))
    assert late.run_id is not None
    assert "7 true changes" in write_report_for_run(late.run_id, uri, tmp_path / "page.html").read_text()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/weather@newest")
    finally:
        mlflow.set_tracking_uri(None)
    assert set(model.predict(np.zeros((2, 8, 8), np.uint8))) <= {"boot", "coat", "bag"}
    assert capsys.readouterr().out == ""
