"""What every file format offers: batches of rows from anywhere in the file, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs


@dataclass(frozen=True)
class Place:
    """A file: where it is, and what to call it in messages."""

    filesystem: fs.FileSystem
    path: str
    label: str

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)


@dataclass(frozen=True)
class Wanted:
    """What to read of a file."""

    columns: Sequence[str]
    types: Mapping[str, Any]
    """Arrow types that the values are parsed to, for formats that have no types of their own (CSV)."""
    batch_rows: int
    delimiter: str | None = None
    """CSV only; None is a comma, or a tab for names in .tsv."""


class TableFile(Protocol):
    """One open file. Raises DataError where it cannot be read."""

    @property
    def schema(self) -> pa.Schema:
        """Of all columns, not only of the wanted ones."""

    def rows(self) -> int:
        """How many rows it holds; free for Parquet and Arrow, a pass over the file for CSV."""

    def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of its first row, wanted columns), from the batch that holds row `start` on, or from before it."""

    def close(self) -> None: ...


class Format(Protocol):
    """A file format."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """Of the files that are picked from a folder."""

    @property
    def indexed(self) -> bool:
        """Whether a file knows its number of rows without being read."""

    def open(self, place: Place, wanted: Wanted) -> TableFile: ...


class Files(Protocol):
    """The files of a stream, by name, in the order in which they are read."""

    def names(self) -> list[str]:
        """Those that are there now. Raises DataError where they cannot be listed."""

    def place(self, name: str) -> Place: ...


class DataError(Exception):
    """A file does not hold what it should. One line: file, row where known, what to do.

    Becomes an InputError before the run and a RunError within it.
    """


def unreadable(label: str, kind: str, error: Exception) -> DataError:
    """`error` of the Arrow library, as one line."""
    lines = str(error).splitlines() or [type(error).__name__]
    detail = lines[0].rstrip(". ")
    return DataError(
        f"{label}: cannot be read as {kind} ({detail}); it may be truncated or damaged: write it again or remove it"
    )
