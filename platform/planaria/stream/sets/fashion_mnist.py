"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; MIT): 60,000 and 10,000 grey 28x28 pictures of clothes, 10 classes."""

from __future__ import annotations

import gzip
import logging
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
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

NAME = "fashion_mnist"
SIDE = 28

_FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Name, and SHA-256 of what it unpacks to."""
_IMAGE_HEADER_BYTES, _LABEL_HEADER_BYTES = 16, 8
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_HOMES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
_TIMEOUT_S = 60
_PACKAGE_TIMEOUT_S = 300


def fetch() -> Path:
    """The folder with train.arrow and test.arrow, made if it is not there. Raises InputError."""
    folder = data_folder() / NAME
    if folder.exists():
        return folder
    logger.info("fetching %s into %s", NAME, folder)
    return make_set(folder, _fill)


def open_pools() -> Pools:
    """Rows of the training set to stream, of the test set to evaluate on. Raises InputError."""
    folder = fetch()
    return Pools(train=_pool(folder / "train.arrow"), test=_pool(folder / "test.arrow"))


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


def _fill(folder: Path) -> None:
    files = _find()
    for part, prefix in (("train", "train"), ("test", "t10k")):
        images = np.frombuffer(files[f"{prefix}-images-idx3-ubyte.gz"], np.uint8, offset=_IMAGE_HEADER_BYTES)
        labels = np.frombuffer(files[f"{prefix}-labels-idx1-ubyte.gz"], np.uint8, offset=_LABEL_HEADER_BYTES)
        _write(folder / f"{part}.arrow", images, labels)


def _write(path: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    """One record batch, so that the mapped file is one array."""
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images), SIDE * SIDE)
    batch = pa.record_batch({"image": pixels, "label": pa.array(labels.astype(np.int64))})
    with ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)


def _find() -> dict[str, bytes]:
    """The four files unpacked, from the first place that has them all as they should be."""
    tried = []
    with tempfile.TemporaryDirectory() as scratch:
        for where, folders in _places(Path(scratch)):
            for folder in folders():
                files = _read(folder)
                if files is not None:
                    logger.info("%s: found in %s", NAME, where)
                    return files
            tried.append(where)
    raise InputError(
        f"stream.source: {NAME} could not be fetched (tried {', '.join(tried)}); "
        f"put {', '.join(_FILES)} into {_by_hand()}"
    )


def _places(scratch: Path) -> Iterator[tuple[str, Callable[[], Iterator[Path]]]]:
    yield str(_by_hand()), lambda: iter([_by_hand()])
    yield str(_DEBIAN_FOLDER), lambda: iter([_DEBIAN_FOLDER])
    yield f"the Debian package {_DEBIAN_PACKAGE}", lambda: _from_debian(scratch)
    for home in _HOMES:
        yield home, lambda home=home: _download(home, scratch)  # type: ignore[misc]


def _by_hand() -> Path:
    return data_folder() / f"{NAME}_files"


def _read(folder: Path) -> dict[str, bytes] | None:
    """The files of a folder, unpacked; None where one is missing or not what it should be."""
    files = {}
    for name, digest in _FILES.items():
        try:
            files[name] = gzip.decompress((folder / name).read_bytes())
        except (OSError, EOFError):
            return None
        if sha256(files[name]) != digest:
            logger.warning("%s: is not the published file; left out", folder / name)
            return None
    return files


def _from_debian(scratch: Path) -> Iterator[Path]:
    """The package's folder, unpacked into `scratch` without being installed; needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    if not _run(["apt-get", "download", _DEBIAN_PACKAGE], scratch):
        _run(["apt-get", "update"], scratch)
        if not _run(["apt-get", "download", _DEBIAN_PACKAGE], scratch):
            return
    for package in scratch.glob("*.deb"):
        if _run(["dpkg-deb", "-x", str(package), str(scratch)], scratch):
            yield scratch / _DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], folder: Path) -> bool:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=_PACKAGE_TIMEOUT_S).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _download(home: str, scratch: Path) -> Iterator[Path]:
    try:
        for name in _FILES:
            with urllib.request.urlopen(home + name, timeout=_TIMEOUT_S) as answer:
                (scratch / name).write_bytes(answer.read())
    except (OSError, urllib.error.URLError):
        return
    yield scratch
