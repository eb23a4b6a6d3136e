"""A job's stream, read from its beginning to where the job stops."""

from __future__ import annotations

from collections.abc import Iterator

from planaria.job import Job
from planaria.signals import Rows, Stream

BLOCK_ROWS = 512


def blocks(stream: Stream, job: Job) -> Iterator[Rows]:
    row = 0
    while True:
        count = BLOCK_ROWS if job.samples is None else min(BLOCK_ROWS, job.samples - row)
        rows = stream.read(row, count)
        if not len(rows):
            return
        yield rows
        row += len(rows)
