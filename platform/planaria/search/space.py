"""From ranges to a study of Optuna's, which remembers in a file of JSON lines what was tried."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from planaria.ranges import Range, Value
from planaria.search.campaign import Campaign, check, given
from planaria.search.places import read_trials

JOURNAL = "study.jsonl"
_LOCK_IS_STALE_AFTER_S = 5
"""Of one that a killed process left; a write takes milliseconds."""


def open_study(campaign: Campaign, folder: Path) -> optuna.Study:
    """The campaign's study: a new one, which begins with the job as it is, or the one that the folder holds."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=_storage(folder),
        study_name=campaign.name,
        directions=["maximize" if mode == "max" else "minimize" for mode in campaign.objectives.values()],
        load_if_exists=True,
    )
    known = len(study.trials)
    study.sampler = _sampler(campaign, campaign.seed + known)
    if not known:
        job = check(campaign)
        start = {key: given(job, key) for key in campaign.search}
        if all(campaign.search[key].holds(_as_value(value)) for key, value in start.items()):
            study.enqueue_trial({key: _choice(campaign.search[key], _as_value(v)) for key, v in start.items()})
    tell_ended(study, campaign, folder)
    return study


def tell_ended(study: optuna.Study, campaign: Campaign, folder: Path) -> None:
    """Tell the study of trials that have ended without its hearing of it: a kill came in between."""
    running = {one.number for one in study.trials if one.state == optuna.trial.TrialState.RUNNING}
    for trial in read_trials(folder) if running else ():
        if trial["number"] in running and trial["status"] == "done":
            study.tell(trial["number"], [float(trial["metrics"][name]) for name in campaign.objectives])
        elif trial["number"] in running:
            study.tell(trial["number"], state=optuna.trial.TrialState.FAIL)


def read_study(campaign: Campaign, folder: Path) -> optuna.Study | None:
    """The study that the folder holds, to look at while others write it; None before there is one."""
    if not (folder / JOURNAL).exists():
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=campaign.name, storage=_storage(folder))
    except KeyError:  # the journal is there, and empty yet
        return None


def _storage(folder: Path) -> JournalStorage:
    """Its lock is a file. Optuna's default is a link, which a killed campaign may leave in the folder, where nothing is
    trusted that leads out of it."""
    journal = str(folder / JOURNAL)
    lock = JournalFileOpenLock(journal, grace_period=_LOCK_IS_STALE_AFTER_S)
    return JournalStorage(JournalFileBackend(journal, lock_obj=lock))


def draw(trial: optuna.trial.BaseTrial, search: Mapping[str, Range]) -> dict[str, Value]:
    """The settings of a trial: those whose conditions hold."""
    drawn: dict[str, Value] = {}
    for key, values in search.items():
        if all(other in drawn and drawn[other] in wanted for other, wanted in values.when.items()):
            drawn[key] = _draw(trial, key, values)
    return drawn


def draw_all(study: optuna.Study, campaign: Campaign) -> dict[int, dict[str, Value]]:
    """The settings of all trials, by number: those that were begun keep theirs."""
    drawn: dict[int, dict[str, Value]] = {}
    begun = [one for one in study.trials if one.state != optuna.trial.TrialState.WAITING]
    for known in begun:
        own: optuna.trial.BaseTrial = optuna.trial.FixedTrial(known.params)
        if known.state == optuna.trial.TrialState.RUNNING:  # a kill may have come before all of it was drawn
            own = optuna.trial.Trial(study, known._trial_id)
        drawn[known.number] = draw(own, campaign.search)
    while len(drawn) < campaign.trials:
        trial = study.ask()
        drawn[trial.number] = draw(trial, campaign.search)
    return drawn


def _draw(trial: optuna.trial.BaseTrial, key: str, values: Range) -> Value:
    if values.integers is not None:
        return trial.suggest_int(key, *values.integers, log=values.log)
    if values.between is not None:
        return trial.suggest_float(key, *values.between, log=values.log)
    assert values.one_of is not None
    choice = trial.suggest_categorical(key, [json.dumps(value) for value in values.one_of])
    return _as_value(json.loads(str(choice)))


def _choice(values: Range, value: Value) -> Any:
    """As Optuna stores it."""
    return json.dumps(value) if values.one_of is not None else value


def _as_value(value: object) -> Value:
    return tuple(value) if isinstance(value, list) else value  # type: ignore[return-value]


def _sampler(campaign: Campaign, seed: int) -> optuna.samplers.BaseSampler:
    if campaign.algorithm in ("random", "pbt"):
        return optuna.samplers.RandomSampler(seed=seed)
    if campaign.algorithm == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, min(20, campaign.trials // 4)))
    first = max(4, min(10, campaign.trials // 3))
    with warnings.catch_warnings():  # `group` is called experimental
        warnings.simplefilter("ignore")
        return _tpe(seed, first)


def _tpe(seed: int, first: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=first,
        multivariate=True,
        group=True,
        constant_liar=True,
    )
