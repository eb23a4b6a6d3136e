"""A served model: rows as a user has them in, labels or numbers as the stream had them out.

MLflow loads it by the name of this module (`mlflow.pyfunc.load_model`); Ray and the training stack are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from planaria.errors import InputError
from planaria.model import load_model, predict
from planaria.model.transformer import ElasticTransformer

ROWS_AT_ONCE = 1_024

Array = npt.NDArray[Any]


class ServedModel:
    """A model with the encoding of its stream."""

    def __init__(self, model: ElasticTransformer, encoding: Mapping[str, Any]) -> None:
        fields = encoding["fields"]
        self._model = model
        self._labels = list(encoding.get("labels") or [])
        self._image_shape = tuple(fields["image_shape"]) if fields.get("image_shape") else None
        self._numeric, self._categorical = list(fields.get("numeric") or []), list(fields.get("categorical") or [])
        categories = encoding.get("categories") or encoding.get("stream", {}).get("categories") or {}
        # 0 stands for missing and other values.
        self._numbers = {
            name: {value: place for place, value in enumerate(categories[name], start=1)}
            for name in self._categorical
            if name in categories
        }
        if len(self._numbers) < len(self._categorical):
            raise InputError("encoding.json: categories of a column are missing; export the model again")

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Array:
        """The predicted label, or number, of each row.

        `data` is a DataFrame with the stream's feature columns (others are passed over), or pictures: an array
        [rows, height, width], with channels last or first, of 0 to 255 as integers or 0 to 1 as floats.
        Raises InputError where a column is missing or the pictures have another shape.
        """
        features = self._pictures(data) if self._image_shape else self._table(data)
        rows = len(next(iter(features.values())))
        parts = [
            predict(self._model, {name: torch.from_numpy(x[i : i + ROWS_AT_ONCE]) for name, x in features.items()})
            for i in range(0, rows, ROWS_AT_ONCE)
        ]
        answers = torch.cat(parts).numpy() if parts else np.empty(0, np.int64)
        if self._model.blueprint.task == "regression":
            return answers.astype(np.float64)
        return np.asarray(self._labels)[answers.astype(np.int64)]

    def _table(self, data: Any) -> dict[str, Array]:
        if not isinstance(data, pd.DataFrame):
            raise InputError(f"predict: a table is needed but {type(data).__name__} was given; pass a DataFrame")
        wanted = [*self._numeric, *self._categorical]
        missing = [name for name in wanted if name not in data.columns]
        if missing:
            raise InputError(f"predict: column '{missing[0]}' is missing; the model reads {', '.join(wanted)}")
        features: dict[str, Array] = {}
        if self._numeric:
            try:
                numbers = data[self._numeric].to_numpy(np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise InputError(f"predict: a numeric column holds other values ({error}); convert it") from None
            with np.errstate(over="ignore"):
                numeric_BK = numbers.astype(np.float32)
            features["numeric"] = np.where(np.isfinite(numeric_BK), numeric_BK, np.float32(np.nan))
        if self._categorical:
            columns = [self._category_numbers(name, data[name]) for name in self._categorical]
            features["categorical"] = np.stack(columns, axis=1)
        return features

    def _category_numbers(self, name: str, values: pd.Series) -> npt.NDArray[np.int64]:
        numbers = self._numbers[name]
        column = pa.Array.from_pandas(values)
        if pa.types.is_temporal(column.type):  # The stream knows dates as text.
            column = column.cast(pa.string())
        textual = all(isinstance(value, str) for value in numbers)
        found = [numbers.get(str(value) if textual and value is not None else value, 0) for value in column.to_pylist()]
        return np.asarray(found, np.int64)

    def _pictures(self, data: Any) -> dict[str, Array]:
        assert self._image_shape is not None
        channels, height, width = self._image_shape
        if isinstance(data, pd.DataFrame):  # One column, whose cells are pictures.
            data = [np.stack(cell) if _is_nested(cell) else np.asarray(cell) for cell in data.iloc[:, 0]]
        pixels = np.asarray(data)
        given = pixels.shape[1:]
        if given == (channels, height, width):
            image_BCYX = pixels
        elif given == (height, width, channels) or (channels == 1 and given == (height, width)):
            image_BCYX = np.moveaxis(pixels.reshape(-1, height, width, channels), 3, 1)
        elif given == (height * width * channels,):
            image_BCYX = np.moveaxis(pixels.reshape(-1, height, width, channels), 3, 1)
        else:
            raise InputError(
                f"predict: pictures have shape {list(given)} but the model reads {[height, width, channels]} "
                "(height, width, channels); resize them"
            )
        return {"image": np.ascontiguousarray(_as_pixels(image_BCYX))}


def load(folder: Path) -> ServedModel:
    """The model in a folder that a run left (`model/`) or that MLflow downloaded. Raises InputError if it cannot be."""
    model, encoding = load_model(folder)
    return ServedModel(model, encoding)


def _load_pyfunc(path: str) -> ServedModel:
    """What MLflow calls."""
    return load(Path(path))


def _as_pixels(values: Array) -> Array:
    if values.dtype == np.uint8:
        return values
    if np.issubdtype(values.dtype, np.integer):
        if values.size and (values.min() < 0 or values.max() > 255):
            raise InputError("predict: pixels as integers must be 0 to 255; scale them, or pass floats of 0 to 1")
        return values.astype(np.uint8)
    return values.astype(np.float32)


def _is_nested(cell: Any) -> bool:
    return len(cell) > 0 and not np.isscalar(cell[0])
