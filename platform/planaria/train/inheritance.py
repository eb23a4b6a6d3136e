"""Beginning with what the controller of another run has learned."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from planaria.errors import InputError
from planaria.plain_json import read_json
from planaria.record.mlflow_store import fetched_records
from planaria.train.folder import RunFolder, working_copy
from planaria.uri import is_uri

_WHERE = "policy.controller.from_run"


def learned_by(source: str, tracking_uri: str | None, base: Path) -> dict[str, Any]:
    """What a run's controller has learned: of a run's folder, of an MLflow id, or of a run that goes on in the cluster.

    Raises InputError where there is no such run, or it has learned nothing yet.
    """
    if is_uri(source):
        with working_copy(source) as there:
            return _read(there.learned, source)
    folder = RunFolder(base / Path(source).expanduser())
    if folder.path.is_dir():
        return _read(folder.learned, source)
    if re.fullmatch(r"[0-9a-f]{32}", source):
        if tracking_uri is None:
            raise InputError(f"{_WHERE}: an MLflow id needs record.tracking_uri; set it, or give the run's folder")
        with fetched_records(source, tracking_uri) as records:
            return _read(RunFolder(records).learned, source)
    return _of_running(source)


def _read(path: Path, source: str) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"{_WHERE}: {source} holds no {path.name}; give a run that a learned controller has steered"
        ) from None


def _of_running(name: str) -> dict[str, Any]:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        from planaria.control.actor import read_controller

        try:
            _, state = read_controller(name)
            return dict(state["judge"])
        except (ValueError, KeyError):
            pass
    raise InputError(f"{_WHERE}: '{name}' is no run's folder, no MLflow id, and no run that goes on in this cluster")
