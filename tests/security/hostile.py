"""What somebody who means harm may have put in place of a file."""

from __future__ import annotations

import io
import json
import os
import pickle  # noqa: TID251 to see that it is not read
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mknod, (str(self.canary),)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(_Touch(canary))


def torch_file(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"weights": _Touch(canary)}, file)
    return file.getvalue()


def numpy_file(canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([_Touch(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def safetensors_file(header: Any, data: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def arrow_stream(table: pa.Table) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return file.getvalue()


def wrong_offsets(as_file: bool = False) -> bytes:
    """A column of text that lies outside its buffer. With its own offsets it would begin with these."""
    offsets = np.array([0, 1_234, 2_468], np.int32)
    table = pa.table({"target": ["a" * 1_234, "b" * 1_234], "x": [1.0, 2.0]})
    file = io.BytesIO()
    with (pa.ipc.new_file if as_file else pa.ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table)
    content = file.getvalue()
    assert content.count(offsets.tobytes()) == 1
    return content.replace(offsets.tobytes(), np.array([0, 1 << 29, 1 << 30], np.int32).tobytes())


def extension(canary: Path) -> bytes:
    """A type that Arrow, before version 14, unpickled (CVE-2023-47248)."""
    about = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled(canary)}
    return arrow_stream(pa.table([pa.array([1])], schema=pa.schema([pa.field("target", pa.int64(), metadata=about)])))


DEEP = b"[" * 200_000 + b"]" * 200_000


def in_place_of_anything(canary: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content)"""
    yield "pickle", pickled(canary)
    yield "torch.save", torch_file(canary)
    yield "npy of objects", numpy_file(canary)
    yield "empty", b""
    yield "deep JSON", DEEP
    yield "JSON of another kind", b"[1, 2]"
    yield "JSON with infinity", b'{"account": {"step": Infinity}, "step": 1e999}'
    yield "JSON with a key twice", b'{"account": 1, "account": {"step": []}}'
    yield "JSON with a long number", b'{"account": ' + b"9" * 10_000 + b"}"
    yield "Arrow bomb", BOMB
    yield "Arrow extension", extension(canary)
    yield "Arrow dictionary", arrow_stream(pa.table({"target": pa.array(["x" * 1_000_000]).dictionary_encode()}))
    yield "Arrow of nothing", _NOTHING
    for name, header in _HEADERS.items():
        yield f"safetensors {name}", safetensors_file(header)


BOMB = arrow_stream(pa.table({"target": np.zeros(1 << 27)}))
"""32 KiB that unpack to 1 GiB."""
_NOTHING = arrow_stream(pa.table({"target": pa.nulls(10**8)}))
_HEADERS: dict[str, Any] = {
    "of terabytes": {"a": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}},
    "that overlap": {
        "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
        "b": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]},
    },
    "below 0": {"a": {"dtype": "F32", "shape": [-16], "data_offsets": [0, 64]}},
    "of a pickle": b"\x80\x04cposix\nsystem\n",
}
