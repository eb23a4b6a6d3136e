"""Avalanche's learners on a planaria stream, in an interpreter of their own, and told every boundary.

Avalanche needs a torchvision that was built for the very torch beside it, and some fifty packages more: it may live in
another environment, which needs no planaria. The rows go there in a file: pictures as bytes, tables as standardised
numbers and one-hot categories. The learner holds them all in memory, as float32.

An experience begins wherever another context has come to stay; a context that returns makes a new one. In a gradual
change, which goes to and fro, that is near its end. A stream without contexts is one experience.

Shape legend: R rows, K numeric columns, I inputs.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planaria.compare.interpreter import Library
from planaria.compare.outcome import Outcome, of_script
from planaria.compare.peer import check_classes, read_peer
from planaria.compare.whole_stream import read_whole
from planaria.errors import InputError
from planaria.job import Job
from planaria.settings import Settings
from planaria.signals import Features, Fields

Learner = Literal["naive", "replay", "er_ace", "der", "der++", "a_gem", "ewc", "lwf", "si"]
LEARNERS: tuple[str, ...] = get_args(Learner)
REMEMBERING = ("replay", "er_ace", "der", "der++", "a_gem")
WEIGHTS = {"ewc": 0.4, "lwf": 1.0, "si": 1.0}
"""0.4 and 1 are those of Avalanche's examples; none was tuned here."""

FIRST_ROWS = 1_000
"""By whose mean and deviation inputs are standardised, as a learner could that has only begun."""
FURTHEST = 10.0
"""Deviations from the mean, beyond which numbers are cut: a column may widen after its first rows."""
SHORTEST_ROWS = 100
"""Of a context in a row that count as having come to stay."""
SCRIPT = Path(__file__).with_name("avalanche_learner.py")
LIBRARY = Library(
    name="Avalanche",
    option="--avalanche",
    probe="import avalanche.training, importlib.metadata as m; print(m.version('avalanche-lib'))",
    versions="0.6.",
    install="make an environment for it (python -m venv peers && peers/bin/pip install 'avalanche-lib>=0.6,<0.7') "
    "and give --avalanche peers/bin/python, or set PLANARIA_AVALANCHE_PYTHON",
)


class Changes(Settings):
    """What may follow a learner's name: avalanche:replay,rate=0.1,hidden=256."""

    rate: float = Field(0.03, gt=0)
    """Length of a step of SGD."""
    hidden: int = Field(512, ge=1)
    """Units of the hidden layer."""
    memory_rows: int | None = Field(None, ge=1)
    """Remembered rows. Default: those of the job's policy."""
    batch_rows: int | None = Field(None, ge=1)
    """Rows of a step. Default: the job's."""
    weight: float | None = Field(None, ge=0)
    """ewc, lwf, si: of what keeps old knowledge."""


@dataclass(frozen=True)
class Recipe:
    """A learner and all its settings."""

    learner: str
    rate: float
    hidden: int
    memory_rows: int
    batch_rows: int
    weight: float
    seed: int


def recipe(name: str, job: Job) -> Recipe:
    """From what was written after "avalanche:". Raises InputError."""
    learner, given = read_peer("avalanche", name, LEARNERS, Changes)
    where = f"--peers: avalanche:{name}"
    memory_rows = given.memory_rows or job.policy.learner.memory.rows
    if learner in REMEMBERING and not memory_rows:
        raise InputError(f"{where}: the job's policy remembers no rows; add memory_rows=1000 or the like")
    if given.weight is not None and learner not in WEIGHTS:
        raise InputError(f"{where}: weight means nothing to {learner}, only to {', '.join(WEIGHTS)}; remove it")
    return Recipe(
        learner=learner,
        rate=given.rate,
        hidden=given.hidden,
        memory_rows=memory_rows,
        batch_rows=given.batch_rows or job.batch_rows,
        weight=WEIGHTS.get(learner, 0.0) if given.weight is None else given.weight,
        seed=job.seed,
    )


def check(name: str, job: Job) -> None:
    """Raises InputError where the peer cannot learn the job's stream."""
    check_classes(f"avalanche:{name}", job)
    recipe(name, job)


def run(name: str, job: Job, base: Path, interval: int, python: str) -> Outcome:
    """The whole stream, once."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "stream.npz"
        export(job, base, path)
        found = start(python, path, recipe(name, job), interval)
    return of_script(f"avalanche:{name}", job.seed, found)


def start(python: str, path: Path, recipe: Recipe, interval: int | None) -> dict[str, Any]:
    """What the learner came to on an exported stream.

    `interval`: rows between two points of the prequential curve. None leaves predicting out, and the rows of an
    experience are shuffled, as Avalanche does by itself.
    """
    settings = {**recipe.__dict__, "in_order": interval is not None, "interval": interval}
    return LIBRARY.start(python, SCRIPT, path, settings)


def export(job: Job, base: Path, path: Path, scale: tuple[float, float] | None = None) -> None:
    """Write the rows that the job learns from and those that it is evaluated on, as avalanche_learner.py reads them.

    scale: mean and deviation of pixels in [0, 1]. Default: those of the first pictures.
    Raises InputError where they are too many to be held in memory.
    """
    stream = read_whole(job, base, LIBRARY.name, _row_bytes)
    encode = Encoding.of(stream.features)
    if stream.fields.image_shape is None:
        scale = (0.0, 1.0)
    columns: dict[str, Any] = {
        "x": encode(stream.features),
        "scale": scale or _scale(stream.features["image"][:FIRST_ROWS]),
        "target": stream.target_R,
        "held_out": stream.held_out_R,
        "visit": visits(stream.context_R),
        "classes": stream.classes,
    }
    for number, (features, target) in enumerate(stream.held):
        columns |= {f"held_x_{number}": encode(features), f"held_target_{number}": target}
    np.savez(path, **columns, held_contexts=len(stream.held))


def visits(context_R: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of the experience that each row belongs to."""
    starts = np.flatnonzero(np.diff(context_R, prepend=context_R[0] - 1))
    lengths = np.diff(starts, append=len(context_R))
    begun, ruling = np.zeros(len(context_R), np.int64), int(context_R[0])
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        if length >= SHORTEST_ROWS and context_R[start] != ruling:
            begun[start], ruling = 1, int(context_R[start])
    return np.cumsum(begun)


@dataclass(frozen=True)
class Encoding:
    """From a row's features to a vector: pixels as they are; numbers standardised, gaps 0; categories one-hot."""

    mean_K: npt.NDArray[np.float32]
    deviation_K: npt.NDArray[np.float32]
    codes: tuple[int, ...]
    """How many of each categorical column."""

    @staticmethod
    def of(raw: Features) -> Encoding:
        if "image" in raw:
            return Encoding(np.zeros(0, np.float32), np.zeros(0, np.float32), ())
        first_RK = raw["numeric"][:FIRST_ROWS].astype(np.float64)
        known_RK = np.isfinite(first_RK)
        count_K = np.maximum(1, known_RK.sum(0))
        mean_K = np.where(known_RK, first_RK, 0).sum(0) / count_K
        deviation_K = np.sqrt(np.where(known_RK, (first_RK - mean_K) ** 2, 0).sum(0) / count_K)
        deviation_K[deviation_K == 0] = 1
        codes = tuple(int(column.max()) + 1 for column in raw["categorical"].T)
        return Encoding(mean_K.astype(np.float32), deviation_K.astype(np.float32), codes)

    def __call__(self, raw: Features) -> npt.NDArray[Any]:
        """Shape [R, I]."""
        if "image" in raw:
            return raw["image"].reshape(len(raw["image"]), -1)
        numbers_RK = np.nan_to_num((raw["numeric"] - self.mean_K) / self.deviation_K, nan=0.0)
        columns = [np.clip(numbers_RK, -FURTHEST, FURTHEST)]
        columns += [raw["categorical"][:, [at]] == np.arange(width) for at, width in enumerate(self.codes)]
        return np.concatenate(columns, axis=1, dtype=np.float32)


def _row_bytes(fields: Fields) -> int:
    inputs = math.prod(fields.image_shape) if fields.image_shape else len(fields.numeric)
    return 4 * (inputs + len(fields.categorical) * fields.categories)


def _scale(images: npt.NDArray[Any]) -> tuple[float, float]:
    pixels = images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
    return float(pixels.mean()), float(pixels.std()) or 1.0
