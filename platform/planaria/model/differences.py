"""What a layer adds to weights that it shares with others: a product of two thin matrices for each weight.

Source: relaxed recursive transformers (Bae et al. 2024, arXiv 2410.20672); the form is LoRA's (Hu et al. 2021, arXiv
2106.09685). Legend: N heads, H head width, D width, M MLP width, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Difference(nn.Module):
    """left @ right for each named weight, whose left factors have the weights' own rows: they grow and shrink with
    them. It begins as zero: left factors are zero, right ones random."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], rank: int) -> None:
        """`shapes` are those of the weights, whose last dimension is the input's."""
        super().__init__()
        self.names, self.rank = tuple(shapes), rank
        for name, shape in shapes.items():
            setattr(self, f"{name}_left", nn.Parameter(torch.zeros(*shape[:-1], rank)))
            setattr(self, f"{name}_right", nn.Parameter(torch.empty(rank, shape[-1])))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for name in self.names:
            nn.init.zeros_(self.left(name))
            nn.init.normal_(self.right(name), std=self.right(name).shape[-1] ** -0.5, generator=generator)

    def left(self, name: str) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self, f"{name}_left")
        return parameter

    def right(self, name: str) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self, f"{name}_right")
        return parameter

    def added(self, name: str, weight: Tensor) -> Tensor:
        """The weight with the difference."""
        return torch.add(weight, self.left(name) @ self.right(name))

    @torch.no_grad()
    def fit(self, name: str, wanted: Tensor) -> None:
        """Come as close to a wanted difference as the rank allows (Eckart and Young 1936)."""
        rows = wanted.reshape(-1, wanted.shape[-1]).double()
        left, size, right = torch.linalg.svd(rows, full_matrices=False)
        rank = min(self.rank, len(size))
        root = size[:rank].sqrt()
        self.left(name).zero_()
        self.left(name)[..., :rank] = (left[:, :rank] * root).view(*wanted.shape[:-1], rank).to(wanted)
        self.right(name)[:rank] = (root[:, None] * right[:rank]).to(wanted)
