"""Where in a campaign's folder the trials are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TRIALS = "trials"
RESULT = "trial.json"


def folder_of(campaign_folder: Path, number: int) -> Path:
    return campaign_folder / TRIALS / f"{number:04d}"


def lives_in(place: Path) -> list[Path]:
    """The folders of a trial's runs."""
    return sorted(place.glob("*seed-*"))


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """All trials that have ended, by number."""
    return [json.loads(path.read_text()) for path in ended_in(folder)]


def ended_in(folder: Path) -> list[Path]:
    """The files that say how trials ended, by number."""
    return sorted((folder / TRIALS).glob(f"*/{RESULT}"))


def write_result(place: Path, number: int, settings: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
    """How a trial ended."""
    partial = place / f".{RESULT}"
    partial.write_text(json.dumps({"number": number, "settings": dict(settings), **rest}, indent=1) + "\n")
    partial.replace(place / RESULT)
