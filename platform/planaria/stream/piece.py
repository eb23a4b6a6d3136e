"""A piece of a table, decoded once into arrays that small batches are then cut from."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from planaria.stream.columns import Columns, kind_of
from planaria.stream.source import DataError
from planaria.stream.vocabulary import UNRESOLVED, Coded

MISSING, INFINITE = 1, 2
_FORMATS = ("PNG", "JPEG")
"""Pillow knows many more, and hands PostScript to a program that runs it."""
Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one file. R rows, K numeric columns, P numbers in a picture."""

    start: int
    """Number of the first row in the stream."""
    label: str
    """The file, for messages."""
    file_start: int
    """Number of the first row in the file."""
    target: npt.NDArray[np.float32] | Coded
    """Values [R], NaN where there is none; or labels."""
    numeric_RK: npt.NDArray[np.float32]
    flaws_RK: npt.NDArray[np.uint8] | None
    """MISSING or INFINITE where a number is; None where all are sound."""
    categorical: list[Coded]
    context: Coded | None
    image: Pixels | pa.Array | None
    """[R, P], or encoded files."""
    rows: int

    @property
    def end(self) -> int:
        return self.start + self.rows

    @property
    def picture_bytes(self) -> int:
        return 0 if self.image is None else int(self.image.nbytes)

    def where(self, row: int) -> str:
        """A row of the piece, as a user finds it."""
        return f"{self.label}: row {self.file_start + row + 1}"


def decode(batch: pa.RecordBatch, columns: Columns, *, start: int, label: str, file_start: int) -> Piece:
    """Raises DataError for a picture that cannot be one."""
    numeric_RK, flaws_RK = _numbers([batch.column(name) for name in columns.numeric], batch.num_rows)
    target: npt.NDArray[np.float32] | Coded
    if columns.task == "regression":
        values, _ = _numbers([batch.column(columns.target)], batch.num_rows)
        target = values[:, 0]
    else:
        target = _coded(batch.column(columns.target))
    image = None
    if columns.image_shape and columns.image:
        size = int(np.prod(columns.image_shape))
        image = _pictures(batch.column(columns.image.column), size, f"{label}: row", file_start)
    return Piece(
        start=start,
        label=label,
        file_start=file_start,
        target=target,
        numeric_RK=numeric_RK,
        flaws_RK=flaws_RK,
        categorical=[_coded(batch.column(name)) for name in columns.categorical],
        context=_coded(batch.column(columns.context)) if columns.context else None,
        image=image,
        rows=batch.num_rows,
    )


def unpack_images(pictures: Pixels | pa.Array, shape: tuple[int, int, int], where: Sequence[str]) -> Pixels:
    """Pictures as [B, channels, height, width], uint8 or float32. `where` names each picture's row for messages."""
    channels, height, width = shape
    if isinstance(pictures, np.ndarray):
        flat = pictures
    else:
        encoded = [value.as_py() for value in pictures]
        decoded = [_open_picture(data, shape, place) for data, place in zip(encoded, where, strict=True)]
        flat = np.stack(decoded) if decoded else np.zeros((0, channels * height * width), np.uint8)
    rows_BHWC = flat.reshape(len(flat), height, width, channels)
    return np.ascontiguousarray(rows_BHWC.transpose(0, 3, 1, 2))


def _numbers(columns: Sequence[pa.Array], rows: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]:
    """Columns as float32 [rows, columns] with NaN for what is missing or infinite, and which is which."""
    numbers = np.empty((rows, len(columns)), np.float32)
    with np.errstate(over="ignore"):
        for place, column in enumerate(columns):
            numbers[:, place] = _plain(column).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    sound = np.isfinite(numbers)
    if sound.all():
        return numbers, None
    flaws = np.where(np.isnan(numbers), MISSING, INFINITE).astype(np.uint8)
    flaws[sound] = 0
    numbers[~sound] = np.nan
    return numbers, flaws


def _coded(column: pa.Array) -> Coded:
    """Distinct values in order of first appearance; dates and the like as text, bytes as UTF-8."""
    column = _plain(column)
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if kind_of(column.type) not in ("int", "bool", "float", "text"):
        column = column.cast(pa.string())
    if kind_of(column.type) == "float":
        column = pc.if_else(pc.is_nan(column.cast(pa.float64())), None, column.cast(pa.float64()))
    encoded = column.dictionary_encode()
    values = [*encoded.dictionary.to_pylist(), None]
    codes = encoded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Coded(codes, values, np.full(len(values), UNRESOLVED, np.int64))


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _pictures(column: pa.Array, size: int, row: str, file_start: int) -> Pixels | pa.Array:
    """Raw pixels as [rows, size], uint8 or float32; encoded files as they are."""
    column = _plain(column)
    if column.null_count:
        missing = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{row} {file_start + missing + 1}: has no image; drop the row")
    if kind_of(column.type) == "bytes":
        return _picture_bytes(column, size)
    lengths, depth = _flat_lengths(column), column
    while _is_list(depth.type):
        depth = depth.flatten()
    wrong = np.flatnonzero(lengths != size)
    if wrong.size:
        raise DataError(
            f"{row} {file_start + int(wrong[0]) + 1}: image has {lengths[wrong[0]]} numbers, but its shape needs "
            f"{size}; correct features.image.shape"
        )
    return _pixel_values(depth, size, row, file_start)


def _pixel_values(values: pa.Array, size: int, row: str, file_start: int) -> Pixels:
    flat = values.to_numpy(zero_copy_only=False)
    if flat.dtype == np.uint8:
        return np.asarray(flat.reshape(-1, size), np.uint8)
    if np.issubdtype(flat.dtype, np.integer):
        wrong = np.flatnonzero((flat < 0) | (flat > 255))
        if wrong.size:
            number = file_start + int(wrong[0]) // size + 1
            raise DataError(
                f"{row} {number}: pixel is {flat[wrong[0]]}; whole numbers must be 0 to 255, store others as floats"
            )
        return np.asarray(flat.reshape(-1, size), np.uint8)
    wrong = np.flatnonzero(~np.isfinite(flat))
    if wrong.size:
        number = file_start + int(wrong[0]) // size + 1
        raise DataError(f"{row} {number}: pixel is {flat[wrong[0]]}; drop the row or fill it")
    return np.asarray(flat.reshape(-1, size), np.float32)


def _picture_bytes(column: pa.Array, size: int) -> Pixels | pa.Array:
    """Raw bytes where every value has the size of the raw picture; otherwise PNG or JPEG, decoded when read."""
    if pa.types.is_struct(column.type):
        column = column.field("bytes")
    column = column.cast(pa.large_binary())
    lengths = pc.binary_length(column).to_numpy(zero_copy_only=False)
    if not (lengths == size).all():
        return column
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + 1]
    data = column.buffers()[2] if len(column) else None
    first = int(offsets[0]) if len(column) else 0
    flat = np.frombuffer(data, np.uint8, count=len(column) * size, offset=first) if data else np.zeros(0, np.uint8)
    return flat.reshape(-1, size)


def _open_picture(data: bytes, shape: tuple[int, int, int], where: str) -> npt.NDArray[np.uint8]:
    channels, height, width = shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise DataError(f"{where}: a PNG or JPEG has 1, 3 or 4 channels, not {channels}; correct features.image.shape")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            if picture.size != (width, height):
                found = f"{picture.size[1]}x{picture.size[0]}"
                raise DataError(
                    f"{where}: image is {found}, but features.image.shape says {height}x{width}; "
                    f"resize one or correct the other"
                )
            return np.asarray(picture.convert(mode), np.uint8).reshape(-1)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where}: {len(data)} bytes are neither a raw picture nor a PNG or JPEG; drop or mend the row"
        ) from error


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def _flat_lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """How many numbers each value of a column of (nested) lists holds."""
    lengths: npt.NDArray[np.int64] = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    inner = column.flatten()
    if not _is_list(inner.type):
        return lengths
    below = np.concatenate([[0], np.cumsum(_flat_lengths(inner))])
    ends = np.cumsum(lengths)
    return np.asarray(below[ends] - below[ends - lengths], np.int64)
