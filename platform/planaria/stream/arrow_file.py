"""Arrow IPC, file or stream format: memory-mapped where local, so that a large batch need not be loaded whole."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pyarrow import ipc

from planaria.stream.source import Place, TableFile, Wanted, unreadable

_FILE_MAGIC = b"ARROW1"


class ArrowFormat:
    extensions = (".arrow", ".feather", ".ipc", ".arrows")
    indexed = True

    def open(self, place: Place, wanted: Wanted) -> TableFile:
        return _ArrowFile(place, wanted)


class _ArrowFile:
    def __init__(self, place: Place, wanted: Wanted) -> None:
        self._label = place.label
        self._wanted = wanted
        self._starts: list[int] | None = None
        """Number of each batch's first row, and of the row after the last; counted when first needed."""
        try:
            self._handle = pa.memory_map(place.path) if place.local else place.filesystem.open_input_file(place.path)
            self._indexed = self._handle.read_at(len(_FILE_MAGIC), 0) == _FILE_MAGIC
            self.schema: pa.Schema = self._read(None).schema
        except (pa.ArrowException, OSError) as error:
            raise unreadable(place.label, "Arrow IPC", error) from error

    def rows(self) -> int:
        return self._count()[-1]

    def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        offset = 0
        try:
            for offset, batch in self._whole_batches(start):
                unwanted = max(0, start - offset) // self._wanted.batch_rows * self._wanted.batch_rows
                for cut in range(unwanted, batch.num_rows, self._wanted.batch_rows):
                    yield offset + cut, batch.slice(cut, self._wanted.batch_rows)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(f"{self._label}: from row {offset + 1}", "Arrow IPC", error) from error

    def close(self) -> None:
        self._handle.close()

    def _whole_batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        reader = self._read(self._wanted.columns)
        if isinstance(reader, ipc.RecordBatchFileReader):
            starts = self._count()
            for number, first in enumerate(starts[:-1]):
                if starts[number + 1] > start:
                    yield first, _sound(reader.get_batch(number))
            return
        first = 0
        for batch in reader:
            yield first, _sound(batch)
            first += batch.num_rows

    def _count(self) -> list[int]:
        if self._starts is None:
            # Reading one column alone is enough to count, also where batches are compressed.
            reader = self._read(self._wanted.columns[:1])
            try:
                if isinstance(reader, ipc.RecordBatchFileReader):
                    sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
                else:
                    sizes = [batch.num_rows for batch in reader]
            except (pa.ArrowException, OSError) as error:
                raise unreadable(self._label, "Arrow IPC", error) from error
            self._starts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        return self._starts

    def _read(self, columns: object) -> ipc.RecordBatchFileReader | ipc.RecordBatchStreamReader:
        """A reader from the file's beginning; of all columns where None."""
        options = ipc.IpcReadOptions(use_threads=False)
        if columns is not None:
            options.included_fields = sorted(self.schema.get_field_index(name) for name in columns)  # type: ignore[attr-defined]
        self._handle.seek(0)
        opened = ipc.open_file if self._indexed else ipc.open_stream
        return opened(self._handle, options=options)


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Arrow does not look by itself whether a batch's offsets lie within its buffers. Raises ArrowInvalid."""
    batch.validate(full=True)
    return batch
