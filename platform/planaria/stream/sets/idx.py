"""Sets of 28x28 grey pictures of 10 classes in MNIST's idx files: found, checked, and mapped as pools."""

from __future__ import annotations

import gzip
import logging
import subprocess
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import ipc

from planaria.errors import InputError
from planaria.signals import Fields
from planaria.stream.pool import BYTE_SPREAD, Pool, Pools
from planaria.stream.sets.folder import data_folder, make_set, sha256

logger = logging.getLogger(__name__)

SIDE = 28

Places = Callable[[Path], Iterator[tuple[str, Callable[[], Iterator[Path]]]]]
"""Given a scratch folder: each place's name, and what brings the folders with files that it has."""

_PARTS = (("train", "train"), ("test", "t10k"))
_IMAGES, _LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
_IMAGE_HEADER_BYTES, _LABEL_HEADER_BYTES = 16, 8
_TIMEOUT_S = 60
_MOST_BYTES = 64 << 20
"""The largest of these files has 47,040,016. What is cut off here is not what was published either."""
_COMMAND_TIMEOUT_S = 300


@dataclass(frozen=True)
class PictureSet:
    """Four files, of whichever place has them as they were published."""

    name: str
    digests: Mapping[str, str]
    """SHA-256 of each unpacked file."""
    places: Places
    """Beside the folder in which they may be put by hand."""
    homes: tuple[str, ...]
    """Where they lie as NAME.gz."""

    def fetch(self) -> Path:
        """The folder with train.arrow and test.arrow, made if it is not there. Raises InputError."""
        folder = data_folder() / self.name
        if folder.exists():
            return folder
        logger.info("fetching %s into %s", self.name, folder)
        return make_set(folder, self._fill)

    def open_pools(self) -> Pools:
        """Rows of the training set to stream, of the test set to evaluate on. Raises InputError."""
        folder = self.fetch()
        return Pools(train=_pool(folder / "train.arrow"), test=_pool(folder / "test.arrow"))

    def _fill(self, folder: Path) -> None:
        files = self._find()
        for part, prefix in _PARTS:
            images = np.frombuffer(files[_IMAGES.format(prefix)], np.uint8, offset=_IMAGE_HEADER_BYTES)
            labels = np.frombuffer(files[_LABELS.format(prefix)], np.uint8, offset=_LABEL_HEADER_BYTES)
            _write(folder / f"{part}.arrow", images, labels)

    def _find(self) -> dict[str, bytes]:
        """The four files unpacked, from the first place that has them all as they should be."""
        tried = []
        with tempfile.TemporaryDirectory() as scratch:
            for where, folders in self._all_places(Path(scratch)):
                for folder in folders():
                    files = self._read(folder)
                    if files is not None:
                        logger.info("%s: found in %s", self.name, where)
                        return files
                tried.append(where)
        raise InputError(
            f"stream.source: {self.name} could not be fetched (tried {', '.join(tried)}); "
            f"put {', '.join(f'{name}.gz' for name in self.digests)} into {self._by_hand}"
        )

    def _all_places(self, scratch: Path) -> Iterator[tuple[str, Callable[[], Iterator[Path]]]]:
        yield str(self._by_hand), lambda: iter([self._by_hand])
        yield from self.places(scratch)
        for home in self.homes:
            yield home, lambda home=home: self._download(home, scratch)  # type: ignore[misc]

    @property
    def _by_hand(self) -> Path:
        return data_folder() / f"{self.name}_files"

    def _read(self, folder: Path) -> dict[str, bytes] | None:
        """The files of a folder, unpacked; None where one is missing or not what it should be."""
        files = {}
        for name, digest in self.digests.items():
            content = _content(folder / name)
            if content is None:
                return None
            if sha256(content) != digest:
                logger.warning("%s: is not the published file; left out", folder / name)
                return None
            files[name] = content
        return files

    def _download(self, home: str, scratch: Path) -> Iterator[Path]:
        try:
            for name in self.digests:
                with urllib.request.urlopen(f"{home}{name}.gz", timeout=_TIMEOUT_S) as answer:
                    (scratch / f"{name}.gz").write_bytes(answer.read(_MOST_BYTES))
        except (OSError, urllib.error.URLError):
            return
        yield scratch


def ran(command: list[str], folder: Path) -> bool:
    """Whether the command could be run in that folder, and went well."""
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=_COMMAND_TIMEOUT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _content(path: Path) -> bytes | None:
    """The beginning of a file, or of one with .gz behind its name unpacked."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(_MOST_BYTES)
        with gzip.open(path.with_name(f"{path.name}.gz")) as packed:
            return packed.read(_MOST_BYTES)
    except (OSError, EOFError, zlib.error):
        return None


def _pool(path: Path) -> Pool:
    try:
        table = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is damaged ({error}); remove the folder {path.parent} and start again") from error
    return Pool(
        fields=Fields("classification", image_shape=(1, SIDE, SIDE)),
        labels=list(range(10)),
        target=table.column("label").to_numpy().astype(np.int32),
        columns={"image": table.column("image").flatten().to_numpy().reshape(-1, SIDE * SIDE)},
        spread=BYTE_SPREAD,
        chosen=np.arange(table.num_rows, dtype=np.int64),
    )


def _write(path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    """One record batch, so that the mapped file is one array."""
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images), SIDE * SIDE)
    batch = pa.record_batch({"image": pixels, "label": pa.array(labels.astype(np.int64))})
    with ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
