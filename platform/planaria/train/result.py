"""What a run hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunResult:
    """A finished, stopped or failed run. `summary` is the content of its summary.json."""

    folder: Path | str
    """A URI where the run is kept at one."""
    status: str
    """"done", "stopped" or "failed"."""
    summary: dict[str, Any] = field(default_factory=dict)
    report: Path | str | None = None
