"""What a context does to the features of its rows: each a function of (features, row numbers), vectorised.

B rows, C channels, P pixels of one channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.errors import InputError
from planaria.job import Change
from planaria.signals import Features, Fields
from planaria.stream.chance import key, normal, shuffled, word
from planaria.stream.pool import Spread

Integers = npt.NDArray[np.int64]
Pixels = npt.NDArray[Any]
Transform = Callable[[Features, Integers], Features]

_OF_IMAGES = ("rotate", "permute_pixels", "permute_patches", "invert")
_NOISE_BANK = 1 << 18
"""Normal numbers from which every row cuts its noise, at a place of its own: far cheaper than drawing anew."""


def make_transform(change: Change, fields: Fields, spread: Spread, seed: int) -> Transform:
    """The transform of one context. Raises InputError where it cannot be applied to such rows.

    Labels are permuted elsewhere: `permute_labels` leaves the features as they are.
    """
    if change.transform in _OF_IMAGES and fields.image_shape is None:
        raise InputError(
            f"stream.scenario: context '{change.name}' has transform {change.transform}, which needs images; "
            f"tables can have corrupt or permute_labels"
        )
    if change.transform == "corrupt":
        return _corrupt(change, fields, spread, seed)
    shape = fields.image_shape
    if shape is None or change.transform in ("none", "permute_labels"):
        return lambda features, rows: features
    if change.transform == "invert":
        return _on_images(lambda images_BCHW: _inverted(images_BCHW, spread))
    if change.transform == "rotate":
        return _on_images(rotation(change.degrees, shape[1], shape[2]))
    return _on_images(_reorder(_pixel_order(change, shape[1], shape[2], seed)))


def rotation(degrees: float, height: int, width: int) -> Callable[[Pixels], Pixels]:
    """Turns pictures about their centre, anticlockwise, bilinear, zero outside; exact for multiples of 90."""
    turns, rest = divmod(degrees % 360, 90)
    if rest == 0 and (height == width or turns % 2 == 0):
        return lambda images_BCHW: np.ascontiguousarray(np.rot90(images_BCHW, int(turns), axes=(2, 3)))
    return _bilinear(*_corners(degrees, height, width))


def _on_images(turn: Callable[[Pixels], Pixels]) -> Transform:
    return lambda features, rows: {**features, "image": turn(features["image"])}


def _inverted(images_BCHW: Pixels, spread: Spread) -> Pixels:
    return np.asarray(spread.low + spread.high - images_BCHW, images_BCHW.dtype)


def _pixel_order(change: Change, height: int, width: int, seed: int) -> Integers:
    """For each pixel of the new picture, which of the old one's it is."""
    random = key(seed, change.transform, change.variant)
    if change.transform == "permute_pixels":
        return shuffled(random, height * width)
    side = change.patch
    if height % side or width % side:
        raise InputError(
            f"stream.scenario: context '{change.name}' has patch {side}, which does not divide {height}x{width}; "
            f"choose a divisor of both"
        )
    down, across = height // side, width // side
    pixel_of_patch = np.arange(height * width).reshape(down, side, across, side).transpose(0, 2, 1, 3)
    patches = pixel_of_patch.reshape(down * across, side, side)[shuffled(random, down * across)]
    return patches.reshape(down, across, side, side).transpose(0, 2, 1, 3).reshape(-1)


def _reorder(order_P: Integers) -> Callable[[Pixels], Pixels]:
    def reorder(images_BCHW: Pixels) -> Pixels:
        flat_BCP = images_BCHW.reshape(*images_BCHW.shape[:2], -1)
        return flat_BCP[:, :, order_P].reshape(images_BCHW.shape)

    return reorder


def _corners(degrees: float, height: int, width: int) -> tuple[Integers, npt.NDArray[np.float32]]:
    """For each pixel of the turned picture, the 4 pixels around its origin and their weights: [4, P] both."""
    angle = np.deg2rad(degrees)
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = np.meshgrid(np.arange(height) - middle_y, np.arange(width) - middle_x, indexing="ij")
    # The y axis points down, so anticlockwise on the screen is clockwise in (x, y).
    from_x = (np.cos(angle) * x - np.sin(angle) * y + middle_x).reshape(-1)
    from_y = (np.sin(angle) * x + np.cos(angle) * y + middle_y).reshape(-1)
    left, top = np.floor(from_x).astype(np.int64), np.floor(from_y).astype(np.int64)
    origins, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            weight = (1 - np.abs(from_y - row)) * (1 - np.abs(from_x - column))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            origins.append(np.where(inside, row * width + column, 0))
            weights.append(np.where(inside, weight, 0.0))
    return np.stack(origins), np.stack(weights).astype(np.float32)


def _bilinear(origins_4P: Integers, weights_4P: npt.NDArray[np.float32]) -> Callable[[Pixels], Pixels]:
    def turn(images_BCHW: Pixels) -> Pixels:
        flat_BCP = images_BCHW.reshape(*images_BCHW.shape[:2], -1)
        turned = np.zeros(flat_BCP.shape, np.float32)
        for origin_P, weight_P in zip(origins_4P, weights_4P, strict=True):
            turned += flat_BCP[:, :, origin_P] * weight_P
        if images_BCHW.dtype == np.uint8:
            turned = np.rint(turned)
        return turned.astype(images_BCHW.dtype).reshape(images_BCHW.shape)

    return turn


def _corrupt(change: Change, fields: Fields, spread: Spread, seed: int) -> Transform:
    """Adds normal noise: `severity` times the spread of the numbers (of uint8 pictures: of the range 0 to 255)."""
    if fields.image_shape is None and not fields.numeric:
        raise InputError(
            f"stream.scenario: context '{change.name}' has transform corrupt, but the rows hold no numbers; "
            f"use permute_labels"
        )
    name = "image" if fields.image_shape else "numeric"
    size = int(np.prod(fields.image_shape)) if fields.image_shape else len(fields.numeric)
    bank = normal(key(seed, "noise", change.variant), _NOISE_BANK + size)
    cuts = np.lib.stride_tricks.sliding_window_view(bank, size)
    place_key = key(seed, "noise place", change.variant)
    scale = change.severity * spread.deviation

    def corrupt(features: Features, rows: Integers) -> Features:
        values = features[name]
        noise = cuts[(word(place_key, rows) % _NOISE_BANK).astype(np.int64)]
        noisy = values + scale * noise.reshape(values.shape)
        if values.dtype == np.uint8:
            noisy = np.clip(np.rint(noisy), 0, 255)
        return {**features, name: noisy.astype(values.dtype)}

    return corrupt
