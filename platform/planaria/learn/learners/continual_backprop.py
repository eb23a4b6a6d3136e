"""Continual backpropagation: hidden units that are of little use are begun anew, so that the model stays able to learn.

Source: Dohare et al. 2024 (doi 10.1038/s41586-024-07711-7; arXiv 2306.13812).
Legend: L layers, U hidden units of all layers, one layer's after the other's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_DECAY = 0.99
"""Of the running means, a step."""


class Renewal:
    """Which hidden units to begin anew, by their utility: running mean of |activation| x sum of |outgoing weights|."""

    def __init__(self, rate: float, maturity_steps: int) -> None:
        self.rate, self.maturity_steps = rate, maturity_steps
        self.widths: list[int] = []
        """Hidden units of each layer."""
        self.activation_U = torch.zeros(0)
        """Running mean of each unit's activation; its outgoing bias takes this over when it goes."""
        self.magnitude_U = torch.zeros(0)
        """Of its absolute value."""
        self.age_U = torch.zeros(0, dtype=torch.int64)
        """In steps."""
        self.due_L = torch.zeros(0, dtype=torch.float64)
        """Units of each layer that are due, and fractions of the next one."""

    def choose(
        self, activation_U: Tensor, magnitude_U: Tensor, outgoing_U: Tensor, widths: Sequence[int]
    ) -> list[tuple[int, int, float]]:
        """Take in a step (means over its rows) and pick (layer, unit, mean activation) to begin anew: of the units
        older than `maturity_steps`, the share `rate` a step, those of least utility. `widths` are the hidden units of
        each layer."""
        if self.widths != list(widths):  # at the start, or as layers share differently now
            self.widths = list(widths)
            self.activation_U, self.magnitude_U = torch.zeros_like(activation_U), torch.zeros_like(magnitude_U)
            self.age_U = torch.zeros(activation_U.shape, dtype=torch.int64, device=activation_U.device)
            self.due_L = torch.zeros(len(widths), dtype=torch.float64)
        self.activation_U.lerp_(activation_U, 1 - _DECAY)
        self.magnitude_U.lerp_(magnitude_U, 1 - _DECAY)
        self.age_U += 1
        mature_U = self.age_U > self.maturity_steps
        mature = [int(of_layer.sum()) for of_layer in torch.split(mature_U, self.widths)]
        self.due_L += self.rate * torch.tensor(mature)
        if bool((self.due_L < 1).all()):
            return []
        grown_U = 1 - _DECAY ** self.age_U.double()  # the running means began at zero
        utility_U = (self.magnitude_U / grown_U * outgoing_U).masked_fill(~mature_U, torch.inf)
        utilities, means = (torch.split(of_all, self.widths) for of_all in (utility_U, self.activation_U / grown_U))
        chosen = []
        for layer, due in enumerate(self.due_L.tolist()):
            units = utilities[layer].argsort(stable=True)[: min(int(due), mature[layer])].tolist()
            chosen += [(layer, unit, float(means[layer][unit])) for unit in units]
            self.due_L[layer] -= len(units)
        first = [sum(self.widths[:layer]) for layer in range(len(self.widths))]
        for layer, unit, _ in chosen:
            at = first[layer] + unit
            self.activation_U[at] = self.magnitude_U[at] = self.age_U[at] = 0
        return chosen

    def removed(self, layer: int, units: Sequence[int]) -> None:
        """These units of a layer are gone; what is known of the others stays."""
        if not self.widths:
            return
        first = sum(self.widths[:layer])
        gone = {first + unit for unit in units}
        kept = torch.tensor([at for at in range(len(self.age_U)) if at not in gone], device=self.age_U.device)
        for name in ("activation_U", "magnitude_U", "age_U"):
            setattr(self, name, getattr(self, name).index_select(0, kept))
        self.widths[layer] -= len(gone)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        kept = {name: getattr(self, name) for name in _KEPT} | {_WIDTHS: torch.tensor(self.widths, dtype=torch.int64)}
        return {name: value.cpu().contiguous() for name, value in kept.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Inverse of `tensors`. Raises KeyError where one is missing."""
        if _WIDTHS not in tensors:  # written when all layers had one width
            rows, columns = tensors["age_LH"].shape
            flat = {name.replace("_LH", "_U"): value.flatten() for name, value in tensors.items()}
            tensors = {**flat, _WIDTHS: torch.full((rows,), columns)}
        self.widths = tensors[_WIDTHS].tolist()
        for name in _KEPT:
            value = tensors[name].clone()
            setattr(self, name, value if name == "due_L" else value.to(device))


_KEPT: Sequence[str] = ("activation_U", "magnitude_U", "age_U", "due_L")
_WIDTHS = "widths_L"
