"""A library of peers in a Python of its own, which needs no planaria: whether it is there, and a script run by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.errors import InputError, RunError


@dataclass(frozen=True)
class Library:
    """One that must not, or need not, live beside planaria."""

    name: str
    option: str
    """Of the command line, which names its Python."""
    probe: str
    """Python that prints the library's version, and fails where it cannot be used."""
    versions: str
    """How a version begins that is known here."""
    install: str
    """How to get it."""
    complete: str | None = None
    """What to do where the probe fails after it has told the version: the library is there, but lacks something."""

    def interpreter(self, given: str | None) -> str:
        """A Python that has it: the one given, or this one. Raises InputError where it has not; takes seconds."""
        python = given or sys.executable
        try:
            found = subprocess.run(
                [python, "-c", self.probe], capture_output=True, text=True, check=False, env=_environment()
            )
        except OSError as error:
            raise InputError(f"{self.option}: {python} cannot be started ({error.strerror}); {self.install}") from None
        version = _last_line(found.stdout)
        if found.returncode:
            remedy = self.complete if self.complete and version else self.install
            raise InputError(f"--peers: {python} cannot import {self.name} ({_last_line(found.stderr)}); {remedy}")
        if not version.startswith(self.versions):
            raise InputError(
                f"--peers: {python} has {self.name} {version}, but only {self.versions}x is known here; {self.install}"
            )
        return python

    def start(self, python: str, script: Path, stream: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the script's last line says about an exported stream. Raises RunError where the learner fails."""
        command = [python, str(script), str(stream), json.dumps(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
        learner = settings["learner"]
        if done.returncode:
            raise RunError(f"{self.name}'s {learner} failed ({_last_line(done.stderr)})")
        try:
            found: dict[str, Any] = json.loads(_last_line(done.stdout))
        except ValueError:
            raise RunError(f"{self.name}'s {learner} said no outcome, but '{_last_line(done.stdout)}'") from None
        return found


def _environment() -> dict[str, str]:
    """Without the script's own folder on the path there, whose names are ours."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
