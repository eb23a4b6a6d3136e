"""A run's folder: names of its files, small atomic writes, and the marks by which processes talk through it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.errors import InputError, RunError


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def live(self) -> Path:
        return self.path / "live.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stop_mark(self) -> Path:
        """While this file exists, the run is asked to stop at its next checkpoint."""
        return self.path / "stop"

    @property
    def starts(self) -> Path:
        """One line for each time that workers began (or began again) to run."""
        return self.path / "starts.jsonl"

    @property
    def served(self) -> Path:
        """The newest model, as serving loads it."""
        return self.path / "model"

    def make(self) -> None:
        """Raises InputError where the folder cannot be made or written to."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot write here ({error.strerror}); choose another one with --out or mend its rights"
            ) from None

    def write_json(self, path: Path, values: dict[str, Any]) -> None:
        self.write_text(path, json.dumps(values, indent=1))

    def write_text(self, path: Path, text: str) -> None:
        """Readers see the old content or the new, never half of it. Raises RunError where there is no room."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}); free some space, then `planaria resume {self.path}`"
            ) from None

    def read_json(self, path: Path) -> dict[str, Any]:
        """An empty mapping where the file is not there (yet)."""
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def count_starts(self) -> int:
        return len(self.starts.read_text().splitlines()) if self.starts.exists() else 0
