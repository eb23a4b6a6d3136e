"""Several hosts on one Linux machine, for trying out what clusters do to a run.

A host is a first process with namespaces of its own (network, mount, UTS, PID). When that process dies, all others of
the host die and its network card is gone, as when the power fails. Hosts are joined by a bridge, and all of them see
this machine's files, as hosts see a shared file system; `scratch` is each one's own small disk. Needs root, iproute2
and util-linux.

    with Hosts(3) as (first, second, third):
        first.call("ping", "-c1", second.address)
        second.cut()
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

_NAME = re.compile(r"pl(\d+)")
"""Of a bridge or a control group: with the process that made it, so that a later one can tell what was left behind."""
_COUNT = itertools.count()
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount")
_CPU_GROUPS = next(
    (place for place in (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")) if (place / "cgroup.procs").exists()), None
)
_PERIOD_US = 20_000
SCRATCH_BYTES = 400 << 20


def missing() -> str | None:
    """What this machine lacks for hosts of our own, in words; None where they can be had."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "virtual hosts need root"
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"virtual hosts need {', '.join(lacking)}"
    if _CPU_GROUPS is None or not os.access(_CPU_GROUPS, os.W_OK):
        return "virtual hosts need control groups that can be written"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return f"virtual hosts need namespaces ({tried.stderr.decode().strip()})" if tried.returncode else None


class Process:
    """A command that runs on a host, known by its own process id."""

    def __init__(self, entering: subprocess.Popen[bytes]) -> None:
        self._entering = entering
        self.pid = _only_child(entering)

    def poll(self) -> int | None:
        return self._entering.poll()

    def wait(self, timeout_s: float) -> int:
        """Its exit status. Raises subprocess.TimeoutExpired."""
        return self._entering.wait(timeout_s)

    def wait_output(self) -> str:
        """What it printed, where its output is a pipe, once it has ended."""
        printed, _ = self._entering.communicate()
        return printed.decode(errors="replace") if printed else ""

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class Host:
    """One of them. Made by Hosts."""

    def __init__(self, number: int, name: str, address: str, bridge: str, base: Path) -> None:
        self.number, self.name, self.address = number, name, address
        self.scratch = base / "own"
        """The same path on every host, and a disk of its own on each."""
        self._bridge, self._base = bridge, base
        self._card = f"{bridge}h{number}"
        assert _CPU_GROUPS is not None
        self._group = _CPU_GROUPS / f"{bridge}-{number}"
        self._up: subprocess.Popen[bytes] | None = None
        self._first = 0

    def boot(self) -> None:
        """Bring the host up, with nothing running on it and an empty scratch disk."""
        assert self._up is None, f"{self.name} is up already"
        self._group.mkdir(exist_ok=True)
        prepare = (
            f"hostname {self.name} && mount -t tmpfs -o size={SCRATCH_BYTES} tmpfs {self.scratch}"
            f" && mount --bind {self._base}/hosts /etc/hosts && mount --bind {self._base}/resolv.conf /etc/resolv.conf"
            # A first process has to take in the orphans that others leave: a shell that waits does.
            " && echo up && while true; do sleep 1000 & wait $!; done"
        )
        spaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=slave"]
        # Bound to the life of this process, however that ends.
        command = ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "bash", "-c", prepare]
        self._up = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._up.stdout is not None
        if self._up.stdout.readline() != b"up\n":
            raise RuntimeError(f"{self.name} could not be brought up")
        self._first = _only_child(self._up)
        _ip("link", "add", self._card, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        _ip("link", "set", self._card, "master", self._bridge, "up")
        self.call("ip", "link", "set", "lo", "up")
        self.call("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.call("ip", "link", "set", "eth0", "up")

    def power_off(self) -> None:
        """Every process of the host is gone at once, and what lay on its scratch disk."""
        if self._up is None:
            return
        self._up.kill()
        self._up.wait()
        self._up = None
        until(self._is_down, 10, f"{self.name} did not go down")
        # The kernel would get round to it by itself, some time.
        subprocess.run(["ip", "link", "delete", self._card], capture_output=True, check=False)
        until(lambda: not Path(f"/sys/class/net/{self._card}").exists(), 60, f"{self._card} is still there")

    def _is_down(self) -> bool:
        """Whatever entered it and is not down yet is told so."""
        left = self._in_group()
        for pid in left:
            _kill(pid)
        return not left

    def remove(self) -> None:
        self.power_off()
        until(lambda: not self._group.exists() or _removed(self._group), 10, f"{self._group} cannot be removed")

    def cut(self) -> None:
        """Pull the network cable."""
        _ip("link", "set", self._card, "down")

    def heal(self) -> None:
        _ip("link", "set", self._card, "up")

    def limit(self, cores: float | None) -> None:
        """Give all processes of the host together so much of a core; None is as much as there is."""
        quota = -1 if cores is None else max(1_000, int(cores * _PERIOD_US))
        if (self._group / "cpu.max").exists():
            (self._group / "cpu.max").write_text(f"{'max' if quota < 0 else quota} {_PERIOD_US}")
            return
        (self._group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (self._group / "cpu.cfs_quota_us").write_text(str(quota))

    def processes(self, words: str = "") -> list[int]:
        """The host's processes whose command line has these words, by their numbers on this machine."""
        inside = [pid for pid in self._in_group() if _namespace(pid) != _namespace(os.getpid())]
        return [pid for pid in inside if words in command_of(pid)]

    def _in_group(self) -> list[int]:
        found = (self._group / "cgroup.procs").read_text() if self._group.exists() else ""
        return [int(pid) for pid in found.split()]

    def kill(self, words: str) -> int:
        """SIGKILL the processes whose command line has these words; how many those were."""
        return sum(_kill(pid) for pid in self.processes(words))

    def start(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        folder: Path = Path("/"),
        output: IO[bytes] | int = subprocess.DEVNULL,
    ) -> Process:
        """Run a command on the host, in the background. `environment` is added to that of this process."""
        return Process(
            subprocess.Popen(
                self._entered(command, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
            )
        )

    def call(self, *command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 120) -> str:
        """Run a command on the host to its end; what it printed. Raises RuntimeError where it fails."""
        done = subprocess.run(
            self._entered(command, Path("/")),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **(environment or {})},
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise RuntimeError(f"{self.name}: {' '.join(command)[:80]} failed: {said[-600:]}")
        return done.stdout.decode(errors="replace")

    def _entered(self, command: tuple[str, ...], folder: Path) -> list[str]:
        join = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._group / "cgroup.procs")]
        enter = ["nsenter", f"--target={self._first}", "--net", "--mount", "--uts", "--pid"]
        return [*join, *enter, "env", f"--chdir={folder}", *command]


class Hosts:
    """So many hosts, numbered from 0, that can reach each other and this machine (at `outside`) and nothing else."""

    def __init__(self, count: int) -> None:
        _remove_left_behind()
        self.base = Path(tempfile.mkdtemp(prefix="hosts-"))
        (self.base / "own").mkdir()
        self._bridge = f"pl{os.getpid()}n{next(_COUNT)}"
        network = _free_network()
        self.outside = f"{network}.1"
        self._all = tuple(
            Host(number, f"host{number}", f"{network}.{10 + number}", self._bridge, self.base)
            for number in range(count)
        )
        names = ["127.0.0.1 localhost", f"{self.outside} outside", *(f"{h.address} {h.name}" for h in self._all)]
        (self.base / "hosts").write_text("\n".join(names) + "\n")
        (self.base / "resolv.conf").write_text("")

    def __enter__(self) -> Hosts:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.outside}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for host in self._all:
                host.boot()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def __iter__(self) -> Iterator[Host]:
        return iter(self._all)

    def __getitem__(self, number: int) -> Host:
        return self._all[number]

    def __len__(self) -> int:
        return len(self._all)

    def _remove(self) -> None:
        for host in self._all:
            host.remove()
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)
        shutil.rmtree(self.base, ignore_errors=True)


def until(happens: Callable[[], bool], within_s: float, else_say: str, every_s: float = 0.05) -> None:
    """Raises RuntimeError where it does not happen in time."""
    end = time.monotonic() + within_s
    while not happens():
        if time.monotonic() > end:
            raise RuntimeError(else_say)
        time.sleep(every_s)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _namespace(pid: int) -> str:
    """In which the process's number is another one. A command that enters it is outside itself."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def _removed(group: Path) -> bool:
    """A control group is busy for a moment after its last process has ended."""
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def _only_child(process: subprocess.Popen[bytes]) -> int:
    """The process that a command which makes or enters namespaces has started in them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            if pids := children.read_text().split():
                return int(pids[0])
        time.sleep(0.005)
    raise RuntimeError(f"'{' '.join(map(str, process.args))[:200]}' did not start")  # type: ignore[arg-type]


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _free_network() -> str:
    taken = subprocess.run(["ip", "-o", "-4", "address"], capture_output=True, text=True, check=True).stdout
    return next(net for net in (f"10.77.{number}" for number in range(256)) if f" {net}." not in taken)


def _remove_left_behind() -> None:
    """Bridges and control groups of processes that were killed before they could remove them."""
    assert _CPU_GROUPS is not None
    for place in (*Path("/sys/class/net").iterdir(), *_CPU_GROUPS.iterdir()):
        found = _NAME.match(place.name)
        if found is None or Path(f"/proc/{found[1]}").exists():
            continue
        with contextlib.suppress(OSError):  # somebody else removes it at the same time
            if place.parent == _CPU_GROUPS:
                place.rmdir()
            else:
                subprocess.run(["ip", "link", "delete", place.name], capture_output=True, check=False)
