"""Online EWC: elastic weight consolidation with one running importance.

Sources: Kirkpatrick et al. 2017 (arXiv 1612.00796); online: Schwarz et al. 2018 (arXiv 1805.06370).
"""

from __future__ import annotations

from torch import Tensor

_SHARE = 0.01
"""Of the newest step in the running Fisher information: the last hundred steps or so count."""


class FisherInformation:
    """The diagonal of the Fisher information, as a running mean of rows x squared gradient of their mean loss: over n
    rows near an optimum, the square of the mean gradient has an n-th of the expected square of a row's."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def gather(self, gathered: Tensor, gradient: Tensor, moved: Tensor, rows: int) -> None:
        gathered.lerp_(rows * gradient.square(), _SHARE)

    def settle(self, importance: Tensor, gathered: Tensor, distance: Tensor) -> Tensor:
        return self.decay * importance + gathered
