"""That the demand which a family claims is what planaria's model needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from planaria.meta import lookup, matching, teacher
from planaria.meta.episodes import first_blueprint
from planaria.meta.simulate import TILTS, Source
from planaria.model import build

STEPS, BATCH_ROWS, SCORED_ROWS, SEED = 250, 32, 3000, 0


def loss(source: Source[Any], rule: Any, heads: int) -> float:
    """In nats per row, on rows to come, after one pass over 8,000 rows."""
    features, target = source.draw(np.random.default_rng(SEED), rule, np.zeros(TILTS), STEPS * BATCH_ROWS + SCORED_ROWS)
    image, label = torch.from_numpy(features["image"]), torch.from_numpy(target)
    model = build(first_blueprint(source, heads), SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for rows in range(0, STEPS * BATCH_ROWS, BATCH_ROWS):
        batch = slice(rows, rows + BATCH_ROWS)
        optimizer.zero_grad()
        F.cross_entropy(model({"image": image[batch]}), label[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        rest = slice(STEPS * BATCH_ROWS, None)
        return float(F.cross_entropy(model({"image": image[rest]}), label[rest]))


def rules(family: str) -> tuple[Source[Any], Any, Any]:
    """A family's source, and a rule that needs one head and one that needs five, otherwise equal."""
    random = np.random.default_rng(SEED)
    if family == "teacher":
        taught = teacher.new_rule(random, None)
        return teacher.SOURCE, replace(taught, wanted_K=np.arange(1)), replace(taught, wanted_K=np.arange(5))
    module = lookup if family == "k_lookup" else matching
    rule = module.new_rule(random, None)
    return module.SOURCE, replace(rule, wanted=np.arange(1)), replace(rule, wanted=np.arange(5))


@pytest.mark.slow
@pytest.mark.parametrize("family", ("teacher", "k_lookup", "matching"))
def test_six_heads_help_where_five_are_needed_and_not_where_two_are_enough(family: str) -> None:
    source, one, five = rules(family)
    losses = {(need, heads): loss(source, rule, heads) for need, rule in ((1, one), (5, five)) for heads in (2, 6)}
    print(f"{family}, seed {SEED}: " + ", ".join(f"{k} needed, {n} heads: {v:.3f}" for (k, n), v in losses.items()))
    assert abs(losses[1, 2] - losses[1, 6]) < 0.1
    assert losses[5, 2] - losses[5, 6] > 0.1
