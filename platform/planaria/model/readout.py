"""A readout in closed form beside the transformer: ridge regressions on fixed random features, which cannot forget.

What is solved from sums over rows is the same in whatever order the rows came. The transformer beside it learns what
the readout does not know, and is trusted as far as it was right on rows that neither of them had learned from.

Legend: B rows, D features and the constant 1, C outputs, K kept concepts, H half-lives, E experts.
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


class Readout(nn.Module):
    """What of it answers. The sums that it is solved from belong to the run that learns."""

    all_DC: Tensor
    concept_KDC: Tensor
    recogniser_DK: Tensor
    held_K: Tensor
    present_DC: Tensor
    fading_HDC: Tensor
    weight_E: Tensor
    trust: Tensor
    """What the experts' answer and the transformer's output are multiplied by."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.regression = blueprint.task == "regression"
        pictures = blueprint.image_shape is not None
        self.features = PictureFeatures(blueprint) if pictures else TableFeatures(blueprint)
        size, outputs = self.features.size + 1, blueprint.outputs
        concepts, fading = blueprint.readout_concepts, blueprint.readout_fading
        self.register_buffer("all_DC", torch.zeros(size, outputs))
        self.register_buffer("concept_KDC", torch.zeros(concepts, size, outputs))
        self.register_buffer("recogniser_DK", torch.zeros(size, concepts))
        self.register_buffer("held_K", torch.zeros(concepts))
        self.register_buffer("present_DC", torch.zeros(size, outputs))
        self.register_buffer("fading_HDC", torch.zeros(fading, size, outputs))
        self.register_buffer("weight_E", torch.zeros(PRESENT + 1 + fading))
        self.register_buffer("trust", torch.tensor([1.0 if self.regression else _START_SCALE, 1.0]))

    @property
    def size(self) -> int:
        """Features of a row, with the constant 1."""
        return self.features.size + 1

    @torch.no_grad()
    def describe(self, features: Mapping[str, Tensor]) -> Tensor:
        """The rows' features and the constant 1. Shape [B, D], float32."""
        described_BD = self.features(features)
        return torch.cat((described_BD, described_BD.new_ones(len(described_BD), 1)), 1)

    @torch.no_grad()
    def experts(self, described_BD: Tensor) -> Tensor:
        """Each expert's estimate: probabilities of the classes, or the standardised target. Shape [B, E, C]."""
        concept_BKC = torch.einsum("bd,kdc->bkc", described_BD, self.concept_KDC)
        sure_BK = (described_BD @ self.recogniser_DK).clamp(min=0).square() * self.held_K
        sure_BK = sure_BK / sure_BK.sum(1, keepdim=True).clamp(min=1e-9)
        recognised_BC = (sure_BK[..., None] * concept_BKC).sum(1)
        fading_BHC = torch.einsum("bd,hdc->bhc", described_BD, self.fading_HDC)
        first = torch.stack((described_BD @ self.all_DC, recognised_BC, described_BD @ self.present_DC), 1)
        return torch.cat((first, fading_BHC), 1)

    def answer(self, described_BD: Tensor) -> Tensor:
        """What is added to the transformer's output: logits, or standardised targets. Shape [B, C]."""
        return torch.einsum("bec,e->bc", self.experts(described_BD), self.weight_E) * self.trust[0]

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """`answer` of raw rows."""
        return self.answer(self.describe(features))

    def grow_outputs(self, outputs: int) -> None:
        """New classes have not been seen: their estimate is 0."""
        for name in ("all_DC", "concept_KDC", "present_DC", "fading_HDC"):
            old = getattr(self, name)
            setattr(self, name, nn.functional.pad(old, (0, outputs - old.shape[-1])))
