"""Streams: rows in arrival order from files, named sets and scenarios."""

from planaria.stream.loaded import Loaded
from planaria.stream.opening import load_stream, open_stream
from planaria.stream.scenario_stream import ScenarioStream
from planaria.stream.sets import FETCHED, NAMES, fetch

__all__ = ["FETCHED", "NAMES", "Loaded", "ScenarioStream", "fetch", "load_stream", "open_stream"]
