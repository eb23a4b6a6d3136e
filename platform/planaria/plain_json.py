"""JSON that others may have written: bounded in size and depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_FILE_BYTES = 64 << 20


def load_json(text: str | bytes) -> Any:
    """Raises ValueError where the text is not JSON, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a file holds. Raises OSError where there is no such file, ValueError where it holds anything else."""
    if path.exists() and not path.is_file():  # a pipe would be waited for, and a device has no end
        raise ValueError("it is no file")
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE_BYTES + 1)
    if len(content) > LARGEST_FILE_BYTES:
        raise ValueError(f"it is larger than {LARGEST_FILE_BYTES:,} bytes")
    return load_json(content)
