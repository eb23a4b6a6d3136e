"""Fake quantisation: products as an INT8 file computes them, in float32, so that a model learns under their rounding.

Gradients pass straight through what rounds. Sources: Bengio et al. 2013 (arXiv 1308.3432); Jacob et al. 2018 (arXiv
1712.05877). Legend: F output channels, K inputs of a product, M its rows (one for each token of a row).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.blueprint import Quantisation

ACTIVATION_LEVEL = 127
"""The largest of an activation that has a scale for each token: 8 bits, symmetric."""
LEAST_SCALE = 1e-12
"""So that what is all zeros has one."""


def product(x: Tensor, weight_FK: Tensor, bias_F: Tensor | None, quantisation: Quantisation | None) -> Tensor:
    """x @ weight' + bias, with weight and x rounded where there is a quantisation."""
    if quantisation is None:
        return F.linear(x, weight_FK, bias_F)
    return F.linear(rounded_input(x, quantisation), rounded_weight(weight_FK, quantisation), bias_F)


def rounded_weight(weight_FK: Tensor, quantisation: Quantisation) -> Tensor:
    """Symmetric, with a scale for each output channel."""
    return _rounded(weight_FK, weight_scale(weight_FK, quantisation.bits)[:, None], None)


def weight_scale(weight_FK: Tensor, bits: int) -> Tensor:
    """Of each output channel. Shape [F]."""
    most_F = _most(weight_FK.detach())[:, 0]
    return (most_F / float(2 ** (bits - 1) - 1)).clamp(min=LEAST_SCALE)


def rounded_input(x: Tensor, quantisation: Quantisation) -> Tensor:
    """8 bits, of the range that the values have: each token's own, symmetric; or that of all, with a zero point, as
    ONNX's DynamicQuantizeLinear does it. Shape as x, whose last dimension is K."""
    values = x.detach()
    if quantisation.activations == "token":
        return _rounded(x, (_most(values) / ACTIVATION_LEVEL).clamp(min=LEAST_SCALE), None)
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=LEAST_SCALE)
    return _rounded(x, scale, (-low / scale).round().clamp(0, 255))


def _most(values: Tensor) -> Tensor:
    """The largest size in the last dimension, which stays, of length 1; without a copy of all values."""
    return torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True))


def _rounded(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        straight: Tensor = _StraightThrough.apply(x, scale, zero)  # type: ignore[no-untyped-call]
        return straight
    return _to_steps(x, scale, zero)


def _to_steps(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    steps = x * scale.reciprocal()
    if zero is None:
        return steps.round_().mul_(scale)
    return steps.add_(zero).round_().clamp_(0, 255).sub_(zero).mul_(scale)


class _StraightThrough(torch.autograd.Function):
    """What torch's fake_quantize operations do, equal to the bit where there is no zero point. Those take 6 times as
    long: they keep a mask of what is out of range, where here nothing is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        return _to_steps(x, scale, zero)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None
