"""Learners: what is learned from a step's rows, and what keeps what was learned before. One method a file.

A learner is an objective (of fresh and of replayed rows), and where the policy asks for one, a protection: anchors
that pull weights back, or a teacher whose answers are kept to.
"""

from planaria.learn.learners.a_gem import project
from planaria.learn.learners.anchors import Anchors
from planaria.learn.learners.continual_backprop import Renewal
from planaria.learn.learners.lwf import Teacher
from planaria.learn.learners.objective import Objective
from planaria.learn.learners.registry import build_anchors, build_objective, build_renewal, build_teacher

__all__ = [
    "Anchors",
    "Objective",
    "Renewal",
    "Teacher",
    "build_anchors",
    "build_objective",
    "build_renewal",
    "build_teacher",
    "project",
]
