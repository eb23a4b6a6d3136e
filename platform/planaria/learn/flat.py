"""Optimizers over a few buffers instead of many tensors: a step of small batches is no longer mostly its optimizer."""

from __future__ import annotations

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

_ALIGNED = 16
"""Each parameter begins at a multiple of so many numbers (64 bytes of float32), as vector instructions like it."""


@dataclass
class Segment:
    """Parameters of one group that have taken equally many steps, one after the other."""

    group: dict[str, Any]
    parts: list[Tensor]
    """The parameters, and between them what fills up to the next aligned place, whose gradients are zero."""
    value: Tensor
    state: dict[str, Tensor]
    """A buffer for each slot of the optimizer."""
    step: Tensor
    gradient: Tensor


class FlatOptimizer(torch.optim.Optimizer):
    """Values, gradients and state lie in a buffer for each group.

    `param_groups` and `state` hold what they hold in torch's optimizers: a parameter and its slots are views of the
    buffers, so that surgery replaces and reads them one by one. Whatever was replaced, cleared or loaded is laid out
    anew at the next step. A parameter without a gradient is stepped as if it were zero.
    """

    slots: ClassVar[tuple[str, ...]]
    """State of a parameter, of its shape, that begins at 0; its `step` comes beside them."""
    lasting: ClassVar[tuple[str, ...]] = ()
    """Slots that are kept where momentum is forgotten."""

    def __init__(self, groups: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)
        self._forget_layout()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, without the wrapper that keeps torch.compile away from it: that loads the compiler, 70 MiB and
        1.5 CPU-seconds, into every process that has an optimizer."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    @abstractmethod
    def advance(self, segment: Segment) -> None:
        """One step of all values of a segment, whose `step` already counts it."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_layout()

    @torch.no_grad()
    def gather(self, clip_norm: float = float("inf")) -> float:
        """Take in the gradients, scaled down where they are longer than `clip_norm` together; returns their length
        before that. The next `step` is one with them."""
        if not self._laid_out():
            self._lay_out()
        for segment in self._segments:
            segment.gradient = _flatten_dense_tensors(  # type: ignore[no-untyped-call]
                [part.grad if part.grad is not None else torch.zeros_like(part) for part in segment.parts]
            )
        length = math.hypot(*(float(torch.linalg.vector_norm(segment.gradient)) for segment in self._segments))
        if not length <= clip_norm:
            for segment in self._segments:
                segment.gradient.mul_(clip_norm / length)
        self._gathered = True
        return length

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step with the gradients that `gather` took in, or with the parameters' own where it was not called."""
        assert closure is None, "gradients are computed before the step"
        if not self._gathered:
            self.gather()
        self._gathered = False
        for segment in self._segments:
            segment.step += 1
            self.advance(segment)

    step.hooked = True  # type: ignore[attr-defined]
    """A torch optimizer's step is wrapped for its profiler, which takes longer than this step, unless it already is."""

    # -- the buffers

    def _forget_layout(self) -> None:
        self._segments: list[Segment] = []
        self._laid: list[int] = []
        self._holding: list[Any] = []
        """What has these identities; while it is held, nothing else has them."""
        self._gathered = False

    def _laid_out(self) -> bool:
        """Whether every parameter and its state are still what was laid out."""
        return self._identities() == self._laid

    def _identities(self) -> list[int]:
        """Of all parameters and of all that is known of them, in order."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return [*map(id, parameters), *map(id, self.state.values())]

    def _lay_out(self) -> None:
        together: dict[tuple[int, float, torch.device, torch.dtype], list[nn.Parameter]] = {}
        for at, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                steps = float(self.state.get(parameter, {}).get("step", 0.0))
                together.setdefault((at, steps, parameter.device, parameter.dtype), []).append(parameter)
        self._segments = [
            self._segment(self.param_groups[at], steps, parameters)
            for (at, steps, _, _), parameters in together.items()
        ]
        self._laid = self._identities()
        self._holding = list(self.state.items())

    def _segment(self, group: dict[str, Any], steps: float, parameters: list[nn.Parameter]) -> Segment:
        sizes = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in parameters]
        value, *buffers = parameters[0].new_zeros(1 + len(self.slots), sum(sizes)).unbind()
        step = torch.tensor(steps, device=value.device if value.device.type != "cpu" else None)
        at = 0
        parts: list[Tensor] = []
        for parameter, size in zip(parameters, sizes, strict=True):
            here = slice(at, at + parameter.numel())
            state = self.state.get(parameter, {})
            view = {slot: buffer[here].view_as(parameter) for slot, buffer in zip(self.slots, buffers, strict=True)}
            for slot, part in view.items():
                if slot in state:
                    part.copy_(state[slot])
            place = value[here].view_as(parameter)
            place.copy_(parameter)
            parameter.data = place
            self.state[parameter] = {"step": step, **view}
            parts.append(parameter)
            if size > parameter.numel():
                parts.append(filling := value.new_zeros(size - parameter.numel()))
                filling.grad = torch.zeros_like(filling)
            at += size
        state_of = dict(zip(self.slots, buffers, strict=True))
        return Segment(group, parts, value, state_of, step, torch.zeros_like(value))


class WithBetas(FlatOptimizer):
    """One that keeps two running means of the gradient, and decays weights by themselves."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
