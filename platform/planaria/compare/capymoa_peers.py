"""CapyMOA's learners, which are MOA's, on a planaria stream: row by row, in an interpreter of their own.

CapyMOA needs Java 17 or newer and pandas 2: it may live in another environment, which needs no planaria. The rows go
there in a file, as MOA wants them: numbers as they are, a missing one as NaN, which is how MOA itself marks it; the
words and codes of a categorical column as places in the list of those that occur, which the schema is told; and the
number of classes.

Sources: CapyMOA (Gomes et al. 2025, arXiv 2502.07432), MOA (Bifet et al. 2010).

Shape legend: R rows, K numeric columns, C categorical ones, I = K + C.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planaria.compare.interpreter import Library
from planaria.compare.outcome import Outcome, of_script
from planaria.compare.peer import check_classes, check_table, read_peer
from planaria.compare.whole_stream import read_whole
from planaria.job import Job
from planaria.settings import Settings
from planaria.signals import Features, Fields

Learner = Literal["arf", "srp", "leveraging_bagging"]
LEARNERS: tuple[str, ...] = get_args(Learner)
SCRIPT = Path(__file__).with_name("capymoa_learner.py")
LIBRARY = Library(
    name="CapyMOA",
    option="--capymoa",
    # The version first: where the import fails after it, what lacks is Java.
    probe="import importlib.metadata as m; print(m.version('capymoa'), flush=True); import capymoa",
    versions="0.15.",
    install="make an environment for it (python -m venv peers-capymoa && peers-capymoa/bin/pip install "
    "'capymoa>=0.15,<0.16') and give --capymoa peers-capymoa/bin/python, or set PLANARIA_CAPYMOA_PYTHON",
    complete="install Java 17 or newer (Debian: openjdk-17-jre-headless), or set JAVA_HOME to where it is",
)


class Changes(Settings):
    """What may follow a learner's name: capymoa:arf,models=100."""

    models: int = Field(10, ge=1)
    """Of the ensemble. 10 are river's default; CapyMOA's own is 100."""


def check(name: str, job: Job) -> None:
    """Raises InputError where the peer cannot learn the job's stream."""
    read_peer("capymoa", name, LEARNERS, Changes)
    check_classes(f"capymoa:{name}", job)
    check_table(f"capymoa:{name}", job)


def run(name: str, job: Job, base: Path, interval: int, python: str) -> Outcome:
    """The whole stream, once."""
    learner, given = read_peer("capymoa", name, LEARNERS, Changes)
    settings = {"learner": learner, "models": given.models, "seed": job.seed, "interval": interval}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "stream.npz"
        export(job, base, path)
        found = LIBRARY.start(python, SCRIPT, path, settings)
    return of_script(f"capymoa:{name}", job.seed, found)


def export(job: Job, base: Path, path: Path) -> None:
    """Write the rows that the job learns from and those that it is evaluated on, as capymoa_learner.py reads them.

    Raises InputError where they are too many to be held in memory.
    """
    stream = read_whole(job, base, LIBRARY.name, _row_bytes)
    columns = Columns.of([stream.features, *(features for features, _ in stream.held)])
    arrays: dict[str, Any] = {
        "x": columns.encode(stream.features),
        "values": [0] * len(stream.fields.numeric) + [len(codes) for codes in columns.codes],
        "target": stream.target_R,
        "held_out": stream.held_out_R,
        "classes": stream.classes,
    }
    for number, (features, target) in enumerate(stream.held):
        arrays |= {f"held_x_{number}": columns.encode(features), f"held_target_{number}": target}
    np.savez(path, **arrays, held_contexts=len(stream.held))


@dataclass(frozen=True)
class Columns:
    """Which codes occur in each categorical column, in order: MOA knows a value by its place among them."""

    codes: tuple[npt.NDArray[np.int64], ...]

    @staticmethod
    def of(parts: Sequence[Features]) -> Columns:
        categorical_RC = np.concatenate([part["categorical"] for part in parts])
        return Columns(tuple(np.unique(column_R) for column_R in categorical_RC.T))

    def encode(self, features: Features) -> npt.NDArray[np.float64]:
        """Shape [R, I]."""
        places = [
            np.searchsorted(codes, column_R)
            for codes, column_R in zip(self.codes, features["categorical"].T, strict=True)
        ]
        return np.column_stack([features["numeric"], *places]).astype(np.float64)


def _row_bytes(fields: Fields) -> int:
    return 8 * (len(fields.numeric) + len(fields.categorical))
