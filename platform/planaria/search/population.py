"""Trials that go on side by side and take over from each other, as the campaign's folder tells it.

What a trial is at present is in its turns.json, and what its legs came to in leg-NNNN.json; everything else follows
from these and the campaign's seed, so that a population that was killed goes on as if it had not been. Ray's own
PopulationBasedTraining keeps its scores and clones in the driver's memory, and decides by whoever reports first; here
all trials reach a turn before any goes on.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.errors import InputError
from planaria.plain_json import read_json
from planaria.ranges import Value
from planaria.search.campaign import Campaign
from planaria.search.places import folder_of, lives_in, write_result
from planaria.search.turns import Takeover, takeovers
from planaria.train.folder import RunFolder

TURNS = "turns.json"
_OWN = "cpu_seconds.json"
"""What a trial keeps of its own when it goes on as another one: what it has cost."""


@dataclass(frozen=True)
class Present:
    """What a trial is in the present leg."""

    turn: int
    settings: Mapping[str, Value]
    history: Sequence[Mapping[str, Any]]
    """Every turn: its number, settings, and where the trial took over another one, which and why."""
    before: Mapping[str, Value] | None
    """The settings until this turn, of whoever it goes on as; None where nothing changes."""
    why: str
    marks: Mapping[str, Mapping[str, float]]
    """By life: rows and summed errors when the leg began."""


def present(place: Path) -> Present:
    """Raises InputError where a trial's turns cannot be had."""
    try:
        history = read_json(place / TURNS)
        now = history[-1]
        before = now.get("before")
        return Present(
            turn=int(now["turn"]),
            settings={key: _as_value(value) for key, value in now["settings"].items()},
            history=history,
            before=None if before is None else {key: _as_value(value) for key, value in before.items()},
            why=str(now.get("why", "")),
            marks=dict(now["marks"]),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{place / TURNS}: is not what a population writes ({error}); start a new campaign") from None


def _as_value(value: Any) -> Value:
    return tuple(value) if isinstance(value, list) else value


def leg_score(now: Present, summaries: Mapping[str, Mapping[str, Any]], campaign: Campaign) -> float:
    """Of the leg's rows alone, a mean over the lives; higher is better."""
    (objective,) = campaign.objectives
    scores = []
    for life, summary in summaries.items():
        before = now.marks.get(life, {"samples": 0.0, "error": 0.0})
        rows = summary["samples"] - before["samples"]
        if rows > 0:
            error = (_error(summary) - before["error"]) / rows
            scores.append(1 - error if objective == "prequential_accuracy" else -error)
    return statistics.fmean(scores) if scores else 0.0


def _error(summary: Mapping[str, Any]) -> float:
    """Summed over all rows so far."""
    if "prequential_accuracy" in summary:
        return float((1 - summary["prequential_accuracy"]) * summary["samples"])
    return float(summary["prequential_mae"] * summary["samples"])


def write_leg(place: Path, turn: int, values: Mapping[str, Any]) -> None:
    RunFolder(place).write_json(leg_path(place, turn), dict(values))


def leg_path(place: Path, turn: int) -> Path:
    """Of what a leg came to."""
    return place / f"leg-{turn:04d}.json"


class Population:
    """The trials of a campaign, and what is to be done next."""

    def __init__(self, campaign: Campaign, folder: Path, drawn: Mapping[int, Mapping[str, Value]]) -> None:
        """`drawn` are the settings with which each trial begins."""
        assert campaign.population is not None
        self.campaign, self.folder, self.rules = campaign, folder, campaign.population
        for number, settings in drawn.items():
            place = folder_of(folder, number)
            if not (place / TURNS).exists():
                place.mkdir(parents=True, exist_ok=True)
                RunFolder(place).write_text(
                    place / TURNS, json.dumps([{"turn": 0, "settings": dict(settings), "marks": {}}], indent=1)
                )
        self.numbers = sorted(drawn)
        self.turn = min(present(folder_of(folder, number)).turn for number in self.numbers)

    def to_live(self) -> list[int]:
        """The trials whose present leg has not ended; the next turn is taken where all have. Nothing where it is
        over."""
        while True:
            legs = {number: self._read(number) for number in self.numbers}
            # A trial that took over already has the next turn's number: a kill came between two of them.
            open_ = [number for number in self.numbers if self._turn_of(number) == self.turn and not legs[number]]
            if open_:
                return open_
            states = {leg["status"] for leg in legs.values() if leg}
            if states and "paused" not in states:
                self._close(legs)
                return []
            self._take_turn(legs)

    def failed(self, number: int) -> None:
        """The trial's process ended without a word."""
        place = folder_of(self.folder, number)
        if not self._read(number):
            reason = "its process ended without a word; memory may have run out"
            write_leg(place, self.turn, {"status": "failed", "reason": reason})

    def _read(self, number: int) -> dict[str, Any]:
        place = folder_of(self.folder, number)
        return RunFolder(place).read_json(leg_path(place, self.turn))

    def _turn_of(self, number: int) -> int:
        return present(folder_of(self.folder, number)).turn

    def _close(self, legs: Mapping[int, Mapping[str, Any]]) -> None:
        """All have ended; of those that failed nothing says so yet."""
        for number, leg in legs.items():
            if leg["status"] == "failed":
                now, place = present(folder_of(self.folder, number)), folder_of(self.folder, number)
                rest = {"status": "failed", "reason": leg["reason"], "turns": now.history}
                write_result(place, number, now.settings, rest)

    def _take_turn(self, legs: Mapping[int, Mapping[str, Any]]) -> None:
        """Those that take over go first, from trials that stay as they are until all have."""
        scores = {number: leg.get("score") for number, leg in legs.items()}
        settings = {number: self._settings_then(number) for number in self.numbers}
        found = takeovers(
            scores,
            settings,
            self.campaign.search,
            share=self.rules.share,
            resample=self.rules.resample,
            factor=self.rules.factor,
            seed=(self.campaign.seed, self.turn),
            rows=self.rules.every_samples,
        )
        for takeover in found:
            if self._turn_of(takeover.number) == self.turn:
                self._take_over(takeover, settings[takeover.parent])
        over = {takeover.number for takeover in found}
        for number in self.numbers:
            if number not in over and self._turn_of(number) == self.turn:
                self._go_on(number)
        self.turn += 1

    def _settings_then(self, number: int) -> Mapping[str, Value]:
        """In the leg that has ended, also where the trial has turned already."""
        for one in present(folder_of(self.folder, number)).history:
            if one["turn"] == self.turn:
                return {key: _as_value(value) for key, value in one["settings"].items()}
        raise KeyError(number)

    def _take_over(self, takeover: Takeover, of_parent: Mapping[str, Value]) -> None:
        place, source = (folder_of(self.folder, number) for number in (takeover.number, takeover.parent))
        for life in lives_in(source):
            own, partial = place / life.name, place / f".{life.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(life, partial, ignore=shutil.ignore_patterns("mlflow*", "*.lock"))
            cost = RunFolder(own).read_json(own / _OWN)
            shutil.rmtree(own, ignore_errors=True)
            partial.rename(own)
            RunFolder(own).write_json(own / _OWN, cost or {"cpu_seconds": 0.0})
        self._append(
            takeover.number,
            {
                "turn": self.turn + 1,
                "settings": dict(takeover.settings),
                "before": dict(of_parent),
                "from": takeover.parent,
                "why": takeover.why,
                "marks": self._marks(place),
            },
        )

    def _go_on(self, number: int) -> None:
        place = folder_of(self.folder, number)
        now = present(place)
        self._append(number, {"turn": self.turn + 1, "settings": dict(now.settings), "marks": self._marks(place)})

    def _append(self, number: int, entry: Mapping[str, Any]) -> None:
        place = folder_of(self.folder, number)
        history = [*present(place).history, entry]
        RunFolder(place).write_text(place / TURNS, json.dumps(history, indent=1))

    def _marks(self, place: Path) -> dict[str, dict[str, float]]:
        marks = {}
        for life in map(RunFolder, lives_in(place)):
            summary = life.read_json(life.summary)
            if summary.get("samples"):
                marks[life.path.name] = {"samples": float(summary["samples"]), "error": _error(summary)}
        return marks
