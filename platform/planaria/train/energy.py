"""What a worker spends: CPU seconds, and joules where the machine has counters, else an estimate from its time.

Counters are those of the processor packages (RAPL: David et al. 2010; Linux shows it under /sys/class/powercap) and of
the GPU (NVML). A counter of a package counts the whole machine, whatever else runs on it.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from planaria.job import Energy
from planaria.train.group import Group

POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]
"""Joules since some moment."""


@dataclass(frozen=True)
class Spent:
    """Of one worker."""

    cpu_seconds: float
    joules: float


class Meter:
    """Counts from when it was made."""

    def __init__(self, counters: Sequence[Counter], watts_of_cpu: float, watts_of_wall: float, method: str) -> None:
        """Joules are what the counters say, and the CPU's and the clock's time at these watts. `method` says so."""
        self.counters, self.method = counters, method
        self.watts_of_cpu, self.watts_of_wall = watts_of_cpu, watts_of_wall
        self._last = self._read()

    def spent(self) -> Spent:
        """Since it was asked last."""
        before, self._last = self._last, self._read()
        cpu, wall, counted = (now - then for now, then in zip(self._last, before, strict=True))
        return Spent(cpu, counted + cpu * self.watts_of_cpu + wall * self.watts_of_wall)

    def _read(self) -> tuple[float, float, float]:
        return time.process_time(), time.perf_counter(), sum(counter() for counter in self.counters)


def build_meter(settings: Energy, group: Group, device: torch.device, powercap: Path = POWERCAP) -> Meter:
    """The meter of this worker. All workers measure alike: what one of them cannot read is estimated on all of them.
    Of the workers of one machine the first one alone reads its packages."""
    packages, gpu = package_counters(powercap), gpu_counter(device)
    here = (platform.node(), bool(packages), gpu is not None, device.type == "cuda")
    everywhere = group.spread(group.size, lambda at: here)
    packages_read = all(one[1] for one in everywhere)
    gpus, gpus_read = any(one[3] for one in everywhere), all(one[2] for one in everywhere if one[3])
    first_here = [one[0] for one in everywhere].index(platform.node()) == group.rank
    counters = list(packages) if packages_read and first_here else []
    if gpu is not None and gpus_read:
        counters.append(gpu)
    watts_of_gpu = settings.watts_per_gpu if device.type == "cuda" and not gpus_read else 0.0
    of_cpu = f"estimated: the workers' CPU time x {settings.watts_per_core:g} W a core"
    of_gpu = f"estimated: GPU time x {settings.watts_per_gpu:g} W"
    methods = ["measured: RAPL, processors of the whole machine" if packages_read else of_cpu]
    if gpus:
        methods.append("measured: NVML, GPUs" if gpus_read else of_gpu)
    return Meter(counters, 0.0 if packages_read else settings.watts_per_core, watts_of_gpu, "; ".join(methods))


def package_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """One for each processor package whose counter may be read (on many systems by root alone)."""
    counters = []
    for folder in sorted(powercap.glob("intel-rapl:*")):
        if folder.name.count(":") == 1:  # those below are parts of a package
            with contextlib.suppress(OSError, ValueError):
                counters.append(_Package(folder))
    return list(counters)


class _Package:
    """Counts on where the file begins anew at its largest value."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError or ValueError where it cannot be read."""
        self.file = folder / "energy_uj"
        self.span = int((folder / "max_energy_range_uj").read_text()) + 1
        self.seen, self.total = int(self.file.read_text()), 0

    def __call__(self) -> float:
        now = int(self.file.read_text())
        self.total += (now - self.seen) % self.span
        self.seen = now
        return self.total / 1e6


def gpu_counter(device: torch.device) -> Counter | None:
    """Of the device, where it is a GPU, NVML's Python binding is installed, and the GPU counts (Volta and newer)."""
    if device.type != "cuda":
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:
        return None
    return lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
