from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planaria.job import Change
from planaria.signals import Fields
from planaria.stream.pool import BYTE_SPREAD
from planaria.stream.transform import make_transform, rotation

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (5, 3, 12, 12), np.uint8)
ROWS = np.arange(5)


def transformed(
    images: np.ndarray[Any, Any] = IMAGES, rows: np.ndarray[Any, Any] = ROWS, **more: Any
) -> np.ndarray[Any, Any]:
    change = Change.model_validate({"name": "x", "samples": 1, **more})
    fields = Fields("classification", image_shape=images.shape[1:])
    return make_transform(change, fields, BYTE_SPREAD, seed=0)({"image": images}, rows)["image"]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, -1])
def test_quarter_turns_are_exact(turns: int) -> None:
    assert (rotation(90.0 * turns, 12, 12)(IMAGES) == np.rot90(IMAGES, turns, axes=(2, 3))).all()


def test_other_turns_lie_between_and_can_be_undone() -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 28), np.linspace(-1, 1, 28), indexing="ij")
    smooth = (255 * np.exp(-4 * ((x - 0.3) ** 2 + y**2))).astype(np.uint8)[None, None]
    turned = rotation(35, 28, 28)(smooth)
    assert np.abs(rotation(-35, 28, 28)(turned)[..., 4:-4, 4:-4].astype(int) - smooth[..., 4:-4, 4:-4]).max() < 12
    assert np.abs(turned.astype(int) - smooth).max() > 50
    # Anticlockwise: what was to the right of the middle goes up.
    peak_y, peak_x = np.unravel_index(turned[0, 0].argmax(), (28, 28))
    assert peak_y < 13 and peak_x > 14


def test_a_turn_close_to_a_quarter_is_close_to_the_quarter() -> None:
    almost = rotation(90.001, 12, 12)(IMAGES).astype(int)
    assert np.abs(almost - np.rot90(IMAGES, 1, axes=(2, 3)))[..., 1:-1, 1:-1].max() <= 1


def test_pictures_that_are_not_square_keep_their_shape() -> None:
    wide = IMAGES[:, :, :6]
    assert rotation(90, 6, 12)(wide).shape == wide.shape
    assert (rotation(180, 6, 12)(wide) == wide[:, :, ::-1, ::-1]).all()


def test_permuted_pixels_are_the_same_pixels_in_every_picture_and_channel() -> None:
    permuted = transformed(transform="permute_pixels")
    order = (
        transformed(np.arange(144, dtype=np.float32).reshape(1, 1, 12, 12), transform="permute_pixels")
        .astype(int)
        .ravel()
    )
    assert sorted(order.tolist()) == list(range(144))
    assert (permuted.reshape(5, 3, 144) == IMAGES.reshape(5, 3, 144)[:, :, order]).all()
    assert (transformed(transform="permute_pixels", variant=1) != permuted).any()


def test_permuted_patches_stay_whole() -> None:
    permuted = transformed(transform="permute_patches", patch=4)

    def patches(images: np.ndarray[Any, Any]) -> list[bytes]:
        cut = images[0, 0].reshape(3, 4, 3, 4).transpose(0, 2, 1, 3)
        return [patch.tobytes() for patch in cut.reshape(9, 16)]

    assert sorted(patches(permuted)) == sorted(patches(IMAGES)) and patches(permuted) != patches(IMAGES)


def test_inverting_twice_changes_nothing() -> None:
    inverted = transformed(transform="invert")
    assert (inverted == 255 - IMAGES).all()
    assert (transformed(inverted, transform="invert") == IMAGES).all()


def test_noise_is_a_function_of_the_row_and_as_strong_as_asked_for() -> None:
    grey = np.full((50, 1, 28, 28), 128, np.uint8)
    noisy = transformed(grey, np.arange(50), transform="corrupt", severity=0.1)
    assert abs((noisy.astype(float) - 128).std() - 25.5) < 0.5
    assert (transformed(grey[:1], np.array([7]), transform="corrupt", severity=0.1)[0] == noisy[7]).all()
    assert len({picture.tobytes() for picture in noisy}) == 50
    assert (transformed(grey, np.arange(50), transform="corrupt", severity=0.1, variant=1) != noisy).any()
    assert (transformed(grey, np.arange(50), transform="corrupt", severity=0.0) == grey).all()
