"""Families of simulated streams: on some a controller is trained, on others it is chosen, on the rest it is tested."""

from __future__ import annotations

from collections.abc import Callable

from planaria.errors import InputError, nearest
from planaria.meta.interactions import interactions
from planaria.meta.lookup import k_lookup, stationary, virtual
from planaria.meta.matching import matching
from planaria.meta.pictures import digits, fashion, recurring
from planaria.meta.records import segments, weather
from planaria.meta.simulate import HEAD_WIDTH, LAYERS, MAX_HEADS, MLP_WIDTH, WIDTH, SimStream
from planaria.meta.tables import tables
from planaria.meta.teacher import teacher

__all__ = [
    "FAMILIES",
    "HEAD_WIDTH",
    "LAYERS",
    "MAX_HEADS",
    "MLP_WIDTH",
    "SPLIT",
    "WIDTH",
    "SimStream",
    "make_stream",
]

SPLIT: dict[str, tuple[str, ...]] = {
    "meta_train": ("teacher", "digits", "tables", "interactions"),
    "validation": ("segments", "matching"),
    "test": ("fashion", "weather", "k_lookup"),
    "special": ("virtual", "stationary", "recurring"),
}
"""Nothing is tuned on `test` or `special`."""

FAMILIES: dict[str, Callable[[int], SimStream]] = {
    "teacher": teacher,
    "digits": digits,
    "tables": tables,
    "interactions": interactions,
    "segments": segments,
    "matching": matching,
    "fashion": fashion,
    "weather": weather,
    "k_lookup": k_lookup,
    "virtual": virtual,
    "stationary": stationary,
    "recurring": recurring,
}


def make_stream(family: str, seed: int) -> SimStream:
    """The stream of that family and seed, always the same. Raises InputError."""
    if family not in FAMILIES:
        raise InputError(
            f"family: '{family}' is not known{nearest(family, FAMILIES)}; use one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[family](seed)
