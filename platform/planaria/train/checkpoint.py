"""Checkpoints: named byte strings, written so that a broken one is recognised and the one before is used.

A checkpoint is a folder whose `manifest.json` is written last and holds every file's size and SHA-256. A folder is
never written twice, so that a kill at any moment leaves the earlier ones whole. Nothing in it is pickled. Works on any
`pyarrow.fs` filesystem.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping

import pyarrow.fs as pafs

from planaria.errors import RunError
from planaria.plain_json import load_json
from planaria.uri import above, is_uri, local_path, opened

logger = logging.getLogger(__name__)

FORMAT = 1
_MANIFEST = "manifest.json"
_LARGEST_MANIFEST_BYTES = 1 << 20
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")
"""step-000000000120, and step-000000000120-2 where that step was saved again."""


class CheckpointStore:
    """The newest `keep` checkpoints of a run below one folder (a path or a `pyarrow.fs` URI)."""

    def __init__(self, folder: str, keep: int) -> None:
        self.filesystem, root = (
            opened(folder, "storage") if is_uri(folder) else (pafs.LocalFileSystem(), str(local_path(folder)))
        )
        self.root = root.rstrip("/")
        self.folder, self.keep = folder, keep

    def save(self, step: int, parts: Mapping[str, bytes], before_dropping: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint; drop those beyond `keep`, and those of later steps, which the run has gone back behind.

        `before_dropping` may raise what keeps it from that. Raises RunError where it cannot be written.
        """
        target = ""
        try:
            name = self._free_name(step)
            target = f"{self.root}/{name}"
            self.filesystem.create_dir(target, recursive=True)
            files = {}
            for part, content in parts.items():
                self._write(f"{target}/{part}", content)
                files[part] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1).encode()
            self._write(f"{target}/{_MANIFEST}.partial", manifest)
            self.filesystem.move(f"{target}/{_MANIFEST}.partial", f"{target}/{_MANIFEST}")
            names = self.names()
        except OSError as error:
            if target:
                self._drop(target)
            raise RunError(
                f"{self.folder}: cannot write a checkpoint ({error.strerror or error}); free some space or mend the "
                f"folder's rights, then `planaria resume {above(self.folder)}`"
            ) from None
        before_dropping()
        place = names.index(name)
        for old in names[:place] + names[place + self.keep :]:
            self._drop(f"{self.root}/{old}")

    def names(self) -> list[str]:
        """All checkpoints, newest first, whole or not."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        found = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return sorted((name for name in found if _NAME.fullmatch(name)), key=_order, reverse=True)

    def steps(self) -> list[int]:
        """Steps of all checkpoints, newest first, whole or not."""
        return [step_of(name) for name in self.names()]

    def whole(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(name, parts) of every checkpoint that is whole, newest first; a broken one is named in the log."""
        for name in self.names():
            try:
                yield name, self.read(name)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                logger.warning("%s/%s: broken checkpoint (%s); using the one before", self.folder, name, _reason(error))

    def begun(self) -> list[str]:
        """All but an unfinished first one: a run that was killed while it wrote that has lost nothing."""
        return [name for name in self.names() if step_of(name) or not self._unfinished(name)]

    def read(self, name: str) -> dict[str, bytes]:
        """The parts of one checkpoint.

        Raises OSError, ValueError, KeyError, TypeError or AttributeError where it is not whole.
        """
        source = f"{self.root}/{name}"
        manifest = load_json(self._bytes(f"{source}/{_MANIFEST}", _LARGEST_MANIFEST_BYTES))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']} is not {FORMAT}")
        parts = {}
        for part, about in manifest["files"].items():
            if "/" in part or part.startswith("."):
                raise ValueError(f"file name '{part}' leaves the folder")
            if self.filesystem.get_file_info(f"{source}/{part}").size != about["size"]:  # None of what is no file
                raise ValueError(f"'{part}' is damaged")
            parts[part] = self._bytes(f"{source}/{part}", about["size"])
            if hashlib.sha256(parts[part]).hexdigest() != about["sha256"]:
                raise ValueError(f"'{part}' is damaged")
        return parts

    def _unfinished(self, name: str) -> bool:
        found = self.filesystem.get_file_info(f"{self.root}/{name}/{_MANIFEST}")
        return bool(found.type == pafs.FileType.NotFound)

    def _free_name(self, step: int) -> str:
        """A name that no checkpoint has: one that exists is never touched, so that a kill cannot harm it."""
        same = [_order(name)[1] for name in self.names() if step_of(name) == step]
        return f"step-{step:012d}" if not same else f"step-{step:012d}-{max(same) + 1}"

    def _bytes(self, path: str, most: int) -> bytes:
        with self.filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read(most)
        return content

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def _drop(self, path: str) -> None:
        try:
            self.filesystem.delete_dir(path)
        except OSError:
            logger.warning("%s: cannot be removed", path)


def step_of(name: str) -> int:
    """The step that a checkpoint's name tells."""
    return _order(name)[0]


def _order(name: str) -> tuple[int, int]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2] or 1)


def _reason(error: Exception) -> str:
    """One short line: Arrow's errors name the same path several times."""
    if isinstance(error, FileNotFoundError):
        return "a file is missing"
    return " ".join(str(error).split())
