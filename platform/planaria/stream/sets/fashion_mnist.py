"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; MIT): 60,000 and 10,000 grey 28x28 pictures of clothes, 10 classes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from planaria.stream.sets.idx import PictureSet, ran

NAME = "fashion_mnist"

_DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_HOMES = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)


def _places(scratch: Path) -> Iterator[tuple[str, Callable[[], Iterator[Path]]]]:
    yield str(_DEBIAN_FOLDER), lambda: iter([_DEBIAN_FOLDER])
    yield f"the Debian package {_DEBIAN_PACKAGE}", lambda: _from_debian(scratch)


def _from_debian(scratch: Path) -> Iterator[Path]:
    """The package's folder, unpacked into `scratch` without being installed; needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return
    if not ran(["apt-get", "download", _DEBIAN_PACKAGE], scratch):
        ran(["apt-get", "update"], scratch)
        if not ran(["apt-get", "download", _DEBIAN_PACKAGE], scratch):
            return
    for package in scratch.glob("*.deb"):
        if ran(["dpkg-deb", "-x", str(package), str(scratch)], scratch):
            yield scratch / _DEBIAN_FOLDER.relative_to("/")


SET = PictureSet(NAME, _DIGESTS, _places, _HOMES)
