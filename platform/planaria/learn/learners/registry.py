"""Which method a policy names."""

from __future__ import annotations

from planaria.learn.learners.anchors import Anchors
from planaria.learn.learners.continual_backprop import Renewal
from planaria.learn.learners.der import DarkExperienceReplay
from planaria.learn.learners.er import ExperienceReplay
from planaria.learn.learners.er_ace import AsymmetricReplay
from planaria.learn.learners.ewc import FisherInformation
from planaria.learn.learners.lwf import Teacher
from planaria.learn.learners.objective import Objective
from planaria.learn.learners.si import PathIntegral
from planaria.policy import Learner


def build_objective(learner: Learner) -> Objective:
    if learner.loss == "er_ace":
        return AsymmetricReplay(learner.beta)
    if learner.loss in ("der", "der++"):
        return DarkExperienceReplay(learner.distance_weight, learner.beta if learner.loss == "der++" else 0.0)
    return ExperienceReplay(learner.beta)


def build_anchors(learner: Learner) -> Anchors | None:
    """None where the policy asks for none."""
    protect = learner.protect
    if protect is None or protect.kind == "lwf":
        return None
    return Anchors(FisherInformation(protect.decay) if protect.kind == "ewc" else PathIntegral(), protect.weight)


def build_teacher(learner: Learner) -> Teacher | None:
    """None where the policy asks for none."""
    protect = learner.protect
    return Teacher(protect.weight, protect.temperature) if protect is not None and protect.kind == "lwf" else None


def build_renewal(learner: Learner) -> Renewal | None:
    """None where the policy asks for none."""
    return None if learner.renew is None else Renewal(learner.renew.rate, learner.renew.maturity_steps)
