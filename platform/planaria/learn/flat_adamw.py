"""AdamW over a few buffers instead of many tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from planaria.learn.flat import FlatOptimizer, Segment


class FlatAdamW(FlatOptimizer):
    """AdamW (Loshchilov & Hutter 2019, 1711.05101), with the slots of torch.optim.AdamW."""

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def advance(self, segment: Segment) -> None:
        group = segment.group
        torch._fused_adamw_(
            [segment.value],
            [segment.gradient],
            [segment.state["exp_avg"]],
            [segment.state["exp_avg_sq"]],
            [],
            [segment.step],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
