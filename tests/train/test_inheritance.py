"""Beginning with what the controller of another run has learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planaria.errors import InputError
from planaria.train.inheritance import learned_by

LEARNED = {"features": [], "returns": [], "open": []}
MLFLOW_ID = "0123456789abcdef" * 2


def folder_of(base: Path, content: str) -> str:
    (base / "earlier").mkdir()
    (base / "earlier" / "controller.json").write_text(content)
    return "earlier"


def test_what_a_run_has_learned_is_in_its_folder(tmp_path: Path) -> None:
    assert learned_by(folder_of(tmp_path, json.dumps(LEARNED)), None, tmp_path) == LEARNED
    assert learned_by(str(tmp_path / "earlier"), None, Path("/nowhere")) == LEARNED


def test_a_folder_may_lie_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, json.dumps(LEARNED))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert learned_by("~/earlier", None, Path("/nowhere")) == LEARNED


def test_a_source_that_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        learned_by("earlier", None, tmp_path)
    assert str(refused.value) == (
        "policy.controller.from_run: 'earlier' is no run's folder, "
        "no MLflow id, and no run that goes on in this cluster"
    )


def test_a_folder_in_which_nothing_was_learned_is_refused(tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    with pytest.raises(InputError) as refused:
        learned_by("earlier", None, tmp_path)
    assert str(refused.value) == (
        "policy.controller.from_run: earlier holds no controller.json; give a run that a learned controller has steered"
    )


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "5", "null", '"text"', "\0\0\0"])
def test_a_file_that_is_no_state_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"policy\.controller\.from_run: earlier holds no controller\.json"):
        learned_by(folder_of(tmp_path, content), None, tmp_path)


def test_an_mlflow_id_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        learned_by(MLFLOW_ID, None, tmp_path)
    assert str(refused.value) == (
        "policy.controller.from_run: an MLflow id needs record.tracking_uri; set it, or give the run's folder"
    )


def test_a_folder_goes_before_an_mlflow_id_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / MLFLOW_ID).mkdir()
    (tmp_path / MLFLOW_ID / "controller.json").write_text(json.dumps(LEARNED))
    assert learned_by(MLFLOW_ID, None, tmp_path) == LEARNED
