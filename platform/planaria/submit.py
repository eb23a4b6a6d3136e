"""Jobs on a Ray cluster that is already running: hand one in, ask for its state and its log, stop it."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from planaria.addresses import holds_secret
from planaria.errors import InputError, RunError
from planaria.job import Job, dump_job
from planaria.plain_yaml import one_line
from planaria.uri import absolute

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)
T = TypeVar("T")

HOW_TO_GET_A_TOKEN = (
    "print it with `ray get-auth-token` where the cluster was started, and set RAY_AUTH_TOKEN, "
    "RAY_AUTH_TOKEN_PATH or write it to ~/.ray/auth_token"
)
STOPS_WITHIN_S = 120
"""How long a job that was asked to stop may take to its next checkpoint and to close its record; Ray's own default is
3 seconds, after which it kills."""
FORWARDED = ("MLFLOW_TRACKING_URI", "PLANARIA_DATA", "OMP_NUM_THREADS", "AWS_ENDPOINT_URL", "AWS_REGION")
"""Environment variables that a submitted job inherits. No secrets: Ray shows them on its dashboard."""


class Cluster:
    """The jobs of one Ray cluster. Every failure to reach it is an InputError of one line."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._client = self._ask(lambda: _client(address))

    def submit_job(self, job: Job) -> str:
        """Hand a job in; its submission id. The cluster's nodes must see its data and its storage folder."""
        storage = job.storage.model_copy(update={"folder": absolute(job.storage.folder)})
        with tempfile.TemporaryDirectory(prefix="planaria-job-") as folder:
            text = dump_job(job.model_copy(update={"storage": storage}))
            (Path(folder) / "job.yaml").write_text(text, encoding="utf-8")
            return self.submit_command(planaria_command(["run", "job.yaml", "--address", "auto"]), Path(folder))

    def submit_resume(self, folder: str) -> str:
        """Go on with the run in a folder or at a URI that means the same on the cluster's nodes; the submission id."""
        with tempfile.TemporaryDirectory(prefix="planaria-job-") as empty:
            command = planaria_command(["resume", folder, "--address", "auto"])
            return self.submit_command(command, Path(empty))

    def submit_command(self, entry_point: str, folder: Path) -> str:
        """Run a shell command on the cluster, in a copy of `folder`, with this package; the submission id."""
        with tempfile.TemporaryDirectory(prefix="planaria-code-") as code:
            environment = {
                "working_dir": str(folder),
                "py_modules": [str(_package(Path(code)))],
                "env_vars": {**_handed_on(), "RAY_JOB_STOP_WAIT_TIME_S": str(STOPS_WITHIN_S)},
            }
            return self._ask(lambda: self._client.submit_job(entrypoint=entry_point, runtime_env=environment))

    def status(self, job_id: str) -> dict[str, Any]:
        """id, status (PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED), message, exit_code and times (unix seconds)."""
        details = self._ask(lambda: self._client.get_job_info(job_id), job_id)
        return {
            "id": job_id,
            "status": str(details.status.value),
            "message": one_line(details.message or ""),
            "exit_code": details.driver_exit_code,
            "started": details.start_time and details.start_time / 1000,
            "ended": details.end_time and details.end_time / 1000,
        }

    def logs(self, job_id: str) -> str:
        """What the job has printed so far."""
        return str(self._ask(lambda: self._client.get_job_logs(job_id), job_id))

    def follow(self, job_id: str, show: Callable[[str], None]) -> dict[str, Any]:
        """Hand over what the job prints, as it prints it, until it ends; then its status."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job_id):
                show(text)

        self._ask(lambda: asyncio.run(tail()), job_id)
        return self.status(job_id)

    def stop(self, job_id: str) -> bool:
        """Ask the job to stop at its next checkpoint; one that takes longer than STOPS_WITHIN_S is killed. False where
        it had ended already."""
        return bool(self._ask(lambda: self._client.stop_job(job_id), job_id))

    def _ask(self, question: Callable[[], T], job_id: str | None = None) -> T:
        """The answer, or one line that says why there is none."""
        from ray.exceptions import AuthenticationError

        try:
            return question()
        except AuthenticationError as error:
            wrong = "does not take this token" if "Authentication failed" in str(error) else "asks for a token"
            raise InputError(f"{self._address}: the cluster {wrong}; {HOW_TO_GET_A_TOKEN}") from None
        except ConnectionError:
            raise InputError(
                f"{self._address}: no Ray cluster answers there; give the dashboard's address, "
                "such as http://127.0.0.1:8265, and check that the cluster is up"
            ) from None
        except (RuntimeError, ValueError, OSError) as error:
            if "does not exist" in str(error) and job_id:
                raise InputError(f"{self._address}: the cluster knows no job '{job_id}'; check its id") from None
            raise RunError(f"{self._address}: {one_line(str(error))[:300]}") from None


def _client(address: str) -> JobSubmissionClient:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise InputError("ray[default] is not installed, which submitting needs: pip install 'ray[default]'") from None
    if not address.startswith(("http://", "https://", "ray://")):
        raise InputError(f"{address}: is no address of a cluster; give the dashboard's, such as http://127.0.0.1:8265")
    with _without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        try:
            return JobSubmissionClient(address)
        except RuntimeError as error:
            if "ray[default]" in str(error):
                raise InputError(
                    "ray[default] is not installed, which submitting needs: pip install 'ray[default]'"
                ) from None
            raise


def choose_authentication() -> None:
    """Send a token where the user has one. Must run before Ray is imported: it reads this setting once.

    Ray's own default is to send none, and clusters' default is to demand one.
    """
    files = [Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "")), Path.home() / ".ray" / "auth_token"]
    if os.environ.get("RAY_AUTH_TOKEN") or any(path.is_file() for path in files):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def planaria_command(arguments: list[str]) -> str:
    """A shell command for planaria on the cluster's head: by this interpreter where the head has it too."""
    here = shlex.quote(sys.executable)
    has_ray = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ray') is None)"
    return (
        f'PY={here}; "$PY" -c {shlex.quote(has_ray)} 2>/dev/null || PY=python; '
        f'exec "$PY" -m planaria.cli {shlex.join(arguments)}'
    )


def _handed_on() -> dict[str, str]:
    values = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    for name, value in values.items():
        if holds_secret(value):
            raise InputError(
                f"{name}: holds a password or a token, which Ray would show on its dashboard; write ${{NAME}} in its "
                "place and set NAME in the environment of the cluster's nodes"
            )
    return values


def _package(folder: Path) -> Path:
    """A copy of this package without caches, so that equal code has an equal fingerprint and is sent once."""
    source = Path(__file__).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / source.name


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Ray lets these variables override the address that it is given. The user's word counts here."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
