"""Short simulated streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from planaria.meta.families import SimStream, make_stream

Short = Callable[[str, int, int], SimStream]


@pytest.fixture(scope="session")
def short() -> Short:
    return cut


def cut(family: str, seed: int, rows: int) -> SimStream:
    """The first rows of a stream."""
    stream = make_stream(family, seed)
    phases = slice(sum(start < rows for start in stream.starts))
    return replace(
        stream,
        features={name: column[:rows] for name, column in stream.features.items()},
        target=stream.target[:rows],
        starts=stream.starts[phases],
        contexts=stream.contexts[phases],
        demand=stream.demand[phases],
        changes=stream.changes[phases],
        gradual_rows=stream.gradual_rows[phases],
    )
