"""What is learned from a step: replay memory, continual-learning losses, optimizers."""

from planaria.learn.losses import row_error, row_loss, row_loss_bias_fitted
from planaria.learn.memory import DOUBTFUL, ReplayMemory
from planaria.learn.objectives import Objective, build_objective
from planaria.learn.optimizers import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    replace_parameter,
    replace_with_state,
    reset_moments,
)

__all__ = [
    "DOUBTFUL",
    "Objective",
    "ReplayMemory",
    "build_objective",
    "build_optimizer",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "replace_parameter",
    "replace_with_state",
    "reset_moments",
    "row_error",
    "row_loss",
    "row_loss_bias_fitted",
]
