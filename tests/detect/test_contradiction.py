"""Contradiction: the same inputs with other labels, and nothing else."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from planaria.detect.contradiction import contradicts
from planaria.detect.signature import Signature

CLASSES, FEATURES, DISTANCE = 10, 32, 0.5
MEANS = np.random.default_rng(0).normal(size=(CLASSES, FEATURES)) * 1.0
TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(FEATURES, FEATURES)))[0]
PERMUTED = np.roll(np.arange(CLASSES), 3)


def signature(
    seed: int,
    rows: int = 1_000,
    *,
    names: npt.NDArray[np.int64] | None = None,
    weights: npt.NDArray[np.float64] | None = None,
    turned: bool = False,
    noise: float = 0.0,
) -> Signature:
    """Of rows of ten kinds; `names` says which label each kind has."""
    draws = np.random.default_rng((2, seed))
    kind = draws.choice(CLASSES, rows, p=weights)
    values = MEANS[kind] + draws.normal(size=(rows, FEATURES))
    values = (values @ TURN if turned else values) + noise * draws.normal(size=(rows, FEATURES))
    found = Signature(FEATURES)
    found.add(values.astype(np.float32), kind if names is None else names[kind])
    return found


OLD = signature(0, 4_000)


@pytest.mark.parametrize("rows", [256, 1_000])
def test_permuted_labels_contradict(rows: int) -> None:
    assert contradicts(OLD, signature(1, rows, names=PERMUTED), DISTANCE)


def test_two_labels_that_change_places_are_not_most() -> None:
    names = np.arange(CLASSES)
    names[[0, 1]] = [1, 0]
    assert not contradicts(OLD, signature(1, names=names), DISTANCE)


@pytest.mark.parametrize("rows", [256, 1_000])
def test_the_same_concept_turned_inputs_and_noise_do_not_contradict(rows: int) -> None:
    assert not contradicts(OLD, signature(2, rows), DISTANCE)
    assert not contradicts(OLD, signature(3, rows, turned=True), DISTANCE)
    assert not contradicts(OLD, signature(4, rows, noise=1.0), DISTANCE)


def test_new_classes_do_not_contradict() -> None:
    assert not contradicts(OLD, signature(5, names=np.arange(CLASSES) + CLASSES), DISTANCE)
    half = np.repeat([0.2, 0.0], CLASSES // 2)
    assert not contradicts(signature(6, weights=half), signature(7, weights=half[::-1]), DISTANCE)


def test_other_class_frequencies_do_not_contradict() -> None:
    rare = np.repeat([0.19, 0.01], CLASSES // 2)
    assert not contradicts(OLD, signature(8, weights=rare), DISTANCE)
    assert contradicts(OLD, signature(9, weights=rare, names=PERMUTED), DISTANCE)


def test_nothing_is_said_of_few_rows() -> None:
    assert not contradicts(OLD, signature(10, 10, names=PERMUTED), DISTANCE)
