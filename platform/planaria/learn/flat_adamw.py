"""AdamW over a few buffers instead of many tensors."""

from __future__ import annotations

import torch

from planaria.learn.flat import Segment, WithBetas


class FlatAdamW(WithBetas):
    """AdamW (Loshchilov & Hutter 2019, 1711.05101), with the slots of torch.optim.AdamW."""

    slots = ("exp_avg", "exp_avg_sq")

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
