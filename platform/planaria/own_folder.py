"""Folders that planaria made, and somebody else may have changed since."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from planaria.errors import InputError


def check_no_links(folder: Path) -> None:
    """Raises InputError where something below the folder leads out of it, or is no file: what is written here would go
    elsewhere, and what is read might never end."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place) / name for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # a run that goes on replaces its files
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise InputError(f"{path}: is a link, a pipe or a device, which planaria never makes; remove it")
