"""ER: experience replay. Also `naive` (nothing is replayed) and `a_gem` (the replayed gradient only sets a limit)."""

from __future__ import annotations

from torch import Tensor

from planaria.learn.learners.objective import Outputs, Targets


class ExperienceReplay:
    """beta x the ordinary loss of the remembered row. Source: Chaudhry et al. 2019 (arXiv 1902.10486)."""

    def __init__(self, beta: float) -> None:
        self.replay_weight = self.beta = beta

    def fresh(self, output_BC: Tensor, target_B: Tensor, loss_B: Tensor, step_target: Targets) -> Tensor:
        return loss_B

    def replayed(self, loss_R: Tensor, outputs: Outputs) -> Tensor:
        return self.beta * loss_R
