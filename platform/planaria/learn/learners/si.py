"""SI: synaptic intelligence.

Source: Zenke et al. 2017 (arXiv 1703.04200).
"""

from __future__ import annotations

from torch import Tensor

_DAMPING = 1e-3
"""Squared distance below which a weight counts as not having moved (the paper's xi)."""


class PathIntegral:
    """What each weight's moves have taken off the loss, over the square of how far it came."""

    def gather(self, gathered: Tensor, gradient: Tensor, moved: Tensor, rows: int) -> None:
        gathered.addcmul_(gradient, moved, value=-1.0)

    def settle(self, importance: Tensor, gathered: Tensor, distance: Tensor) -> Tensor:
        return importance + gathered.clamp(min=0) / (distance.square() + _DAMPING)
