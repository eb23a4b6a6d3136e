"""Registering a model that a run left in its folder, so that MLflow can load and serve it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

ALIAS = "newest"
"""MLflow reserves the alias "latest" for itself: `models:/NAME/latest` is the version of the highest number."""

LOADER = "planaria.record.serve"


def register(client: MlflowClient, run_id: str, name: str, model: Path, revision: int, samples: int) -> str:
    """Make `model` (as `planaria.model.save_model` writes it) a version of the registered model `name`.

    Returns the version's number: of an earlier call for the same run and sample, if there was one.
    """
    from mlflow.exceptions import MlflowException

    name = registered_name(name)
    tags = {"planaria.run": run_id, "planaria.revision": str(revision), "planaria.samples": str(samples)}
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = _registered(client, name, tags) or _upload(client, run_id, name, model, tags)
    client.set_registered_model_alias(name, ALIAS, version)
    return version


def registered_name(name: str) -> str:
    """MLflow refuses slashes, colons, and names that are a path of another kind."""
    return re.sub(r"[/:\\%\"']+", "-", name).strip(". ") or "model"


def _registered(client: MlflowClient, name: str, tags: dict[str, str]) -> str | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next(
        (str(v.version) for v in versions if tags.items() <= dict(v.tags).items() and v.status == "READY"), None
    )


def _upload(client: MlflowClient, run_id: str, name: str, model: Path, tags: dict[str, str]) -> str:
    import mlflow.pyfunc

    experiment = client.get_run(run_id).info.experiment_id
    with tempfile.TemporaryDirectory(prefix="planaria-") as temporary:
        packed = Path(temporary) / "model"
        # No code and no pickle: data, and the name of the module of ours that reads it.
        mlflow.pyfunc.save_model(
            str(packed), loader_module=LOADER, data_path=str(model), pip_requirements=["planaria", "mlflow"]
        )
        logged = client.create_logged_model(experiment, name, run_id, tags=tags, model_type="planaria")
        client.log_model_artifacts(logged.model_id, str(packed))
        client.finalize_logged_model(logged.model_id, "READY")
    # By its place: a "models:/" address would be looked up in MLflow's global store, which need not be this one.
    made = client.create_model_version(
        name, logged.artifact_location, run_id, tags=tags, model_id=logged.model_id, await_creation_for=0
    )
    return str(made.version)
