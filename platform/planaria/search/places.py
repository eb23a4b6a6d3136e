"""Where in a campaign's folder the trials are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planaria.errors import InputError
from planaria.plain_json import read_json

TRIALS = "trials"
RESULT = "trial.json"


def folder_of(campaign_folder: Path, number: int) -> Path:
    return campaign_folder / TRIALS / f"{number:04d}"


def lives_in(place: Path) -> list[Path]:
    """The folders of a trial's runs."""
    return sorted(place.glob("*seed-*"))


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """All trials that have ended, by number."""
    return [read_trial(path) for path in ended_in(folder)]


def read_trial(path: Path) -> dict[str, Any]:
    """How a trial ended. Raises InputError where the file is not what `write_result` writes."""
    try:
        trial = read_json(path)
        number, settings, status = (trial[name] for name in ("number", "settings", "status"))
        if type(number) is not int or number != int(path.parent.name) or not isinstance(settings, dict):
            raise ValueError("it is of another trial")
        if status == "done" and not isinstance(trial["metrics"], dict):
            raise ValueError("its metrics are missing")
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}: is not how a trial ends ({error}); remove its folder") from None
    return dict(trial)


def ended_in(folder: Path) -> list[Path]:
    """The files that say how trials ended, by number."""
    return sorted((folder / TRIALS).glob(f"*/{RESULT}"))


def write_result(place: Path, number: int, settings: Mapping[str, Any], rest: Mapping[str, Any]) -> None:
    """How a trial ended."""
    partial = place / f".{RESULT}"
    partial.write_text(json.dumps({"number": number, "settings": dict(settings), **rest}, indent=1) + "\n")
    partial.replace(place / RESULT)
