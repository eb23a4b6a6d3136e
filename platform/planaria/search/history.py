"""What a campaign's folder tells so far: of one that goes on, was cut off or failed as well. Nothing is written."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from planaria.errors import InputError
from planaria.own_folder import check_no_links
from planaria.ranges import Value
from planaria.search.campaign import Campaign, load_campaign
from planaria.search.outcome import front, importance
from planaria.search.places import folder_of, read_trials
from planaria.search.space import draw, read_study
from planaria.train.folder import RunFolder

CAMPAIGN, SUMMARY = "campaign.yaml", "summary.json"
RUNNING, CUT_OFF = "running", "cut off"

State = Literal["done", "failed", "fell behind", "begun"]


@dataclass(frozen=True)
class Attempt:
    """A trial that was begun."""

    number: int
    settings: Mapping[str, Value]
    state: State
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reason: str | None = None
    cpu_seconds: float = 0.0
    """Of its process so far."""


@dataclass(frozen=True)
class History:
    """A campaign and what it has come to."""

    campaign: Campaign
    folder: Path
    status: str
    """running, cut off, done, stopped or failed."""
    reason: str | None
    """Why it failed, if it did."""
    attempts: Sequence[Attempt]
    best: Sequence[Mapping[str, Any]]
    """The trials that nothing beats in all objectives, as their trial.json has them."""
    importance: Mapping[str, Mapping[str, float]]
    wall_seconds: float
    """Between all starts and ends; 0 as long as no start has ended."""
    run_id: str | None
    """Of MLflow."""

    def of(self, state: State) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.state == state]


def read_history(folder: Path) -> History:
    """Raises InputError where the folder holds no campaign, or one that cannot be read."""
    if not (folder / CAMPAIGN).is_file():
        raise InputError(f"{folder}: is no campaign's folder ({CAMPAIGN} is missing); give one that has it")
    check_no_links(folder)
    campaign = load_campaign(folder / CAMPAIGN)
    files = RunFolder(folder)
    summary = files.read_json(folder / SUMMARY)
    status = str(summary.get("status", RUNNING))
    ended = read_trials(folder)
    done = [trial for trial in ended if trial["status"] == "done"]
    return History(
        campaign=campaign,
        folder=folder,
        status=status if status != RUNNING or _driven(folder) else CUT_OFF,
        reason=summary.get("reason"),
        attempts=_attempts(campaign, folder, ended),
        best=front(done, campaign.objectives),
        importance=importance(campaign, folder),
        wall_seconds=float(summary.get("seconds", 0.0)),
        run_id=files.read_json(folder / "mlflow.json").get("run_id"),
    )


def _attempts(campaign: Campaign, folder: Path, ended: Sequence[Mapping[str, Any]]) -> list[Attempt]:
    """The trials that ended say so themselves; of the others the study knows."""
    found = {
        trial["number"]: Attempt(
            trial["number"],
            trial["settings"],
            trial["status"],
            trial.get("metrics", {}),
            trial.get("reason"),
            _cpu_seconds(folder, trial["number"]),
        )
        for trial in ended
    }
    study = read_study(campaign, folder)
    for trial in study.get_trials(deepcopy=False) if study is not None else ():
        if trial.number in found or trial.state.name == "WAITING":
            continue
        state: State = {"PRUNED": "fell behind", "FAIL": "failed"}.get(trial.state.name, "begun")  # type: ignore[assignment]
        reason = "its process ended without a word; memory may have run out" if state == "failed" else None
        settings = _settings(campaign, trial.params)
        found[trial.number] = Attempt(
            trial.number, settings, state, reason=reason, cpu_seconds=_cpu_seconds(folder, trial.number)
        )
    return [found[number] for number in sorted(found)]


def _settings(campaign: Campaign, params: Mapping[str, Any]) -> Mapping[str, Value]:
    import optuna

    try:
        return draw(optuna.trial.FixedTrial(dict(params)), campaign.search)
    except ValueError:  # it is only being begun, and not all of them are drawn yet
        return {}


def _cpu_seconds(folder: Path, number: int) -> float:
    place = RunFolder(folder_of(folder, number))
    files = place.path.glob("*seed-*/cpu_seconds.json")
    return sum(float(place.read_json(path).get("cpu_seconds", 0.0)) for path in files)


def _driven(folder: Path) -> bool:
    """Whether a process of this machine runs the campaign now: it holds a lock, see `RunFolder.held`."""
    try:
        with (folder / ".driver.lock").open("rb") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
