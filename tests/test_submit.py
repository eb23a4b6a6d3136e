"""Submitting to a real Ray cluster of its own: token authentication on, its own ports and folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
NOBODY = "http://127.0.0.1:1"


@dataclass(frozen=True)
class Head:
    address: str
    environment: dict[str, str]

    def planaria(self, *arguments: str, timeout_s: float = 180, **changes: str) -> subprocess.CompletedProcess[str]:
        return planaria(*arguments, environment={**self.environment, **changes}, timeout_s=timeout_s)


def planaria(*arguments: str, environment: dict[str, str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "planaria.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


def clean_environment(home: Path) -> dict[str, str]:
    """Without Ray's variables, and with a home that holds no token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    data = os.environ.get("PLANARIA_DATA", str(Path.home() / ".cache" / "planaria"))
    return {**kept, "HOME": str(home), "PLANARIA_DATA": data, "PYTHONPATH": str(REPOSITORY / "platform")}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def processes_of(folder: Path) -> list[int]:
    """Pids of the processes whose command line names a folder that nobody else has."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head node with token authentication, ended by the pids of its own processes."""
    folder = Path(f"/tmp/planaria-{os.getpid()}")  # pytest's own folders are too long for Ray's sockets
    token = secrets.token_hex(16)
    environment = {
        **clean_environment(tmp_path_factory.mktemp("home")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ports = free_ports(5)
    options = {
        "--node-ip-address": "127.0.0.1",
        "--port": ports[0],
        "--dashboard-port": ports[1],
        "--ray-client-server-port": ports[2],
        "--dashboard-agent-listen-port": ports[3],
        "--dashboard-agent-grpc-port": ports[4],
        "--temp-dir": folder,
        "--num-cpus": 2,
        "--object-store-memory": 100_000_000,
    }
    ray = Path(sys.executable).parent / "ray"
    command = [ray, "start", "--head", "--block", "--disable-usage-stats", *(f"{k}={v}" for k, v in options.items())]
    with open(tmp_path_factory.mktemp("head") / "log", "w+") as log:
        starter = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{ports[1]}"
            wait_for_dashboard(ports[1], starter, Path(log.name))
            yield Head(address, environment)
        finally:
            for how in (signal.SIGTERM, signal.SIGKILL):
                for pid in {starter.pid, *processes_of(folder)}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, how)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    starter.wait(timeout=5)
            shutil.rmtree(folder, ignore_errors=True)


def wait_for_dashboard(port: int, starter: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert starter.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job with a small table that can be learned; both next to each other."""
    rows = ["x,y,label", *(f"{i % 7},{i % 5},{'even' if i % 7 % 2 == 0 else 'odd'}" for i in range(1_000))]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    text = f"""
name: submitted
stream: {{source: csv, path: {tmp_path}/table.csv, features: {{numeric: [x, y]}}, target: label}}
model: {{width: 16, layers: 1, mlp_width: 16}}
storage: {{folder: {tmp_path}/runs}}
"""
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def one_line(text: str) -> str:
    assert len(text.splitlines()) == 1, text
    return text.strip()


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, job: Path) -> None:
    done = planaria("submit", str(job), "--address", NOBODY, environment=clean_environment(tmp_path))
    assert done.returncode == 2
    assert one_line(done.stderr) == (
        f"{NOBODY}: no Ray cluster answers there; give the dashboard's address, such as http://127.0.0.1:8265, "
        "and check that the cluster is up"
    )


def test_an_address_must_be_a_url(tmp_path: Path, job: Path) -> None:
    done = planaria("submit", str(job), "--address", "head:8265", environment=clean_environment(tmp_path))
    assert done.returncode == 2
    expected = "head:8265: is no address of a cluster; give the dashboard's, such as http://127.0.0.1:8265"
    assert one_line(done.stderr) == expected


def test_a_bad_job_is_refused_before_the_cluster_is_asked(tmp_path: Path, job: Path) -> None:
    done = planaria("submit", str(job), "sed=1", "--address", NOBODY, environment=clean_environment(tmp_path))
    assert done.returncode == 2
    assert one_line(done.stderr) == "command line: sed: unknown key (did you mean 'seed'?)"


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_runs_on_the_cluster_and_returns_its_status_and_log(head: Head, job: Path) -> None:
    # RAY_ADDRESS must not win over --address.
    done = head.planaria("submit", str(job), "--address", head.address, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    job_id = one_line(done.stdout)
    assert re.fullmatch(r"raysubmit_\w+", job_id)

    followed = head.planaria("logs", job_id, "--address", head.address, "--follow", timeout_s=300)
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "samples" in followed.stdout
    assert f"{job_id}: SUCCEEDED" in followed.stdout

    state = json.loads(head.planaria("status", job_id, "--address", head.address, "--json").stdout)
    assert (state["status"], state["exit_code"]) == ("SUCCEEDED", 0)
    (folder,) = (job.parent / "runs").iterdir()
    assert json.loads((folder / "summary.json").read_text())["samples"] == 1_000
    assert "accuracy" in head.planaria("logs", job_id, "--address", head.address).stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_fails_on_the_cluster_fails_here(head: Head, job: Path) -> None:
    (job.parent / "table.csv").unlink()
    done = head.planaria("submit", str(job), "--address", head.address, "--follow", "--json", timeout_s=300)
    assert done.returncode == 1
    state = json.loads(done.stdout)
    assert (state["status"], state["exit_code"]) == ("FAILED", 2)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_on_the_cluster_stops_at_a_checkpoint_and_another_goes_on_from_it(head: Head, job: Path) -> None:
    text = job.read_text().replace(f"{job.parent}/table.csv", str(job.parent)).replace("csv, ", "csv, follow: true, ")
    job.write_text(text)  # waits for new files, for ever
    job_id = one_line(head.planaria("submit", str(job), "--address", head.address).stdout)
    folder = _waits_for_rows(head, job_id, job.parent / "runs", 896)
    _stop(head, job_id)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped" and summary["rows_lost"] == summary["rows_repeated"] == 0
    assert (folder / "report.html").exists(), "its record was closed"

    (job.parent / "table2.csv").write_text((job.parent / "table.csv").read_text())
    next_id = one_line(head.planaria("resume", str(folder), "--address", head.address).stdout)
    assert re.fullmatch(r"raysubmit_\w+", next_id)
    assert _waits_for_rows(head, next_id, job.parent / "runs", 1_920) == folder
    _stop(head, next_id)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["samples"], summary["restarts"]) == (1_920, 1)
    assert summary["rows_lost"] == summary["rows_repeated"] == 0


def _waits_for_rows(head: Head, job_id: str, runs: Path, samples: int) -> Path:
    """The only run's folder, once it has learned from so many rows and waits for more."""
    for _ in range(240):
        for live in runs.glob("*/live.json"):
            state = json.loads(live.read_text())
            if state["samples"] >= samples and state["status"] == "waiting":
                return live.parent
        time.sleep(1)
    raise AssertionError(head.planaria("logs", job_id, "--address", head.address).stdout)


def _stop(head: Head, job_id: str) -> None:
    assert head.planaria("stop", job_id, "--address", head.address).returncode == 0
    for _ in range(90):
        state = json.loads(head.planaria("status", job_id, "--address", head.address, "--json").stdout)
        if state["status"] == "STOPPED":
            return
        time.sleep(1)
    raise AssertionError(state)


@pytest.mark.ray
@pytest.mark.slow
def test_without_a_token_or_with_a_wrong_one_the_cluster_refuses_and_says_how_to_mend_it(head: Head) -> None:
    how = (
        "print it with `ray get-auth-token` where the cluster was started, and set RAY_AUTH_TOKEN, "
        "RAY_AUTH_TOKEN_PATH or write it to ~/.ray/auth_token"
    )
    wrong = head.planaria("status", "x", "--address", head.address, RAY_AUTH_TOKEN="0" * 32)
    assert wrong.returncode == 2
    assert one_line(wrong.stderr) == f"{head.address}: the cluster does not take this token; {how}"

    bare = {name: value for name, value in head.environment.items() if not name.startswith("RAY_AUTH")}
    missing = planaria("status", "x", "--address", head.address, environment=bare)
    assert missing.returncode == 2
    assert one_line(missing.stderr) == f"{head.address}: the cluster asks for a token; {how}"


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_the_cluster_does_not_know_is_named(head: Head) -> None:
    for command in ("status", "logs", "stop"):
        done = head.planaria(command, "raysubmit_no", "--address", head.address)
        assert done.returncode == 2
        expected = f"{head.address}: the cluster knows no job 'raysubmit_no'; check its id"
        assert one_line(done.stderr) == expected
