"""Losses and errors, row by row. Legend: B rows, C outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.signals import Task

_FITTING_STEPS = 4
"""Of the output's bias; after these the mean prediction is within a few percent of the frequencies."""
_PSEUDO_ROWS = 0.5
"""Of every class, so that one that none of a few rows has is not ruled out."""


def row_loss(task: Task, output_BC: Tensor, target_B: Tensor, spread: Tensor) -> Tensor:
    """Cross-entropy in nats, or squared error in units of the target's running variance. Shape [B], float32."""
    if task == "regression":
        return ((output_BC[:, 0] - target_B) / spread.to(output_BC.dtype)) ** 2
    return F.cross_entropy(output_BC, target_B, reduction="none")


def row_loss_bias_fitted(task: Task, output_BC: Tensor, target_B: Tensor, spread: Tensor) -> Tensor:
    """`row_loss` once the output's bias is fitted to these very rows: what a model knows of them beyond the frequencies
    of their classes, or the mean of their target. Shape [B], float32.

    By iterative proportional fitting (Deming & Stephan 1940): the bias rises by log(frequency / mean prediction).
    """
    if task == "regression":
        return row_loss(task, output_BC - (output_BC[:, 0] - target_B).mean(), target_B, spread)
    classes = output_BC.shape[1]
    frequency_C = torch.bincount(target_B, minlength=classes) + _PSEUDO_ROWS
    for _ in range(_FITTING_STEPS):
        predicted_C = F.softmax(output_BC.float(), 1).sum(0) + _PSEUDO_ROWS
        output_BC = output_BC + (frequency_C / predicted_C).log().to(output_BC.dtype)
    return row_loss(task, output_BC, target_B, spread)


def row_error(task: Task, output_BC: Tensor, target_B: Tensor) -> Tensor:
    """1 where the class is wrong, or the absolute error in the target's units. Shape [B]."""
    if task == "regression":
        return (output_BC[:, 0] - target_B).abs()
    return (output_BC.argmax(1) != target_B).to(output_BC.dtype)
