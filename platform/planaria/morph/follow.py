"""Who is told of what surgery does to parameters, so that what is known of them comes along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Follower(Protocol):
    """Keeps something for each parameter: an optimizer's moments, anchors."""

    def replaced(
        self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0, dimension: int = 0
    ) -> None:
        """`new` takes the place of `old`: its first rows are rows `kept` of `old`, the others are fresh and begin with
        the share `moment` of the kept rows' mean second moment. Rows are slices along `dimension`."""

    def added(self, name: str, new: nn.Parameter, source: nn.Parameter | None) -> None:
        """`new` came, and has that name in the model. It is a copy of `source`, which stays, or fresh."""

    def dropped(self, old: nn.Parameter) -> None:
        """`old` is gone."""


class Followers:
    """Several that are told one after the other; none is possible."""

    def __init__(self, *followers: Follower) -> None:
        self._followers: Sequence[Follower] = followers

    def replaced(
        self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0, dimension: int = 0
    ) -> None:
        for follower in self._followers:
            follower.replaced(old, new, kept, moment, dimension)

    def added(self, name: str, new: nn.Parameter, source: nn.Parameter | None) -> None:
        for follower in self._followers:
            follower.added(name, new, source)

    def dropped(self, old: nn.Parameter) -> None:
        for follower in self._followers:
            follower.dropped(old)
