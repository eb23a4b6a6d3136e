"""Named sets: public data that is fetched once and then used offline, and tables that river brings along."""

from __future__ import annotations

from pathlib import Path

from planaria.errors import InputError, nearest
from planaria.job import FeatureColumns, StreamSettings
from planaria.stream.pool import Pools
from planaria.stream.sets import fashion_mnist, mnist, river_tables, weather

_PICTURES = {one.name: one for one in (fashion_mnist.SET, mnist.SET)}
IMAGES = tuple(_PICTURES)
TABLES = (weather.NAME, *river_tables.TABLES)
FETCHED = (fashion_mnist.NAME, weather.NAME)
"""The sets that need the network, once, and that a setup fetches: planaria's own jobs use them."""
NAMES = (*IMAGES, *TABLES)

__all__ = ["FETCHED", "IMAGES", "NAMES", "TABLES", "fetch", "open_images", "table_settings"]


def fetch(name: str) -> Path:
    """A set's folder (pictures) or Parquet file (tables), fetched or made if it is not there yet.

    Raises InputError with what to do where it cannot be had.
    """
    if name in _PICTURES:
        return _PICTURES[name].fetch()
    if name == weather.NAME:
        return weather.fetch()
    if name in river_tables.TABLES:
        return river_tables.fetch(name)
    raise InputError(f"stream.source: '{name}' is not a named set{nearest(name, NAMES)}; there are {', '.join(NAMES)}")


def open_images(name: str) -> Pools:
    """The rows of a set in IMAGES."""
    return _PICTURES[name].open_pools()


def table_settings(settings: StreamSettings, seed: int) -> StreamSettings:
    """A stream of a set in TABLES as one of its file; what the job says about columns goes before the set's own. What
    is generated is so by `seed`."""
    if settings.path is not None:
        raise InputError(f"stream.path: the set {settings.source} brings its own; remove it")
    if settings.source == weather.NAME:
        path = weather.fetch()
        features = FeatureColumns(numeric=weather.NUMERIC, categorical=weather.CATEGORICAL)
        target, context = weather.TARGET, weather.CONTEXT
    else:
        path = river_tables.fetch(settings.source, seed)
        features = river_tables.columns(path, settings.source)
        target, context = river_tables.TARGET, river_tables.CONTEXT
    own = {"features": features, "target": target, "context": context}
    unset = {name: value for name, value in own.items() if not _is_set(settings, name)}
    return settings.model_copy(update={"source": "parquet", "path": str(path), **unset})


def _is_set(settings: StreamSettings, name: str) -> bool:
    """By its value: a job that was written out in full names every key."""
    return bool(getattr(settings, name) != StreamSettings.model_fields[name].default)
