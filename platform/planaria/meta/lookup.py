"""The family `k_lookup` and two made of it: key-value tokens in random order, of which k decide the label.

Every row holds each key once, with a value of its own; a head can ask for one key (attention over values whose tables
differ by key adds up to nothing useful), so that a rule over k keys needs k heads.

Legend: B rows, T tokens (one for each key), V values, C classes, P pixels of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planaria.meta.patches import GREY, PATCH, patch_fields, side_by_side
from planaria.meta.simulate import (
    TILTS,
    Concept,
    Integers,
    Numbers,
    Phase,
    SimStream,
    Source,
    generator,
    phase_rows,
    pick,
    realise,
    simulate,
)
from planaria.signals import Features

KEYS, VALUES, CLASSES = 6, 8, 4
WANTED_RANGE = (1, 5)
STATIONARY_ROWS = 100_000
_LIT = 1.0


@dataclass(frozen=True)
class LookupRule:
    """The label is argmax_c of sum over j in wanted of table[j, value of key j, c]."""

    wanted: Integers
    table_TVC: Numbers


def k_lookup(seed: int) -> SimStream:
    """1 to 5 wanted keys; changes alter how many, which ones, their tables, or the labels' names."""
    return simulate("k_lookup", seed, lambda random: SOURCE)


def virtual(seed: int) -> SimStream:
    """One rule throughout; each phase has other odds for its values."""
    random = generator("virtual", seed)
    concept = Concept(0, new_rule(random, None), np.arange(CLASSES))
    phases = [
        Phase(rows, concept, random.uniform(-1, 1, TILTS), "virtual" if number else "start")
        for number, rows in enumerate(phase_rows(random))
    ]
    return realise("virtual", seed, SOURCE, phases, random)


def stationary(seed: int) -> SimStream:
    """One rule and one phase of 100,000 rows."""
    random = generator("stationary", seed)
    concept = Concept(0, new_rule(random, None), np.arange(CLASSES))
    return realise("stationary", seed, SOURCE, [Phase(STATIONARY_ROWS, concept, np.zeros(TILTS), "start")], random)


def new_rule(random: np.random.Generator, before: LookupRule | None) -> LookupRule:
    if before is None:
        return LookupRule(_keys(int(random.integers(WANTED_RANGE[0], WANTED_RANGE[1] + 1)), random), _tables(random))
    kind = random.choice(["how many", "how many", "which", "tables"])
    if kind == "how many":
        return LookupRule(_other_number(before.wanted, random), before.table_TVC)
    if kind == "which":
        return LookupRule(_other_keys(before.wanted, random), before.table_TVC)
    return LookupRule(before.wanted, _tables(random))


def draw(random: np.random.Generator, rule: LookupRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
    value_BT = pick(np.exp(1.5 * tilt[:VALUES]), rows * KEYS, random).reshape(rows, KEYS)
    score_BC = rule.table_TVC[rule.wanted, value_BT[:, rule.wanted]].sum(1)
    return {"image": _image(value_BT, random)}, score_BC.argmax(1)


def _image(value_BT: Integers, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Each token is a patch with one pixel lit for its key and one for its value. Shape [B, 1, patch, patch * T]."""
    rows = len(value_BT)
    key_BT = random.random((rows, KEYS)).argsort(1)
    patches_BTP = np.full((rows, KEYS, PATCH * PATCH), GREY, np.float32)
    row_B1, place_T = np.arange(rows)[:, None], np.arange(KEYS)
    patches_BTP[row_B1, place_T, key_BT] = _LIT
    patches_BTP[row_B1, place_T, KEYS + np.take_along_axis(value_BT, key_BT, 1)] = _LIT
    return side_by_side(patches_BTP)


def _keys(count: int, random: np.random.Generator) -> Integers:
    return np.sort(random.permutation(KEYS)[:count])


def _other_number(wanted: Integers, random: np.random.Generator) -> Integers:
    """Some keys fewer, or some more beside those that were wanted."""
    counts = [count for count in range(WANTED_RANGE[0], WANTED_RANGE[1] + 1) if count != len(wanted)]
    rest = np.setdiff1d(np.arange(KEYS), wanted)
    return np.sort(np.concatenate((random.permutation(wanted), random.permutation(rest)))[: int(random.choice(counts))])


def _other_keys(wanted: Integers, random: np.random.Generator) -> Integers:
    while True:
        other = _keys(len(wanted), random)
        if not np.array_equal(other, wanted):
            return other


def _tables(random: np.random.Generator) -> Numbers:
    """Normal scores; over values, every key's mean score of each class is 0, so that no class is always ahead."""
    table_TVC = random.normal(size=(KEYS, VALUES, CLASSES))
    centred: Numbers = table_TVC - table_TVC.mean(1, keepdims=True)
    return centred


SOURCE: Source[LookupRule] = Source(
    fields=patch_fields(KEYS),
    outputs=CLASSES,
    new_rule=new_rule,
    draw=draw,
    demand=lambda rule: len(rule.wanted),
    patch=PATCH,
)
