"""Streams of numbers with known changes, as the detectors see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from planaria.detect import ShiftMonitor
from planaria.signals import Shift, StepReport

FEATURES = 32
BATCH = 128


@dataclass(frozen=True)
class World:
    """One distribution of (sketch, class, loss): classes are Gaussian clouds with means of their own."""

    variant: int = 0
    classes: tuple[int, ...] = (0, 1, 2, 3)
    labels: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """What each class is called."""
    weights: tuple[float, ...] | None = None
    loss: float = 0.4

    def rows(self, count: int, chance: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        means_KF = np.random.default_rng(1_000 + self.variant).normal(0, 0.7, (8, FEATURES))
        classes = chance.choice(self.classes, count, p=self.weights)
        sketch = means_KF[classes] + chance.normal(size=(count, FEATURES))
        return sketch.astype(np.float32), np.array(self.labels)[classes]


@dataclass(frozen=True)
class Stretch:
    world: World
    rows: int
    transition: int = 0
    """Rows over which it replaces the world before, more and more often."""


def reports(stretches: list[Stretch], seed: int = 0, batch: int = BATCH) -> Iterator[StepReport]:
    """The stretches' rows in batches; the loss is exponential, as that of a classifier is."""
    chance = np.random.default_rng(seed)
    parts = []
    before = stretches[0].world
    for stretch in stretches:
        sketch, target = stretch.world.rows(stretch.rows, chance)
        loss = chance.exponential(stretch.world.loss, stretch.rows)
        if stretch.transition:
            old = chance.random(stretch.rows) > np.arange(stretch.rows) / stretch.transition
            sketch[old], target[old] = before.rows(int(old.sum()), chance)
        parts.append((sketch, target, loss.astype(np.float32)))
        before = stretch.world
    sketch, target, loss = (np.concatenate(column) for column in zip(*parts, strict=True))
    output = np.eye(8, dtype=np.float32)[target % 8]
    for step, start in enumerate(range(0, len(target), batch)):
        at = slice(start, start + batch)
        yield StepReport(
            step=step,
            start=start,
            loss_B=loss[at],
            error_B=(loss[at] > 1).astype(np.float32),
            target_B=target[at],
            output_BC=output[at],
            sketch_BF=sketch[at],
        )


def watch(monitor: ShiftMonitor, stream: Iterator[StepReport]) -> list[Shift]:
    return [shift for report in stream if (shift := monitor.update(report)) is not None]


@pytest.fixture
def world() -> type[World]:
    return World


@pytest.fixture
def stretch() -> type[Stretch]:
    return Stretch


@pytest.fixture
def make_reports() -> Callable[..., Iterator[StepReport]]:
    return reports


@pytest.fixture
def shifts_of() -> Callable[[ShiftMonitor, Iterator[StepReport]], list[Shift]]:
    return watch
