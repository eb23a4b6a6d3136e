"""Streams: rows in arrival order from files, named sets and scenarios."""

from planaria.stream.opening import open_stream
from planaria.stream.scenario_stream import ScenarioStream
from planaria.stream.sets import FETCHED, NAMES, fetch

__all__ = ["FETCHED", "NAMES", "ScenarioStream", "fetch", "open_stream"]
