"""CSV with a header line, plain or compressed (.gz, .bz2, .zst), parsed block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyarrow import csv

from planaria.stream.source import DataError, Place, TableFile, Wanted

_BLOCK_BYTES = 1 << 20


class CsvFormat:
    extensions = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.zst")
    indexed = False

    def open(self, place: Place, wanted: Wanted) -> TableFile:
        return _CsvFile(place, wanted)


class _CsvFile:
    def __init__(self, place: Place, wanted: Wanted) -> None:
        self._place = place
        self._wanted = wanted
        with self._reader(None) as reader:
            # Types are guessed from the first block, unless they are given.
            self.schema: pa.Schema = reader.schema

    def rows(self) -> int:
        count = 0
        for first, batch in self._parsed(self._wanted.columns[:1]):
            count = first + batch.num_rows
        return count

    def batches(self, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """From the file's first row, whatever `start` is: text has no index. What lies before is not handed out."""
        for first, batch in self._parsed(self._wanted.columns):
            if first + batch.num_rows <= start:
                continue
            for cut in range(0, batch.num_rows, self._wanted.batch_rows):
                yield first + cut, batch.slice(cut, self._wanted.batch_rows)

    def close(self) -> None:
        """Every pass opens and closes the file itself."""

    def _parsed(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        first = 0
        with self._reader(columns) as reader:
            try:
                for batch in reader:
                    yield first, batch
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise self._refuse(error, f": after row {first}") from error

    def _reader(self, columns: Sequence[str] | None) -> csv.CSVStreamingReader:
        delimiter = self._wanted.delimiter or ("\t" if ".tsv" in self._place.path else ",")
        try:
            return csv.open_csv(
                self._place.filesystem.open_input_stream(self._place.path, compression="detect"),
                read_options=csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
                parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=csv.ConvertOptions(
                    column_types=dict(self._wanted.types),
                    include_columns=None if columns is None else list(columns),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            )
        except (pa.ArrowException, OSError) as error:
            raise self._refuse(error, "") from error

    def _refuse(self, error: Exception, where: str) -> DataError:
        detail = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        return DataError(
            f"{self._place.label}{where}: cannot be read as CSV ({detail}); mend the line, or set stream.delimiter"
        )
