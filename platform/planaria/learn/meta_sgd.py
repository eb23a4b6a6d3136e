"""A learned rate for every number of the model: Meta-SGD's inner step, with rates that follow the stream.

The step is that of Meta-SGD (Li et al. 2017, arXiv 1707.09835), rate x gradient for each element, and the rates are
learned as in La-MAML (Gupta et al. 2020, arXiv 2007.13904) by looking one step ahead: the last step was the inner one,
and this step's rows (fresh ones and replayed ones alike) are those on which it is judged. To first order the slope of
their loss with respect to the logarithm of a rate is -rate x last direction x present gradient, which needs no further
pass through the model (hypergradient descent: Baydin et al. 2018, arXiv 1703.04782).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from planaria.learn.flat import FlatOptimizer, Segment

MOST_GAIN = math.log(100.0)
"""A rate stays within so much of the learning rate, up and down."""


class MetaSGD(FlatOptimizer):
    """SGD with momentum whose every element has a rate of its own: the learning rate times exp(`log_gain`).

    One gradient of one element says little and may be of any size, so a log-rate moves by `meta_rate` times direction x
    gradient over half the sum of their squares, which lies between -1 and 1. The gains outlast a reset of momentum.
    """

    slots = ("exp_avg", "log_gain")
    lasting = ("log_gain",)

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        meta_rate: float = 0.1,
        weight_decay: float = 0.01,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "meta_rate": meta_rate, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    def advance(self, segment: Segment) -> None:
        group, gradient = segment.group, segment.gradient
        mean, log_gain = segment.state["exp_avg"], segment.state["log_gain"]
        likeness = (mean * gradient).div_(mean.square().addcmul_(gradient, gradient).mul_(0.5).add_(1e-20))
        log_gain.add_(likeness, alpha=group["meta_rate"]).clamp_(-MOST_GAIN, MOST_GAIN)
        mean.lerp_(gradient, 1 - group["momentum"])
        segment.value.mul_(1 - group["lr"] * group["weight_decay"])
        segment.value.addcmul_(log_gain.exp(), mean, value=-group["lr"])
