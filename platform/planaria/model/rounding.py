"""Fake quantisation: products as an INT8 file computes them, in float32, so that a model learns under their rounding.

Gradients pass straight through what rounds. Sources: Bengio et al. 2013 (arXiv 1308.3432); Jacob et al. 2018 (arXiv
1712.05877). Legend: F output channels, K inputs of a product, M its rows (one for each token of a row).
"""

from __future__ import annotations

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
    scale_F, none_F = weight_scale(weight_FK, quantisation.bits), weight_FK.new_zeros(len(weight_FK), dtype=torch.int32)
    most = quantisation.level
    return torch.fake_quantize_per_channel_affine(weight_FK, scale_F, none_F, 0, -most, most)


def weight_scale(weight_FK: Tensor, bits: int) -> Tensor:
    """Of each output channel. Shape [F]."""
    return (weight_FK.detach().abs().amax(1) / (2 ** (bits - 1) - 1)).clamp(min=LEAST_SCALE)


def rounded_input(x: Tensor, quantisation: Quantisation) -> Tensor:
    """8 bits, of the range that the values have: each token's own, symmetric; or that of all, with a zero point, as
    ONNX's DynamicQuantizeLinear does it. Shape as x, whose last dimension is K."""
    values = x.detach()
    if quantisation.activations == "token":
        rows_MK = x.reshape(-1, x.shape[-1])
        scale_M = (values.reshape(rows_MK.shape).abs().amax(1) / ACTIVATION_LEVEL).clamp(min=LEAST_SCALE)
        none_M = torch.zeros_like(scale_M, dtype=torch.int32)
        most = ACTIVATION_LEVEL
        return torch.fake_quantize_per_channel_affine(rows_MK, scale_M, none_M, 0, -most, most).view(x.shape)
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=LEAST_SCALE)
    zero = (-low / scale).round().clamp(0, 255).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
