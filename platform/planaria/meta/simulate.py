"""How a simulated stream is made: a plan of phases, each with a concept, from which rows are drawn.

Legend: B rows, C classes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from planaria.signals import Features, Fields

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Change = Literal["start", "new", "return", "labels", "virtual", "month"]
R = TypeVar("R")

WIDTH, HEAD_WIDTH, MLP_WIDTH, LAYERS, MAX_HEADS = 16, 4, 32, 1, 6
"""The model that every family is made for."""

LABEL_NOISES = (0.0, 0.05, 0.1, 0.2, 0.3)
PRICE_RANGE = (0.02, 0.3)
PHASES_RANGE = (4, 8)
PHASE_ROWS_RANGE = (2_500, 7_000)
TOTAL_ROWS_RANGE = (20_000, 35_000)
TILTS = 16
"""Numbers in a tilt: see `Source.draw`."""

_CHANCES: dict[Change, float] = {"new": 0.4, "return": 0.35, "labels": 0.125, "virtual": 0.125}
_GRADUAL_CHANCE = 0.25
_GRADUAL_ROWS_RANGE = (500, 1_500)


@dataclass(frozen=True)
class SimStream:
    """A whole stream in memory, with what only an evaluator may know."""

    family: str
    seed: int
    fields: Fields
    """Equal in shape for every stream of one family."""
    outputs: int
    patch: int
    """Side of a patch in pixels; without meaning for tables."""
    features: Features
    """All rows, like a batch of a real stream."""
    target: Integers
    """Class numbers in [0, outputs). Shape [rows]."""
    starts: tuple[int, ...]
    """First row of each phase; where a change is gradual, the row where it begins."""
    contexts: tuple[int, ...]
    """Concept number of each phase; equal numbers: the same rule of labels has stayed or returned."""
    demand: tuple[int | None, ...]
    """Heads that the phase's concept needs, where that is known by construction."""
    changes: tuple[Change, ...]
    """What each phase began with."""
    gradual_rows: tuple[int, ...]
    """How long the concept before still sends some of the rows; 0: the change is abrupt."""
    price: float
    """Of all heads, in nats per row."""
    label_noise: float
    """Share of rows whose label is wrong."""


@dataclass(frozen=True)
class Source(Generic[R]):
    """Where rows come from. R: the rule of a concept, whatever a family takes for it."""

    fields: Fields
    outputs: int
    new_rule: Callable[[np.random.Generator, R | None], R]
    """A rule for a new concept, given that of the phase before."""
    draw: Callable[[np.random.Generator, R, Numbers, int], tuple[Features, Integers]]
    """That many rows and their true classes. The tilt (TILTS numbers in [-1, 1], at first all 0) changes how inputs are
    distributed and leaves the rule as it is."""
    demand: Callable[[R], int | None] = lambda rule: None
    patch: int = 4


@dataclass(frozen=True, eq=False)
class Concept(Generic[R]):
    """A rule and the names that its classes go by."""

    number: int
    rule: R
    labels_C: Integers


@dataclass(frozen=True)
class Phase(Generic[R]):
    """A stretch of a stream with one concept."""

    rows: int
    concept: Concept[R]
    tilt: Numbers
    change: Change
    gradual_rows: int = 0


def generator(family: str, seed: int) -> np.random.Generator:
    """Random numbers of one stream; streams of two families share none."""
    return np.random.default_rng((zlib.crc32(family.encode()), seed))


def simulate(family: str, seed: int, make_source: Callable[[np.random.Generator], Source[R]]) -> SimStream:
    """A stream with phases and changes at random."""
    random = generator(family, seed)
    source = make_source(random)
    return realise(family, seed, source, plan(source, random), random)


def realise(
    family: str, seed: int, source: Source[R], phases: Sequence[Phase[R]], random: np.random.Generator
) -> SimStream:
    """The rows of planned phases, with a price and label noise drawn for the stream."""
    price, label_noise = draw_price(random), float(random.choice(LABEL_NOISES))
    parts = [_rows(source, phase, before, random) for before, phase in zip([None, *phases[:-1]], phases, strict=True)]
    target = np.concatenate([target_B for _, target_B in parts])
    return SimStream(
        family=family,
        seed=seed,
        fields=source.fields,
        outputs=source.outputs,
        patch=source.patch,
        features={name: np.concatenate([features[name] for features, _ in parts]) for name in parts[0][0]},
        target=with_label_noise(target, source.outputs, label_noise, random),
        starts=tuple(int(row) for row in np.cumsum([0, *(phase.rows for phase in phases[:-1])])),
        contexts=tuple(phase.concept.number for phase in phases),
        demand=tuple(source.demand(phase.concept.rule) for phase in phases),
        changes=tuple(phase.change for phase in phases),
        gradual_rows=tuple(phase.gradual_rows for phase in phases),
        price=price,
        label_noise=label_noise,
    )


def plan(source: Source[R], random: np.random.Generator) -> list[Phase[R]]:
    """Phases in order. Each begins with one kind of change; a quarter of the changes are gradual."""
    concepts: list[Concept[R]] = []
    phases: list[Phase[R]] = []
    for rows in phase_rows(random):
        before = phases[-1] if phases else None
        phase = _next_phase(source, before, concepts, rows, random)
        if phase.concept not in concepts:
            concepts.append(phase.concept)
        phases.append(phase)
    return phases


def phase_rows(random: np.random.Generator) -> list[int]:
    """Lengths of the phases of one stream, within the ranges for each and for all."""
    while True:
        count = int(random.integers(PHASES_RANGE[0], PHASES_RANGE[1] + 1))
        rows = random.integers(PHASE_ROWS_RANGE[0], PHASE_ROWS_RANGE[1] + 1, count)
        if TOTAL_ROWS_RANGE[0] <= rows.sum() <= TOTAL_ROWS_RANGE[1]:
            return [int(n) for n in rows]


def draw_price(random: np.random.Generator) -> float:
    low, high = PRICE_RANGE
    return float(math.exp(random.uniform(math.log(low), math.log(high))))


def with_label_noise(target: Integers, outputs: int, share: float, random: np.random.Generator) -> Integers:
    """A share of the labels replaced by another class, all others alike."""
    wrong = random.random(len(target)) < share
    return np.where(wrong, (target + random.integers(1, outputs, len(target))) % outputs, target)


def pick(weights: Numbers, rows: int, random: np.random.Generator) -> Integers:
    """Numbers drawn with those weights. Shape [rows]."""
    edges = np.cumsum(weights)
    drawn: Integers = np.searchsorted(edges, random.random(rows) * edges[-1])
    return np.minimum(drawn, len(weights) - 1)


def _next_phase(
    source: Source[R],
    before: Phase[R] | None,
    concepts: list[Concept[R]],
    rows: int,
    random: np.random.Generator,
) -> Phase[R]:
    if before is None:
        first = Concept(0, source.new_rule(random, None), np.arange(source.outputs))
        return Phase(rows, first, np.zeros(TILTS), "start")
    gradual = int(random.integers(*_GRADUAL_ROWS_RANGE)) if random.random() < _GRADUAL_CHANCE else 0
    change, now = _draw_change(len(concepts), random), before.concept
    number, tilt = len(concepts), before.tilt
    if change == "virtual":
        return Phase(rows, now, random.uniform(-1, 1, TILTS), change, gradual)
    if change == "return":
        others = [concept for concept in concepts if concept is not now]
        return Phase(rows, others[random.integers(len(others))], tilt, change, gradual)
    if change == "labels":
        return Phase(rows, Concept(number, now.rule, other_order(now.labels_C, random)), tilt, change, gradual)
    return Phase(rows, Concept(number, source.new_rule(random, now.rule), now.labels_C), tilt, "new", gradual)


def _draw_change(concepts: int, random: np.random.Generator) -> Change:
    possible = {kind: chance for kind, chance in _CHANCES.items() if concepts > 1 or kind != "return"}
    return list(possible)[int(pick(np.array(list(possible.values())), 1, random)[0])]


def other_order(labels_C: Integers, random: np.random.Generator) -> Integers:
    """The labels in another order, in which at least half of the classes have another name."""
    while True:
        other_C = random.permutation(labels_C)
        if 2 * np.count_nonzero(other_C != labels_C) >= len(labels_C):
            return other_C


def _rows(
    source: Source[R], phase: Phase[R], before: Phase[R] | None, random: np.random.Generator
) -> tuple[Features, Integers]:
    features, target_B = _drawn(source, phase, phase.rows, random)
    rows = phase.gradual_rows
    if before is None or rows == 0:
        return features, target_B
    old_features, old_target_B = _drawn(source, before, rows, random)
    old = np.flatnonzero(random.random(rows) >= np.arange(1, rows + 1) / rows)
    target_B[old] = old_target_B[old]
    for name, values in features.items():
        values[old] = old_features[name][old]
    return features, target_B


def _drawn(
    source: Source[R], phase: Phase[R], rows: int, random: np.random.Generator
) -> tuple[dict[str, npt.NDArray[Any]], Integers]:
    features, target_B = source.draw(random, phase.concept.rule, phase.tilt, rows)
    return features, phase.concept.labels_C[target_B]
