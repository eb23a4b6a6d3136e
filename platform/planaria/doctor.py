"""What works on this machine, and what to do about the rest. It only looks: nothing is started or downloaded."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.text import Text

from planaria.errors import InputError
from planaria.machine import memory_bytes
from planaria.plain_yaml import one_line

Level = Literal["ok", "warn", "fail"]

OLDEST_PYTHON = (3, 11)
LONGEST_RAY_FOLDER = 43
"""Ray adds 63 characters to its folder for the paths of its sockets, and the system allows 107."""
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    level: Level
    about: str
    what: str
    to_do: str = ""

    @property
    def text(self) -> Text:
        style = {"ok": "green", "warn": "yellow", "fail": "bold red"}[self.level]
        line = Text.assemble((f"{self.level:5}", style), f"{self.about:12} {self.what}")
        return line.append(f"; {self.to_do}") if self.to_do else line


def examine() -> Iterator[Finding]:
    """The findings, one after the other. A check that breaks is a finding too."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            name = check.__name__.removeprefix("check_").replace("_", " ")
            yield Finding("fail", name, f"could not be checked: {type(error).__name__}: {one_line(str(error))[:200]}")


def check_python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("fail", "Python", found, "planaria needs 3.11 or newer: install it, then `make clean setup`")
        return
    yield Finding("ok", "Python", f"{found}, {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """The packages that planaria asks for: there, and of a version that it works with."""
    wrong = []
    asked = [Requirement(text) for text in metadata.requires("planaria") or []]
    asked = [requirement for requirement in asked if requirement.marker is None or requirement.marker.evaluate()]
    for requirement in asked:
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, not {requirement.specifier}")
    if wrong:
        yield Finding("fail", "packages", "; ".join(wrong), "run `make setup`, or pip install -r requirements.lock")
        return
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "ray", "mlflow", "pyarrow", "numpy"))
    yield Finding("ok", "packages", f"{len(asked)} as asked for: {shown}")


def check_export() -> Iterator[Finding]:
    """The extra for `planaria export --to onnx` and `--to int8`."""
    packages = ("onnx", "onnxscript", "onnxruntime")
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        yield Finding("warn", "export", f"no ONNX: {', '.join(missing)} not there", "pip install 'planaria[export]'")
        return
    yield Finding("ok", "export", ", ".join(f"{name} {metadata.version(name)}" for name in packages))


def check_learn2learn() -> Iterator[Finding]:
    from planaria.control.adapt import algorithms

    try:
        algorithms()
    except (InputError, ImportError) as error:
        yield Finding("fail", "learn2learn", one_line(str(error)), "run `make setup`, which builds it for this Python")
        return
    yield Finding("ok", "learn2learn", f"{metadata.version('learn2learn')}, its algorithms load")


def check_devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        precision = (
            "bfloat16 is fast" if torch.cuda.is_bf16_supported() else "no bfloat16: keep model.precision float32"
        )
        yield Finding("ok", "devices", f"{len(names)} GPU ({', '.join(sorted(set(names)))}), {precision}")
        return
    flags = _cpu_flags()
    if "amx_bf16" in flags:
        precision = "bfloat16 is fast (AMX)"
    elif "avx512_bf16" in flags:
        precision = "bfloat16 is supported (AVX-512)"
    else:
        precision = "no fast bfloat16: keep model.precision float32"
    yield Finding("ok", "devices", f"no GPU, training on the CPU; {precision}")


def check_cpus_and_memory() -> Iterator[Finding]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cpus < 2:
        yield Finding("warn", "CPUs", "1", "the demo has 2 workers: run it with --workers 1")
    else:
        yield Finding("ok", "CPUs", str(cpus))
    memory_gib = memory_bytes() / GIB
    if memory_gib < 4:
        yield Finding("warn", "memory", f"{memory_gib:.1f} GiB", "Ray and two workers want 4: run with --workers 0")
    else:
        yield Finding("ok", "memory", f"{memory_gib:.1f} GiB")


def check_shared_memory() -> Iterator[Finding]:
    """Ray keeps its objects in /dev/shm; containers often have 64 MB of it."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return
    free_gib = shutil.disk_usage(place).free / GIB
    if free_gib < 0.5:
        to_do = "Ray then uses slow disk files: start the container with --shm-size=2g"
        yield Finding("warn", "/dev/shm", f"{free_gib * 1024:.0f} MiB free", to_do)
    else:
        yield Finding("ok", "/dev/shm", f"{free_gib:.1f} GiB free")


def check_ray() -> Iterator[Finding]:
    """Whether a local cluster can start here, as far as can be seen without starting one."""
    import ray

    if find_spec("aiohttp_cors") is None:  # comes with [default] alone
        yield Finding("fail", "Ray", "ray[default] is not installed", "pip install 'ray[default]'")
    folder = os.environ.get("RAY_TMPDIR", "/tmp/ray")
    if len(folder) > LONGEST_RAY_FOLDER:
        what = f"the folder for its sockets is too long ({len(folder)} characters, at most {LONGEST_RAY_FOLDER})"
        yield Finding("fail", "Ray", what, "set RAY_TMPDIR to a short path")
        return
    existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("fail", "Ray", f"cannot write to {existing}", "set RAY_TMPDIR to a folder of your own")
        return
    yield Finding("ok", "Ray", f"{ray.__version__}, keeps its sockets in {folder}")


def check_ray_addresses() -> Iterator[Finding]:
    """What would make a run join a cluster that is not there, or keep a port from a new one."""
    address = os.environ.get("RAY_ADDRESS")
    if address and address not in ("auto", "local"):
        if not _answers(address):
            to_do = "every run would fail to join: unset RAY_ADDRESS, or start that cluster"
            yield Finding("fail", "RAY_ADDRESS", f"is {address}, where nothing answers", to_do)
            return
        yield Finding("ok", "RAY_ADDRESS", f"runs join the cluster at {address}")
    mark = Path(os.environ.get("RAY_TMPDIR", "/tmp/ray")) / "ray_current_cluster"
    if mark.is_file() and not _answers(known := mark.read_text().strip()):
        yield Finding("warn", "Ray address", f"{mark} names a cluster that is gone ({known})", f"rm {mark}")
    for port, used_by in ((8265, "dashboard"), (6379, "head")):
        if _answers(f"127.0.0.1:{port}"):
            to_do = f"`ray start --head` needs another one; runs started here pick their own ({used_by})"
            yield Finding("warn", "port", f"{port} is taken", to_do)


def check_authentication() -> Iterator[Finding]:
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        to_do = "whoever reaches a cluster's ports can run code on it: unset it, or set it to token"
        yield Finding("warn", "RAY_AUTH_MODE", "is disabled", to_do)
        return
    yield Finding("ok", "Ray token", "token authentication is on for clusters started here")


def check_store() -> Iterator[Finding]:
    """MLflow's store is an SQLite file in the run's folder, which needs a file system with locks."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        yield Finding("ok", "MLflow", f"MLFLOW_TRACKING_URI is {_without_password(uri)}; jobs use record.tracking_uri")
    place = _runs_folder()
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".planaria-doctor-") as folder:
            connection = sqlite3.connect(Path(folder) / "try.db")
            with connection:
                connection.execute("create table t (x)")
            connection.close()
    except (OSError, sqlite3.Error) as error:
        to_do = "run from a folder of your own, or give --out"
        yield Finding("fail", "store", f"no SQLite file can be written in {place} ({error})", to_do)
        return
    yield Finding("ok", "store", f"runs and their MLflow store can be written in {place}")


def check_disk() -> Iterator[Finding]:
    place = _runs_folder()
    free_gib = shutil.disk_usage(place).free / GIB
    if free_gib < 0.2:
        yield Finding("fail", "disk", f"{free_gib * 1024:.0f} MiB free in {place}", "free some space, or give --out")
    elif free_gib < 2:
        yield Finding("warn", "disk", f"{free_gib:.1f} GiB free in {place}", "a long run needs more: free some space")
    else:
        yield Finding("ok", "disk", f"{free_gib:.0f} GiB free in {place}")


def check_data() -> Iterator[Finding]:
    from planaria.stream import FETCHED
    from planaria.stream.sets.folder import data_folder

    missing = [name for name in FETCHED if not (data_folder() / name).exists()]
    if missing:
        to_do = f"while there is a network: planaria fetch {' '.join(missing)}"
        yield Finding("warn", "data", f"not fetched: {', '.join(missing)}", to_do)
        return
    yield Finding("ok", "data", f"{', '.join(FETCHED)} are in {data_folder()}")


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_export,
    check_learn2learn,
    check_devices,
    check_cpus_and_memory,
    check_shared_memory,
    check_ray,
    check_ray_addresses,
    check_authentication,
    check_store,
    check_disk,
    check_data,
)


def _runs_folder() -> Path:
    """Where a run's folder would be made: ./runs, or the nearest folder above that exists."""
    wanted = Path.cwd() / "runs"
    return next(path for path in (wanted, *wanted.parents) if path.is_dir())


def _answers(address: str) -> bool:
    host, _, port = re.sub(r"^[a-z]+://", "", address).partition(":")
    try:
        with socket.create_connection((host, int(port.split("/")[0] or 6379)), timeout=1.0):
            return True
    except (OSError, ValueError):
        return False


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)
