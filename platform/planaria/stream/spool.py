"""Rows of files, encoded once into flat memory-mapped arrays, so that a scenario can draw them in any order."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from planaria.errors import InputError, RunError
from planaria.job import StreamSettings
from planaria.signals import Features, Fields
from planaria.stream.chance import key, uniform
from planaria.stream.file_stream import FileStream
from planaria.stream.listing import Listing
from planaria.stream.pool import BYTE_SPREAD, Pool, Pools, Spread
from planaria.stream.sets.folder import data_folder, make_folder

logger = logging.getLogger(__name__)

TEST_FRACTION = 0.1
"""Share of the rows that are kept for evaluation and never streamed."""
_ROWS = 4_096
_VERSION = 1


def spool(stream: FileStream, listing: Listing, settings: StreamSettings, seed: int) -> Pools:
    """The rows of a stream as pools; written to the data folder unless the same files were before.

    Raises InputError where the rows or the folder do not allow it.
    """
    folder = data_folder() / "spool" / _digest(listing, settings)
    try:
        if not folder.exists():
            logger.info("writing the scenario's rows to %s, which may be deleted at any time", folder)
            make_folder(folder, partial(_write, stream))
        return _open(folder, stream.fields, seed)
    except RunError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot keep the scenario's rows ({error}); make room or set PLANARIA_DATA"
        ) from error


def _digest(listing: Listing, settings: StreamSettings) -> str:
    files = [(name, info.size, info.mtime_ns) for name, info in sorted(listing.files().items())]
    columns = settings.model_dump_json(exclude={"scenario", "follow", "follow_poll_s", "path"})
    text = json.dumps([_VERSION, columns, listing.root, files])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _write(stream: FileStream, folder: Path) -> None:
    files: dict[str, IO[bytes]] = {}
    shapes: dict[str, Any] = {}
    gauge = _Gauge()
    start = 0
    try:
        while len(rows := stream.read(start, _ROWS)):
            features = rows.select(slice(None))
            target = rows.target.astype(np.float32 if stream.fields.task == "regression" else np.int32)
            for name, values in {"target": target, **_flat(features)}.items():
                if name not in files:
                    files[name] = open(folder / f"{name}.bin", "wb")
                    shapes[name] = {"dtype": values.dtype.str, "columns": list(values.shape[1:])}
                files[name].write(np.ascontiguousarray(values).data)
            gauge.add(features["image"].reshape(-1, 1) if "image" in features else features["numeric"])
            start += len(rows)
    finally:
        for file in files.values():
            file.close()
    described = {
        "rows": start,
        "labels": stream.labels,
        "arrays": shapes,
        "spread": gauge.spread(),
        "counts": stream.counts,
    }
    (folder / "rows.json").write_text(json.dumps(described))


def _flat(features: Features) -> Features:
    """Pictures as [rows, numbers], categories as small integers."""
    if "image" in features:
        return {"image": features["image"].reshape(len(features["image"]), -1)}
    return {"numeric": features["numeric"], "categorical": features["categorical"].astype(np.int32)}


def _open(folder: Path, fields: Fields, seed: int) -> Pools:
    described = json.loads((folder / "rows.json").read_text())
    arrays = {
        name: _map(folder / f"{name}.bin", described["rows"], shape) for name, shape in described["arrays"].items()
    }
    target = arrays.pop("target")
    spread = BYTE_SPREAD
    if "image" not in arrays or arrays["image"].dtype != np.uint8:
        spread = Spread(**{name: np.array(values, np.float32) for name, values in described["spread"].items()})
    is_test = uniform(key(seed, "test rows"), np.arange(described["rows"])) < TEST_FRACTION

    narrow = np.int32 if described["rows"] < 1 << 31 else np.int64

    def pool(chosen: npt.NDArray[np.bool_]) -> Pool:
        return Pool(fields, described["labels"], target, arrays, spread, np.flatnonzero(chosen).astype(narrow))

    return Pools(train=pool(~is_test), test=pool(is_test), counts=described["counts"])


def _map(path: Path, rows: int, shape: dict[str, Any]) -> npt.NDArray[Any]:
    columns: Sequence[int] = shape["columns"]
    if not rows * int(np.prod(columns)):
        return np.zeros((rows, *columns), shape["dtype"])
    # As a plain array: indexing the memmap class itself is several times slower.
    return np.asarray(np.memmap(path, np.dtype(shape["dtype"]), "r", shape=(rows, *columns)))


class _Gauge:
    """Deviation, least and greatest of each column, a block at a time; missing numbers left out."""

    def __init__(self) -> None:
        self._parts: npt.NDArray[np.float64] | None = None
        """[count, sum, sum of squares, least, greatest] by column."""

    def add(self, block: npt.NDArray[Any]) -> None:
        values = block.astype(np.float64)
        there = ~np.isnan(values)
        sums = np.where(there, values, 0.0)
        least = np.where(there, values, np.inf).min(axis=0)
        greatest = np.where(there, values, -np.inf).max(axis=0)
        new = np.stack([there.sum(axis=0), sums.sum(axis=0), (sums**2).sum(axis=0), least, greatest])
        if self._parts is not None:
            new[:3] += self._parts[:3]
            new[3] = np.minimum(new[3], self._parts[3])
            new[4] = np.maximum(new[4], self._parts[4])
        self._parts = new

    def spread(self) -> dict[str, list[float]]:
        """Zeros for a column without any number."""
        if self._parts is None:
            return {name: [] for name in ("deviation", "low", "high")}
        count, total, squares, low, high = self._parts
        mean = total / np.maximum(1, count)
        deviation = np.sqrt(np.maximum(0.0, squares / np.maximum(1, count) - mean**2))
        low, high = np.where(count > 0, low, 0.0), np.where(count > 0, high, 0.0)
        return {"deviation": deviation.tolist(), "low": low.tolist(), "high": high.tolist()}
