"""Rows whose tokens are patches of a picture that is one patch high. Legend: B rows, T tokens, P numbers of a patch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.signals import Fields

PATCH = 4
GREY = 0.5
"""What the model's input layer makes 0."""
_PIXEL_SPREAD = 0.18


def patch_fields(tokens: int) -> Fields:
    return Fields("classification", image_shape=(1, PATCH, PATCH * tokens))


def as_pixels(values_BTP: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Numbers of about -2.5 to 2.5 as pixels in [0, 1], and grey ones up to a whole patch. Shape [B, T, patch ** 2]."""
    pixels_BTP = np.full((*values_BTP.shape[:2], PATCH**2), GREY, np.float32)
    pixels_BTP[:, :, : values_BTP.shape[2]] = np.clip(GREY + _PIXEL_SPREAD * values_BTP, 0, 1)
    return pixels_BTP


def side_by_side(pixels_BTP: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The patches in one picture. Shape [B, 1, patch, patch * T]."""
    rows, tokens, _ = pixels_BTP.shape
    tiles = pixels_BTP.reshape(rows, tokens, PATCH, PATCH).transpose(0, 2, 1, 3)
    return tiles.reshape(rows, 1, PATCH, PATCH * tokens)
