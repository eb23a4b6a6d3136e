"""Reaching an MLflow store: checked before a run, bounded in time, and without MLflow's global state."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from planaria.addresses import filled, mask_secrets
from planaria.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EMBEDDED_DB, EMBEDDED_ARTIFACTS = "mlflow.db", "mlartifacts"

# MLflow's own defaults wait for minutes, and it prints. What the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_QUIET = ("alembic", "mlflow.store.db.utils", "mlflow.utils.requirements_utils", "urllib3.connectionpool")

_ADVICE = "start the store, correct record.tracking_uri, or leave it out to record into the run's folder"


def embedded_uri(folder: Path) -> str:
    """The SQLite store inside a run's folder."""
    return f"sqlite:///{folder.resolve() / EMBEDDED_DB}"


def check_tracking_uri(uri: str, timeout_s: float = 5.0) -> None:
    """Raises InputError where nothing that could be an MLflow store answers at `uri` within `timeout_s`."""
    where = f"record.tracking_uri: {mask_secrets(uri)}"
    try:
        uri = filled(uri)
    except KeyError as error:
        raise InputError(f"{where}: there is no environment variable {error}; set it") from None
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _check_server(uri, where, timeout_s)
    elif scheme == "sqlite":
        _check_sqlite(sqlite_path(uri), where)
    elif scheme.partition("+")[0] in ("postgresql", "mysql", "mssql"):
        _check_database(uri, where, timeout_s)
    elif not scheme.startswith("databricks"):
        raise InputError(f"{where} is no store that MLflow can write to; give sqlite:///PATH or http://HOST:PORT")


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`, whose ${NAMES} come from the environment; a SQLite store is made where there is
    none yet, and set to write-ahead logging.

    The first import of MLflow takes 5 to 9 CPU seconds, a new SQLite store 1 to 8 more.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    uri = filled(uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if urlsplit(uri).scheme == "sqlite":
        client.search_experiments(max_results=1)
        with sqlite3.connect(sqlite_path(uri), timeout=10) as database:
            database.execute("PRAGMA journal_mode=WAL")
        database.close()
    return client


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id; it is made, or taken out of the bin, where necessary."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return str(client.create_experiment(name, artifact_location=_artifacts(uri)))
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def sqlite_path(uri: str) -> Path:
    """The file of `sqlite:///relative` or `sqlite:////absolute`."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def _artifacts(uri: str) -> str | None:
    """Beside a SQLite store, since MLflow would take the current folder; None is the server's own place."""
    if urlsplit(uri).scheme != "sqlite":
        return None
    return (sqlite_path(uri).parent / EMBEDDED_ARTIFACTS).as_uri()


def _check_server(uri: str, where: str, timeout_s: float) -> None:
    import requests  # as MLflow's client does: it knows users and passwords in addresses

    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=timeout_s)
    except (requests.RequestException, ValueError) as error:
        reason = _innermost(error)
    else:
        if answer.status_code < 500:  # Something answers; a gateway in front of MLflow may not know /health.
            return
        reason = f"it answers {answer.status_code}"
    raise InputError(f"{where} cannot be reached ({mask_secrets(reason)}); {_ADVICE}")


def _innermost(error: BaseException) -> str:
    """What requests wraps three times over."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args[0] if error.args else None), BaseException):
        error = inner
    return str(error).rpartition(": ")[2]


def _check_sqlite(path: Path, where: str) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{where}: there is no folder {path.parent}; make it, or correct the path")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{where}: {path} cannot be written; change its rights, or choose another path")
    if not path.exists():
        return
    try:
        database = sqlite3.connect(path, timeout=5)
        database.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
        database.close()
    except sqlite3.Error as error:
        raise InputError(f"{where}: {path} is not a usable SQLite file ({error}); choose another path") from None


def _check_database(uri: str, where: str, timeout_s: float) -> None:
    import sqlalchemy

    arguments = {"connect_timeout": round(timeout_s)} if not uri.startswith("mssql") else {"timeout": round(timeout_s)}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=arguments)
        engine.connect().close()
        engine.dispose()
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: its driver is not installed ({error.name}); install it with pip") from None
    except Exception as error:  # Each driver has its own errors.
        reason = mask_secrets(str(error).strip().splitlines()[0])
        raise InputError(f"{where} cannot be reached ({reason}); {_ADVICE}") from None
