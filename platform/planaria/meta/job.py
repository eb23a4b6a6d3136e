"""A meta-training job: which simulated streams, how many rounds, and the outer loop's settings. One YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from planaria.errors import nearest
from planaria.job import put, read_override
from planaria.meta.families import FAMILIES
from planaria.plain_yaml import read_yaml
from planaria.settings import FolderName, Settings, parse_from


class OuterLoop(Settings):
    """How the value is learned from what was gathered."""

    mode: Literal["anil", "maml", "pooled"] = "anil"
    """anil: the last layer adapts to a deployment's first outcomes within the loop; maml: the whole network does;
    pooled: nothing does."""
    members: int = Field(5, ge=1)
    """Networks in the ensemble; where they disagree, the value is unsure."""
    iterations: int = Field(500, ge=1)
    """Steps of the outer loop."""
    tasks: int = Field(4, ge=1)
    """Deployments in each step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Length of an outer step."""
    weight_decay: float = Field(1e-3, ge=0)
    """Pull of the weights towards 0."""
    return_weight: float = Field(0.1, ge=0)
    """How much predicting the fall of the loss counts beside telling candidates apart."""


class MetaJob(Settings):
    """What `planaria meta-train` reads."""

    name: FolderName = "meta_train"
    """Names the folder and the MLflow run."""
    seed: int = Field(0, ge=0)
    """Equal seeds give equal values, whatever the number of processes."""
    families: tuple[str, ...] = ("teacher", "digits", "tables", "interactions")
    """Kinds of stream that are learned from."""
    validation: tuple[str, ...] = ("segments", "matching")
    """Kinds of stream on which what was learned is measured, and never learned from."""
    rounds: int = Field(2, ge=1)
    """Rounds of gathering: the first acts at random, the next ones mostly as what was learned so far would (DAgger)."""
    streams: int = Field(32, ge=2)
    """Of each family in each round; a third as many for validation, once."""
    followed: float = Field(0.25, gt=0, le=1)
    """Share of the decisions of which every candidate is followed."""
    randomness: float = Field(0.3, ge=0, le=1)
    """Share of random choices in the rounds after the first."""
    outer: OuterLoop = OuterLoop()
    folder: str = "runs"
    """Each meta-training gets a folder in here."""
    tracking_uri: str | None = None
    """None is an embedded SQLite store in the folder."""
    experiment: str = "planaria-meta"
    """Name of the MLflow experiment."""

    @field_validator("families", "validation")
    @classmethod
    def _known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        for family in families:
            if family not in FAMILIES:
                raise ValueError(f"there is no family '{family}'{nearest(family, list(FAMILIES))}")
        return families


def load_meta_job(path: Path | str, overrides: Sequence[str] = ()) -> MetaJob:
    """The job in a YAML file. An override is `key.path=value`. Raises InputError, with one line."""
    values = read_yaml(Path(path))
    changed = []
    for override in overrides:
        key, value = read_override(override)
        put(values, key.split("."), value)
        changed.append(key)
    return parse_from(MetaJob, values, lambda key: ("command line" if key in changed else str(path), key))
