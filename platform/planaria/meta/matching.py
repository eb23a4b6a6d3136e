"""The family `matching`: how many tokens of a row agree with a reference, in each of several sub-spaces.

Legend: B rows, T tokens, S sub-spaces of a patch, W values of a sub-space, K sub-spaces that count, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planaria.meta.patches import PATCH, as_pixels, patch_fields, side_by_side
from planaria.meta.simulate import Integers, Numbers, SimStream, Source, simulate
from planaria.signals import Features

TOKENS, CLASSES = 6, 4
SPACES, SPACE_WIDTH = 5, 3
WANTED_RANGE = (1, 5)
_AGREE_CHANCE = 0.12
"""That a token agrees in a sub-space: none of a row's tokens, or some, equally often."""
_SPREAD = 0.25
"""Of a token that agrees, around the reference."""
_COUNTS = 3
"""Matches that are told apart: 0, 1, and 2 or more."""
_SECOND_MATCH = 0.4
"""What a second match adds, relative to the first: so little that a few hundred steps can teach all that matters."""


@dataclass(frozen=True)
class MatchingRule:
    """The label is argmax_c of sum over wanted sub-spaces s of table[s, matches in s, c]."""

    reference_SW: Numbers
    """Directions, of length 1."""
    wanted: Integers
    table_SNC: Numbers


def matching(seed: int) -> SimStream:
    """1 to 5 sub-spaces; changes alter how many count, the reference, or what the counts mean."""
    return simulate("matching", seed, lambda random: SOURCE)


def new_rule(random: np.random.Generator, before: MatchingRule | None) -> MatchingRule:
    counts = range(WANTED_RANGE[0], WANTED_RANGE[1] + 1)
    other = int(random.choice([n for n in counts if before is None or n != len(before.wanted)]))
    fresh = MatchingRule(_reference(random), np.sort(random.permutation(SPACES)[:other]), _tables(random))
    if before is None:
        return fresh
    kind = random.choice(["how many", "how many", "reference", "tables"])
    if kind == "how many":
        return MatchingRule(before.reference_SW, fresh.wanted, before.table_SNC)
    if kind == "reference":
        return MatchingRule(fresh.reference_SW, before.wanted, before.table_SNC)
    return MatchingRule(before.reference_SW, before.wanted, fresh.table_SNC)


def draw(random: np.random.Generator, rule: MatchingRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
    """Tokens that agree lie around the reference, and all others around points at right angles or opposite to it."""
    chance_S = _AGREE_CHANCE * np.exp(0.7 * tilt[:SPACES])
    agrees_BTS = random.random((rows, TOKENS, SPACES)) < chance_S
    anywhere_BTSW = _unit(random.normal(size=(rows, TOKENS, SPACES, SPACE_WIDTH)))
    along_BTS = np.einsum("btsw,sw->bts", anywhere_BTSW, rule.reference_SW)
    away_BTSW = anywhere_BTSW - np.maximum(along_BTS, 0)[..., None] * rule.reference_SW
    near_BTSW = rule.reference_SW + _SPREAD * anywhere_BTSW
    values = 2 * np.where(agrees_BTS[..., None], near_BTSW, away_BTSW).reshape(rows, TOKENS, SPACES * SPACE_WIDTH)
    matches_BS = np.minimum(agrees_BTS.sum(1), _COUNTS - 1)
    score_BC = rule.table_SNC[rule.wanted, matches_BS[:, rule.wanted]].sum(1)
    return {"image": side_by_side(as_pixels(values))}, score_BC.argmax(1)


def _reference(random: np.random.Generator) -> Numbers:
    return _unit(random.normal(size=(SPACES, SPACE_WIDTH)))


def _unit(vectors: Numbers) -> Numbers:
    lengths: Numbers = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / lengths


def _tables(random: np.random.Generator) -> Numbers:
    table_SNC = random.normal(size=(SPACES, _COUNTS, CLASSES))
    table_SNC[:, 0] = -table_SNC[:, 1]
    table_SNC[:, 2] = table_SNC[:, 1] + _SECOND_MATCH * table_SNC[:, 2]
    return table_SNC


SOURCE: Source[MatchingRule] = Source(
    fields=patch_fields(TOKENS),
    outputs=CLASSES,
    new_rule=new_rule,
    draw=draw,
    demand=lambda rule: len(rule.wanted),
    patch=PATCH,
)
