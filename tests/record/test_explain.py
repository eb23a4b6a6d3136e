"""`planaria explain` on a run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from planaria.cli import call
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
