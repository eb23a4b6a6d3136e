"""Continual backpropagation: hidden units that are of little use are begun anew, so that the model stays able to learn.

Source: Dohare et al. 2024 (doi 10.1038/s41586-024-07711-7; arXiv 2306.13812). Legend: L layers, H hidden units.
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
        self.activation_LH = torch.zeros(0, 0)
        """Running mean of each unit's activation; its outgoing bias takes this over when it goes."""
        self.magnitude_LH = torch.zeros(0, 0)
        """Of its absolute value."""
        self.age_LH = torch.zeros(0, 0, dtype=torch.int64)
        """In steps."""
        self.due_L = torch.zeros(0, dtype=torch.float64)
        """Units of each layer that are due, and fractions of the next one."""

    def choose(self, activation_LH: Tensor, magnitude_LH: Tensor, outgoing_LH: Tensor) -> list[tuple[int, int, float]]:
        """Take in a step (means over its rows) and pick (layer, unit, mean activation) to begin anew: of the units
        older than `maturity_steps`, the share `rate` a step, those of least utility."""
        if self.age_LH.shape != activation_LH.shape:  # at the start, or as layers share differently now
            self.activation_LH, self.magnitude_LH = torch.zeros_like(activation_LH), torch.zeros_like(magnitude_LH)
            self.age_LH = torch.zeros(activation_LH.shape, dtype=torch.int64, device=activation_LH.device)
            self.due_L = torch.zeros(len(activation_LH), dtype=torch.float64)
        self.activation_LH.lerp_(activation_LH, 1 - _DECAY)
        self.magnitude_LH.lerp_(magnitude_LH, 1 - _DECAY)
        self.age_LH += 1
        mature_LH = self.age_LH > self.maturity_steps
        self.due_L += self.rate * mature_LH.sum(1).cpu()
        if bool((self.due_L < 1).all()):
            return []
        grown_LH = 1 - _DECAY ** self.age_LH.double()  # the running means began at zero
        utility_LH = (self.magnitude_LH / grown_LH * outgoing_LH).masked_fill(~mature_LH, torch.inf)
        chosen = []
        for layer, due in enumerate(self.due_L.tolist()):
            units = utility_LH[layer].argsort(stable=True)[: min(int(due), int(mature_LH[layer].sum()))].tolist()
            means = (self.activation_LH / grown_LH)[layer]
            chosen += [(layer, unit, float(means[unit])) for unit in units]
            self.due_L[layer] -= len(units)
        for layer, unit, _ in chosen:
            self.activation_LH[layer, unit] = self.magnitude_LH[layer, unit] = self.age_LH[layer, unit] = 0
        return chosen

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        kept = {name: getattr(self, name) for name in _KEPT}
        return {name: value.cpu().contiguous() for name, value in kept.items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Inverse of `tensors`. Raises KeyError where one is missing."""
        for name in _KEPT:
            value = tensors[name].clone()
            setattr(self, name, value if name == "due_L" else value.to(device))


_KEPT: Sequence[str] = ("activation_LH", "magnitude_LH", "age_LH", "due_L")
