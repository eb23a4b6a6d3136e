"""The command: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from planaria.cli import call
from planaria.stream import NAMES

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a small table that can be learned, and a job for it that needs no Ray."""
    monkeypatch.chdir(tmp_path)
    rows = ["x,y,label", *(f"{i % 7},{i % 5},{'even' if i % 7 % 2 == 0 else 'odd'}" for i in range(600))]
    Path("table.csv").write_text("\n".join(rows) + "\n")
    Path("job.yaml").write_text(
        "name: small\n"
        "stream: {source: csv, path: table.csv, features: {numeric: [x, y]}, target: label}\n"
        "model: {width: 16, layers: 1, mlp_width: 16}\n"
        "scale: {workers: 0}\n"
        "record: {register_model: false}\n"
    )
    Path("meta.yaml").write_text("families: [tabels]\n")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON object on stdout."""
    content = json.loads(capsys.readouterr().out)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nope.yaml"], "nope.yaml: no such file (did you mean 'job.yaml'?)"),
        (["run", "job.yaml", "sed=1"], "command line: sed: unknown key (did you mean 'seed'?)"),
        (
            ["run", "job.yaml", "--workers", "-1"],
            "command line: --workers: -1 is not allowed; give a whole number of at least 0",
        ),
        (
            ["run", "job.yaml", "--workers", "x"],
            'command line: Invalid value for --workers: unable to convert "x" into int.',
        ),
        (["run", "job.yaml", "--ot", "x"], "command line: Unknown option: --ot. Did you mean --out?"),
        (["run"], 'command line: Command "run" parameter JOB requires an argument.'),
        (["meta-train", "nope.yaml"], "nope.yaml: no such file (did you mean 'job.yaml'?)"),
        (["meta-train", "job.yaml"], None),
        (["meta-train", "meta.yaml"], "meta.yaml: families: there is no family 'tabels' (did you mean 'tables'?)"),
        (["meta-train"], 'command line: Command "meta-train" parameter JOB requires an argument.'),
        (["resume", "nowhere"], None),
        (["report", "nowhere"], "nowhere: there is no such folder; for an MLflow run id give --tracking-uri too"),
        (
            ["status", "nowhere"],
            "nowhere: is no run's folder (job.yaml is missing); for a submitted job give --address too",
        ),
        (
            ["stop", "nowhere"],
            "nowhere: is no run's folder (job.yaml is missing); for a submitted job give --address too",
        ),
        (
            ["logs", "nowhere"],
            "nowhere: is no run's folder (job.yaml is missing); for a submitted job give --address too",
        ),
        (
            ["logs", "nowhere", "--follow"],
            "command line: --follow: needs --address; a run's folder shows what it holds by now",
        ),
        (
            ["fetch", "mist"],
            f"stream.source: 'mist' is not a named set (did you mean 'mnist'?); there are {', '.join(NAMES)}",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_on_stderr_and_status_2(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str | None,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = sorted(here.iterdir())
    assert call(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert words is None or shown.err.strip() == words
    assert sorted(here.iterdir()) == before


def test_an_error_is_a_json_object_where_json_was_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "nope.yaml", "--json"]) == 2
    assert answer(capsys) == {"error": "nope.yaml: no such file (did you mean 'job.yaml'?)", "status": 2}


def test_a_run_ends_with_a_summary_its_report_and_what_opens_mlflow(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["run", "job.yaml", "--out", "run", "samples=500"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("500 of 500 samples", "status done", "accuracy as it went", "heads per layer [8] at first"):
        assert part in shown
    assert f"report {here / 'run' / 'report.html'}" in shown
    assert f"mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{here}/run/mlflow.db" in shown
    assert (here / "run" / "report.html").is_file()

    assert call(["status", "run"]) == 0
    assert "status done" in " ".join(capsys.readouterr().out.split())
    assert call(["logs", "run"]) == 0
    assert "revision 0: heads [8]" in capsys.readouterr().out
    assert call(["stop", "run"]) == 0
    assert capsys.readouterr().out == "run: had ended already (done)\n"
    assert call(["report", "run", "--out", "page.html"]) == 0
    assert capsys.readouterr().out == f"{here / 'page.html'}\n"


def test_a_run_with_json_prints_one_object_with_its_summary(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["run", "job.yaml", "--out", "run", "--json", "--workers", "0"]) == 0
    result = answer(capsys)
    assert (result["status"], result["folder"]) == ("done", str(here / "run"))
    assert result["summary"]["samples"] == 600
    assert call(["status", "run", "--json"]) == 0
    assert answer(capsys)["samples"] == 600


@pytest.mark.slow
def test_a_run_that_waits_for_rows_is_stopped_by_its_folder_and_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "rows").mkdir()
    (here / "table.csv").rename(here / "rows" / "1.csv")

    over = threading.Event()

    def stop_when_it_waits() -> None:
        while not over.wait(0.5):
            if (here / "run" / "summary.json").exists():
                (here / "run" / "stop").touch()  # what `planaria stop` does, see below

    stopper = threading.Thread(target=stop_when_it_waits)
    stopper.start()
    try:
        waiting = ["stream.path=rows", "stream.follow=true", "stream.follow_poll_s=0.1"]
        assert call(["run", "job.yaml", "--out", "run", *waiting]) == 0
    finally:
        over.set()
        stopper.join()
    shown = " ".join(capsys.readouterr().out.split())
    assert "status stopped" in shown
    assert "resume run" in shown or f"resume {here / 'run'}" in shown


def test_what_is_not_foreseen_is_a_failed_run_with_one_last_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from planaria.train import launch

    def breaks(*given: object, **named: object) -> None:
        raise ZeroDivisionError("ten by\nzero")

    monkeypatch.setattr(launch, "run", breaks)
    assert call(["run", "job.yaml", "--json"]) == 1
    assert answer(capsys) == {"error": "unexpected ZeroDivisionError: ten by zero", "status": 1}


def test_status_says_when_a_run_gives_no_sign_of_life(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "run"
    run.mkdir()
    (run / "job.yaml").write_text("{}")
    assert call(["status", "run"]) == 2
    expected = "run: the run has not written anything yet; ask again in a few seconds\n"
    assert capsys.readouterr().err == expected
    live = {"status": "running", "samples": 100, "time": time.time() - 600, "heads": [2]}
    (run / "live.json").write_text(json.dumps(live))
    assert call(["status", "run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("running: 100 samples")
    assert "no sign of life for 600 s; if it died: " in shown


def test_stop_leaves_the_mark_that_a_run_looks_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "run"
    run.mkdir()
    (run / "job.yaml").write_text("{}")
    assert call(["stop", "run", "--json"]) == 0
    assert answer(capsys) == {"folder": "run", "asked": True}
    assert (run / "stop").exists()


def test_help_is_quick_and_names_every_command() -> None:
    slow = ("torch", "ray", "mlflow", "pyarrow", "pandas", "matplotlib")
    program = (
        "import sys; from planaria.cli import call; status = call(['--help']); "
        f"sys.exit([name for name in {slow} if name in sys.modules] or status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}/platform"},
        check=False,
    )
    assert done.returncode == 0, f"help imports {done.stderr}"
    for command in ("run", "resume", "report", "explain", "submit", "status", "logs", "stop", "fetch", "doctor"):
        assert f" {command} " in done.stdout
