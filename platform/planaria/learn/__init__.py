"""What is learned from a step: replay memory, continual-learning losses, optimizers."""

from planaria.learn.discriminant import Discriminant
from planaria.learn.learners import (
    Anchors,
    Objective,
    Renewal,
    Teacher,
    build_anchors,
    build_objective,
    build_renewal,
    build_teacher,
    project,
)
from planaria.learn.least_squares import Products, Sums, nested_ridge, ridge
from planaria.learn.losses import row_error, row_loss, row_loss_bias_fitted
from planaria.learn.memory import DOUBTFUL, UNSETTLED, ReplayMemory
from planaria.learn.optimizers import (
    OptimizerFollower,
    RestoringFollower,
    build_optimizer,
    clip_gradients,
    in_order,
    load_optimizer_tensors,
    optimizer_tensors,
    put_in_order,
    reset_moments,
)
from planaria.learn.share import Share

__all__ = [
    "DOUBTFUL",
    "UNSETTLED",
    "Anchors",
    "Discriminant",
    "Objective",
    "OptimizerFollower",
    "Products",
    "Renewal",
    "ReplayMemory",
    "RestoringFollower",
    "Share",
    "Sums",
    "Teacher",
    "build_anchors",
    "build_objective",
    "build_optimizer",
    "build_renewal",
    "build_teacher",
    "clip_gradients",
    "in_order",
    "load_optimizer_tensors",
    "nested_ridge",
    "optimizer_tensors",
    "project",
    "put_in_order",
    "reset_moments",
    "ridge",
    "row_error",
    "row_loss",
    "row_loss_bias_fitted",
]
