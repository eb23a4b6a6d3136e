"""Which files a path means: one file, a folder or a glob, here or on any filesystem that Arrow knows."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs

from planaria.errors import InputError, nearest
from planaria.stream.source import DataError, Place
from planaria.uri import is_uri, local_path, opened, split_query

_GLOB = re.compile(r"[*?\[]")
_UNFINISHED = (".tmp", ".part")


@dataclass(frozen=True)
class Listing:
    """Files under a root, in the order in which they are streamed: sorted by their names below it."""

    filesystem: fs.FileSystem
    root: str
    shown: str
    """The root as the user wrote it, for messages."""
    pattern: re.Pattern[str] | None
    """Which names count; None where the root is itself the one file."""

    @property
    def single(self) -> bool:
        return self.pattern is None

    def names(self) -> list[str]:
        """Complete files there now; raises DataError where they cannot be listed.

        A name that starts with . or _, or ends in .tmp or .part, is not complete.
        """
        return sorted(self.files())

    def files(self) -> dict[str, fs.FileInfo]:
        if self.pattern is None:
            return {"": self.filesystem.get_file_info(self.root)}
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.root, recursive=True, allow_not_found=True))
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be listed ({error}); check its permissions") from error
        named = {str(PurePosixPath(info.path).relative_to(self.root)): info for info in found if info.is_file}
        return {name: info for name, info in named.items() if self.pattern.fullmatch(name) and _finished(name)}

    def place(self, name: str) -> Place:
        if not name:
            return Place(self.filesystem, self.root, self.shown)
        return Place(self.filesystem, f"{self.root}/{name}", f"{self.shown.rstrip('/')}/{name}")


def list_files(path: str, base: Path, extensions: tuple[str, ...]) -> Listing:
    """What `path` means, relative to `base`. Raises InputError where nothing is there."""
    place, query = split_query(path) if is_uri(path) else (path, "")
    before, pattern = _split_glob(place)
    filesystem, root = _locate(before + query, base)
    try:
        info = filesystem.get_file_info(root)
    except OSError as error:
        raise InputError(f"stream.path: {before} cannot be reached ({error}); check it and your access") from error
    if info.type == fs.FileType.NotFound:
        raise InputError(f"stream.path: {before} is not there{_sibling(filesystem, root)}; give a file, folder or glob")
    if info.is_file:
        if pattern:
            raise InputError(f"stream.path: {before} is a file, so {path} means nothing; remove {pattern}")
        return Listing(filesystem, root, before, None)
    wanted = _translate(pattern) if pattern else "(?:.*)" + f"(?:{'|'.join(re.escape(e) for e in extensions)})"
    return Listing(filesystem, root, before, re.compile(wanted, re.DOTALL))


def _split_glob(path: str) -> tuple[str, str]:
    """The part before the first component with a wildcard, and the rest."""
    found = _GLOB.search(path)
    if found is None:
        return path, ""
    cut = path.rfind("/", 0, found.start()) + 1
    return path[:cut].rstrip("/") or ("/" if cut else "."), path[cut:]


def _locate(path: str, base: Path) -> tuple[fs.FileSystem, str]:
    if is_uri(path):
        return opened(path, "stream.path")
    return fs.LocalFileSystem(), os.path.normpath(base / local_path(path).expanduser())


def _translate(pattern: str) -> str:
    """A glob as a regular expression: * and ? stay within a folder, **/ crosses folders."""
    expression, place = "", 0
    while place < len(pattern):
        if pattern.startswith("**/", place):
            expression, place = expression + "(?:.*/)?", place + 3
            continue
        character, closing = pattern[place], pattern.find("]", place + 2)
        if character == "[" and closing > 0:
            expression += "[" + pattern[place + 1 : closing].replace("!", "^", 1) + "]"
            place = closing + 1
            continue
        expression += {"*": "[^/]*", "?": "[^/]"}.get(character, re.escape(character))
        place += 1
    return expression


def _finished(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
    return not hidden and not name.endswith(_UNFINISHED)


def _sibling(filesystem: fs.FileSystem, root: str) -> str:
    parent = str(PurePosixPath(root).parent)
    found = filesystem.get_file_info(fs.FileSelector(parent, allow_not_found=True))
    return nearest(PurePosixPath(root).name, [PurePosixPath(info.path).name for info in found])
