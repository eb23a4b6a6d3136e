"""A stream's rows in memory, read once: for many runs on one machine or cluster that learn from the same rows.

What is read is the same as from the files or the set themselves, bit for bit; a checkpoint may be gone on with either
way. Columns are Arrow tables and NumPy arrays, which Ray's object store hands to every process without a copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from pyarrow import fs

from planaria.job import StreamSettings
from planaria.stream import sets
from planaria.stream.columns import Columns
from planaria.stream.listing import Listing
from planaria.stream.pool import Pools
from planaria.stream.source import Format, Place, TableFile, Wanted


@dataclass(frozen=True)
class Loaded:
    """Rows of one stream: pools of a scenario or a set of pictures, or the tables of files."""

    about: str
    """Of which stream: see `about`."""
    pools: Pools | None = None
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    """The columns that are read, by the file's name in its listing, in order."""
    schemas: Mapping[str, pa.Schema] = field(default_factory=dict)
    """Of the files, all columns."""
    settings: StreamSettings | None = None
    """Of a stream of files: with the columns that a named set brings."""
    total_rows: int | None = None
    """Where the files tell it without being read."""

    @property
    def size_bytes(self) -> int:
        return sum(int(table.nbytes) for table in self.tables.values()) + _pool_bytes(self.pools)

    def is_of(self, settings: StreamSettings, seed: int) -> bool:
        """Whether a job with these settings draws from these rows."""
        return self.about == about(settings, seed)


def about(settings: StreamSettings, seed: int) -> str:
    """Equal where two jobs draw from the same rows."""
    seeded = (
        settings.source in sets.TABLES or settings.scenario is not None
    )  # which rows a scenario keeps for evaluation is drawn
    return json.dumps(
        [settings.model_dump_json(exclude={"scenario"}), settings.scenario is not None, seed if seeded else None]
    )


def _pool_bytes(pools: Pools | None) -> int:
    if pools is None:
        return 0
    arrays = [
        array for pool in (pools.train, pools.test) for array in (pool.target, pool.chosen, *pool.columns.values())
    ]
    return sum({id(array): array.nbytes for array in arrays}.values())


@dataclass(frozen=True)
class LoadedListing:
    """In place of a Listing."""

    loaded: Loaded
    shown: str

    def names(self) -> list[str]:
        return list(self.loaded.tables)

    def place(self, name: str) -> Place:
        return Place(fs.LocalFileSystem(), name, f"{self.shown.rstrip('/')}/{name}" if name else self.shown)


@dataclass(frozen=True)
class LoadedFormat:
    """In place of a file's format. `indexed` is as the files' own."""

    loaded: Loaded
    indexed: bool = True
    extensions: tuple[str, ...] = ()

    def open(self, place: Place, wanted: Wanted) -> TableFile:
        return _LoadedFile(self.loaded.schemas[place.path], self.loaded.tables[place.path], wanted)


class _LoadedFile:
    def __init__(self, schema: pa.Schema, table: pa.Table, wanted: Wanted) -> None:
        self.schema, self._table, self._wanted = schema, table, wanted

    def rows(self) -> int:
        return int(self._table.num_rows)

    def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        size = self._wanted.batch_rows
        for first in range(start // size * size, self._table.num_rows, size):
            (batch,) = self._table.slice(first, size).combine_chunks().to_batches() or (None,)
            if batch is not None:
                yield first, batch

    def close(self) -> None:
        """Nothing is open."""


def read_tables(
    listing: Listing,
    format_: Format,
    columns: Columns,
    kinds: Mapping[str, str],
    batch_rows: int,
    delimiter: str | None,
) -> Iterator[tuple[str, pa.Schema, pa.Table]]:
    """Every file's name, schema and the columns that are read. Raises DataError."""
    for name in listing.names():
        wanted = Wanted(columns.names, columns.text_types(kinds), batch_rows, delimiter)
        file = format_.open(listing.place(name), wanted)
        batches = [batch.select(columns.names) for _, batch in file.batches(0)]
        if batches:
            table = pa.Table.from_batches(batches).combine_chunks()
            yield name, file.schema, table
        file.close()
