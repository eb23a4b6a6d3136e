"""The rows of many files as one numbered sequence, entered anywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from planaria.stream.columns import Columns, check_schema
from planaria.stream.source import DataError, Files, Format, TableFile, Wanted

logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """A file whose place in the stream is known."""

    name: str
    start: int
    """Number of its first row in the stream."""
    rows: int | None = None
    """None until it has been counted or read to its end."""


@dataclass(frozen=True)
class Chunk:
    start: int
    label: str
    file_start: int
    batch: pa.RecordBatch


class Tape:
    """Files in the order of their names. A file once numbered keeps its rows' numbers, whatever arrives later.

    Methods that read raise DataError.
    """

    def __init__(
        self, listing: Files, format_: Format, columns: Columns, batch_rows: int, delimiter: str | None
    ) -> None:
        self.kinds: dict[str, str] = {}
        """What kinds of values the target and categories are, by the files opened so far."""
        self._listing = listing
        self._format = format_
        self._columns = columns
        self._batch_rows = batch_rows
        self._delimiter = delimiter
        self._entries: list[Entry] = []
        self._waiting: list[str] = []
        self._late: set[str] = set()
        self._at = 0
        """The entry being read."""
        self._file: TableFile | None = None
        self._batches: Iterator[tuple[int, pa.RecordBatch]] | None = None
        self._read_to = 0
        """Number of the row of the file that comes next."""
        self.refresh()

    def refresh(self) -> bool:
        """Look for new files; True where some wait to be read."""
        names = self._listing.names()
        if not self._entries:
            self._waiting = names
            return bool(names)
        last = self._entries[-1].name
        self._waiting = [name for name in names if name > last]
        self._warn_late(names, last)
        return bool(self._waiting)

    def seek(self, row: int) -> None:
        """Make next() go on with the chunk that holds a row of the stream."""
        if self._entries and row < self._entries[0].start:
            raise DataError(f"rows before {self._entries[0].start} cannot be read again; start a new run")
        self._leave()
        self._at = max((place for place, entry in enumerate(self._entries) if entry.start <= row), default=0)
        while self._at < len(self._entries) or self._number_next():
            entry = self._entries[self._at]
            if entry.rows is None:
                entry.rows = self._enter(entry).rows()
            if row < entry.start + entry.rows:
                self._batches = self._enter(entry).batches(row - entry.start)
                return
            self._at += 1

    def next(self) -> Chunk | None:
        """The following rows; None where all known files are read."""
        while self._batches is not None or self._at < len(self._entries) or self._number_next():
            entry = self._entries[self._at]
            if self._batches is None:
                self._batches, self._read_to = self._enter(entry).batches(0), 0
            for offset, batch in self._batches:
                self._read_to = offset + batch.num_rows
                return Chunk(entry.start + offset, self._listing.place(entry.name).label, offset, batch)
            entry.rows = self._read_to
            self._leave()
            self._at += 1
        return None

    def state(self, from_row: int, to_row: int) -> dict[str, Any]:
        """JSON-able: the files that hold rows from_row..to_row, so that a later listing cannot renumber them."""
        begun = [entry for entry in self._entries if entry.start <= to_row]
        kept = [entry for entry in begun if entry.rows is None or entry.start + entry.rows > from_row] or begun[-1:]
        return {"files": [[entry.name, entry.start] for entry in kept], "kinds": self.kinds}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._leave()
        self._at = 0
        self.kinds = dict(state["kinds"])
        self._entries = [Entry(name, start) for name, start in state["files"]]
        for entry, following in zip(self._entries, self._entries[1:], strict=False):
            entry.rows = following.start - entry.start
        self.refresh()

    def check_first(self, files: int) -> int | None:
        """Open the first files and see whether their columns can mean what the job says.

        Returns the number of rows of all files, where these were all and know it without being read.
        """
        total: int | None = 0 if len(self._waiting) <= files else None
        for name in self._waiting[:files]:
            file = self._open(name)
            total = total + file.rows() if total is not None and self._format.indexed else None
            file.close()
        return total

    def _number_next(self) -> bool:
        """Append the first waiting file after the last entry; False where none waits."""
        if not self._waiting:
            return False
        start = 0
        if self._entries:
            last = self._entries[-1]
            assert last.rows is not None
            start = last.start + last.rows
        self._entries.append(Entry(self._waiting.pop(0), start))
        return True

    def _enter(self, entry: Entry) -> TableFile:
        self._leave()
        self._file = self._open(entry.name)
        return self._file

    def _leave(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._batches = None

    def _open(self, name: str) -> TableFile:
        place = self._listing.place(name)
        wanted = Wanted(self._columns.names, self._columns.text_types(self.kinds), self._batch_rows, self._delimiter)
        file = self._format.open(place, wanted)
        self.kinds = check_schema(file.schema, self._columns, place.label, self.kinds)
        return file

    def _warn_late(self, names: Sequence[str], last: str) -> None:
        known = {entry.name for entry in self._entries}
        for name in names:
            if self._entries[0].name < name < last and name not in known and name not in self._late:
                self._late.add(name)
                logger.warning("%s came after %s was read: ignored; new files' names must sort last", name, last)
