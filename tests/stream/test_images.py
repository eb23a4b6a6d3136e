from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tests.stream.conftest import opened, write

from planaria.errors import InputError, RunError

random = np.random.default_rng(0)
ROWS, HEIGHT, WIDTH = 70, 4, 6
GREY = random.integers(0, 256, (ROWS, HEIGHT, WIDTH, 1), np.uint8)
COLOUR = random.integers(0, 256, (ROWS, HEIGHT, WIDTH, 3), np.uint8)


def png(picture: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.squeeze()).save(file, "png")
    return file.getvalue()


def ways(pictures: np.ndarray[Any, Any]) -> dict[str, pa.Array]:
    flat = pictures.reshape(ROWS, -1)
    encoded = [png(picture) for picture in pictures]
    return {
        "fixed lists": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
        "lists": pa.array(flat.tolist(), pa.list_(pa.uint8())),
        "whole numbers": pa.array(flat.tolist(), pa.list_(pa.int64())),
        "nested lists": pa.array(pictures.tolist()),
        "raw bytes": pa.array([row.tobytes() for row in flat], pa.binary()),
        "fixed bytes": pa.array([row.tobytes() for row in flat], pa.binary(flat.shape[1])),
        "png": pa.array(encoded, pa.binary()),
        "struct": pa.array([{"bytes": data, "path": "x"} for data in encoded]),
    }


def stream_of(path: Path, images: pa.Array, shape: list[int], **changes: Any) -> Any:
    write(path, pa.table({"picture": images, "label": [row % 3 for row in range(len(images))]}), group=25)
    return opened(path, features={"image": {"column": "picture", "shape": shape}}, context=None, **changes)


@pytest.mark.parametrize("way", ways(GREY))
@pytest.mark.parametrize("pictures", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_pictures_are_equal_however_they_are_stored(
    tmp_path: Path, way: str, pictures: np.ndarray[Any, Any], ending: str
) -> None:
    shape = [HEIGHT, WIDTH] if pictures is GREY else [HEIGHT, WIDTH, 3]
    stream = stream_of(tmp_path / f"a.{ending}", ways(pictures)[way], shape)
    assert stream.fields.image_shape == (pictures.shape[3], HEIGHT, WIDTH)
    rows = stream.read(10, 40)
    expected = pictures[10:50].transpose(0, 3, 1, 2)
    assert rows.select(slice(None))["image"].dtype == np.uint8
    assert (rows.select(slice(None))["image"] == expected).all()
    index = np.array([39, 0, 20, 20])
    assert (rows.select(index)["image"] == expected[index]).all()


def test_float_pictures_stay_floats(tmp_path: Path) -> None:
    pictures = random.random((10, HEIGHT * WIDTH))
    stream = stream_of(tmp_path / "a.arrow", pa.array(pictures.tolist()), [HEIGHT, WIDTH])
    images = stream.read(0, 10).select(slice(None))["image"]
    assert images.dtype == np.float32
    assert np.array_equal(images.reshape(10, -1), pictures.astype(np.float32))


def test_pictures_outlive_the_file_that_they_are_mapped_from(tmp_path: Path) -> None:
    for part in range(3):
        table = pa.table({"picture": ways(GREY)["fixed lists"], "label": [row % 3 for row in range(ROWS)]})
        write(tmp_path / f"{part}.arrow", table)
    features = {"image": {"column": "picture", "shape": [HEIGHT, WIDTH]}}
    stream = opened(tmp_path, source="arrow", features=features, context=None)
    early = stream.read(0, ROWS)
    assert len(stream.read(2 * ROWS, ROWS)) == ROWS
    assert (early.select(slice(None))["image"] == GREY.transpose(0, 3, 1, 2)).all()


def test_pictures_too_large_to_hold_are_read_anew_when_looked_back_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("planaria.stream.window.HELD_BYTES", 1_000)
    stream = stream_of(tmp_path / "a.arrow", ways(GREY)["raw bytes"], [HEIGHT, WIDTH])
    for start in range(0, 60, 10):
        stream.read(start, 10)
    assert sum(piece.rows for piece in stream._window._pieces) < 60
    for start in (5, 60, 30):
        expected = GREY[start : start + 10].transpose(0, 3, 1, 2)
        assert (stream.read(start, 10).select(slice(None))["image"] == expected).all()
    assert stream.state()["row"] == 70


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pa.array([[0] * 24, [1] * 23]), "row 2: image has 23 numbers, but its shape needs 24"),
        (pa.array([[0] * 24, [300] * 24]), "row 2: pixel is 300; whole numbers must be 0 to 255"),
        (pa.array([[0.0] * 24, [0.0] * 23 + [float("nan")]]), "row 2: pixel is nan; drop the row"),
        (pa.array([[0] * 24, None]), "row 2: has no image; drop the row"),
        (pa.array([png(GREY[0]), b"nonsense"]), "row 2: 8 bytes are neither a raw picture nor a PNG or JPEG"),
        (pa.array([png(GREY[0]), png(GREY[0, :2])]), "row 2: image is 2x6, but features.image.shape says 4x6"),
    ],
)
def test_a_picture_that_cannot_be_one_is_named(tmp_path: Path, images: pa.Array, words: str) -> None:
    stream = stream_of(tmp_path / "a.parquet", images, [HEIGHT, WIDTH])
    with pytest.raises(RunError, match=f"a.parquet: {words}"):
        stream.read(0, 2).select(slice(None))


def test_a_column_of_plain_numbers_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"column 'picture' holds whole numbers, but an image must be a list of numbers"
    ):
        stream_of(tmp_path / "a.parquet", pa.array([1, 2, 3]), [HEIGHT, WIDTH])
