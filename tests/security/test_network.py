"""What a Ray that planaria starts for a run offers to the network, and to whom: real sockets of real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.processes import below
from tests.security.conftest import environment_of

STARTED = """
import sys
from planaria.job import Job
from planaria.train import launch

launch._set_ray_environment(Job.model_validate({"stream": {"source": "fashion_mnist"}}))
launch._join(None)
import ray

print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""
ASKED = """
import sys
from ray._raylet import GcsClient

print(len(GcsClient(address=sys.argv[1]).get_all_node_info()), "node", flush=True)
"""


@dataclass(frozen=True)
class Cluster:
    address: str
    """Of the head, for whoever joins."""
    listening: list[tuple[str, int]]
    """(address, port) of every TCP socket on which a process of it waits for others."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a user who has no token yet."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Cluster]:
    command = [sys.executable, "-c", STARTED]
    with subprocess.Popen(
        command, env=environment_of(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        assert started.stdin is not None and started.stdout is not None
        line = "none"
        while line and not line.startswith("address "):
            line = started.stdout.readline()
        assert line, "Ray did not start"
        yield Cluster(line.split()[1], list(_listening({process.pid for process in below(started.pid)})))
        started.stdin.close()


def _listening(pids: set[int]) -> Iterator[tuple[str, int]]:
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(descriptor))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            address, _, port = fields[1].partition(":")
            yield socket.inet_ntoa(struct.pack("<I", int(address, 16))), int(port, 16)
    for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            yield "::", int(fields[1].rpartition(":")[2], 16)


def _ask(host: str, port: int, path: str, content: bytes | None = None) -> tuple[int, str]:
    """(HTTP status, beginning of the answer); (0, "") where the socket does not speak HTTP."""
    request = urllib.request.Request(f"http://{host}:{port}{path}", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read(200).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(200).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException):
        return 0, ""


def test_the_dashboard_is_on_loopback_alone_and_tells_nothing_without_the_token(cluster: Cluster) -> None:
    pages = {
        (address, port)
        for address, port in cluster.listening
        if _ask(_reached(address), port, "/")[1].lstrip().lower().startswith("<!doctype html")
    }
    assert [address for address, _ in pages] == ["127.0.0.1"]
    ((_, port),) = pages
    for path in ("/api/version", "/api/jobs/", "/nodes", "/logs/"):
        assert _ask("127.0.0.1", port, path)[0] == 401, path
    job = json.dumps({"entrypoint": "touch /tmp/owned"}).encode()
    assert _ask("127.0.0.1", port, "/api/jobs/", job)[0] == 401


def test_what_the_network_can_reach_tells_metrics_and_health_and_else_demands_the_token(cluster: Cluster) -> None:
    reachable = [(address, port) for address, port in cluster.listening if not address.startswith("127.")]
    assert reachable, "nodes must reach each other"
    for address, port in reachable:
        for path in ("/", "/api/jobs/", "/api/local_raylet_healthz"):
            status, answer = _ask(_reached(address), port, path)
            harmless = answer.startswith("# HELP ") or (path.endswith("healthz") and answer == "success")
            assert status in (0, 401, 403, 404) or harmless, (address, port, path, answer)
        status, _ = _ask(_reached(address), port, "/api/jobs/", b'{"entrypoint": "touch /tmp/owned"}')
        assert status in (0, 401, 403, 404, 405), (address, port)


def _reached(address: str) -> str:
    return "127.0.0.1" if address in ("0.0.0.0", "::") else address


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_nobody_gets_into_the_cluster_without_the_token(token: str, cluster: Cluster, tmp_path: Path) -> None:
    changes = {"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": token}
    refused = _asked(cluster, environment_of(tmp_path, **changes))
    assert refused.returncode != 0 and refused.stdout == "" and "Unauthenticated" in refused.stderr


def test_whoever_has_the_token_gets_in(cluster: Cluster, home: Path) -> None:
    answered = _asked(cluster, environment_of(home, RAY_AUTH_MODE="token"))
    assert answered.stdout == "1 node\n", answered.stderr


def _asked(cluster: Cluster, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What Ray's head answers to a process of its own kind."""
    command = [sys.executable, "-c", ASKED, cluster.address]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
