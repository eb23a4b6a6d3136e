"""Detector state as JSON: arrays as base64 text going out, everything checked coming in."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.errors import InputError

Array = npt.NDArray[Any]


def pack(array: Array) -> dict[str, Any]:
    """An array as {"dtype", "shape", "data"}: exact, and smaller than its numbers in decimals."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


class Saved:
    """A part of a saved state. Every reader raises a one-line InputError that names the part and the key."""

    def __init__(self, values: object, where: str = "detector state") -> None:
        self.where = where
        if not isinstance(values, Mapping):
            raise InputError(f"{where}: expected a mapping, found {_kind(values)}; {_ADVICE}")
        self._values: Mapping[str, Any] = values

    def part(self, key: str) -> Saved:
        return Saved(self._get(key), f"{self.where}.{key}")

    def parts(self, key: str) -> list[Saved]:
        values = self._get(key)
        if not isinstance(values, list):
            raise self.mistake(key, f"expected a list, found {_kind(values)}")
        return [Saved(value, f"{self.where}.{key}[{n}]") for n, value in enumerate(values)]

    def holds(self, key: str) -> bool:
        return self._values.get(key) is not None

    def integer(self, key: str) -> int:
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.mistake(key, f"expected a whole number, found {_kind(value)}")
        return value

    def number(self, key: str) -> float:
        value = self._get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.mistake(key, f"expected a finite number, found {_kind(value)}")
        return float(value)

    def numbers(self, key: str) -> list[float]:
        values = self._get(key)
        if not isinstance(values, list):
            raise self.mistake(key, f"expected a list, found {_kind(values)}")
        if any(type(value) not in (int, float) or not math.isfinite(value) for value in values):
            raise self.mistake(key, "expected finite numbers only")
        return [float(value) for value in values]

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self.mistake(key, f"expected text, found {_kind(value)}")
        return value

    def data(self, key: str) -> bytes:
        try:
            return base64.b64decode(self.text(key), validate=True)
        except binascii.Error:
            raise self.mistake(key, "is not base64 text") from None

    def array(self, key: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> Array:
        """The array under `key`; None in `shape` admits any length."""
        packed = self.part(key)
        sizes = packed._get("shape")
        fits = isinstance(sizes, list) and len(sizes) == len(shape)
        if not fits or any(
            type(n) is not int or n < 0 or want not in (None, n) for n, want in zip(sizes, shape, strict=True)
        ):
            raise self.mistake(key, f"expected shape {_shape(shape)}, found {sizes}")
        if packed.text("dtype") != np.dtype(dtype).str:
            raise self.mistake(key, f"expected {np.dtype(dtype).name} values, found {packed.text('dtype')}")
        data = packed.data("data")
        if len(data) != math.prod(sizes) * np.dtype(dtype).itemsize:
            raise self.mistake(key, f"holds {len(data)} bytes, which do not fill shape {sizes}")
        array = np.frombuffer(data, dtype).reshape(sizes).copy()
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise self.mistake(key, "holds numbers that are not finite")
        return array

    def mistake(self, key: str, what: str) -> InputError:
        return InputError(f"{self.where}: {key} {what}; {_ADVICE}")

    def _get(self, key: str) -> Any:
        if key not in self._values:
            raise self.mistake(key, "is missing")
        return self._values[key]


_ADVICE = "resume from an earlier checkpoint"


def _kind(value: object) -> str:
    return repr(value) if isinstance(value, (float, bool)) else type(value).__name__


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
