"""The family `teacher`: rows of patches, labelled by random attention with hard maxima.

Legend: B rows, T tokens, K heads of the teacher, A address values and V content values of a patch, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planaria.meta.simulate import Integers, Numbers, SimStream, Source, simulate
from planaria.signals import Features, Fields

PATCH, TOKENS, CLASSES = 4, 6, 4
HEADS_RANGE = (1, 5)
_ADDRESS, _CONTENT = 8, 8
_PIXEL_SPREAD = 0.18
_KEEP_CHANCE = 0.5
"""That a new rule keeps the heads of the one before, as far as it has as many."""


@dataclass(frozen=True)
class TeacherRule:
    """Head k looks at the token whose address goes furthest along its direction, and reads that token's content.

    Directions are orthogonal, and tokens come in random order, so that no head can do the work of two.
    """

    direction_KA: Numbers
    read_KVC: Numbers

    @property
    def heads(self) -> int:
        return len(self.direction_KA)


def teacher(seed: int) -> SimStream:
    """1 to 5 heads of a random attention teacher; changes alter their number, all of them, or the labels' names."""
    return simulate("teacher", seed, lambda random: SOURCE)


def new_rule(random: np.random.Generator, before: TeacherRule | None) -> TeacherRule:
    choices = [heads for heads in range(HEADS_RANGE[0], HEADS_RANGE[1] + 1) if before is None or heads != before.heads]
    heads = int(random.choice(choices))
    kept = min(heads, before.heads) if before is not None and random.random() < _KEEP_CHANCE else 0
    direction_KA, read_KVC = random.normal(size=(heads, _ADDRESS)), random.normal(size=(heads, _CONTENT, CLASSES))
    if before is not None:
        direction_KA[:kept], read_KVC[:kept] = before.direction_KA[:kept], before.read_KVC[:kept]
    return TeacherRule(_orthonormal(direction_KA), read_KVC)


def draw(random: np.random.Generator, rule: TeacherRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
    address_BTA = random.normal(size=(rows, TOKENS, _ADDRESS))
    content_BTV = random.normal(size=(rows, TOKENS, _CONTENT)) + 0.5 * tilt[:_CONTENT]
    chosen_BK = np.argmax(address_BTA @ rule.direction_KA.T, axis=1)
    seen_BKV = content_BTV[np.arange(rows)[:, None], chosen_BK]
    score_BC = np.einsum("bkv,kvc->bc", seen_BKV, rule.read_KVC)
    return {"image": as_patches(np.concatenate((address_BTA, content_BTV), 2))}, score_BC.argmax(1)


def as_patches(values_BTP: Numbers) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """One row of patches: normal numbers as pixels in [0, 1]. Shape [B, 1, patch, patch * T]."""
    rows, tokens, _ = values_BTP.shape
    pixels = np.clip(0.5 + _PIXEL_SPREAD * values_BTP, 0, 1).astype(np.float32)
    tiles = pixels.reshape(rows, tokens, PATCH, PATCH).transpose(0, 2, 1, 3)
    return tiles.reshape(rows, 1, PATCH, PATCH * tokens)


def _orthonormal(direction_KA: Numbers) -> Numbers:
    """Gram and Schmidt's, with the signs kept: rows that are orthonormal already stay as they are."""
    q_AK, r_KK = np.linalg.qr(direction_KA.T)
    return (q_AK * np.sign(np.diag(r_KK))).T


SOURCE: Source[TeacherRule] = Source(
    fields=Fields("classification", image_shape=(1, PATCH, PATCH * TOKENS)),
    outputs=CLASSES,
    new_rule=new_rule,
    draw=draw,
    demand=lambda rule: rule.heads,
    patch=PATCH,
)
