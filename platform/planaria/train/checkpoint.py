"""Checkpoints: named byte strings, written so that a broken one is recognised and the one before is used.

A checkpoint is a folder whose `manifest.json` is written last and holds every file's size and SHA-256. Nothing in it
is pickled. Works on any `pyarrow.fs` filesystem.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping

import pyarrow.fs as pafs

from planaria.errors import RunError

logger = logging.getLogger(__name__)

FORMAT = 1
_MANIFEST = "manifest.json"


class CheckpointStore:
    """The newest `keep` checkpoints of a run below one folder (a path or a `pyarrow.fs` URI)."""

    def __init__(self, folder: str, keep: int) -> None:
        self.filesystem, root = (
            pafs.FileSystem.from_uri(folder) if "://" in folder else (pafs.LocalFileSystem(), folder)
        )
        self.root = root.rstrip("/")
        self.folder, self.keep = folder, keep

    def save(self, step: int, parts: Mapping[str, bytes]) -> None:
        """Write a checkpoint and drop those beyond `keep`. Raises RunError where it cannot be written."""
        target = f"{self.root}/step-{step:012d}"
        try:
            if self.filesystem.get_file_info(target).type != pafs.FileType.NotFound:
                self.filesystem.delete_dir(target)
            self.filesystem.create_dir(target, recursive=True)
            files = {}
            for name, content in parts.items():
                self._write(f"{target}/{name}", content)
                files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1).encode()
            self._write(f"{target}/{_MANIFEST}.partial", manifest)
            self.filesystem.move(f"{target}/{_MANIFEST}.partial", f"{target}/{_MANIFEST}")
        except OSError as error:
            self._drop(target)
            raise RunError(
                f"{self.folder}: cannot write a checkpoint ({error.strerror or error}); free some space or mend the "
                "folder's rights, then `planaria resume` the run's folder"
            ) from None
        for old in self.steps()[self.keep :]:
            self._drop(f"{self.root}/step-{old:012d}")

    def steps(self) -> list[int]:
        """Steps of all checkpoints, newest first, whole or not."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return sorted(
            (int(n.removeprefix("step-")) for n in names if n.startswith("step-") and n[5:].isdigit()), reverse=True
        )

    def whole(self) -> Iterator[tuple[int, dict[str, bytes]]]:
        """(step, parts) of every checkpoint that is whole, newest first; a broken one is named in the log."""
        for step in self.steps():
            try:
                yield step, self._read(step)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("%s/step-%012d: broken checkpoint (%s); using the one before", self.folder, step, error)

    def whole_at(self, step: int) -> dict[str, bytes]:
        """The parts of one checkpoint, known to be whole."""
        return self._read(step)

    def _read(self, step: int) -> dict[str, bytes]:
        source = f"{self.root}/step-{step:012d}"
        manifest = json.loads(self._bytes(f"{source}/{_MANIFEST}"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']} is not {FORMAT}")
        parts = {}
        for name, about in manifest["files"].items():
            if "/" in name or name.startswith("."):
                raise ValueError(f"file name '{name}' leaves the folder")
            parts[name] = self._bytes(f"{source}/{name}")
            if hashlib.sha256(parts[name]).hexdigest() != about["sha256"]:
                raise ValueError(f"'{name}' is damaged")
        return parts

    def _bytes(self, path: str) -> bytes:
        with self.filesystem.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content

    def _write(self, path: str, content: bytes) -> None:
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def _drop(self, path: str) -> None:
        try:
            self.filesystem.delete_dir(path)
        except OSError:
            logger.warning("%s: cannot be removed", path)
