"""Many small models trained side by side: planaria's own transformer under `torch.func.vmap`, heads masked.

One at a time, a step of so small a model is nearly all overhead. Here all models have the shapes of the largest one;
heads that are not live are multiplied by zero, so that they neither answer nor learn. A model can be taken out as a
real one with its optimizer, operated on, and put back.

Legend: P models, B rows, C classes, N heads (at most), W all weights of a model in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from planaria.blueprint import Blueprint
from planaria.learn import build_optimizer
from planaria.model import ElasticTransformer, build
from planaria.model.inputs import running_moments
from planaria.policy import Learner

_BY_HEAD = ("attention.q", "attention.kv", "attention.o")
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Seen:
    """What a step showed before it learned."""

    loss_PB: Tensor
    output_PBC: Tensor


class Population:
    """`size` models of one blueprint with up to `most_heads` heads a layer. AdamW, gradients clipped model by model."""

    def __init__(self, blueprint: Blueprint, most_heads: int, learner: Learner, size: int) -> None:
        self.blueprint = replace(blueprint, heads=(most_heads,) * blueprint.layers)
        self.learner = learner
        self.base = build(self.blueprint)
        self._shapes = {name: p.shape for name, p in self.base.named_parameters()}
        width = sum(shape.numel() for shape in self._shapes.values())
        self.weights_PW = torch.zeros(size, width)
        self.first_PW, self.second_PW = torch.zeros(size, width), torch.zeros(size, width)
        self.steps_P = torch.zeros(size)
        self.live_PLN = torch.zeros(size, blueprint.layers, most_heads)
        self.buffers = {name: b.repeat(size, *[1] * b.dim()) for name, b in self.base.named_buffers()}
        matrices = [torch.full((s.numel(),), float(len(s) >= 2)) for s in self._shapes.values()]
        self._shrink_W = learner.learning_rate * learner.weight_decay * torch.cat(matrices)
        self._gradient = vmap(grad(self._objective, has_aux=True))

    def __len__(self) -> int:
        return len(self.weights_PW)

    def keep(self, places: Sequence[int]) -> None:
        """Only these models go on, in this order."""
        at = torch.tensor(list(places), dtype=torch.int64)
        for name in ("weights_PW", "first_PW", "second_PW", "steps_P", "live_PLN"):
            setattr(self, name, getattr(self, name)[at])
        self.buffers = {name: buffer[at] for name, buffer in self.buffers.items()}

    def step(self, features: dict[str, Tensor], target_PB: Tensor, weight_PB: Tensor, fresh: int) -> Seen:
        """Answer, then learn from, B rows a model; the first `fresh` are new, and `weight_PB` weighs their losses."""
        if "numeric" in features and "input.mean_K" in self.buffers:
            self._observe(features["numeric"][:, :fresh])
        weights = self._views(self.weights_PW)
        gradients, (loss_PB, output_PBC) = self._gradient(
            weights, self.buffers, self.live_PLN, features, target_PB, weight_PB
        )
        gradient_PW = torch.cat([gradients[name].flatten(1) for name in self._shapes], 1)
        norm_P = gradient_PW.norm(dim=1)
        self._descend(gradient_PW * (self.learner.clip_norm / norm_P.clamp(min=1e-12)).clamp(max=1.0)[:, None])
        return Seen(loss_PB.detach(), output_PBC.detach())

    @torch.no_grad()
    def answer(self, features: dict[str, Tensor], target_PB: Tensor) -> Tensor:
        """Loss of each row, without learning. Shape [P, B]."""
        weight_PB = torch.zeros_like(target_PB, dtype=torch.float32)
        _, (loss_PB, _) = vmap(self._objective)(
            self._views(self.weights_PW), self.buffers, self.live_PLN, features, target_PB, weight_PB
        )
        return loss_PB

    def take(self, place: int) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
        """A copy of one model, with its live heads alone, and of its optimizer."""
        heads = tuple(int(count) for count in self.live_PLN[place].sum(1).tolist())
        model = build(replace(self.blueprint, heads=heads))
        optimizer = build_optimizer(model, self.learner)
        weights, first, second = (
            self._views(rows[place : place + 1]) for rows in (self.weights_PW, self.first_PW, self.second_PW)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                live = slice(len(parameter)) if name.endswith(_BY_HEAD) else slice(None)
                parameter.copy_(weights[name][0][live])
                if self.steps_P[place]:
                    optimizer.state[parameter] = {
                        "step": self.steps_P[place].clone(),
                        "exp_avg": first[name][0][live].clone(),
                        "exp_avg_sq": second[name][0][live].clone(),
                    }
            for name, buffer in model.named_buffers():
                buffer.copy_(self.buffers[name][place])
        return model, optimizer

    @torch.no_grad()
    def put(self, place: int, model: ElasticTransformer, optimizer: torch.optim.Optimizer) -> None:
        """Let a real model and its optimizer take the place."""
        rows = {
            "": self._views(self.weights_PW[place : place + 1]),
            "exp_avg": self._views(self.first_PW[place : place + 1]),
            "exp_avg_sq": self._views(self.second_PW[place : place + 1]),
        }
        steps = 0.0
        for name, parameter in model.named_parameters():
            state = optimizer.state.get(parameter, {})
            steps = float(state["step"]) if "step" in state else 0.0
            for slot, views in rows.items():
                value = parameter if not slot else state.get(slot)
                views[name][0].zero_()
                if value is not None:
                    views[name][0][: len(value)].copy_(value)
        self.steps_P[place] = steps
        for name, buffer in model.named_buffers():
            self.buffers[name][place] = buffer
        self.live_PLN[place] = 0
        for layer, heads in enumerate(model.blueprint.heads):
            self.live_PLN[place, layer, :heads] = 1

    def _objective(
        self,
        weights: dict[str, Tensor],
        buffers: dict[str, Tensor],
        live_LN: Tensor,
        features: dict[str, Tensor],
        target_B: Tensor,
        weight_B: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        for layer in range(self.blueprint.layers):
            self.base.block(layer).attention.head_scale_BN = live_LN[layer : layer + 1]
        output_BC = functional_call(self.base, (weights, buffers), (features,))
        loss_B = F.cross_entropy(output_BC, target_B, reduction="none")
        return (loss_B * weight_B).sum(), (loss_B, output_BC)

    def _views(self, rows_PW: Tensor) -> dict[str, Tensor]:
        """The weights by name, as views."""
        views, at = {}, 0
        for name, shape in self._shapes.items():
            views[name] = rows_PW[:, at : at + shape.numel()].view(-1, *shape)
            at += shape.numel()
        return views

    def _observe(self, values_PBK: Tensor) -> None:
        names = ("input.count", "input.mean_K", "input.squares_K")
        count_PK, mean_PK, squares_PK = (self.buffers[name] for name in names)
        updated = vmap(running_moments)(count_PK, mean_PK, squares_PK, values_PBK)
        self.buffers.update(zip(names, updated, strict=True))

    def _descend(self, gradient_PW: Tensor) -> None:
        """AdamW (Loshchilov & Hutter 2019), as torch's, with a step count for each model."""
        self.steps_P += 1
        self.weights_PW.addcmul_(self.weights_PW, self._shrink_W, value=-1)
        self.first_PW.lerp_(gradient_PW, 1 - _BETAS[0])
        self.second_PW.mul_(_BETAS[1]).addcmul_(gradient_PW, gradient_PW, value=1 - _BETAS[1])
        second_bias_P = (1 - _BETAS[1] ** self.steps_P).sqrt()
        spread_PW = (self.second_PW.sqrt() / second_bias_P[:, None]).add_(_EPSILON)
        rate_P = self.learner.learning_rate / (1 - _BETAS[0] ** self.steps_P)
        self.weights_PW.sub_(self.first_PW.div(spread_PW).mul_(rate_P[:, None]))
