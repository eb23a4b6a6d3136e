"""Named sets: public data that is fetched once and then used offline."""

from __future__ import annotations

from pathlib import Path

from planaria.errors import InputError, nearest
from planaria.job import FeatureColumns, StreamSettings
from planaria.stream.pool import Pools
from planaria.stream.sets import fashion_mnist, weather

IMAGES = (fashion_mnist.NAME,)
TABLES = (weather.NAME,)
NAMES = (*IMAGES, *TABLES)

__all__ = ["IMAGES", "NAMES", "TABLES", "fetch", "open_images", "table_settings"]


def fetch(name: str) -> Path:
    """A set's folder (fashion_mnist) or Parquet file (weather), fetched if it is not there yet.

    Raises InputError with what to do where it cannot be had.
    """
    if name == fashion_mnist.NAME:
        return fashion_mnist.fetch()
    if name == weather.NAME:
        return weather.fetch()
    raise InputError(f"stream.source: '{name}' is not a named set{nearest(name, NAMES)}; there are {', '.join(NAMES)}")


def open_images(name: str) -> Pools:
    """The rows of a set in IMAGES."""
    assert name == fashion_mnist.NAME
    return fashion_mnist.open_pools()


def table_settings(settings: StreamSettings) -> StreamSettings:
    """A stream of a set in TABLES as one of its file; what the job says about columns goes before the set's own."""
    assert settings.source == weather.NAME
    if settings.path is not None:
        raise InputError("stream.path: the set weather brings its own; remove it")
    own = {
        "features": FeatureColumns(numeric=weather.NUMERIC, categorical=weather.CATEGORICAL),
        "target": weather.TARGET,
        "context": weather.CONTEXT,
    }
    unset = {name: value for name, value in own.items() if not _is_set(settings, name)}
    return settings.model_copy(update={"source": "parquet", "path": str(weather.fetch()), **unset})


def _is_set(settings: StreamSettings, name: str) -> bool:
    """By its value: a job that was written out in full names every key."""
    return bool(getattr(settings, name) != StreamSettings.model_fields[name].default)
