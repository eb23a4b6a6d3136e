"""Fixed random features of a row: what a linear map needs to read a picture or a table well, without training.

They are drawn once from the stream's first rows and then stay, so that sums over them never grow stale.

Legend: B rows, D features, N filters, S filter side, P pixels, K numeric columns, V values of a table's row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import Blueprint

_FILTER_SIDE, _STRIDE, _POOLS = 6, 2, 3
_THRESHOLD = 0.25
"""Of a filter's answer, in standard deviations of its patch."""
_LOCAL_SHARE = 0.75
"""Of a picture's features, those that look at patches; the others see all pixels at once."""
_FILTER_PATCHES = 4_000
"""From which filters are drawn, once whitened."""
_FLAT = 0.05
"""Patches of a smaller spread hold nothing."""
_OFFSET_SPREAD = 0.3
_BUCKETS = 32
"""Numbers of categories that are told apart; higher ones share them."""
_MIXED = 3
"""Columns that a random feature of a table reads, at most."""
_CENTRED_SHARE = 0.4
"""Of a table's random features, those that measure the distance to an earlier row."""
_CLIP = 8.0


class PictureFeatures(nn.Module):
    """Rectified answers of whitened random patches, pooled, and rectified random projections of all pixels.

    Sources: Coates & Ng 2011 (random patches, whitening, pooling); Rahimi & Recht 2008 (random projections).
    """

    filters: Tensor
    projection_DP: Tensor
    offset_D: Tensor
    moments: Tensor
    scale_D: Tensor

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        assert blueprint.image_shape is not None
        channels, height, width = blueprint.image_shape
        self.side = min(_FILTER_SIDE, height, width)
        steps = [(length - self.side) // _STRIDE + 1 for length in (height, width)]
        self.pool = tuple(-(-count // _POOLS) for count in steps)
        cells = 2 * (-(-steps[0] // self.pool[0])) * (-(-steps[1] // self.pool[1]))
        count = max(1, round(_LOCAL_SHARE * blueprint.readout_features / cells))
        projected = max(1, blueprint.readout_features - count * cells)
        self.size, self.own = count * cells + projected, 0
        self.register_buffer("filters", torch.zeros(count, channels, self.side, self.side))
        self.register_buffer("projection_DP", torch.zeros(projected, channels * height * width))
        self.register_buffer("offset_D", torch.zeros(projected))
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))
        self.register_buffer("scale_D", torch.ones(self.size))

    @torch.no_grad()
    def fit(self, features: Mapping[str, Tensor], seed: int) -> None:
        """Draw them from these rows. Equal rows and seeds give equal features."""
        image_BCYX = _unit_range(features["image"])
        generator = torch.Generator().manual_seed(seed)
        count, channels, side, _ = self.filters.shape
        windows = image_BCYX.cpu().unfold(2, side, 1).unfold(3, side, 1)
        at = [
            torch.randint(size, (_FILTER_PATCHES,), generator=generator)
            for size in (windows.shape[i] for i in (0, 2, 3))
        ]
        patches = windows[at[0], :, at[1], at[2]].reshape(_FILTER_PATCHES, -1)
        filled = patches[patches.std(1) > _FLAT]
        patches = filled if len(filled) > count else patches + torch.randn(patches.shape, generator=generator)
        patches = (patches - patches.mean(1, keepdim=True)) / (patches.std(1, keepdim=True) + 0.1)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitening = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
        chosen = (patches @ whitening)[torch.randperm(len(patches), generator=generator)[:count]]
        filters = (chosen / chosen.norm(dim=1, keepdim=True) @ whitening).view(count, channels, side, side)
        self.filters.copy_(filters - filters.mean((1, 2, 3), keepdim=True))
        pixels = self.projection_DP.shape[1]
        self.projection_DP.copy_(torch.randn(self.projection_DP.shape, generator=generator) / pixels**0.5)
        self.offset_D.copy_(_OFFSET_SPREAD * torch.randn(self.offset_D.shape, generator=generator))
        self.moments.copy_(torch.stack((image_BCYX.mean(), image_BCYX.std().clamp(min=_FLAT))))
        self.scale_D.fill_(1.0)
        self.scale_D.copy_(_unit_scale(self(features)))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Shape [B, D], float32."""
        image_BCYX = _unit_range(features["image"])
        grey_BYX = image_BCYX.mean(1, keepdim=True)
        mean = F.avg_pool2d(grey_BYX, self.side, _STRIDE)
        squares = F.avg_pool2d(image_BCYX.square().mean(1, keepdim=True), self.side, _STRIDE)
        spread = (squares - mean.square()).clamp(min=0).sqrt() + 0.1
        answer = F.conv2d(image_BCYX, self.filters, stride=_STRIDE) / spread
        rectified = torch.cat((F.relu(answer - _THRESHOLD), F.relu(-answer - _THRESHOLD)), 1)
        local_BD = F.avg_pool2d(rectified, self.pool, ceil_mode=True).flatten(1)
        pixels_BP = (image_BCYX.flatten(1) - self.moments[0]) / self.moments[1]
        global_BD = F.relu(F.linear(pixels_BP, self.projection_DP, self.offset_D))
        return torch.cat((local_BD, global_BD), 1) * self.scale_D


class TableFeatures(nn.Module):
    """A table's own columns (numbers standardised, which are missing, categories one by one); rectified random
    combinations of a few of them, which bend where an earlier row lies; and closeness to earlier rows."""

    mean_K: Tensor
    spread_K: Tensor
    mix_DV: Tensor
    offset_D: Tensor
    centre_DV: Tensor
    sharpness_D: Tensor
    scale_D: Tensor

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.numeric, self.categorical = blueprint.numeric, blueprint.categorical
        self.buckets = min(_BUCKETS, blueprint.categories)
        values = 2 * self.numeric + self.categorical * self.buckets
        centred = round(_CENTRED_SHARE * blueprint.readout_features)
        mixed = blueprint.readout_features - centred
        self.size, self.own = values + mixed + centred, values
        self.register_buffer("mean_K", torch.zeros(self.numeric))
        self.register_buffer("spread_K", torch.ones(self.numeric))
        self.register_buffer("mix_DV", torch.zeros(mixed, values))
        self.register_buffer("offset_D", torch.zeros(mixed))
        self.register_buffer("centre_DV", torch.zeros(centred, values))
        self.register_buffer("sharpness_D", torch.zeros(centred))
        self.register_buffer("scale_D", torch.ones(self.size))

    @torch.no_grad()
    def fit(self, features: Mapping[str, Tensor], seed: int) -> None:
        """Draw them from these rows. Equal rows and seeds give equal features."""
        generator = torch.Generator().manual_seed(seed)
        if self.numeric:
            raw_BK = features["numeric"].double()
            missing = raw_BK.isnan()
            count = (~missing).sum(0).clamp(min=1)
            mean = raw_BK.nan_to_num(0.0).sum(0) / count
            spread = ((raw_BK - mean).nan_to_num(0.0).square().sum(0) / count).sqrt()
            self.mean_K.copy_(mean)
            self.spread_K.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
        values_BV = self._values(features).cpu()
        self._fit_mixed(values_BV, generator)
        self._fit_centred(values_BV, generator)
        self.scale_D.fill_(1.0)
        self.scale_D.copy_(_unit_scale(self(features)))

    def _fit_mixed(self, values_BV: Tensor, generator: torch.Generator) -> None:
        mixed = len(self.mix_DV)
        columns = self.numeric + self.categorical
        rows = values_BV[torch.randint(len(values_BV), (mixed,), generator=generator)]
        order = torch.rand(mixed, columns, generator=generator).argsort(1)
        wanted = torch.randint(1, min(_MIXED, columns) + 1, (mixed, 1), generator=generator)
        reads = torch.zeros(mixed, columns).scatter_(1, order, (torch.arange(columns) < wanted).float())
        numbers = reads[:, : self.numeric] * torch.randn(mixed, self.numeric, generator=generator)
        names = reads[:, self.numeric :].repeat_interleave(self.buckets, 1) * rows[:, 2 * self.numeric :]
        mix = torch.cat((numbers, torch.zeros_like(numbers), names), 1)
        self.mix_DV.copy_(mix)
        # a category that the row has counts 1; what reads several of them answers where all but one agree, or all
        slack = torch.randint(1, 3, (mixed,), generator=generator).float() * (names.sum(1) > 0)
        self.offset_D.copy_(slack - (mix * rows).sum(1))

    def _fit_centred(self, values_BV: Tensor, generator: torch.Generator) -> None:
        centred = len(self.centre_DV)
        rows, others = (values_BV[torch.randint(len(values_BV), (centred,), generator=generator)] for _ in range(2))
        typical = torch.median((rows - others).square().sum(1)) if centred else torch.ones(())
        width = 2.0 ** torch.randint(-4, 1, (centred,), generator=generator)
        self.centre_DV.copy_(rows)
        self.sharpness_D.copy_(1 / (width * typical.clamp(min=1e-3)))

    def _values(self, features: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if self.numeric:
            raw_BK = features["numeric"].float()
            z_BK = ((raw_BK - self.mean_K) / self.spread_K).clamp(-_CLIP, _CLIP)
            parts += [z_BK.nan_to_num(0.0), raw_BK.isnan().float()]
        if self.categorical:
            parts.append(F.one_hot(features["categorical"] % self.buckets, self.buckets).flatten(1).float())
        return torch.cat(parts, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Shape [B, D], float32."""
        values_BV = self._values(features)
        mixed_BD = F.relu(F.linear(values_BV, self.mix_DV, self.offset_D))
        # -sharpness x (|value|^2 - 2 value.centre + |centre|^2), as one product
        pulled_DV = self.centre_DV * (2 * self.sharpness_D)[:, None]
        near_BD = F.linear(values_BV, pulled_DV, (pulled_DV * self.centre_DV).sum(1) * -0.5)
        near_BD = torch.addcmul(near_BD, values_BV.square().sum(1, keepdim=True), self.sharpness_D, value=-1)
        return torch.cat((values_BV, mixed_BD, near_BD.clamp(max=0).exp()), 1) * self.scale_D


def _unit_range(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def _unit_scale(features_BD: Tensor) -> Tensor:
    """What gives every feature a mean square of 1; one that these rows do not have is left as it is."""
    size_D = features_BD.square().mean(0).sqrt()
    return torch.where(size_D > 1e-4, 1 / size_D.clamp(min=1e-4), torch.ones_like(size_D))
