"""Streams: rows in arrival order from files, named sets and scenarios."""

from planaria.stream.opening import open_stream
from planaria.stream.sets import NAMES, fetch

__all__ = ["NAMES", "fetch", "open_stream"]
