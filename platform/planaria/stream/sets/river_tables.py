"""Tables that river brings along: real ones in their own order, and generators whose concept drifts.

The generated ones are a function of the job's seed. Sources: river (Montiel et al. 2021), and of the generators SEA
(Street & Kim 2001), STAGGER (Schlimmer & Granger 1986), Agrawal (1993), LED (Breiman 1984), moving RBFs (Bifet et al.
2010) and rotating hyperplanes (Hulten et al. 2001).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from planaria.job import FeatureColumns
from planaria.stream.sets.folder import data_folder, make_set

logger = logging.getLogger(__name__)

FILE = "rows.parquet"
TARGET, CONTEXT = "target", "concept"
CONCEPT_ROWS = 5_000
"""Of each concept of a generated table that has several."""
GENERATED_ROWS = 20_000
GRADUAL_ROWS = 2_000
"""Over which one concept gives way to the next, where that is gradual."""

Row = tuple[Mapping[Any, Any], Any]
"""Features by name, and the label."""


@dataclass(frozen=True)
class Table:
    """How to make one."""

    rows: Callable[[int], Iterator[tuple[Row, int]]]
    """Rows by seed, each with the number of its concept."""
    categorical: tuple[str, ...] = ()
    seeded: bool = True


def fetch(name: str, seed: int = 0) -> Path:
    """The Parquet file, made if it is not there. Raises InputError."""
    table = TABLES[name]
    folder = data_folder() / (f"{name}-{seed}" if table.seeded else name)
    if not folder.exists():
        logger.info("making %s in %s", name, folder)
        content = _arrow(table, seed)
        make_set(folder, lambda unfinished: pq.write_table(content, unfinished / FILE))
    return folder / FILE


def columns(path: Path, name: str) -> FeatureColumns:
    """Of a table that was fetched."""
    categorical = TABLES[name].categorical
    numeric = [column for column in pq.read_schema(path).names if column not in (TARGET, CONTEXT, *categorical)]
    return FeatureColumns(numeric=tuple(numeric), categorical=categorical)


def _arrow(table: Table, seed: int) -> pa.Table:
    found = list(table.rows(seed))
    names = {key: str(key) if isinstance(key, str) and not key.isdigit() else f"x{key}" for key in found[0][0][0]}
    taken = {}
    for key, column in names.items():
        values = [features[key] for (features, _), _ in found]
        taken[column] = pa.array(map(str, values) if column in table.categorical else map(float, values))
    taken[TARGET] = pa.array([str(label) for (_, label), _ in found])
    taken[CONTEXT] = pa.array([concept for _, concept in found], pa.int64())
    return pa.table(taken)


def _real(name: str) -> Table:
    def rows(seed: int) -> Iterator[tuple[Row, int]]:
        from river import datasets

        return ((row, 0) for row in getattr(datasets, name)())

    return Table(rows, seeded=False)


def _drifting(
    make: Callable[[Any, int, int], Any], concepts: Sequence[int], width: int = 1, categorical: str = ""
) -> Table:
    """One concept after the other; `make(synth, concept, seed)` gives rows of one. Around each change, a row is of the
    next concept with the probability 1 / (1 + exp(-4 (row - change) / width)), as in MOA."""

    def rows(seed: int) -> Iterator[tuple[Row, int]]:
        from river.datasets import synth

        random = np.random.default_rng((seed, 0x5EA))
        sources = [iter(make(synth, concept, 1_000 * seed + place)) for place, concept in enumerate(concepts)]
        for row in range(len(concepts) * CONCEPT_ROWS):
            change = min(max(1, round(row / CONCEPT_ROWS)), len(concepts) - 1)
            past = 4 * (row - change * CONCEPT_ROWS + 0.5) / width
            place = change if random.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, past)))) else change - 1
            yield next(sources[place]), place

    return Table(rows, tuple(categorical.split()))


def _generated(make: Callable[[Any, int], Any]) -> Table:
    """One source that drifts by itself; its concept has no number."""

    def rows(seed: int) -> Iterator[tuple[Row, int]]:
        from river.datasets import synth

        return ((row, 0) for row in islice(make(synth, seed), GENERATED_ROWS))

    return Table(rows)


def _sea(synth: Any, concept: int, seed: int) -> Any:
    return synth.SEA(variant=concept, noise=0.1, seed=seed)


def _agrawal(synth: Any, concept: int, seed: int) -> Any:
    return synth.Agrawal(classification_function=concept, perturbation=0.05, seed=seed)


def _stagger(synth: Any, concept: int, seed: int) -> Any:
    return synth.STAGGER(classification_function=concept, seed=seed, balance_classes=False)


def _led(synth: Any, concept: int, seed: int) -> Any:
    return synth.LEDDrift(seed=seed, noise_percentage=0.1, irrelevant_features=True, n_drift_features=concept)


def _rbf(synth: Any, seed: int) -> Any:
    return synth.RandomRBFDrift(
        seed_model=seed,
        seed_sample=seed + 1,
        n_classes=4,
        n_features=10,
        n_centroids=50,
        change_speed=0.001,
        n_drift_centroids=50,
    )


def _hyperplane(synth: Any, seed: int) -> Any:
    return synth.Hyperplane(seed=seed, n_features=10, n_drift_features=10, mag_change=0.001, noise_percentage=0.05)


_AGRAWAL_TEXT, _STAGGER_TEXT = "elevel car zipcode", "size color shape"
TABLES: dict[str, Table] = {
    "phishing": _real("Phishing"),
    "bananas": _real("Bananas"),
    "image_segments": _real("ImageSegments"),
    "shuttle": _real("Shuttle"),
    "sea_abrupt": _drifting(_sea, (0, 1, 2, 3)),
    "sea_gradual": _drifting(_sea, (0, 1, 2, 3), GRADUAL_ROWS),
    "stagger_abrupt": _drifting(_stagger, (0, 1, 2, 0), categorical=_STAGGER_TEXT),
    "agrawal_abrupt": _drifting(_agrawal, (0, 1, 3, 6), categorical=_AGRAWAL_TEXT),
    "agrawal_gradual": _drifting(_agrawal, (0, 1, 3, 6), GRADUAL_ROWS, _AGRAWAL_TEXT),
    "led_abrupt": _drifting(_led, (0, 3, 5, 7)),
    "led_gradual": _drifting(_led, (0, 3, 5, 7), GRADUAL_ROWS),
    "rbf_incremental": _generated(_rbf),
    "hyperplane_incremental": _generated(_hyperplane),
}
