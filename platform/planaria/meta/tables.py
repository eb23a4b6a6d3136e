"""The family `tables`: the drifting generators of the literature, as eight numbers and four classes.

Legend: B rows, K columns, C classes, M centres, G segments of a digit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from planaria.meta.simulate import Integers, Numbers, SimStream, Source, pick, simulate
from planaria.signals import Features, Fields

COLUMNS, CLASSES = 8, 4
FIELDS = Fields("classification", numeric=tuple(f"x{number}" for number in range(COLUMNS)))
MISSING_SHARES = (0.0, 0.0, 0.05, 0.15)
"""Of the numbers of a stream; drawn once for each."""

_CENTRES = 20
_CENTRE_SPREAD = 0.1
_SEGMENTS = 7
_SEGMENT_FLIPS = 0.1
_DIGITS = np.array(
    [
        [1, 1, 1, 0, 1, 1, 1],
        [0, 0, 1, 0, 0, 1, 0],
        [1, 0, 1, 1, 1, 0, 1],
        [1, 0, 1, 1, 0, 1, 1],
        [0, 1, 1, 1, 0, 1, 0],
        [1, 1, 0, 1, 0, 1, 1],
        [1, 1, 0, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 1, 1],
    ],
    np.float64,
)
"""Which of the seven segments each digit lights. Source: Breiman et al. 1984."""
R = TypeVar("R")


@dataclass(frozen=True)
class SumRule:
    """The class is how many of the thresholds the sum of two columns passes."""

    columns: tuple[int, int]
    thresholds: Numbers


@dataclass(frozen=True)
class PlaneRule:
    """The class says on which side of two planes through the middle a row lies."""

    normal_2K: Numbers


@dataclass(frozen=True)
class CentreRule:
    """A row lies around one of the centres and has its class."""

    centre_MK: Numbers
    class_M: Integers


@dataclass(frozen=True)
class SegmentRule:
    """A column is a segment of a digit, or nothing; ten digits share four classes."""

    column_G: Integers
    class_of_digit: Integers


def tables(seed: int) -> SimStream:
    """SEA, rotating hyperplane, random RBF or LED, one of them throughout a stream; some streams miss numbers."""
    return simulate("tables", seed, _any_source)


def _any_source(random: np.random.Generator) -> Source[Any]:
    makers: tuple[Callable[[], Source[Any]], ...] = (sums, planes, centres, segments)
    return with_missing(makers[random.integers(len(makers))](), float(random.choice(MISSING_SHARES)))


def sums() -> Source[SumRule]:
    """After SEA (Street and Kim 2001): a sum of two of the columns against thresholds that move."""

    def new_rule(random: np.random.Generator, before: SumRule | None) -> SumRule:
        # Quartiles of the sum of two uniform numbers, moved.
        thresholds = np.array([0.707, 1.0, 1.293]) + random.uniform(-0.25, 0.25)
        if before is not None and random.random() < 0.5:
            return replace(before, thresholds=thresholds)
        first, second = random.permutation(COLUMNS)[:2]
        return SumRule((int(first), int(second)), thresholds)

    def draw(random: np.random.Generator, rule: SumRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        x_BK = _uniform(random, tilt, rows)
        total_B = x_BK[:, rule.columns].sum(1)
        return _numeric(x_BK), np.searchsorted(rule.thresholds, total_B)

    return Source(FIELDS, CLASSES, new_rule, draw)


def planes() -> Source[PlaneRule]:
    """After the rotating hyperplane (Hulten, Spencer and Domingos 2001), with two planes."""

    def new_rule(random: np.random.Generator, before: PlaneRule | None) -> PlaneRule:
        fresh_2K = random.normal(size=(2, COLUMNS))
        if before is None:
            return PlaneRule(fresh_2K)
        return PlaneRule(before.normal_2K + random.uniform(0.7, 2.0) * fresh_2K)

    def draw(random: np.random.Generator, rule: PlaneRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        x_BK = _uniform(random, tilt, rows)
        above_B2 = (x_BK - 0.5) @ rule.normal_2K.T > 0
        return _numeric(x_BK), above_B2 @ np.array([1, 2])

    return Source(FIELDS, CLASSES, new_rule, draw)


def centres() -> Source[CentreRule]:
    """After random RBF (Bifet et al. 2009): rows around centres, some of which move or change their class."""

    def new_rule(random: np.random.Generator, before: CentreRule | None) -> CentreRule:
        fresh = CentreRule(random.random((_CENTRES, COLUMNS)), random.permutation(np.arange(_CENTRES) % CLASSES))
        if before is None:
            return fresh
        moved_M1 = random.random((_CENTRES, 1)) < random.uniform(0.3, 1.0)
        return CentreRule(np.where(moved_M1, fresh.centre_MK, before.centre_MK), before.class_M)

    def draw(random: np.random.Generator, rule: CentreRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        centre_B = pick(np.exp(np.resize(tilt, _CENTRES)), rows, random)
        x_BK = rule.centre_MK[centre_B] + _CENTRE_SPREAD * random.normal(size=(rows, COLUMNS))
        return _numeric(x_BK), rule.class_M[centre_B]

    return Source(FIELDS, CLASSES, new_rule, draw)


def segments() -> Source[SegmentRule]:
    """After LED (Breiman et al. 1984): noisy segments of a digit; columns, or the digits' classes, are exchanged."""

    def new_rule(random: np.random.Generator, before: SegmentRule | None) -> SegmentRule:
        fresh = SegmentRule(random.permutation(COLUMNS)[:_SEGMENTS], random.permutation(np.arange(10) % CLASSES))
        if before is None:
            return fresh
        if random.random() < 0.5:
            return replace(before, column_G=fresh.column_G)
        return replace(before, class_of_digit=fresh.class_of_digit)

    def draw(random: np.random.Generator, rule: SegmentRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        digit_B = pick(np.exp(tilt[:10]), rows, random)
        x_BK = random.integers(0, 2, (rows, COLUMNS)).astype(np.float64)
        flipped_BG = random.random((rows, _SEGMENTS)) < _SEGMENT_FLIPS
        x_BK[:, rule.column_G] = np.abs(_DIGITS[digit_B] - flipped_BG)
        return _numeric(x_BK), rule.class_of_digit[digit_B]

    return Source(FIELDS, CLASSES, new_rule, draw)


def with_missing(source: Source[R], share: float) -> Source[R]:
    """The source with that share of its numbers missing, none more than others."""

    def draw(random: np.random.Generator, rule: R, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        features, target = source.draw(random, rule, tilt, rows)
        numeric = features["numeric"]
        return {"numeric": np.where(random.random(numeric.shape) < share, np.float32(np.nan), numeric)}, target

    return replace(source, draw=draw) if share else source


def _uniform(random: np.random.Generator, tilt: Numbers, rows: int) -> Numbers:
    """Uniform in [0, 1]; a tilt makes large numbers of a column likelier, or small ones."""
    return random.random((rows, COLUMNS)) ** np.exp(0.5 * tilt[:COLUMNS])


def _numeric(x_BK: Numbers) -> Features:
    return {"numeric": x_BK.astype(np.float32)}
