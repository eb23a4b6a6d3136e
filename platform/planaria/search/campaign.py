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
from planaria.ranges import Range, Value, below, check_conditions, check_types
from planaria.search.turns import check_turns
from planaria.settings import FolderName, Settings, parse_from

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
    "wall_seconds": "spent on the steps, a mean over the seeds; longer where others use the machine too",
    "energy_joules": "of all workers, measured or estimated as energy_method in summary.json says",
    "cpu_seconds": "of the trial's process, all seeds together",
}


def _accuracy() -> dict[str, Literal["max", "min"]]:
    return {"prequential_accuracy": "max"}


class Halving(Settings):
    """Asynchronous successive halving (ASHA): of the trials that came so far, only the best go on."""

    grace_samples: int = Field(ge=1)
    """Rows that every trial may learn from."""
    reduction: int = Field(3, ge=2)
    """One trial in so many goes on, each time to so many times the rows."""


class Population(Settings):
    """Population based training: trials go on side by side, and the worst of them take over what the best have become,
    with settings of their own (Jaderberg et al. 2017)."""

    every_samples: int = Field(ge=1)
    """Rows of the stream between two such turns."""
    share: float = Field(0.25, gt=0, le=0.5)
    """Of the trials that take over another, at least one."""
    resample: float = Field(0.25, ge=0, le=1)
    """How likely a setting is drawn anew; otherwise a number is changed by `factor`, up or down, and one of several
    values becomes its neighbour or stays."""
    factor: float = Field(1.25, gt=1)
    """By which numbers change."""


class Campaign(Settings):
    """What `planaria search` reads."""

    name: FolderName = "campaign"
    """Names the folder and the MLflow run."""
    job: str
    """The job file, relative to the campaign's."""
    settings: dict[str, Value] = Field(default_factory=dict)
    """Changes to the job, for all trials."""
    streams: tuple[dict[str, Value], ...] = ()
    """Further changes to the job, one set for each stream that a trial lives through; what counts is the mean. So that
    what is found is good for more than one of them."""
    search: dict[str, Range] = Field(default_factory=dict)
    """Dotted keys of the job, such as policy.learner.learning_rate, each with what it may be. Without it, those of the
    policy's own `search` block."""
    algorithm: Literal["tpe", "nsga2", "random", "pbt"] = "tpe"
    """tpe: by a model of which settings did well (Bergstra et al. 2011), also of several objectives. nsga2: by
    selection and crossover (Deb et al. 2002). random: by chance. pbt: see population."""
    objectives: dict[str, Literal["max", "min"]] = Field(default_factory=_accuracy)
    """What counts: numbers of a run's summary.json, and cpu_seconds."""
    halving: Halving | None = None
    """Stop trials early whose prequential accuracy falls behind, if at all."""
    population: Population | None = None
    """pbt: when trials take over from each other, and how settings change."""
    teach: bool = False
    """Trials' controllers begin with what those of earlier trials have learned from their edits."""
    trials: int = Field(16, ge=1)
    """How many; the first one is the job as it is, where the ranges hold that. Of pbt they are the population."""
    seeds: tuple[int, ...] = Field((100,), min_length=1)
    """Each trial lives through the stream with each of these; what counts is the mean."""
    at_once: int | None = Field(None, ge=1)
    """Trials that run at a time; null is as many as the CPUs (and GPUs) allow."""
    cpus_per_trial: float = Field(1.0, gt=0)
    """What Ray sets aside for a trial, or for each of its workers."""
    gpus_per_trial: float = Field(0.0, ge=0)
    """The same; below 1, several share a GPU. 0 leaves trials on CPUs."""
    workers_per_trial: int = Field(0, ge=0)
    """Ray Train workers of each trial; 0 is a process of its own without Ray Train."""
    share_bytes: int = Field(2 << 30, ge=0)
    """Streams whose rows take up to so many bytes are read once and shared by all trials through Ray's object store."""
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
    def _can_be_searched(self) -> Campaign:
        check_conditions(self.search)
        check_types(self.search, Job, "a job")
        return self

    @model_validator(mode="after")
    def _population_fits(self) -> Campaign:
        if (self.algorithm == "pbt") != (self.population is not None):
            raise ValueError(
                "algorithm is pbt but population is missing; say population: {every_samples: ...}"
                if self.population is None
                else f"population is given but algorithm is {self.algorithm}; set algorithm: pbt or remove it"
            )
        if self.population is None:
            return self
        first, *others = self.objectives
        if others or first not in _OF_A_STRETCH:
            raise ValueError(
                f"algorithm is pbt, which compares trials by one of {', '.join(_OF_A_STRETCH)}, but objectives are "
                f"{', '.join(self.objectives)}; give one of these"
            )
        if self.trials < 2:
            raise ValueError("trials is 1 but algorithm is pbt; a population has at least 2")
        if self.halving is not None or self.teach:
            raise ValueError("algorithm is pbt, whose trials all go on; remove halving and teach")
        return self

    @model_validator(mode="after")
    def _gpus_of_workers(self) -> Campaign:
        if self.workers_per_trial and self.gpus_per_trial not in (0, 1):
            raise ValueError(
                f"gpus_per_trial is {self.gpus_per_trial:g} but trials have workers of Ray Train, each of which takes "
                "a whole GPU; set it to 0 or 1"
            )
        return self

    @property
    def lives(self) -> list[tuple[str, dict[str, Value], int]]:
        """What a trial lives through: name of its folder, changes to the job, seed."""
        if not self.streams:
            return [(f"seed-{seed}", {}, seed) for seed in self.seeds]
        return [(f"stream-{at}-seed-{s}", changes, s) for at, changes in enumerate(self.streams) for s in self.seeds]


_OF_A_STRETCH = ("prequential_accuracy", "prequential_mae")
"""Objectives that are known of any stretch of rows."""


def load_campaign(path: Path | str, overrides: Sequence[str] = ()) -> Campaign:
    """The campaign in a YAML file, with the ranges of its policy where it has none of its own. An override is
    `key.path=value`, and keys of `settings` and `search` hold dots themselves: `settings.samples=2000`. Raises
    InputError, with one line."""
    path = Path(path)
    values = read_yaml(path)
    changed = []
    for override in overrides:
        key, value = read_override(override)
        section, _, rest = key.partition(".")
        put(values, [section, rest] if section == "settings" and rest else key.split("."), value)
        changed.append(key)
    campaign = parse_from(Campaign, values, lambda key: ("command line" if key in changed else str(path), key))
    campaign = campaign.model_copy(update={"job": str((path.parent / campaign.job).resolve())})
    if campaign.search:
        return campaign
    of_policy = below(job_of(campaign, {}, campaign.seeds[0]).policy.search, "policy")
    if not of_policy:
        raise InputError(f"{path}: search: is missing, and the policy has no such block; say there what may be what")
    return campaign.model_copy(update={"search": of_policy})


def dump_campaign(campaign: Campaign) -> str:
    return dump_yaml(campaign.model_dump(mode="json"))


def job_of(
    campaign: Campaign, settings: Mapping[str, Value], seed: int, stream: Mapping[str, Value] | None = None
) -> Job:
    """The job of a trial with these settings; `stream` is one of the campaign's. Raises InputError."""
    own = {"seed": seed, "scale.workers": campaign.workers_per_trial, "scale.cpus_per_worker": campaign.cpus_per_trial}
    if not campaign.gpus_per_trial:
        own["scale.gpus"] = False
    changes = {**campaign.settings, **(stream or {}), **settings, **own}
    return load_job(campaign.job, [f"{key}={_written(value)}" for key, value in changes.items()])


def check(campaign: Campaign) -> Job:
    """The job as it is. Raises InputError where it, or one of its streams, cannot be had."""
    jobs = [job_of(campaign, {}, campaign.seeds[0], stream) for stream in campaign.streams or ({},)]
    for job in jobs:
        if job.stream.follow:
            raise InputError("stream.follow: a stream without an end cannot be searched on; set it to false")
    kind = jobs[0].policy.controller.kind
    if campaign.teach and kind == "none" and "policy.controller.kind" not in campaign.search:
        raise InputError(
            "teach: is true but the job's policy.controller.kind is none, which learns nothing; remove teach"
        )
    if campaign.population is not None:
        check_turns(campaign.search)
    return jobs[0]


def given(job: Job, key: str) -> object:
    """What the job has for a dotted key; None where it has no such section."""
    found = _at(job.model_dump(mode="json"), key)
    return None if found is _NOTHING else found


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
