"""`planaria explain` on a run's folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from planaria.cli import call
from planaria.record.explain import explanation
from planaria.record.tables import read_rows


@pytest.fixture
def folder(example_run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "120")
    return example_run_folder


def test_a_decision_is_laid_open(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = read_rows(folder, "decisions")[0]
    assert call(["explain", str(folder), "--step", str(first["step"])]) == 0
    shown = capsys.readouterr().out
    assert "sample 12,400, because of: abrupt shift" in shown
    assert f"{first['chosen']}; led to revision 1" in shown
    for option in first["candidates"]:
        assert option["name"] in shown
    assert "loss rise" in shown and "0.55" in shown
    assert f"brought +{first['gain_realised']:.3f} nats a row" in shown


def test_it_says_what_was_learned_of_each_option_and_which_were_looked_ahead(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = read_rows(folder, "decisions")[4]
    assert call(["explain", str(folder), "--step", str(row["step"])]) == 0
    shown = capsys.readouterr().out
    lines = {
        option["name"]: next(ln for ln in shown.splitlines() if ln.startswith(option["name"] + "  "))
        for option in row["candidates"]
    }
    for option in row["candidates"]:
        learned = f"{option['predicted']:+.3f} ± {option['predicted_error']:.3f}".replace("-", "−")
        assert learned in lines[option["name"]]
        assert ("not looked ahead" in lines[option["name"]]) == (option["loss_recent"] is None)
    assert "restore concept 1; led to revision 4" in shown
    assert "looked ahead on 4 of 8 candidates, took 2.4 s" in shown


def test_long_names_and_many_layers_stay_within_120_columns() -> None:
    unknown = dict.fromkeys(("value", "standard_error", "predicted", "predicted_error", "loss_recent", "loss_memory"))
    option = {"name": "[/bold] restore " + "x" * 300, "edit": None, "treatment": "keep", "heads": [12] * 6, **unknown}
    known = {"value": -10.5, "standard_error": 12.25, "predicted": -10.5, "predicted_error": 12.25, "price": 0.1}
    losses = {"loss_recent": 12.5, "loss_memory": 12.5}
    old = {"name": "keep", "value": 0.0}
    row = {"step": 1, "sample": 2, "trigger": "thrift", "chosen": option["name"], "revision": None, "why": None}
    row |= {"candidates": [option, {**option, **known, **losses}, old], "observation": None}
    row |= {"predicted": float("nan"), "gain_realised": None, "seconds": None}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(explanation(row))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 120
    assert shown.count("x") >= 600 and "[/bold] restore" in shown
    assert "−10.500 ± 12.250" in shown and "12.5000 / 12.5000" in shown
    assert "not looked ahead" in shown and "time not known" in shown


def test_without_a_step_it_is_the_newest_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["explain", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["number"] == len(read_rows(folder, "decisions")) - 1


def test_a_step_without_a_decision_names_the_nearest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nearest = read_rows(folder, "decisions")[0]["step"]
    assert call(["explain", str(folder), "--step", "3"]) == 2
    assert capsys.readouterr().err == f"{folder}: no decision was taken at step 3; the nearest is --step {nearest}\n"


def test_a_run_without_decisions_says_so(make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run("young", status="running", until=5_000)
    assert call(["explain", str(folder)]) == 2
    assert "no decision was taken yet" in capsys.readouterr().err
