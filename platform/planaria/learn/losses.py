"""Losses and errors, row by row. Legend: B rows, C outputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from planaria.signals import Task


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
