"""Population based training: who takes over whom, and that a population that was cut off is the same one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planaria.errors import InputError
from planaria.job import load_job
from planaria.ranges import Range
from planaria.record.tables import read_rows
from planaria.search import Campaign, load_campaign
from planaria.search.campaign import check
from planaria.search.places import folder_of, read_trials
from planaria.search.population import Population, present
from planaria.search.trial import Around, live_leg
from planaria.search.turns import explored, takeovers
from planaria.train.folder import RunFolder

SEARCH = {
    "policy.learner.learning_rate": {"between": [0.0001, 0.01], "log": True},
    "policy.heads.start": {"integers": [1, 4]},
    "policy.sharing.attention": {"one_of": ["none", "all"]},
}
PBT: dict[str, Any] = {
    "search": SEARCH,
    "algorithm": "pbt",
    "population": {"every_samples": 96},
    "objectives": {"prequential_accuracy": "max"},
    "trials": 4,
}
RULES: dict[str, Any] = {"share": 0.25, "resample": 0.25, "factor": 1.25, "rows": 100}


def start(number: int) -> dict[str, Any]:
    return {
        "policy.learner.learning_rate": 0.0005 * 2**number,
        "policy.heads.start": 1 + number,
        "policy.sharing.attention": "none" if number % 2 else "all",
    }


@pytest.fixture
def campaign(written: Callable[..., Path]) -> Campaign:
    return load_campaign(written(**PBT))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"population": None}, "algorithm is pbt but population is missing"),
        ({"algorithm": "tpe"}, "population is given but algorithm is tpe"),
        ({"objectives": {"forgetting": "min"}}, "compares trials by one of prequential_accuracy, prequential_mae"),
        ({"trials": 1}, "a population has at least 2"),
        ({"halving": {"grace_samples": 10}}, "remove halving and teach"),
        ({"search": {"policy.initialisation": {"one_of": ["normal", "orthogonal"]}}}, "cannot change while a run"),
        ({"search": {"model.width": {"integers": [8, 16]}}}, "search.model.width: cannot change while a run goes on"),
    ],
)
def test_what_a_population_cannot_be_is_told_in_one_line(
    change: dict[str, Any], said: str, written: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as error:
        check(load_campaign(written(**{**PBT, **change})))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_worst_take_over_the_best_and_those_that_failed_always_do() -> None:
    ranges = {key: Range.model_validate(values) for key, values in SEARCH.items()}
    settings = {number: start(number) for number in range(4)}
    found = takeovers({0: 0.5, 1: 0.9, 2: 0.4, 3: None}, settings, ranges, seed=(0, 0), **RULES)
    assert [(one.number, one.parent) for one in found] == [(2, 1), (3, 1)]
    assert "trial 3 (which failed) goes on as trial 1 (0.9 over 100 rows)" in found[1].why
    assert found == takeovers({0: 0.5, 1: 0.9, 2: 0.4, 3: None}, settings, ranges, seed=(0, 0), **RULES)
    assert takeovers(dict.fromkeys(range(4)), settings, ranges, seed=(0, 0), **RULES) == []


def test_what_is_explored_is_near_and_within_the_ranges() -> None:
    ranges = {key: Range.model_validate(values) for key, values in SEARCH.items()}
    ranges["policy.learner.alpha"] = Range.model_validate(
        {"between": [0.1, 1.0], "when": {"policy.sharing.attention": ["all"]}}
    )
    generator, settings = np.random.default_rng(0), start(1)
    for _ in range(200):
        new = explored(settings, ranges, 0.0, 1.25, generator)
        assert abs(new["policy.heads.start"] - settings["policy.heads.start"]) <= 1  # type: ignore[operator]
        assert ("policy.learner.alpha" in new) == (new["policy.sharing.attention"] == "all")
        assert all(ranges[key].holds(value) for key, value in new.items())
        settings = new


def live(around: Around, population: Population, legs: int) -> int:
    """So many legs, one after the other; how many there were."""
    lived = 0
    while lived < legs and (to_live := population.to_live()):
        live_leg(around, to_live[0], population.turn)
        lived += 1
    return lived


def test_a_population_that_is_cut_off_is_the_same_one(campaign: Campaign, tmp_path: Path) -> None:
    drawn = {number: start(number) for number in range(4)}
    ends = {}
    for name, cuts in (("whole", [100]), ("cut", [1, 4, 6, 100])):
        around = Around(campaign, tmp_path / name, tmp_path)
        legs = sum(live(around, Population(campaign, around.folder, drawn), cut) for cut in cuts)
        assert legs == 4 * 4, "320 rows in legs of 96"
        ends[name] = read_trials(around.folder)
    assert len(ends["whole"]) == 4
    clocks = ("cpu_seconds", "wall_seconds", "energy_joules")
    for ended in ends.values():
        for trial in ended:
            trial["metrics"] = {key: value for key, value in trial["metrics"].items() if key not in clocks}
    assert ends["whole"] == ends["cut"]
    took_over = [turn for trial in ends["whole"] for turn in trial["turns"] if "from" in turn]
    assert len(took_over) == 3, "one of four at each of three turns"


def test_a_takeover_goes_on_with_the_parent_s_state_under_new_settings_by_edits(
    campaign: Campaign, tmp_path: Path
) -> None:
    drawn = {number: start(number) for number in range(4)}
    around = Around(campaign, tmp_path / "out", tmp_path)
    population = Population(campaign, around.folder, drawn)
    live(around, population, 4)
    population.to_live()  # takes the turn
    number = next(number for number in range(4) if "from" in turns(around, number)[-1])
    turn = turns(around, number)[-1]
    row = turn["marks"]["seed-3"]["samples"]
    life = RunFolder(folder_of(around.folder, number) / "seed-3")
    assert life.read_json(life.summary)["samples"] == row
    live(around, population, 4)
    parent = read_rows(folder_of(around.folder, turn["from"]) / "seed-3", "revisions")
    assert "pbt" not in [revision["cause"] for revision in parent]
    revisions = read_rows(life.path, "revisions")
    turned = [revision for revision in revisions if revision["cause"] == "pbt"]
    assert turned and all((one["sample"], one["why"]) == (row, turn["why"]) for one in turned)
    assert set(revisions[-1]["heads"]) == {turn["settings"]["policy.heads.start"]}
    rate = turn["settings"]["policy.learner.learning_rate"]
    assert load_job(life.job).policy.learner.learning_rate == rate


def turns(around: Around, number: int) -> list[dict[str, Any]]:
    return list(present(folder_of(around.folder, number)).history)  # type: ignore[arg-type]


def test_a_trial_that_fails_takes_over_another_one(campaign: Campaign, tmp_path: Path) -> None:
    drawn = {number: start(number) for number in range(4)}
    drawn[2]["policy.heads.start"] = 9  # more than heads.max
    around = Around(campaign, tmp_path / "out", tmp_path)
    population = Population(campaign, around.folder, drawn)
    while to_live := population.to_live():
        try:
            live_leg(around, to_live[0], population.turn)
        except InputError:
            assert to_live[0] == 2 and population.turn == 0
    trials = read_trials(around.folder)
    assert [trial["status"] for trial in trials] == ["done"] * 4
    assert "which failed" in trials[2]["turns"][1]["why"]
