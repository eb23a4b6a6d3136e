"""Adapters: a few hidden units beside each layer's MLP that only the rows of one concept use, and what finds a row's.

Legend: B rows, Q query tokens, D width, K adapters, R units of one, U = K x R units, F features of the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.model.random_features import PictureFeatures, TableFeatures

ROUTE = "route"
"""Beside a row's features: how much of each adapter it uses, shape [B, K]. Rows that come without it are routed by what
they are like."""
ROUTER_FEATURES = 256
_UNKNOWN = -1e9
"""Added to the score of an adapter that the router knows no rows of."""


class Adapters(nn.Module):
    """Added to the MLP's output: out(gelu(into(x))), each unit times how much the row uses of its adapter.

    All units are computed for every row and one product serves rows of all concepts, so that nothing is gathered and a
    compiler can follow. Sources: Houlsby et al. 2019 (arXiv 1902.00751), bottleneck adapters; He et al. 2022 (arXiv
    2110.04366), beside the MLP instead of behind it.
    """

    def __init__(self, width: int, adapters: int, units: int) -> None:
        super().__init__()
        self.units = units
        self.into_UD = nn.Parameter(torch.empty(adapters * units, width))
        self.into_bias_U = nn.Parameter(torch.zeros(adapters * units))
        self.out_UD = nn.Parameter(torch.zeros(adapters * units, width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """They add nothing yet."""
        for name, fresh in self.fresh(len(self.into_bias_U), generator).items():
            getattr(self, name).data.copy_(fresh)

    def fresh(self, units: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Rows to append to the parameters for so many units, which add nothing yet."""
        width = self.into_UD.shape[1]
        drawn_UD = torch.randn(units, width, generator=generator) / width**0.5
        return {"into_UD": drawn_UD, "into_bias_U": torch.zeros(units), "out_UD": torch.zeros(units, width)}

    def forward(self, normed_BQD: Tensor, route_BK: Tensor) -> Tensor:
        hidden_BQU = F.gelu(F.linear(normed_BQD, self.into_UD, self.into_bias_U))
        used_BU = route_BK.repeat_interleave(self.units, 1).to(hidden_BQU.dtype)
        return (hidden_BQU * used_BU[:, None]) @ self.out_UD


class Router(nn.Module):
    """Linear discriminant analysis of fixed random features: how likely each adapter's rows are to be like this one."""

    weight_FK: Tensor
    offset_K: Tensor
    known_K: Tensor

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        sized = replace(blueprint, readout_features=ROUTER_FEATURES)
        self.features = PictureFeatures(sized) if blueprint.image_shape is not None else TableFeatures(sized)
        self.register_buffer("weight_FK", torch.zeros(self.features.size, blueprint.adapters))
        self.register_buffer("offset_K", torch.zeros(blueprint.adapters))
        self.register_buffer("known_K", torch.zeros(blueprint.adapters))

    @torch.no_grad()
    def describe(self, features: Mapping[str, Tensor]) -> Tensor:
        """Shape [B, F], float32."""
        described_BF: Tensor = self.features(features).float()
        return described_BF

    @torch.no_grad()
    def route(self, described_BF: Tensor) -> Tensor:
        """Shape [B, K]; rows sum up to 1. Adapters that no rows are known of are not used, as long as there are
        others."""
        score_BK = described_BF @ self.weight_FK + self.offset_K
        return (score_BK.float() + (1 - self.known_K) * _UNKNOWN).softmax(1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """`route` of raw rows."""
        return self.route(self.describe(features))

    def add_adapter(self) -> None:
        """It is unknown; where none was known until now, those that there were count alike."""
        known_K = self.known_K if bool(self.known_K.any()) else torch.ones_like(self.known_K)
        self.weight_FK = F.pad(self.weight_FK, (0, 1))
        self.offset_K, self.known_K = F.pad(self.offset_K, (0, 1)), F.pad(known_K, (0, 1))
