"""Fixed random features of the inputs: what the detectors see of a row whatever the model has learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.detect.saved import Saved, pack
from planaria.signals import Features, Fields

Rows = npt.NDArray[np.float32]

MAX_PIXELS = 1_024
"""Larger images are projected from this many of their values, drawn once."""
PAIRS = 24
"""Pairs of near pixels in each contrast feature."""
NEAR = np.array([(0, 1), (1, 0), (1, 1), (1, -1), (0, 2)])
OUTLIER = 5.0
"""Numbers are clipped at this many robust standard deviations from the median."""


class Sketch:
    """Maps the features of B rows to float32 [B, F] of roughly unit variance; equal seeds give equal maps.

    Images need nothing else. Tables take each column's centre and scale from the rows given to `fit`, once.
    """

    def __init__(self, fields: Fields, seed: int, features: int = 32) -> None:
        assert features >= 2, "a sketch has two halves"
        generator = np.random.default_rng([seed, 0x5E7C4])
        self.features = features
        self._map: _ImageMap | _TableMap
        if fields.image_shape is not None:
            self._map = _ImageMap(fields.image_shape, features, generator)
        else:
            self._map = _TableMap(fields, features, generator)

    @property
    def fitted(self) -> bool:
        """False while a table still needs `fit`."""
        return self._map.fitted

    def fit(self, features: Features) -> None:
        """Learn the columns' scales from some first rows: the same ones on every worker. Does nothing for images."""
        self._map.fit(features)

    def __call__(self, features: Features) -> Rows:
        return self._map(features)

    def state(self) -> dict[str, Any]:
        return self._map.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError where the state is not that of a sketch of the same columns."""
        self._map.load_state(Saved(state, "sketch state"))


class _ImageMap:
    """One half random projections of the pixels, which see where things are; the other half the mean absolute
    difference of random near pixels, which see texture: noise, permuted pixels."""

    fitted = True

    def __init__(self, shape: tuple[int, int, int], features: int, generator: np.random.Generator) -> None:
        channels, height, width = shape
        size = channels * height * width
        linear = features // 2
        self._pixels = np.sort(generator.permutation(size)[:MAX_PIXELS]) if size > MAX_PIXELS else None
        used = min(size, MAX_PIXELS)
        # 3 and 15 bring pictures with values in [0, 1] to a variance of about 1.
        self._weights_PF = (3 * generator.standard_normal((used, linear)) / np.sqrt(used)).astype(np.float32)
        pairs = (features - linear, PAIRS)
        channel, row, column = (generator.integers(0, n, pairs) for n in shape)
        step = NEAR[generator.integers(0, len(NEAR), pairs)]
        near = (channel, (row + step[..., 0]) % height, (column + step[..., 1]) % width)
        ends = [np.ravel_multi_index(place, shape).T.ravel() for place in ((channel, row, column), near)]
        self._ends = np.concatenate(ends)
        """First ends of all pairs, and then second ones."""

    def fit(self, features: Features) -> None:
        """Pictures have a scale of their own."""

    def __call__(self, features: Features) -> Rows:
        image = features["image"].reshape(len(features["image"]), -1)
        pixels_BP = image if self._pixels is None else image[:, self._pixels]
        if pixels_BP.dtype == np.uint8:  # [0, 1] is that of the result: one pass over the pixels less
            projected_BF = pixels_BP.astype(np.float32) @ self._weights_PF / np.float32(255)
        else:
            projected_BF = _unit(pixels_BP) @ self._weights_PF
        return np.concatenate([projected_BF, 15 * self._contrast(image)], axis=1)

    def _contrast(self, image_BP: npt.NDArray[Any]) -> Rows:
        """Gathered along rows of the transposed pictures, and bytes as bytes: several times as fast."""
        image_PB = np.ascontiguousarray(image_BP.T)
        if image_PB.dtype != np.uint8:
            image_PB = _unit(image_PB)
        first, second = image_PB.take(self._ends, 0).reshape(2, len(self._ends) // 2, -1)
        difference = np.maximum(first, second)
        difference -= np.minimum(first, second)
        total = np.uint16 if difference.dtype == np.uint8 else np.float32
        sum_FB = difference.reshape(PAIRS, -1, len(image_BP)).sum(0, dtype=total)
        return np.asarray(sum_FB.T / np.float32(PAIRS * (255 if total is np.uint16 else 1)), np.float32)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, saved: Saved) -> None:
        """Nothing was learned."""


class _TableMap:
    """Random mixtures of all columns, one half of them rectified so that changes of spread are seen as well."""

    def __init__(self, fields: Fields, features: int, generator: np.random.Generator) -> None:
        numeric, categorical = len(fields.numeric), len(fields.categorical)
        assert numeric + categorical > 0, "a row has an image, numbers or categories"
        self._numeric = numeric
        self._rectified = features // 2
        norm = np.sqrt(numeric + categorical)
        self._weights_CF = (generator.standard_normal((2 * numeric, features)) / norm).astype(np.float32)
        shape = (categorical, fields.categories, features)
        self._embedding_CIF = (generator.standard_normal(shape) / norm).astype(np.float32)
        self._bias_F = generator.uniform(-0.5, 0.5, features).astype(np.float32)
        self._centre_C = np.zeros(numeric, np.float32)
        self._scale_C = np.ones(numeric, np.float32)
        self.fitted = numeric == 0

    def fit(self, features: Features) -> None:
        assert self._numeric == 0 or not self.fitted, "a sketch is fitted once and then frozen"
        for column in range(self._numeric):
            values = features["numeric"][:, column].astype(np.float64)
            self._centre_C[column], self._scale_C[column] = _robust_scale(values[np.isfinite(values)])
        self.fitted = True

    def __call__(self, features: Features) -> Rows:
        assert self.fitted, "fit a table's sketch to the stream's first rows before it is used"
        mixed_BF = self._bias_F + np.zeros((_row_count(features), 1), np.float32)
        if self._numeric:
            values_BC = features["numeric"]
            missing_BC = ~np.isfinite(values_BC)
            scaled_BC = np.where(missing_BC, 0, (values_BC - self._centre_C) / self._scale_C).clip(-OUTLIER, OUTLIER)
            mixed_BF = mixed_BF + np.concatenate([scaled_BC, missing_BC], axis=1).astype(np.float32) @ self._weights_CF
        for column in range(len(self._embedding_CIF)):
            mixed_BF = mixed_BF + self._embedding_CIF[column, features["categorical"][:, column]]
        mixed_BF[:, : self._rectified] = np.maximum(mixed_BF[:, : self._rectified], 0)
        return mixed_BF

    def state(self) -> dict[str, Any]:
        return {"fitted": int(self.fitted), "centre": pack(self._centre_C), "scale": pack(self._scale_C)}

    def load_state(self, saved: Saved) -> None:
        self._centre_C = saved.array("centre", np.float32, (self._numeric,))
        self._scale_C = saved.array("scale", np.float32, (self._numeric,))
        self.fitted = bool(saved.integer("fitted"))


def _unit(pixels: npt.NDArray[Any]) -> Rows:
    """uint8 as [0, 1]; floats as they are, with missing values as 0."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255)
    return np.nan_to_num(pixels.astype(np.float32), posinf=0.0, neginf=0.0)


def _robust_scale(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Median, and the interquartile range as a normal's standard deviation; falls back where most values are equal."""
    if not len(values):
        return 0.0, 1.0
    low, middle, high = np.percentile(values, (25, 50, 75))
    spread = (high - low) / 1.349 or values.std()
    return float(middle), float(spread) or 1.0


def _row_count(features: Features) -> int:
    return len(next(iter(features.values())))
