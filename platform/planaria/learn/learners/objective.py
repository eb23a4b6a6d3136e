"""What the rows of a step cost a learner: fresh ones, and replayed ones beside them.

Legend: B fresh rows, R replayed rows, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor

Targets = npt.NDArray[Any]
Outputs = Callable[[], tuple[Tensor, Tensor]]
"""What the model says of the replayed rows, and what it said when they were remembered, NaN where a class was not yet
known; both [R, C]. Computed when it is asked for."""


class Objective(Protocol):
    """Prequential losses are reported as they are; this is what gradients are taken of."""

    @property
    def replay_weight(self) -> float | None:
        """Where fresh rows cost their ordinary loss and replayed ones so many times theirs; None where they cost other
        than that."""

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        """Of each fresh row, shape [B]. `loss_B` is its ordinary loss; `step_target` holds the targets of all rows of
        the step, those of other shards too."""

    def replayed(self, loss_R: Tensor, outputs: Outputs) -> Tensor:
        """Of each replayed row, shape [R]. `loss_R` is its ordinary loss."""
