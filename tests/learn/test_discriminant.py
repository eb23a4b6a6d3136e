"""Linear discriminant analysis from sums over rows."""

from __future__ import annotations

import torch
from safetensors.torch import load, save

from planaria.learn import Discriminant

CPU = torch.device("cpu")


def _groups(rows: int, seed: int) -> list[torch.Tensor]:
    """Three, which differ in a direction of little spread among others of much."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([5.0, 5.0, 0.3, 1.0])
    means = torch.tensor([[0.0, 0, 0, 0], [0, 0, 2, 0], [0, 0, -2, 0]])
    return [torch.randn(rows, 4, generator=generator) * spread + mean for mean in means]


def test_groups_that_differ_are_told_apart() -> None:
    discriminant = Discriminant(4, 1, CPU)
    discriminant.widen(3)
    for group, rows in enumerate(_groups(500, 0)):
        discriminant.add(rows[:200], group)
        discriminant.add(rows[200:], group)
    weight_FK, offset_K = discriminant.solve()
    for group, rows in enumerate(_groups(500, 1)):
        assert ((rows @ weight_FK + offset_K).argmax(1) == group).float().mean() > 0.95


def test_a_saved_one_solves_the_same() -> None:
    discriminant = Discriminant(4, 3, CPU)
    for group, rows in enumerate(_groups(50, 0)):
        discriminant.add(rows, group)
    again = Discriminant.of(load(save(discriminant.tensors())))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again.solve(), discriminant.solve(), strict=True))
