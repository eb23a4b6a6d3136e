"""What the rows of a step cost a learner: fresh ones, and replayed ones beside them.

Legend: B fresh rows, R replayed rows, C outputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt
from torch import Tensor

Targets = npt.NDArray[Any]


class Objective(Protocol):
    """Prequential losses are reported as they are; this is what gradients are taken of."""

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        """Of each fresh row, shape [B]. `loss_B` is its ordinary loss; `step_target` holds the targets of all rows of
        the step, those of other shards too."""

    def replayed(self, output_RC: Tensor, remembered_RC: Tensor, loss_R: Tensor) -> Tensor:
        """Of each replayed row, shape [R]. `remembered_RC` is what the model once said, NaN where a class was not yet
        known."""
