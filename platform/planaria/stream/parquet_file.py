"""Parquet: row groups give random access, pages are decoded a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from planaria.stream.source import Place, TableFile, Wanted, unreadable

_BUFFER_BYTES = 1 << 20
"""Read ahead per column. Without it a whole column chunk of the row group would be held."""


class ParquetFormat:
    extensions = (".parquet", ".pq")
    indexed = True

    def open(self, place: Place, wanted: Wanted) -> TableFile:
        return _ParquetFile(place, wanted)


class _ParquetFile:
    def __init__(self, place: Place, wanted: Wanted) -> None:
        self._label = place.label
        self._wanted = wanted
        try:
            # Not memory-mapped: mapped pages would count as resident memory, file after file.
            # Not pre-buffered: that would keep what was read of all row groups until the file is closed.
            self._file = pq.ParquetFile(
                place.filesystem.open_input_file(place.path), buffer_size=_BUFFER_BYTES, pre_buffer=False
            )
            self.schema: pa.Schema = self._file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise unreadable(place.label, "Parquet", error) from error

    def rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        first_group, offset = self._group_of(start)
        groups = list(range(first_group, self._file.metadata.num_row_groups))
        if not groups:
            return
        try:
            for batch in self._file.iter_batches(
                batch_size=self._wanted.batch_rows,
                row_groups=groups,
                columns=list(self._wanted.columns),
                use_threads=False,
            ):
                yield offset, batch
                offset += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise unreadable(f"{self._label}: from row {offset + 1}", "Parquet", error) from error

    def close(self) -> None:
        self._file.close(force=True)

    def _group_of(self, row: int) -> tuple[int, int]:
        """The row group that holds a row, and the number of the group's first row."""
        metadata, first = self._file.metadata, 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if row < first + rows:
                return group, first
            first += rows
        return metadata.num_row_groups, first
