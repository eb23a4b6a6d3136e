"""Where fetched data lives, and how files get there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from planaria.errors import InputError


def data_folder() -> Path:
    """PLANARIA_DATA where that is set, else ~/.cache/planaria."""
    chosen = os.environ.get("PLANARIA_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "planaria"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_set(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`make_folder` for a named set. Raises InputError with what to do."""
    try:
        return make_folder(folder, fill)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); make room or set PLANARIA_DATA") from error


def make_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled by `fill` under another name first: it is never seen half full. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        fill(unfinished)
        os.rename(unfinished, folder)
    except OSError:
        if not folder.exists():  # Otherwise another process was first.
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
