"""DER and DER++: dark experience replay."""

from __future__ import annotations

import torch
from torch import Tensor

from planaria.learn.learners.objective import Outputs, Targets


class DarkExperienceReplay:
    """beta x loss + alpha x squared distance to the outputs at the time (DER++; with beta 0, DER).

    Source: Buzzega et al. 2020 (arXiv 2004.07211). Both terms use the same replayed rows, which halves the cost; the
    distance is a mean over the classes known when the row was remembered.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.replay_weight = None

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        return loss_B

    def replayed(self, loss_R: Tensor, outputs: Outputs) -> Tensor:
        output_RC, remembered_RC = outputs()
        known_RC = ~remembered_RC.isnan()
        gap_RC = torch.where(known_RC, output_RC - remembered_RC.nan_to_num(0.0), torch.zeros_like(output_RC))
        distance_R = gap_RC.square().sum(1) / known_RC.sum(1).clamp(min=1)
        return self.beta * loss_R + self.alpha * distance_R
