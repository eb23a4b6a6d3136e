"""What the rows of a step cost the learner: fresh ones, and replayed ones beside them.

Legend: B fresh rows, R replayed rows, C outputs.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.policy import Learner

Targets = npt.NDArray[Any]


class Objective(Protocol):
    """Prequential losses are reported as they are; this is what gradients are taken of."""

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        """Of each fresh row, shape [B]. `loss_B` is its ordinary loss; `step_target` holds the targets of all rows of
        the step, those of other shards too."""

    def replayed(self, output_RC: Tensor, remembered_RC: Tensor, loss_R: Tensor) -> Tensor:
        """Of each replayed row, shape [R]. `remembered_RC` is what the model once said, NaN where a class was not yet
        known."""


class ExperienceReplay:
    """beta x the ordinary loss of the remembered row. Source: Chaudhry et al. 2019 (arXiv 1902.10486)."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        return loss_B

    def replayed(self, output_RC: Tensor, remembered_RC: Tensor, loss_R: Tensor) -> Tensor:
        return self.beta * loss_R


class AsymmetricReplay(ExperienceReplay):
    """Experience replay in which fresh rows compete only among the classes of their own batch: they do not push down
    classes that have not come for a while (ER-ACE).

    Source: Caccia et al. 2022 (arXiv 2104.05025).
    """

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        absent_C = torch.ones(output_BC.shape[1], dtype=torch.bool, device=output_BC.device)
        absent_C[torch.from_numpy(np.unique(step_target))] = False
        return F.cross_entropy(output_BC.masked_fill(absent_C, -torch.inf), target_B, reduction="none")


class DarkExperienceReplay(ExperienceReplay):
    """beta x loss + alpha x squared distance to the outputs at the time (DER++; with beta 0, DER).

    Source: Buzzega et al. 2020 (arXiv 2004.07211). Both terms use the same replayed rows, which halves the cost; the
    distance is a mean over the classes known when the row was remembered.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        super().__init__(beta)
        self.alpha = alpha

    def replayed(self, output_RC: Tensor, remembered_RC: Tensor, loss_R: Tensor) -> Tensor:
        known_RC = ~remembered_RC.isnan()
        gap_RC = torch.where(known_RC, output_RC - remembered_RC.nan_to_num(0.0), torch.zeros_like(output_RC))
        distance_R = gap_RC.square().sum(1) / known_RC.sum(1).clamp(min=1)
        return self.beta * loss_R + self.alpha * distance_R


def build_objective(learner: Learner) -> Objective:
    if learner.loss == "er_ace":
        return AsymmetricReplay(learner.beta)
    if learner.loss in ("der", "der++"):
        return DarkExperienceReplay(learner.alpha, learner.beta if learner.loss == "der++" else 0.0)
    return ExperienceReplay(learner.beta)
