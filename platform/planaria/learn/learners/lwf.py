"""LwF: learning without forgetting, by keeping to the answers of an earlier self.

Source: Li & Hoiem 2016 (arXiv 1606.09282). Legend: B rows, C outputs, K outputs that the teacher knows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.signals import Task


class Teacher:
    """The model as it was at the newest shift; nobody before the first."""

    def __init__(self, weight: float, temperature: float) -> None:
        self.weight, self.temperature = weight, temperature
        self.model: nn.Module | None = None

    def settle(self, model: nn.Module) -> None:
        """The stream has shifted: keep to what the model says now."""
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def answers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Shape [B, K], K being 1 for a regression. There must have been a shift."""
        assert self.model is not None, "nobody to ask before the first shift"
        answer_BK: Tensor = self.model(features)
        return answer_BK

    def cost(self, task: Task, output_BC: Tensor, taught_BK: Tensor, spread: Tensor) -> Tensor:
        """weight x T^2 x KL divergence of the answers at temperature T, over the classes that the teacher knows; of a
        regression, weight x squared distance in units of the target's running variance. Shape [B]."""
        if task == "regression":
            return self.weight * ((output_BC - taught_BK) / spread.to(output_BC.dtype)).square().sum(1)
        ours_BK = F.log_softmax(output_BC[:, : taught_BK.shape[1]] / self.temperature, 1)
        theirs_BK = F.log_softmax(taught_BK / self.temperature, 1)
        divergence_B = F.kl_div(ours_BK, theirs_BK, reduction="none", log_target=True).sum(1)
        return self.weight * self.temperature**2 * divergence_B
