"""Between Ray Tune, which runs trials, and Optuna, which says what to try: asks one for the other.

The study is the truth: what Tune itself remembers of a campaign is not read again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from planaria.search.campaign import Campaign
from planaria.search.population import Population
from planaria.search.space import draw, draw_all, tell_ended


class StudySearcher(Searcher):
    """Hands out first the trials that were cut off when the campaign was, under their own numbers, then new ones."""

    def __init__(self, study: optuna.Study, campaign: Campaign, behind: int = 1) -> None:
        """`behind` is how many numbers before a trial those are that must have ended, as they teach it."""
        super().__init__()
        self._behind = behind
        self._study, self._campaign = study, campaign
        self._cut_off: list[FrozenTrial] = [one for one in study.trials if one.state == TrialState.RUNNING]
        self._begun = sum(one.state != TrialState.WAITING for one in study.trials)
        self._open: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self._cut_off:
            known = self._cut_off.pop(0)
            number = known.number
            # What was drawn stays; a kill may have come before all of it was.
            settings = draw(optuna.trial.Trial(self._study, known._trial_id), self._campaign.search)
        elif self._begun >= self._campaign.trials:
            finished: Any = Searcher.FINISHED  # which Ray's types forget
            return finished  # type: ignore[no-any-return]
        elif self._campaign.teach and any(number <= self._begun - self._behind for number in self._open.values()):
            return None
        else:
            trial = self._study.ask()
            number, settings = trial.number, draw(trial, self._campaign.search)
            self._begun += 1
        self._open[trial_id] = number
        return {"number": number, "settings": settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._open.pop(trial_id)
        if not error and result is not None and result.get("finished"):
            self._study.tell(number, [float(result[name]) for name in self._campaign.objectives])
        elif error or result is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """The study's journal is all there is to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class PopulationSearcher(Searcher):
    """Hands out the legs of a population's trials; between two turns it waits until all have ended."""

    def __init__(self, study: optuna.Study, campaign: Campaign, folder: Path) -> None:
        super().__init__()
        self._study, self._campaign, self._folder = study, campaign, folder
        self._population = Population(campaign, folder, draw_all(study, campaign))
        self._open: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        to_live = self._population.to_live()
        free = [number for number in to_live if number not in self._open.values()]
        if not to_live:
            tell_ended(self._study, self._campaign, self._folder)
            finished: Any = Searcher.FINISHED  # which Ray's types forget
            return finished  # type: ignore[no-any-return]
        if not free:
            return None
        self._open[trial_id] = free[0]
        return {"number": free[0], "turn": self._population.turn}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._open.pop(trial_id)
        if error or result is None:
            self._population.failed(number)

    def save(self, checkpoint_path: str) -> None:
        """The campaign's folder is all there is to keep."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
