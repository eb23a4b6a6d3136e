"""Arrow tables that others may have written: bounded in memory, and whole before anything looks into them.

A few kilobytes of compressed buffers can stand for any number of bytes. Each begins with the number that it unpacks to,
and Arrow unpacks neither more nor less than that: so these numbers are added up first. Where the numbers are is said by
the messages' flatbuffers (https://arrow.apache.org/docs/format/Columnar.html, Message.fbs).
"""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_OF_MESSAGE_HEADER, _OF_DATA, _OF_LENGTH, _OF_BUFFERS, _OF_COMPRESSION = 2, 1, 0, 2, 3
"""Numbers of fields: of Message, DictionaryBatch, RecordBatch."""


_OF_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_dictionary)


def load_arrow(content: bytes, most_bytes: int, most_rows: int) -> pa.Table:
    """The table of an IPC stream of numbers, text, bytes, and lists of these.

    Raises ValueError where it is none, has more rows, or takes more bytes.
    """
    try:
        _check_size(content, most_bytes, most_rows)
        with pa.ipc.open_stream(content) as reader:
            for field in reader.schema:
                _check_type(field.type)
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, MemoryError, struct.error) as error:
        raise ValueError(" ".join(str(error).split()) or "it is no Arrow table") from None
    return table


def check_parquet(path: Path, most_bytes: int, most_rows: int) -> None:
    """Raises ValueError where a file has more rows, or takes more bytes once it is read. What it says of itself is held
    to by Parquet's reader, but for text that repeats: of that the different values are read, and counted."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        about, names = file.metadata, file.schema_arrow
        groups = [about.row_group(at) for at in range(about.num_row_groups)]
        values = sum(group.column(at).num_values for group in groups for at in range(about.num_columns))
        unpacked = max(8 * values, sum(group.total_byte_size for group in groups))
    if about.num_rows > most_rows or unpacked > most_bytes:
        raise _too_large(unpacked, about.num_rows, most_bytes, most_rows)
    text = [field.name for field in names if any(is_kind(field.type) for is_kind in _OF_TEXT)]
    table = pq.ParquetFile(path, read_dictionary=text, pre_buffer=False).read(text, use_threads=False)
    for chunk in (chunk for column in table.columns for chunk in column.chunks if pa.types.is_dictionary(chunk.type)):
        length = pc.binary_length(chunk.dictionary).fill_null(0)
        unpacked += pc.sum(length.take(chunk.indices)).as_py() or 0
    if unpacked > most_bytes:
        raise _too_large(unpacked, about.num_rows, most_bytes, most_rows)


def _too_large(size: int, rows: int, most_bytes: int, most_rows: int) -> ValueError:
    return ValueError(
        f"it unpacks to {size:,} bytes of {rows:,} rows, but {most_bytes:,} of {most_rows:,} are possible"
    )


def _check_size(content: bytes, most_bytes: int, most_rows: int) -> None:
    unpacked, rows = 0, 0
    for message in pa.ipc.MessageReader.open_stream(pa.BufferReader(content)):
        if message.type in ("record batch", "dictionary"):
            more_rows, more = _claims(bytes(message.metadata), memoryview(message.body), message.type == "dictionary")
            unpacked, rows = unpacked + more, rows + more_rows
        if unpacked > most_bytes or rows > most_rows:
            raise _too_large(unpacked, rows, most_bytes, most_rows)


def _check_type(kind: pa.DataType) -> None:
    """Others stand for more than their buffers hold (dictionaries, views, run ends), or for code (extensions)."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _check_type(kind.value_type)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_binary)
    if not any(is_kind(kind) for is_kind in (*plain, pa.types.is_large_string, pa.types.is_large_binary)):
        raise ValueError(f"it holds values of type {kind}")


def _claims(metadata: bytes, body: memoryview, dictionary: bool) -> tuple[int, int]:
    """Rows, and bytes once unpacked, of a batch. Raises struct.error where the message is damaged."""
    batch = _table(metadata, _field(metadata, _table(metadata, 0), _OF_MESSAGE_HEADER))
    if dictionary:
        batch = _table(metadata, _field(metadata, batch, _OF_DATA))
    at = _field(metadata, batch, _OF_LENGTH)
    rows = _long(metadata, at) if at else 0
    compressed = bool(_field(metadata, batch, _OF_COMPRESSION))
    total = 0
    at = _field(metadata, batch, _OF_BUFFERS)
    if at:
        vector = _table(metadata, at)
        for number in range(_unsigned(metadata, vector)):
            offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * number)
            claim = _long(body, offset) if compressed and length >= 8 else -1
            total += max(0, length if claim == -1 else claim)
    return rows, total


def _table(content: bytes, at: int) -> int:
    """Where the table (or vector) begins to which the offset at that place leads."""
    return at + _unsigned(content, at)


def _field(content: bytes, table: int, number: int) -> int:
    """Where a table's field is; 0 where it has none."""
    entries = table - struct.unpack_from("<i", content, table)[0]
    (size,) = struct.unpack_from("<H", content, entries)
    place = 4 + 2 * number
    offset: int = struct.unpack_from("<H", content, entries + place)[0] if place < size else 0
    return table + offset if offset else 0


def _unsigned(content: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", content, at)[0])


def _long(content: bytes | memoryview, at: int) -> int:
    return int(struct.unpack_from("<q", content, at)[0])
