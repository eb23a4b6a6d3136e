"""Input layers: rows of a stream become tokens. Legend: B rows, T tokens, D width, K columns, P values of a patch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import Blueprint


class ImageInput(nn.Module):
    """Square patches, linearly embedded, with learned positions. Pixels in [0, 255] (uint8) or [0, 1] (float)."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.patch = blueprint.patch
        self.embed = nn.Linear(blueprint.patch_values, blueprint.width)
        self.position_TD = nn.Parameter(torch.empty(blueprint.tokens, blueprint.width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        nn.init.normal_(self.position_TD, std=0.02, generator=generator)

    def observe(self, features: Mapping[str, Tensor]) -> None:
        """Images need no running statistics."""

    def forward(self, features: Mapping[str, Tensor], class_token_D: Tensor) -> Tensor:
        image_BCYX = features["image"]
        scale = 2 / 255 if image_BCYX.dtype == torch.uint8 else 2.0
        image_BCYX = image_BCYX.to(class_token_D.dtype) * scale - 1
        batch, channels, height, width = image_BCYX.shape
        side = self.patch
        if height % side or width % side:
            image_BCYX = F.pad(image_BCYX, (0, -width % side, 0, -height % side))
            height, width = image_BCYX.shape[2:]
        tiles = image_BCYX.view(batch, channels, height // side, side, width // side, side)
        patches_BTP = tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)
        tokens_BTD = self.embed(patches_BTP)
        first_B1D = class_token_D.expand(batch, 1, -1)
        return torch.cat((first_B1D, tokens_BTD), 1) + self.position_TD


class TableInput(nn.Module):
    """One token for each column. Numbers are standardised by their running mean and variance; a missing number has a
    learned embedding of its own; categories are looked up, 0 being "missing or other".

    Source of the token layout: FT-Transformer (Gorishniy et al. 2021, arXiv 2106.11959).
    """

    count: Tensor
    mean_K: Tensor
    squares_K: Tensor

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        k, c, d = blueprint.numeric, blueprint.categorical, blueprint.width
        self.scale_KD = nn.Parameter(torch.empty(k, d)) if k else None
        self.shift_KD = nn.Parameter(torch.empty(k, d)) if k else None
        self.missing_KD = nn.Parameter(torch.empty(k, d)) if k else None
        self.category_KVD = nn.Parameter(torch.empty(c, blueprint.categories, d)) if c else None
        # float64: sums over an endless stream
        self.register_buffer("count", torch.zeros(k, dtype=torch.float64))
        self.register_buffer("mean_K", torch.zeros(k, dtype=torch.float64))
        self.register_buffer("squares_K", torch.zeros(k, dtype=torch.float64))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)

    @torch.no_grad()
    def observe(self, features: Mapping[str, Tensor]) -> None:
        """Update the running mean and variance with a batch."""
        if self.scale_KD is None:
            return
        moments = running_moments(self.count, self.mean_K, self.squares_K, features["numeric"])
        for kept, updated in zip((self.count, self.mean_K, self.squares_K), moments, strict=True):
            kept.copy_(updated)

    def forward(self, features: Mapping[str, Tensor], class_token_D: Tensor) -> Tensor:
        tokens: list[Tensor] = []
        if self.scale_KD is not None:
            assert self.shift_KD is not None and self.missing_KD is not None
            raw_BK = features["numeric"]
            spread_K = (self.squares_K / self.count.clamp(min=1)).sqrt().clamp(min=1e-6)
            z_BK = ((raw_BK - self.mean_K) / spread_K).clamp(-8, 8).to(class_token_D.dtype)
            present_BKD = z_BK.nan_to_num(0.0)[..., None] * self.scale_KD + self.shift_KD
            tokens.append(torch.where(raw_BK.isnan()[..., None], self.missing_KD, present_BKD))
        if self.category_KVD is not None:
            columns, categories, _ = self.category_KVD.shape
            first_K = torch.arange(0, columns * categories, categories, device=class_token_D.device)
            tokens.append(F.embedding(features["categorical"] + first_K, self.category_KVD.flatten(0, 1)))
        batch = tokens[0].shape[0]
        return torch.cat((class_token_D.expand(batch, 1, -1), *tokens), 1)


def running_moments(
    count_K: Tensor, mean_K: Tensor, squares_K: Tensor, rows_BK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of each column with a batch added (Chan et al. 1979), in float64.
    Missing numbers (NaN) do not count."""
    values_BK = rows_BK.to(torch.float64)
    n_K = (~values_BK.isnan()).sum(0).to(torch.float64)
    batch_mean_K = values_BK.nan_to_num(0.0).sum(0) / n_K.clamp(min=1)
    batch_squares_K = ((values_BK - batch_mean_K).nan_to_num(0.0) ** 2).sum(0)
    total_K = count_K + n_K
    delta_K = batch_mean_K - mean_K
    share_K = n_K / total_K.clamp(min=1)
    return total_K, mean_K + delta_K * share_K, squares_K + batch_squares_K + delta_K**2 * count_K * share_K
