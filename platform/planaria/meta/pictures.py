"""Families of real pictures under changing views: `digits`, `fashion` and `recurring`.

Legend: N pictures of the set, B rows, P pixels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from planaria.meta.simulate import (
    PHASE_ROWS_RANGE,
    TILTS,
    TOTAL_ROWS_RANGE,
    Concept,
    Integers,
    Numbers,
    Phase,
    SimStream,
    Source,
    generator,
    pick,
    realise,
    simulate,
)
from planaria.signals import Features, Fields
from planaria.stream.sets import fashion_mnist, open_images
from planaria.stream.sets.idx import SIDE

CLASSES = 10
RECURRING_CONCEPTS, RECURRING_CYCLES = 3, 3
_NOISES = (0.0, 0.1, 0.2)
"""Standard deviations, as shares of the range of pixels."""
_DARKENING = 0.4
"""By how much a tilt of 1 dims pictures."""
_FEWEST_CLASSES = 4


@dataclass(frozen=True)
class Pictures:
    """A set of labelled pictures: uint8 [N, P] and int64 [N]."""

    pixels_NP: npt.NDArray[np.uint8]
    target_N: Integers
    side: int


@dataclass(frozen=True)
class View:
    """How a concept shows its pictures, and which classes it has."""

    order_P: Integers
    """For each pixel shown, which of the set's it is."""
    inverted: bool
    noise: float
    classes: Integers


def digits(seed: int) -> SimStream:
    """scikit-learn's 1,797 handwritten digits, 8x8 (Alpaydin and Kaynak 1998, UCI)."""
    return simulate("digits", seed, lambda random: _source(_digits(), patch=4))


def fashion(seed: int) -> SimStream:
    """Fashion-MNIST's training pictures. Raises InputError where they cannot be had."""
    return simulate("fashion", seed, lambda random: _source(_fashion(), patch=14))


def recurring(seed: int) -> SimStream:
    """Fashion-MNIST with three orders of its labels, each of which comes three times. Raises InputError."""
    random = generator("recurring", seed)
    source = _source(_fashion(), patch=14)
    view = _plain(_fashion().side)
    first = np.arange(CLASSES)
    # Shifting by distinct steps gives every picture another label in every concept.
    steps = random.permutation(np.arange(1, CLASSES))[: RECURRING_CONCEPTS - 1]
    concepts = [Concept(n, view, (first + step) % CLASSES) for n, step in enumerate((0, *steps))]
    low, high = PHASE_ROWS_RANGE[0], TOTAL_ROWS_RANGE[1] // (RECURRING_CONCEPTS * RECURRING_CYCLES)
    phases = [
        Phase(int(random.integers(low, high + 1)), concepts[number], np.zeros(TILTS), "new" if new else "return")
        for number, new in _cycles(random)
    ]
    phases[0] = replace(phases[0], change="start")
    return realise("recurring", seed, source, phases, random)


def _cycles(random: np.random.Generator) -> list[tuple[int, bool]]:
    """Concepts in order and whether each is met for the first time: all of them in every cycle, none twice in a row."""
    order = list(range(RECURRING_CONCEPTS))
    while len(order) < RECURRING_CONCEPTS * RECURRING_CYCLES:
        cycle = random.permutation(RECURRING_CONCEPTS)
        if cycle[0] != order[-1]:
            order += [int(number) for number in cycle]
    return [(number, place < RECURRING_CONCEPTS) for place, number in enumerate(order)]


def _source(pictures: Pictures, patch: int) -> Source[View]:
    def draw(random: np.random.Generator, view: View, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
        return _draw(pictures, random, view, tilt, rows)

    return Source(
        fields=Fields("classification", image_shape=(1, pictures.side, pictures.side)),
        outputs=CLASSES,
        new_rule=lambda random, before: _first(pictures.side, random) if before is None else _changed(before, random),
        draw=draw,
        patch=patch,
    )


def _plain(side: int) -> View:
    return View(np.arange(side * side), inverted=False, noise=0.0, classes=np.arange(CLASSES))


def _first(side: int, random: np.random.Generator) -> View:
    """Half of the streams begin without some of the classes, so that later ones can be new to the model."""
    view = _plain(side)
    return view if random.random() < 0.5 else replace(view, classes=_other_classes(view.classes, random))


def _changed(view: View, random: np.random.Generator) -> View:
    """Another view: one thing changes."""
    kind = random.choice(["turn", "turn", "invert", "shuffle", "classes", "noise"])
    if kind == "turn":
        side = int(len(view.order_P) ** 0.5)
        turned = np.rot90(view.order_P.reshape(side, side), int(random.integers(1, 4)))
        return replace(view, order_P=turned.reshape(-1))
    if kind == "invert":
        return replace(view, inverted=not view.inverted)
    if kind == "shuffle":
        return replace(view, order_P=random.permutation(len(view.order_P)))
    if kind == "classes":
        return replace(view, classes=_other_classes(view.classes, random))
    return replace(view, noise=float(random.choice([noise for noise in _NOISES if noise != view.noise])))


def _other_classes(classes: Integers, random: np.random.Generator) -> Integers:
    while True:
        other = np.sort(random.permutation(CLASSES)[: int(random.integers(_FEWEST_CLASSES, CLASSES + 1))])
        if not np.array_equal(other, classes):
            return other


def _draw(
    pictures: Pictures, random: np.random.Generator, view: View, tilt: Numbers, rows: int
) -> tuple[Features, Integers]:
    weight_C = np.zeros(CLASSES)
    weight_C[view.classes] = np.exp(tilt[: len(view.classes)])
    chosen_B = pick(weight_C[pictures.target_N], rows, random)
    pixels_BP = pictures.pixels_NP[chosen_B[:, None], view.order_P]
    if view.inverted:
        pixels_BP = 255 - pixels_BP
    light = 1 - _DARKENING * abs(float(tilt[-1]))
    if light < 1:
        pixels_BP = (np.arange(256) * light).astype(np.uint8)[pixels_BP]
    if view.noise:
        noise_BP = random.standard_normal(pixels_BP.shape, np.float32) * np.float32(255 * view.noise)
        pixels_BP = np.clip(pixels_BP + noise_BP, 0, 255).astype(np.uint8)
    image = pixels_BP.reshape(rows, 1, pictures.side, pictures.side)
    return {"image": image}, pictures.target_N[chosen_B]


@lru_cache(maxsize=1)
def _digits() -> Pictures:
    from sklearn.datasets import load_digits  # Slow to import.

    found = load_digits()
    pixels = np.rint(found.data * (255 / 16)).astype(np.uint8)
    return Pictures(pixels, found.target.astype(np.int64), side=8)


@lru_cache(maxsize=1)
def _fashion() -> Pictures:
    pool = open_images(fashion_mnist.NAME).train
    return Pictures(pool.columns["image"], pool.target.astype(np.int64), side=SIDE)
