from __future__ import annotations

import json

import numpy as np
import pytest

from planaria.detect import Sketch
from planaria.errors import InputError
from planaria.signals import Features, Fields

IMAGES = Fields("classification", image_shape=(1, 28, 28))
TABLE = Fields("regression", numeric=("pressure", "rain", "day"), categorical=("station",), categories=8)


def pictures(count: int = 400, seed: int = 0) -> np.ndarray:
    """Bright boxes at places of their own on a dark ground, uint8 [count, 1, 28, 28]."""
    chance = np.random.default_rng(seed)
    images = np.zeros((count, 1, 28, 28), np.uint8)
    for image in images:
        top, left = chance.integers(2, 8, 2)
        image[0, top : top + 16, left : left + 8] = chance.integers(120, 255)
    return images


def table(count: int = 400, seed: int = 0) -> Features:
    chance = np.random.default_rng(seed)
    numeric = np.stack([1013 + 8 * chance.normal(size=count), chance.exponential(0.01, count), np.arange(count)], 1)
    return {"numeric": numeric.astype(np.float32), "categorical": chance.integers(0, 8, (count, 1))}


def fitted(seed: int = 0) -> Sketch:
    sketch = Sketch(TABLE, seed)
    sketch.fit(table())
    return sketch


def largest_move(sketch: Sketch, before: Features, after: Features) -> float:
    """Of a feature's mean, in its standard deviations."""
    old, new = sketch(before), sketch(after)
    return float((np.abs(new.mean(0) - old.mean(0)) / (old.std(0) + 1e-3)).max())


@pytest.mark.parametrize("features", [2, 7, 32])
def test_a_sketch_has_the_asked_number_of_features(features: int) -> None:
    out = Sketch(IMAGES, 0, features)({"image": pictures()})
    assert out.shape == (400, features)
    assert out.dtype == np.float32


def test_equal_seeds_sketch_alike_and_others_do_not() -> None:
    image = {"image": pictures()}
    assert np.array_equal(Sketch(IMAGES, 3)(image), Sketch(IMAGES, 3)(image))
    assert not np.allclose(Sketch(IMAGES, 3)(image), Sketch(IMAGES, 4)(image))


def test_bytes_and_floats_of_a_picture_sketch_alike() -> None:
    image = pictures()
    as_floats = {"image": image.astype(np.float32) / 255}
    assert np.allclose(Sketch(IMAGES, 0)({"image": image}), Sketch(IMAGES, 0)(as_floats), atol=1e-5)


@pytest.mark.parametrize("change", ["rotated", "permuted", "inverted", "noisy", "darker"])
def test_a_changed_picture_moves_the_sketch(change: str) -> None:
    image = pictures()
    noise = np.random.default_rng(1).normal(0, 30, image.shape)
    changed = {
        "rotated": np.rot90(image, axes=(2, 3)),
        "permuted": image.reshape(400, -1)[:, np.random.default_rng(2).permutation(784)].reshape(image.shape),
        "inverted": 255 - image,
        "noisy": np.clip(image + noise, 0, 255).astype(np.uint8),
        "darker": (image * 0.6).astype(np.uint8),
    }[change]
    same = largest_move(Sketch(IMAGES, 0), {"image": image}, {"image": pictures(seed=9)})
    assert largest_move(Sketch(IMAGES, 0), {"image": image}, {"image": changed}) > max(0.4, 2 * same)


def test_missing_pixels_and_large_coloured_pictures_are_sketched() -> None:
    image = np.random.default_rng(0).random((5, 3, 64, 80)).astype(np.float32)
    image[0, 0, :40] = np.nan
    image[1, 1, 0, 0] = np.inf
    out = Sketch(Fields("classification", image_shape=(3, 64, 80)), 0)({"image": image})
    assert np.isfinite(out).all()


def test_the_columns_of_a_table_count_alike_whatever_their_units() -> None:
    before, after = table(), table()
    after["numeric"][:, 1] += 0.01  # one standard deviation of the rain
    assert largest_move(fitted(), before, after) > 0.2
    assert 0.3 < fitted()(before).std() < 3


def test_missing_numbers_show_as_missing_rather_than_as_an_average() -> None:
    before, after = table(), table()
    after["numeric"][:, 0] = np.nan
    out = fitted()(after)
    assert np.isfinite(out).all()
    assert largest_move(fitted(), before, after) > 0.5


def test_other_categories_move_the_sketch() -> None:
    before, after = table(), table()
    after["categorical"][:] = 3
    assert largest_move(fitted(), before, after) > 0.5


def test_an_outlier_cannot_swamp_the_other_columns() -> None:
    rows = table()
    rows["numeric"][:5, 1] = 1e30
    assert np.abs(fitted()(rows)).max() < 100


def test_columns_that_are_constant_or_empty_can_be_fitted() -> None:
    rows = table()
    rows["numeric"][:, 0] = 5
    rows["numeric"][:, 1] = np.nan
    sketch = Sketch(TABLE, 0)
    sketch.fit(rows)
    assert np.isfinite(sketch(rows)).all()


def test_a_table_must_be_fitted_and_only_once() -> None:
    sketch = Sketch(TABLE, 0)
    assert not sketch.fitted
    with pytest.raises(AssertionError, match="fit a table's sketch"):
        sketch(table())
    sketch.fit(table())
    with pytest.raises(AssertionError, match="frozen"):
        sketch.fit(table())


def test_pictures_and_pure_categories_need_no_fit() -> None:
    assert Sketch(IMAGES, 0).fitted
    assert Sketch(Fields("classification", categorical=("station",)), 0).fitted


def test_rows_are_sketched_alike_alone_and_together() -> None:
    rows = table()
    alone = fitted()({name: column[7:8] for name, column in rows.items()})
    assert np.allclose(fitted()(rows)[7], alone[0], atol=1e-5)


def test_a_restored_sketch_is_the_same() -> None:
    other = Sketch(TABLE, 0)
    other.load_state(json.loads(json.dumps(fitted().state(), allow_nan=False)))
    assert np.array_equal(other(table()), fitted()(table()))


@pytest.mark.parametrize("state", [{}, {"fitted": 1, "centre": 3}, {**fitted().state(), "fitted": "yes"}])
def test_a_state_of_other_columns_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(InputError, match="sketch state"):
        Sketch(TABLE, 0).load_state(state)
