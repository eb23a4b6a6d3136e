"""ER-ACE: replay with an asymmetric cross-entropy."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.learn.learners.objective import Outputs, Targets


class AsymmetricReplay:
    """Experience replay in which fresh rows compete only among the classes of their own batch: they do not push down
    classes that have not come for a while.

    Source: Caccia et al. 2022 (arXiv 2104.05025).
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.replay_weight = None

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        absent_C = torch.ones(output_BC.shape[1], dtype=torch.bool, device=output_BC.device)
        absent_C[torch.from_numpy(np.unique(step_target))] = False
        return F.cross_entropy(output_BC.masked_fill(absent_C, -torch.inf), target_B, reduction="none")

    def replayed(self, loss_R: Tensor, outputs: Outputs) -> Tensor:
        return self.beta * loss_R
