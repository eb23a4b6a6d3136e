"""Which columns of a table mean what, and whether their types can mean it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from planaria.errors import InputError, nearest
from planaria.job import ImageColumn, StreamSettings
from planaria.signals import Fields, Task
from planaria.stream.source import DataError

Kind = Literal["int", "float", "bool", "text", "time", "empty", "pixels", "bytes", "other"]

_WORDS: dict[str, str] = {
    "number": "numbers",
    "int": "whole numbers",
    "float": "decimal numbers",
    "bool": "true and false",
    "text": "text",
    "time": "dates or times",
    "empty": "nothing but missing values",
    "pixels": "lists",
    "bytes": "bytes",
    "other": "values of another type",
}


@dataclass(frozen=True)
class Columns:
    """The columns that a stream reads, by role."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    image: ImageColumn | None
    target: str
    task: Task
    context: str | None

    @property
    def names(self) -> list[str]:
        """Target first: it is the column that rows are counted by."""
        image = (self.image.column,) if self.image else ()
        context = (self.context,) if self.context else ()
        return [self.target, *self.numeric, *self.categorical, *image, *context]

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """channels, height, width"""
        if self.image is None:
            return None
        height, width, *channels = self.image.shape
        return (channels[0] if channels else 1, height, width)

    def fields(self, categories: int) -> Fields:
        return Fields(self.task, self.image_shape, self.numeric, self.categorical, categories)

    def text_types(self, kinds: Mapping[str, str]) -> dict[str, pa.DataType]:
        """How the columns of a text file are parsed. Labels keep the type that the first file showed."""
        types = dict.fromkeys(self.numeric, pa.float64()) | dict.fromkeys(self.categorical, pa.string())
        if self.context:
            types[self.context] = pa.string()
        if self.task == "regression":
            types[self.target] = pa.float64()
        elif self.target in kinds:
            types[self.target] = {"int": pa.int64(), "bool": pa.bool_(), "text": pa.string()}[kinds[self.target]]
        return types


def columns_of(settings: StreamSettings) -> Columns:
    """The roles that a job gives to columns. Raises InputError where they contradict each other."""
    features = settings.features
    chosen = [*features.numeric, *features.categorical, *([features.image.column] if features.image else [])]
    if not chosen:
        raise InputError("stream.features: no column is named; list columns under numeric, categorical or image")
    if features.image and len(chosen) > 1:
        raise InputError(
            "stream.features: an image and other columns together cannot be learned from; keep one of them"
        )
    twice = next((name for name in chosen if chosen.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"stream.features: '{twice}' is named twice; name each column once")
    if settings.target is None:
        raise InputError("stream.target: is missing; name the column to predict")
    if settings.target in chosen:
        raise InputError(f"stream.target: '{settings.target}' is also a feature; remove it from stream.features")
    if settings.context is not None and settings.context in (*chosen, settings.target):
        raise InputError(
            f"stream.context: '{settings.context}' is also a feature or the target; it must be hidden from the model"
        )
    if features.image and min(features.image.shape) < 1:
        raise InputError(f"stream.features.image.shape: is {list(features.image.shape)}; every size must be at least 1")
    return Columns(
        features.numeric, features.categorical, features.image, settings.target, settings.task, settings.context
    )


def kind_of(type_: pa.DataType) -> Kind:
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "int"
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "float"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    if pa.types.is_temporal(type_):
        return "time"
    if pa.types.is_null(type_):
        return "empty"
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return "pixels"
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return "bytes"
    if pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0:
        return "bytes"
    return "other"


def check_schema(schema: pa.Schema, columns: Columns, label: str, before: Mapping[str, str]) -> dict[str, str]:
    """What kind of values the target and the categories are, in a file whose columns can mean what the job says.

    `before` is what this returned for the files before it: numbers must not become text midway. Raises DataError.
    """
    try:
        for name in columns.names:
            _check_present(schema, name, label)
    except UnicodeDecodeError:
        raise DataError(f"{label}: names of columns are not text in UTF-8; this is another kind of file") from None
    for name in columns.numeric:
        _check_numeric(_kind(schema, name), name, label)
    kinds = dict(before)
    for name in (*columns.categorical, *((columns.context,) if columns.context else ())):
        kinds |= _check_same(name, _check_category(_kind(schema, name), name, label), label, before)
    if columns.image:
        kinds |= _check_same(columns.image.column, _check_image(schema, columns.image.column, label), label, before)
    if columns.task == "regression":
        _check_value(_kind(schema, columns.target), columns.target, label)
        return kinds
    return kinds | _check_same(
        columns.target, _check_labels(_kind(schema, columns.target), columns.target, label), label, before
    )


def _check_present(schema: pa.Schema, name: str, label: str) -> None:
    count = schema.names.count(name)
    if count > 1:
        raise DataError(f"{label}: {count} columns are called '{name}'; rename all but one")
    if count == 0:
        known = ", ".join(schema.names[:12]) + (", ..." if len(schema.names) > 12 else "")
        raise DataError(f"{label}: has no column '{name}'{nearest(name, schema.names)}; it has {known}")


def _check_numeric(kind: Kind, name: str, label: str) -> None:
    if kind not in ("int", "float", "bool", "empty"):
        raise DataError(
            f"{label}: column '{name}' holds {_WORDS[kind]}, but features.numeric needs numbers; "
            f"convert it or list it under features.categorical"
        )


def _check_image(schema: pa.Schema, name: str, label: str) -> Kind:
    kind, type_ = _kind(schema, name), schema.field(name).type
    while kind == "pixels":
        type_ = type_.value_type
        kind = kind_of(type_)
    listed = _kind(schema, name) == "pixels"
    if kind not in (("int", "float") if listed else ("bytes",)):
        raise DataError(
            f"{label}: column '{name}' holds {_WORDS[kind]}, but an image must be a list of numbers, raw bytes, "
            f"PNG or JPEG; write it so to Parquet or Arrow"
        )
    return kind


def _check_value(kind: Kind, name: str, label: str) -> None:
    if kind not in ("int", "float", "bool", "empty"):
        raise DataError(
            f"{label}: target '{name}' holds {_WORDS[kind]}, but regression needs numbers; use task: classification"
        )


def _check_labels(kind: Kind, name: str, label: str) -> Kind:
    if kind not in ("int", "bool", "text", "empty"):
        raise DataError(
            f"{label}: target '{name}' holds {_WORDS[kind]}, but labels must be whole numbers, text or true/false; "
            f"convert it, or use task: regression for numbers"
        )
    return kind


def _check_category(kind: Kind, name: str, label: str) -> str:
    if kind in ("pixels", "bytes", "other"):
        raise DataError(f"{label}: column '{name}' holds {_WORDS[kind]}; a category must be text, a number or a date")
    return "number" if kind in ("int", "float") else kind  # Missing values turn whole numbers into decimals.


def _check_same(name: str, kind: str, label: str, before: Mapping[str, str]) -> dict[str, str]:
    """{name: kind}, or nothing where all values of the file are missing."""
    if kind == "empty":
        return {}
    earlier = before.get(name, kind)
    if kind != earlier:
        raise DataError(
            f"{label}: column '{name}' holds {_WORDS[kind]}, but the files before it hold {_WORDS[earlier]}; "
            f"write it with one type"
        )
    return {name: kind}


def _kind(schema: pa.Schema, name: str) -> Kind:
    return kind_of(schema.field(name).type)
