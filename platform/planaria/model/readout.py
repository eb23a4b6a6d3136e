"""A readout in closed form beside the transformer: ridge regressions on fixed random features, which cannot forget.

What is solved from sums over rows is the same in whatever order the rows came. The transformer beside it learns what
the readout does not know, and is trusted as far as it was right on rows that neither of them had learned from.

Legend: B rows, D features and the constant 1, C outputs, K kept concepts, E experts, V voices: the experts and the
transformer, X solved regressions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.model.random_features import PictureFeatures, TableFeatures

_START_SCALE = 8.0
"""Of a class's estimated probability, into a logit, before it is learned."""
ALL, RECOGNISED, PRESENT = range(3)
"""The first experts: one regression over all rows; each concept's own, weighted by how surely a row is recognised as
the concept's; that of the present concept. Behind them, two for each half-life that fade: on all features, and on the
columns alone (of pictures, on the constant alone)."""
_FADING_FROM = 2
"""Among the solved regressions: that over all rows, that of the present concept, those that fade, each concept's."""


class Readout(nn.Module):
    """What of it answers. The sums that it is solved from belong to the run that learns."""

    solved_DXC: Tensor
    recogniser_DK: Tensor
    held_K: Tensor
    trust_V: Tensor
    """What each expert's estimate and, last, the transformer's output are multiplied by."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.regression = blueprint.task == "regression"
        pictures = blueprint.image_shape is not None
        self.features = PictureFeatures(blueprint) if pictures else TableFeatures(blueprint)
        size, outputs = self.features.size + 1, blueprint.outputs
        concepts, fading = blueprint.readout_concepts, blueprint.readout_fading
        self.concepts_from = _FADING_FROM + fading
        self.register_buffer("solved_DXC", torch.zeros(size, self.concepts_from + concepts, outputs))
        self.register_buffer("recogniser_DK", torch.zeros(size, concepts))
        self.register_buffer("held_K", torch.zeros(concepts))
        experts = PRESENT + 1 + fading
        even = (1.0 if self.regression else _START_SCALE) / experts
        self.register_buffer("trust_V", torch.tensor([even] * experts + [1.0], dtype=torch.float64))

    @property
    def size(self) -> int:
        """Features of a row, with the constant 1."""
        return self.features.size + 1

    @torch.no_grad()
    def describe(self, features: Mapping[str, Tensor]) -> Tensor:
        """The rows' features and the constant 1. Shape [B, D], float32."""
        described_BD = self.features(features)
        return torch.cat((described_BD, described_BD.new_ones(described_BD.shape[0], 1)), 1)

    @torch.no_grad()
    def experts(self, described_BD: Tensor) -> Tensor:
        """Each expert's estimate: probabilities of the classes, or the standardised target. Shape [B, E, C]."""
        solved_BXC = (described_BD @ self.solved_DXC.flatten(1)).view(described_BD.shape[0], *self.solved_DXC.shape[1:])
        sure_BK = (described_BD @ self.recogniser_DK).clamp(min=0).square() * self.held_K
        sure_BK = sure_BK / sure_BK.sum(1, keepdim=True).clamp(min=1e-9)
        recognised_BC = (sure_BK[..., None] * solved_BXC[:, self.concepts_from :]).sum(1)
        return torch.cat((solved_BXC[:, :1], recognised_BC[:, None], solved_BXC[:, 1 : self.concepts_from]), 1)

    def answer(self, said_BEC: Tensor) -> Tensor:
        """What is added to the transformer's output, of what the experts say: logits, or standardised targets. Shape
        [B, C]."""
        return (said_BEC * self.trust_V[:-1, None].float()).sum(1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """`answer` of raw rows."""
        return self.answer(self.experts(self.describe(features)))

    # -- the solved regressions, as they are written; each is a view of shape [D, C]

    @property
    def all_DC(self) -> Tensor:
        return self.solved_DXC[:, 0]

    @property
    def present_DC(self) -> Tensor:
        return self.solved_DXC[:, 1]

    def fading_DC(self, at: int) -> Tensor:
        return self.solved_DXC[:, _FADING_FROM + at]

    def concept_DC(self, at: int) -> Tensor:
        return self.solved_DXC[:, self.concepts_from + at]

    def grow_outputs(self, outputs: int) -> None:
        """New classes have not been seen: their estimate is 0."""
        self.solved_DXC = nn.functional.pad(self.solved_DXC, (0, outputs - self.solved_DXC.shape[-1]))
