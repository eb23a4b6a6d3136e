"""A job's stream from its beginning to its end, in memory: what goes to a learner in another interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.compare.blocks import blocks
from planaria.errors import InputError
from planaria.job import Job
from planaria.signals import Features, Fields
from planaria.stream import open_stream

MAX_BYTES = 4 << 30
"""Of the whole stream as the learner holds it; its process needs up to twice as much for a while."""


@dataclass(frozen=True)
class WholeStream:
    """R rows that the job learns from and is scored on, and those that it is evaluated on."""

    fields: Fields
    features: Features
    """R rows each."""
    target_R: npt.NDArray[Any]
    held_out_R: npt.NDArray[np.bool_]
    context_R: npt.NDArray[np.int64]
    """0 everywhere in a stream without contexts."""
    classes: int
    held: list[tuple[Features, npt.NDArray[Any]]]
    """Features and targets of each context's held-out rows."""


def read_whole(job: Job, base: Path, library: str, row_bytes: Callable[[Fields], int]) -> WholeStream:
    """Raises InputError where the rows, each of so many bytes to the library's learners, are too many for memory."""
    from planaria.train.evaluate import Evaluator

    stream = open_stream(job.stream, seed=job.seed, base=base, hold_out_fraction=job.evaluation.hold_out_fraction)
    evaluator = Evaluator(job.evaluation, stream, job.stream.task, job.seed)
    parts: list[Features] = []
    targets, contexts, held_out, count = [], [], [], 0
    most = MAX_BYTES // row_bytes(stream.fields)
    for rows in blocks(stream, job):
        evaluator.take(rows)
        parts.append(rows.select(slice(None)))
        targets.append(rows.target)
        held_out.append(rows.held_out)
        contexts.append(np.zeros(len(rows), np.int64) if rows.context is None else rows.context)
        count += len(rows)
        if count > most:
            raise InputError(
                f"--peers: {library}'s learners hold the whole stream in memory, and more than {count} rows of up to "
                f"{row_bytes(stream.fields)} bytes are too many; add samples={most} or leave them out"
            )
    return WholeStream(
        fields=stream.fields,
        features={name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        target_R=np.concatenate(targets),
        held_out_R=np.concatenate(held_out),
        context_R=np.concatenate(contexts),
        classes=len(stream.labels),
        held=[found for found in map(evaluator.held_out, evaluator.seen) if found is not None],
    )
