"""Anchors: each weight is pulled back to where it was, by how much it mattered there.

The gradient of weight / 2 x sum of importance x (parameter - anchor)^2 is added to that of the objective. How
importance is come by is each method's own (`ewc`, `si`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from planaria.errors import InputError

ANCHOR, IMPORTANCE, GATHERED = "anchor", "importance", "gathered"
SLOTS = (ANCHOR, IMPORTANCE, GATHERED)


class Importance(Protocol):
    """How much each weight matters."""

    def gather(self, gathered: Tensor, gradient: Tensor, moved: Tensor, rows: int) -> None:
        """Take in a step, in place: the objective's gradient (a mean over `rows` rows) and what the step changed."""

    def settle(self, importance: Tensor, gathered: Tensor, distance: Tensor) -> Tensor:
        """Importance once a stretch of the stream has ended `distance` from where it began."""


class Anchors:
    """For all parameters of a model. Tensors follow their parameter through surgery: kept rows keep theirs, new rows
    begin where they are, with no importance."""

    def __init__(self, importance: Importance, weight: float) -> None:
        self.method, self.weight = importance, weight
        self.slots: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._before: list[Tensor] = []
        self._gradients: list[Tensor] = []

    @torch.no_grad()
    def pull(self, parameters: Sequence[nn.Parameter]) -> None:
        """Before an optimizer's step: note what the objective asks for, and add the pull to it."""
        self._before = [parameter.detach().clone() for parameter in parameters]
        self._gradients = [_gradient(parameter).clone() for parameter in parameters]
        for parameter in parameters:
            held = self._held(parameter)
            pull = held[IMPORTANCE] * (parameter - held[ANCHOR])
            parameter.grad = _gradient(parameter).add_(pull, alpha=self.weight)

    @torch.no_grad()
    def stepped(self, parameters: Sequence[nn.Parameter], rows: int) -> None:
        """After the optimizer's step."""
        for parameter, before, gradient in zip(parameters, self._before, self._gradients, strict=True):
            self.method.gather(self._held(parameter)[GATHERED], gradient, parameter - before, rows)
        self._before, self._gradients = [], []

    @torch.no_grad()
    def settle(self, parameters: Sequence[nn.Parameter]) -> None:
        """The stream has shifted: what was learned until now is to be kept."""
        for parameter in parameters:
            held = self._held(parameter)
            held[IMPORTANCE] = self.method.settle(held[IMPORTANCE], held[GATHERED], parameter - held[ANCHOR])
            held[ANCHOR] = parameter.detach().clone()
            held[GATHERED] = torch.zeros_like(parameter)

    def replaced(self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, dimension: int = 0) -> None:
        """`new` takes the place of `old`, its first rows being `old`'s rows `kept`: slices along `dimension`."""
        held = self.slots.pop(old, None)
        if held is None or not len(kept):
            return
        self.slots[new] = moved = _blank(new)
        for slot, value in held.items():
            moved[slot].narrow(dimension, 0, len(kept)).copy_(value.index_select(dimension, kept))

    def copied(self, source: nn.Parameter, new: nn.Parameter) -> None:
        """`new` came beside `source` and means the same."""
        if source in self.slots:
            self.slots[new] = {slot: value.clone() for slot, value in self.slots[source].items()}

    def dropped(self, old: nn.Parameter) -> None:
        self.slots.pop(old, None)

    def tensors(self, named: Sequence[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
        """{"<slot>/<parameter name>": tensor}, for safetensors."""
        return {
            f"{slot}/{name}": value.cpu().contiguous()
            for name, parameter in named
            for slot, value in self.slots.get(parameter, {}).items()
        }

    def load(self, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`. Raises InputError where a tensor fits no parameter."""
        self.slots = {}
        for key, value in tensors.items():
            slot, _, name = key.partition("/")
            parameter = named.get(name)
            if slot not in SLOTS or parameter is None or value.shape != parameter.shape:
                raise InputError(f"anchors: '{key}' fits no parameter of the model; use an older checkpoint")
            self._held(parameter)[slot] = value.to(parameter.device).clone()

    def _held(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if parameter not in self.slots:
            self.slots[parameter] = _blank(parameter)
        return self.slots[parameter]


def _blank(parameter: nn.Parameter) -> dict[str, Tensor]:
    zero = torch.zeros_like(parameter, requires_grad=False)
    return {ANCHOR: parameter.detach().clone(), IMPORTANCE: zero, GATHERED: zero.clone()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
