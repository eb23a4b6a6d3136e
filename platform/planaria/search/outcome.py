"""What a campaign came to: the best trials, which settings mattered, and policies that are ready to use."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from planaria.search.campaign import Campaign
from planaria.search.picture import draw
from planaria.search.places import read_trials
from planaria.search.policies import policy_path, policy_text, write_policies

logger = logging.getLogger(__name__)

_LEAST_FOR_IMPORTANCE = 8
"""Trials. Fewer say nothing about what mattered."""

Trial = Mapping[str, Any]


def write_outcome(
    campaign: Campaign, folder: Path, status: str, seconds: float, reason: str | None = None
) -> dict[str, Any]:
    """Write best/*.yaml and the report's pictures; returns the campaign's summary."""
    trials = read_trials(folder)
    done = [trial for trial in trials if trial["status"] == "done"]
    best, shares = front(done, campaign.objectives), importance(campaign, folder)
    draw(done, best, campaign.objectives, shares, folder)
    texts = [policy_text(campaign, trial) for trial in best]
    write_policies(folder, best, texts)
    return {
        "name": campaign.name,
        "status": status,
        **({} if reason is None else {"reason": reason}),
        "trials": campaign.trials,
        "done": len(done),
        "failed": [
            {"number": t["number"], "settings": t["settings"], "reason": t["reason"]}
            for t in trials
            if t["status"] == "failed"
        ],
        "objectives": dict(campaign.objectives),
        "best": [
            {**trial, "policy": str(folder if text is None else policy_path(folder, trial))}
            for trial, text in zip(best, texts, strict=True)
        ],
        "importance": shares,
        "seconds": round(seconds, 1),
    }


def front(trials: Sequence[Trial], objectives: Mapping[str, str]) -> list[Trial]:
    """The trials that no other one beats in all objectives, by the first objective. Of equals, the earliest."""
    values = [tuple(t["metrics"][n] * (1 if mode == "max" else -1) for n, mode in objectives.items()) for t in trials]
    kept = [
        at
        for at, own in enumerate(values)
        if not any(
            all(o >= v for o, v in zip(other, own, strict=True)) and (other != own or place < at)
            for place, other in enumerate(values)
            if place != at
        )
    ]
    return [trials[at] for at in sorted(kept, key=lambda at: values[at], reverse=True)]


def importance(campaign: Campaign, folder: Path) -> dict[str, dict[str, float]]:
    """For each objective the share of its variance that each setting explains (functional ANOVA: Hutter et al. 2014);
    nothing where there are too few trials."""
    import optuna

    from planaria.search.space import read_study

    study = read_study(campaign, folder)
    if study is None:
        return {}
    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(done) < _LEAST_FOR_IMPORTANCE:
        return {}
    shares = {}
    for at, name in enumerate(campaign.objectives):
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            found = optuna.importance.get_param_importances(study, evaluator=evaluator, target=partial(_value, at))
        except (ValueError, RuntimeError) as error:  # where a setting was the same in all of them
            logger.info("importance of %s: %s", name, error)
            continue
        shares[name] = {key: round(value, 4) for key, value in found.items()}
    return shares


def _value(at: int, trial: Any) -> float:
    return float(trial.values[at])
