"""A campaign: which job, which of its settings are searched, by what, and what counts. One YAML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from planaria.errors import InputError, nearest
from planaria.job import Job, load_job, put, read_override
from planaria.plain_yaml import dump_yaml, read_yaml
from planaria.settings import Settings, parse_from

Value = bool | int | float | str | tuple[int, ...] | None
OBJECTIVES: Mapping[str, str] = {
    "prequential_accuracy": "of every row before it was learned from",
    "final_accuracy": "at the end, a mean over the contexts",
    "forgetting": "fall of a context's accuracy since its best, a mean over the contexts",
    "prequential_mae": "mean absolute error of every row before it was learned from",
    "prequential_rmse": "root mean squared error of every row before it was learned from",
    "parameters_mean": "trainable numbers, a mean over the rows",
    "parameters_active_mean": "of these, those that gates let a row use, a mean over the rows",
    "heads_mean": "heads, a mean over the rows",
    "flops_per_sample_mean": "of a forward pass, a mean over the rows",
    "energy_joules": "of all workers, measured or estimated as energy_method in summary.json says",
    "cpu_seconds": "of the trial's process, all seeds together",
}


def _accuracy() -> dict[str, Literal["max", "min"]]:
    return {"prequential_accuracy": "max"}


class Range(Settings):
    """What one setting may be: exactly one of one_of, between and integers."""

    one_of: tuple[Value, ...] | None = None
    """These values."""
    between: tuple[float, float] | None = None
    """Any number from the first to the second."""
    integers: tuple[int, int] | None = None
    """Any whole number from the first to the second, both included."""
    log: bool = False
    """Whether equal ratios count as equal steps, rather than equal differences."""
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    """Search it only in trials where these other searched settings have one of these values; elsewhere it is what the
    job says."""

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        given = [name for name in ("one_of", "between", "integers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'no values'}; give exactly one of one_of, between, integers")
        bounds = self.between or self.integers
        if bounds is not None and (bounds[0] >= bounds[1] or (self.log and bounds[0] <= 0)):
            raise ValueError(f"{given[0]} is {list(bounds)}; give the lower one first{' and above 0' * self.log}")
        if self.one_of is not None and (self.log or len(self.one_of) < 2):
            raise ValueError("one_of needs at least two values, and no log")
        return self

    def holds(self, value: object) -> bool:
        """Whether the value is one of those it may be."""
        if self.one_of is not None:
            return value in self.one_of
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.integers is not None:
            return isinstance(value, int) and self.integers[0] <= value <= self.integers[1]
        assert self.between is not None
        return self.between[0] <= value <= self.between[1]


class Halving(Settings):
    """Asynchronous successive halving (ASHA): of the trials that came so far, only the best go on."""

    grace_samples: int = Field(ge=1)
    """Rows that every trial may learn from."""
    reduction: int = Field(3, ge=2)
    """One trial in so many goes on, each time to so many times the rows."""


class Campaign(Settings):
    """What `planaria search` reads."""

    name: str = "campaign"
    """Names the folder and the MLflow run."""
    job: str
    """The job file, relative to the campaign's."""
    settings: dict[str, Value] = Field(default_factory=dict)
    """Changes to the job, for all trials."""
    search: dict[str, Range] = Field(min_length=1)
    """Dotted keys of the job, such as policy.learner.learning_rate, each with what it may be."""
    algorithm: Literal["tpe", "nsga2", "random"] = "tpe"
    """tpe: by a model of which settings did well (Bergstra et al. 2011), also of several objectives. nsga2: by
    selection and crossover (Deb et al. 2002). random: by chance."""
    objectives: dict[str, Literal["max", "min"]] = Field(default_factory=_accuracy)
    """What counts: numbers of a run's summary.json, and cpu_seconds."""
    halving: Halving | None = None
    """Stop trials early whose prequential accuracy falls behind, if at all."""
    trials: int = Field(16, ge=1)
    """How many; the first one is the job as it is, where the ranges hold that."""
    seeds: tuple[int, ...] = (100,)
    """Each trial lives through the stream with each of these; what counts is the mean."""
    at_once: int | None = Field(None, ge=1)
    """Trials that run at a time; null is as many as there are CPUs."""
    seed: int = Field(0, ge=0)
    """Of the search itself."""
    folder: str = "runs"
    """Each campaign gets a folder in here."""
    tracking_uri: str | None = None
    """The MLflow store; null is an embedded one in the campaign's folder."""
    experiment: str = "planaria-search"
    """Name of the MLflow experiment."""

    @model_validator(mode="after")
    def _objectives_are_known(self) -> Campaign:
        for name in self.objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"objectives: there is no '{name}'{nearest(name, list(OBJECTIVES))}")
        if not self.objectives:
            raise ValueError("objectives is empty; name at least one")
        return self

    @model_validator(mode="after")
    def _conditions_come_first(self) -> Campaign:
        keys = list(self.search)
        for at, (key, values) in enumerate(self.search.items()):
            for other, wanted in values.when.items():
                if other not in keys[:at]:
                    raise ValueError(f"search.{key}.when names '{other}', which is not searched before it; move it up")
                for value in wanted:
                    if not self.search[other].holds(value):
                        raise ValueError(f"search.{key}.when: {other} is never {value!r}")
        return self


def load_campaign(path: Path | str, overrides: Sequence[str] = ()) -> Campaign:
    """The campaign in a YAML file. An override is `key.path=value`, and keys of `settings` and `search` hold dots
    themselves: `settings.samples=2000`. Raises InputError, with one line."""
    path = Path(path)
    values = read_yaml(path)
    changed = []
    for override in overrides:
        key, value = read_override(override)
        section, _, rest = key.partition(".")
        put(values, [section, rest] if section == "settings" and rest else key.split("."), value)
        changed.append(key)
    campaign = parse_from(Campaign, values, lambda key: ("command line" if key in changed else str(path), key))
    return campaign.model_copy(update={"job": str((path.parent / campaign.job).resolve())})


def dump_campaign(campaign: Campaign) -> str:
    return dump_yaml(campaign.model_dump(mode="json"))


def job_of(campaign: Campaign, settings: Mapping[str, Value], seed: int) -> Job:
    """The job of a trial with these settings, without Ray Train. Raises InputError."""
    changes = {**campaign.settings, **settings, "seed": seed, "scale.workers": 0}
    return load_job(campaign.job, [f"{key}={_written(value)}" for key, value in changes.items()])


def check(campaign: Campaign) -> Job:
    """The job as it is. Raises InputError where it, or a searched setting, is not one that a job can have."""
    job = job_of(campaign, {}, campaign.seeds[0])
    known = job.model_dump(mode="json")
    for key in campaign.search:
        if _at(known, key) is _NOTHING:
            raise InputError(f"search.{key}: a job has no such setting; docs/jobs.md has them all")
    if job.stream.follow:
        raise InputError("stream.follow: a stream without an end cannot be searched on; set it to false")
    return job


def given(job: Job, key: str) -> object:
    """What the job has for a dotted key."""
    return _at(job.model_dump(mode="json"), key)


_NOTHING = object()


def _at(values: object, key: str) -> object:
    for step in key.split("."):
        if not isinstance(values, dict) or step not in values:
            return _NOTHING
        values = values[step]
    return values


def _written(value: Value) -> str:
    """As YAML."""
    return json.dumps(value)
