"""cluster.local.yaml for real: `ray up` by ssh on two virtual hosts, a job with secrets, `ray down`.

The hosts have no way to the outside: each sees this environment's packages through a layer of its own, into which the
set-up commands install planaria.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks.hosts import Host, Hosts, missing, until
from tests.security.conftest import REPOSITORY, environment_of
from tests.security.test_secrets import OTHERS, SECRET

pytestmark = pytest.mark.slow

SSHD = Path("/usr/sbin/sshd")
DASHBOARD_PORT = 18265
_LACKING = [tool for tool in ("rsync", "ssh", "ssh-keygen", str(SSHD)) if shutil.which(tool) is None]


@dataclass(frozen=True)
class User:
    """Whoever types the commands, outside the hosts: with a home of their own."""

    home: Path
    cluster_file: Path
    head: Host
    worker: Host
    outside: str
    """This machine's address, as the hosts see it."""

    def call(self, *command: str, timeout_s: float = 240) -> str:
        done = subprocess.run(
            [str(Path(sys.prefix) / "bin" / command[0]), *command[1:]],
            cwd=REPOSITORY,
            env=environment_of(self.home, RAY_AUTH_MODE="token"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def await_worker(self) -> None:
        until(lambda: bool(self.worker.processes("raylet/raylet")), 180, "no raylet on the worker", every_s=1)

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text().strip()


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    if why := missing() or (f"there is no {', '.join(_LACKING)}" if _LACKING else None):
        pytest.skip(why)
    place = tmp_path_factory.mktemp("up")
    home = place / "home"
    home.mkdir()
    for key in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key)], check=True)
    with Hosts(2) as hosts:
        for host in hosts:
            _prepare(host, place)
        written = _with_own_addresses((REPOSITORY / "cluster.local.yaml").read_text(), hosts, place / "key")
        (place / "cluster.yaml").write_text(written)
        user = User(home, place / "cluster.yaml", hosts[0], hosts[1], hosts.outside)
        user.call("ray", "get-auth-token", "--generate")
        user.call("ray", "up", "-y", str(user.cluster_file), timeout_s=500)
        yield user
        said = user.call("ray", "down", "-y", str(user.cluster_file))
        assert "No nodes remaining" in said
        assert not user.head.processes("raylet/raylet") and not user.head.processes("gcs_server")


def _prepare(host: Host, place: Path) -> None:
    """A home, a /tmp/ray and a layer over this environment, all of the host's own; and an ssh server."""
    own = place / host.name
    for name in ("home", "ray", "upper", "work"):
        (own / name).mkdir(parents=True)
    secrets = " ".join(
        f"{name}='{value}'" for name, value in {**OTHERS, "PASSWORD": SECRET}.items() if "RAY" not in name
    )
    (own / "home" / ".bashrc").write_text(f"export {secrets}\n")
    (own / "home" / "planaria-venv").symlink_to(sys.prefix)
    Path("/tmp/ray").mkdir(exist_ok=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    layer = f"lowerdir={sys.prefix},upperdir={own}/upper,workdir={own}/work"
    home, base = Path(pwd.getpwuid(0).pw_dir), Path(sys.base_prefix)
    commands = [f"mount -t overlay overlay -o {layer} {sys.prefix}", f"mount --bind {own}/ray /tmp/ray"]
    if base.is_relative_to(home):  # the interpreter itself
        kept = own / "home" / base.relative_to(home)
        kept.mkdir(parents=True)
        commands.append(f"mount --bind {base} {kept}")
    commands.append(f"mount --rbind {own}/home {home}")
    host.call("bash", "-ec", "\n".join(commands))
    settings = place / "sshd_config"
    settings.write_text(
        f"HostKey {place}/host_key\nAuthorizedKeysFile {place}/key.pub\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nPidFile none\n"
    )
    host.start(str(SSHD), "-D", "-f", str(settings))


def _with_own_addresses(text: str, hosts: Hosts, key: Path) -> str:
    changes = {
        r"head_ip: \S+": f"head_ip: {hosts[0].address}",
        r"worker_ips: \[.*\]": f"worker_ips: [{hosts[1].address}]",
        r"ssh_user: \S+": "ssh_user: root",
        r"ssh_private_key: \S+": f"ssh_private_key: {key}",
        r"(min|max)_workers: 2": r"\1_workers: 1",
    }
    for pattern, new in changes.items():
        text, count = re.subn(pattern, new, text)
        assert count, pattern
    return text


@pytest.fixture(scope="module")
def dashboard(user: User) -> Iterator[str]:
    """As the file says: forwarded to this machine's loopback."""
    forwarding = subprocess.Popen(
        [str(Path(sys.prefix) / "bin" / "ray"), "dashboard", str(user.cluster_file), "--port", str(DASHBOARD_PORT)],
        env=environment_of(user.home, RAY_AUTH_MODE="token"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        time.sleep(5)
        yield f"http://127.0.0.1:{DASHBOARD_PORT}"
    finally:
        os.killpg(forwarding.pid, 15)
        forwarding.wait(20)


def test_the_worker_joins_by_itself(user: User) -> None:
    user.await_worker()
    until(
        lambda: " 2 local.cluster.node" in user.call("ray", "exec", str(user.cluster_file), "ray status"), 60, "alone"
    )


def test_a_submitted_job_runs_there_and_leaves_no_secret(
    user: User, dashboard: str, store: tuple[int, list[str]], job_file: Path, tmp_path: Path
) -> None:
    user.await_worker()
    runs, (port, seen) = tmp_path / "runs", store
    uri = f"http://ann:${{PASSWORD}}@{user.outside}:{port}"
    settings = ["scale.workers=1", f"storage.folder={runs}", f"record.tracking_uri={uri}"]
    said = user.call("planaria", "submit", str(job_file), "--address", dashboard, "--follow", *settings)
    basic = base64.b64encode(f"ann:{SECRET}".encode()).decode()
    assert f"Basic {basic}" in seen, "the password reached the store"
    assert [json.loads(path.read_text())["status"] for path in runs.glob("*/summary.json")] == ["done"]
    kept_by_ray = [user.cluster_file.parent / host.name / "ray" for host in (user.head, user.worker)]
    texts = {path: path.read_bytes() for place in (*kept_by_ray, runs) for path in place.rglob("*") if path.is_file()}
    assert len(texts) > 100, "Ray's logs are among them"
    for form in (SECRET, "pa55-w0rd%2Fof%2Bann", basic, user.token, *OTHERS.values()):
        assert not [path for path, text in texts.items() if form.encode() in text], form
        assert form not in said
