"""The family `teacher`: rows of patches, labelled by a random attention teacher with hard maxima.

Legend: B rows, T tokens, A directions (and address values of a patch), V content values of a patch, K heads of the
teacher, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planaria.meta.patches import PATCH, as_pixels, patch_fields, side_by_side
from planaria.meta.simulate import Integers, Numbers, SimStream, Source, simulate
from planaria.signals import Features

TOKENS, CLASSES = 5, 4
HEADS_RANGE = (1, 5)
_DIRECTIONS, _CONTENT = 6, 4
_LEAD, _ADDRESS_SPREAD = 2.5, 0.4
"""In every direction one token, at random, leads by so much: without a lead, soft attention cannot tell the first
from the second, and a few hundred steps teach a small model nothing."""
_CONTENT_SPREAD = 0.3
"""Of the content values around -1 and 1."""


@dataclass(frozen=True)
class TeacherRule:
    """Each head takes the token whose address goes furthest along the head's direction, and reads its content.

    The label is the class with the largest sum of what the heads read. Directions are orthonormal and tokens come in
    random order, so that one head cannot do the work of two.
    """

    directions_AA: Numbers
    wanted_K: Integers
    """Which directions have a head."""
    read_AVC: Numbers


def teacher(seed: int) -> SimStream:
    """1 to 5 heads of a teacher; changes alter how many, which, what they read, all directions, or labels' names."""
    return simulate("teacher", seed, lambda random: SOURCE)


def new_rule(random: np.random.Generator, before: TeacherRule | None) -> TeacherRule:
    order_A = random.permutation(_DIRECTIONS)
    counts = [n for n in range(HEADS_RANGE[0], HEADS_RANGE[1] + 1) if before is None or n != len(before.wanted_K)]
    count = int(random.choice(counts))
    fresh = TeacherRule(_orthonormal(random), order_A[:count], random.normal(size=(_DIRECTIONS, _CONTENT, CLASSES)))
    if before is None:
        return fresh
    kind = random.choice(["how many", "how many", "how many", "read", "directions", "everything"])
    if kind == "how many":
        rest = order_A[~np.isin(order_A, before.wanted_K)]
        return replace(before, wanted_K=np.concatenate((random.permutation(before.wanted_K), rest))[:count])
    if kind == "read":
        return replace(before, read_AVC=fresh.read_AVC)
    if kind == "directions":
        return replace(before, directions_AA=fresh.directions_AA)
    return fresh


def draw(random: np.random.Generator, rule: TeacherRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
    """Inputs depend on the directions, not on which of them have a head."""
    along_BTA = _ADDRESS_SPREAD * random.normal(size=(rows, TOKENS, _DIRECTIONS))
    row_B1 = np.arange(rows)[:, None]
    along_BTA[row_B1, random.integers(0, TOKENS, (rows, _DIRECTIONS)), np.arange(_DIRECTIONS)] += _LEAD
    sign_BTV = np.where(random.random((rows, TOKENS, _CONTENT)) < 0.5 + 0.25 * tilt[:_CONTENT], 1.0, -1.0)
    content_BTV = sign_BTV + _CONTENT_SPREAD * random.normal(size=(rows, TOKENS, _CONTENT))
    chosen_BK = along_BTA[:, :, rule.wanted_K].argmax(1)
    score_BC = np.einsum("bkv,kvc->bc", content_BTV[row_B1, chosen_BK], rule.read_AVC[rule.wanted_K])
    pixels = as_pixels(np.concatenate((along_BTA @ rule.directions_AA, content_BTV), 2))
    return {"image": side_by_side(pixels)}, score_BC.argmax(1)


def _orthonormal(random: np.random.Generator) -> Numbers:
    return np.linalg.qr(random.normal(size=(_DIRECTIONS, _DIRECTIONS)))[0]


SOURCE: Source[TeacherRule] = Source(
    fields=patch_fields(TOKENS),
    outputs=CLASSES,
    new_rule=new_rule,
    draw=draw,
    demand=lambda rule: len(rule.wanted_K),
    patch=PATCH,
)
