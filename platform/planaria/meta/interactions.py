"""The family `interactions`: the label is in products of columns, and no column alone says anything of it.

Legend: B rows, K columns, J pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planaria.meta.simulate import Integers, Numbers, SimStream, Source, simulate
from planaria.signals import Features, Fields

COLUMNS, CLASSES = 8, 2
PAIRS_RANGE = (1, 4)
_SPREAD = 0.4
"""Of the numbers around -1 and 1."""


@dataclass(frozen=True)
class PairsRule:
    """The class is whether the weighted sum of the pairs' products is positive."""

    pairs_J2: Integers
    weight_J: Numbers


def interactions(seed: int) -> SimStream:
    """1 to 4 pairs of columns; changes alter how many and which."""
    return simulate("interactions", seed, lambda random: SOURCE)


def new_rule(random: np.random.Generator, before: PairsRule | None) -> PairsRule:
    """Half of the time the pairs of before stay, as far as there are still as many."""
    old = 0 if before is None else len(before.pairs_J2)
    count = int(random.choice([n for n in range(PAIRS_RANGE[0], PAIRS_RANGE[1] + 1) if n != old]))
    weight_J = random.choice([-1.0, 1.0], count) * random.uniform(0.7, 1.3, count)
    if before is None or random.random() < 0.5:
        return PairsRule(random.permutation(COLUMNS)[: 2 * count].reshape(count, 2), weight_J)
    kept = min(old, count)
    weight_J[:kept] = before.weight_J[:kept]
    rest = random.permutation(np.setdiff1d(np.arange(COLUMNS), before.pairs_J2[:kept]))
    pairs = np.concatenate((before.pairs_J2[:kept].reshape(-1), rest))[: 2 * count]
    return PairsRule(pairs.reshape(count, 2), weight_J)


def draw(random: np.random.Generator, rule: PairsRule, tilt: Numbers, rows: int) -> tuple[Features, Integers]:
    sign_BK = np.where(random.random((rows, COLUMNS)) < 0.5 + 0.25 * tilt[:COLUMNS], 1.0, -1.0)
    x_BK = sign_BK + _SPREAD * random.normal(size=(rows, COLUMNS))
    product_BJ = x_BK[:, rule.pairs_J2[:, 0]] * x_BK[:, rule.pairs_J2[:, 1]]
    return {"numeric": x_BK.astype(np.float32)}, (product_BJ @ rule.weight_J > 0).astype(np.int64)


SOURCE: Source[PairsRule] = Source(
    fields=Fields("classification", numeric=tuple(f"x{number}" for number in range(COLUMNS))),
    outputs=CLASSES,
    new_rule=new_rule,
    draw=draw,
)
