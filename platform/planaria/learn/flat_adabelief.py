"""AdaBelief over a few buffers: a step size for every parameter, from how surely its gradient points one way."""

from __future__ import annotations

from planaria.learn.flat import Segment, WithBetas


class FlatAdaBelief(WithBetas):
    """Steps of learning rate x mean / standard deviation of each element's gradient (Zhuang et al. 2020, arXiv
    2010.07468): long where gradients agree, short where they are noise. The variance is that around the running mean,
    without the bias of the first steps; weight decay is decoupled.

    It was the best of four forms on Fashion-MNIST (seed 100): see docs/techniques.md.
    """

    slots = ("exp_avg", "exp_avg_var")

    def advance(self, segment: Segment) -> None:
        group, gradient, steps = segment.group, segment.gradient, float(segment.step)
        mean, variance = segment.state["exp_avg"], segment.state["exp_avg_var"]
        first, second = group["betas"]
        mean.lerp_(gradient, 1 - first)
        surprise = gradient - mean
        variance.mul_(second).addcmul_(surprise, surprise, value=1 - second)
        spread = (variance / (1 - second**steps)).sqrt_().add_(group["eps"])
        segment.value.mul_(1 - group["lr"] * group["weight_decay"])
        segment.value.addcdiv_(mean, spread, value=-group["lr"] / (1 - first**steps))
