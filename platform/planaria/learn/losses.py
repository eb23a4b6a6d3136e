"""Losses, row by row, and what replaying remembered rows adds. Legend: B rows, R replayed rows, C outputs."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.policy import Learner
from planaria.signals import Task


class ReplayLoss(Protocol):
    """What a replayed row costs the learner."""

    def __call__(self, output_RC: Tensor, target_R: Tensor, remembered_RC: Tensor, row_loss_R: Tensor) -> Tensor:
        """Loss of each replayed row, shape [R]. `remembered_RC` is NaN where a class was not yet known."""


def row_loss(task: Task, output_BC: Tensor, target_B: Tensor, spread: Tensor) -> Tensor:
    """Cross-entropy in nats, or squared error in units of the target's running variance. Shape [B], float32."""
    if task == "regression":
        return ((output_BC[:, 0] - target_B) / spread.to(output_BC.dtype)) ** 2
    return F.cross_entropy(output_BC, target_B, reduction="none")


def row_error(task: Task, output_BC: Tensor, target_B: Tensor) -> Tensor:
    """1 where the class is wrong, or the absolute error in the target's units. Shape [B]."""
    if task == "regression":
        return (output_BC[:, 0] - target_B).abs()
    return (output_BC.argmax(1) != target_B).to(output_BC.dtype)


class ExperienceReplay:
    """beta x the ordinary loss of the remembered row. Source: Chaudhry et al. 2019 (arXiv 1902.10486)."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def __call__(self, output_RC: Tensor, target_R: Tensor, remembered_RC: Tensor, row_loss_R: Tensor) -> Tensor:
        return self.beta * row_loss_R


class DarkExperienceReplay:
    """beta x loss + alpha x squared distance to the outputs at the time (DER++).

    Source: Buzzega et al. 2020 (arXiv 2004.07211). Both terms use the same replayed rows, which halves the cost; the
    distance is a mean over the classes known when the row was remembered.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta

    def __call__(self, output_RC: Tensor, target_R: Tensor, remembered_RC: Tensor, row_loss_R: Tensor) -> Tensor:
        known_RC = ~remembered_RC.isnan()
        gap_RC = torch.where(known_RC, output_RC - remembered_RC.nan_to_num(0.0), torch.zeros_like(output_RC))
        distance_R = gap_RC.square().sum(1) / known_RC.sum(1).clamp(min=1)
        return self.beta * row_loss_R + self.alpha * distance_R


def build_replay_loss(learner: Learner) -> ReplayLoss:
    if learner.loss == "der++":
        return DarkExperienceReplay(learner.alpha, learner.beta)
    return ExperienceReplay(learner.beta)
