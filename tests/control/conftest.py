"""A learned value that is made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from planaria.control.features import NAMES
from planaria.control.value import ValueEnsemble, ValueNetwork

HandMade = Callable[..., ValueEnsemble]


@pytest.fixture
def hand_made() -> HandMade:
    return made


def made(*grow: float, shrink: float = 0.0, looked: float = 0.0, unit: float = 0.05) -> ValueEnsemble:
    """One member for each number in `grow`, which is about what growing is worth to it, in units; all agree on what
    shrinking is worth, and on how much a recent gain of 1 that a look-ahead showed adds."""
    about = {"unit": unit, "edits": ["grow_heads", "shrink_heads"], "mode": "anil"}
    members = [_member({"option_grow_heads": g, "option_shrink_heads": shrink, "gain_recent": looked}) for g in grow]
    return ValueEnsemble(members, torch.zeros(len(NAMES)), torch.ones(len(NAMES)), about)


def _member(worth: dict[str, float]) -> ValueNetwork:
    """About linear in the named features: each has a hidden unit of its own, far from where tanh bends."""
    small = 1e-2
    network = ValueNetwork()
    first, second = network.body[0], network.body[2]
    assert isinstance(first, torch.nn.Linear) and isinstance(second, torch.nn.Linear)
    with torch.no_grad():
        for parameter in (*network.body.parameters(), *network.head.parameters()):
            parameter.zero_()
        for unit, (name, value) in enumerate(worth.items()):
            first.weight[unit, NAMES.index(name)] = small
            second.weight[unit, unit] = 1.0
            network.head.weight[0, unit] = value / small
        second.bias[len(worth)] = 0.5  # a unit that is always on, so that the head has something to adapt by
    return network
