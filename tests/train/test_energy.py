"""What a run spends: counters that are made up, and the estimate where there are none."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from planaria.job import Energy, Job
from planaria.stream import open_stream
from planaria.train.energy import Meter, Spent, build_meter, package_counters
from planaria.train.group import Alone, Group
from planaria.train.lifelong import Lifelong

T = TypeVar("T")
CPU = torch.device("cpu")


def powercap(place: Path, packages: int = 1) -> Path:
    """A folder like Linux's, all counters at 0 of at most 999 microjoules."""
    for at in range(packages):
        for name in (f"intel-rapl:{at}", f"intel-rapl:{at}:0"):
            (place / name).mkdir(parents=True)
            (place / name / "energy_uj").write_text("0\n")
            (place / name / "max_energy_range_uj").write_text("999\n")
    return place


class Workers:
    """A group as its member `rank` sees it, whose other members are all on this machine, with these counters."""

    def __init__(self, rank: int, others: list[tuple[str, bool, bool, bool]]) -> None:
        self.rank, self.size, self.others = rank, 1 + len(others), others

    def sum(self, vector: Tensor) -> Tensor:
        return vector

    def share(self, value: T) -> T:
        return value

    def spread(self, count: int, work: Callable[[int], T]) -> list[T]:
        answers: list[T] = [*self.others]  # type: ignore[list-item]
        answers.insert(self.rank, work(self.rank))
        return answers

    def gather(self, value: T) -> list[T]:
        return [value]


def alone() -> Workers:
    return Workers(0, [])


def here(packages: bool) -> tuple[str, bool, bool, bool]:
    return platform.node(), packages, False, False


def test_a_counter_goes_on_where_its_file_begins_anew_and_parts_of_a_package_are_not_counted_twice(
    tmp_path: Path,
) -> None:
    (counter,) = package_counters(powercap(tmp_path))
    for value in (900, 100, 150):
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(f"{value}\n")
        (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text(f"{value}\n")
        counted = counter()
    assert counted == pytest.approx(1150e-6)


def test_counters_that_can_be_read_are_read_and_nothing_is_estimated(tmp_path: Path) -> None:
    meter = build_meter(Energy(), alone(), CPU, powercap(tmp_path, packages=2))
    assert meter.method.startswith("measured: RAPL") and "estimated" not in meter.method
    for at, value in enumerate((200, 300)):
        (tmp_path / f"intel-rapl:{at}" / "energy_uj").write_text(f"{value}\n")
    assert meter.spent().joules == pytest.approx(500e-6)
    assert meter.spent().joules == 0


def test_without_counters_the_estimate_is_cpu_seconds_at_the_watts_of_the_job_and_says_so(tmp_path: Path) -> None:
    meter = build_meter(Energy(watts_per_core=7.0), alone(), CPU, tmp_path / "nothing")
    torch.randn(400, 400) @ torch.randn(400, 400)
    spent = meter.spent()
    assert spent.cpu_seconds > 0 and spent.joules == pytest.approx(7 * spent.cpu_seconds)
    assert meter.method == "estimated: the workers' CPU time x 7 W a core" and "measured" not in meter.method


def test_what_one_worker_cannot_read_is_estimated_on_all(tmp_path: Path) -> None:
    folder = powercap(tmp_path)
    meter = build_meter(Energy(), Workers(0, [here(packages=False)]), CPU, folder)
    assert "measured" not in meter.method and not meter.counters and meter.watts_of_cpu == 10


def test_the_first_worker_of_a_machine_alone_reads_its_packages(tmp_path: Path) -> None:
    folder = powercap(tmp_path)
    meters = [build_meter(Energy(), Workers(rank, [here(packages=True)]), CPU, folder) for rank in (0, 1)]
    assert [len(meter.counters) for meter in meters] == [1, 0]
    assert meters[0].method == meters[1].method
    assert meters[1].watts_of_cpu == 0, "nor does another one estimate what was measured"


def test_a_counter_without_the_right_to_read_it_is_no_counter(tmp_path: Path) -> None:
    folder = powercap(tmp_path)
    (folder / "intel-rapl:0" / "energy_uj").write_text("")
    assert package_counters(folder) == []


def test_time_that_is_counted_twice_is_spent_once() -> None:
    now = [0.0]
    meter = Meter([lambda: now[0]], watts_of_cpu=0.0, watts_of_wall=0.0, method="made up")
    spent = []
    for value in (2.0, 5.0, 5.0):
        now[0] = value
        spent.append(meter.spent().joules)
    assert spent == [2.0, 3.0, 0.0]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """320 rows in steps of 32: ten steps."""
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    x = np.random.default_rng(0).normal(size=320)
    pq.write_table(pa.table({"x": x, "y": x > 0}), path)
    columns = {"features": {"numeric": ["x"]}, "target": "y"}
    return Job.model_validate(
        {
            "stream": {"source": "parquet", "path": str(path), **columns},
            "batch_rows": 32,
            "model": {"width": 8, "layers": 1, "head_width": 4, "mlp_width": 8},
            "policy": {"controller": {"kind": "none"}},
            "scale": {"workers": 0, "shards": 2},
            "energy": {"watts_per_core": 7},
        }
    )


def begun(job: Job, group: Group) -> Lifelong:
    stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=0.0)
    return Lifelong(job, stream, group, CPU)


def live(run: Lifelong, steps: int) -> Lifelong:
    while run.step < steps and run.take_step() is not None:
        pass
    return run


def test_a_run_says_what_it_spent_and_how_that_was_found(job: Job) -> None:
    run = begun(job, Alone())
    run.meter = build_meter(job.energy, run.group, CPU, Path("/nowhere"))
    run.begin()
    live(run, 10)
    summary = run.summary("done", run.finish())
    assert summary["cpu_seconds"] > 0
    assert summary["energy_joules"] == pytest.approx(7 * summary["cpu_seconds"], rel=1e-5)
    assert summary["energy_method"] == "estimated: the workers' CPU time x 7 W a core"


class MadeUp(Meter):
    """The same for every step."""

    def __init__(self, cpu_seconds: float, method: str = "made up") -> None:
        super().__init__([], 0.0, 0.0, method)
        self.each = Spent(cpu_seconds, 2 * cpu_seconds)

    def spent(self) -> Spent:
        return self.each


def test_a_resumed_run_adds_to_what_was_spent_before_and_names_both_methods(job: Job) -> None:
    first = begun(job, Alone())
    first.begin()
    first.meter = MadeUp(1.0, "measured: a counter")
    live(first, 4)
    second = begun(job, Alone())
    second.meter = MadeUp(10.0, "estimated: a guess")
    second.load_state(first.state())
    live(second, 10)
    second.finish()
    summary = second.summary("done")
    assert summary["cpu_seconds"] == 4 * 1 + 6 * 10 + 10, "the last part is the end's"
    assert summary["energy_joules"] == 2 * summary["cpu_seconds"]
    assert summary["energy_method"] == "measured: a counter, then estimated: a guess"


class Threads:
    """Two workers of one process, who wait for each other."""

    size = 2

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.board, self.barrier = rank, board, barrier

    def _all(self, mine: Any) -> list[Any]:
        self.board[self.rank] = mine
        self.barrier.wait()
        everyone = list(self.board)
        self.barrier.wait()
        return everyone

    def sum(self, vector: Tensor) -> Tensor:
        first, second = self._all(vector)
        total: Tensor = first + second
        return total

    def share(self, value: T) -> T:
        shared: T = self._all(value)[0]
        return shared

    def spread(self, count: int, work: Callable[[int], T]) -> list[T]:
        mine = {at: work(at) for at in range(self.rank, count, self.size)}
        done = {at: value for box in self._all(mine) for at, value in box.items()}
        return [done[at] for at in range(count)]

    def gather(self, value: T) -> list[T]:
        everyone = self._all(value)
        return everyone if self.rank == 0 else []


def test_all_workers_are_counted_and_all_know_it(job: Job) -> None:
    board: list[Any] = [None, None]
    barrier = threading.Barrier(2, timeout=60)

    def work(rank: int) -> dict[str, Any]:
        run = begun(job, Threads(rank, board, barrier))
        run.begin()
        run.meter = MadeUp(1.0 + rank)
        live(run, 10)
        run.finish()
        return run.summary("done")

    with ThreadPoolExecutor(2) as pool:
        summaries = list(pool.map(work, range(2)))
    assert [summary["cpu_seconds"] for summary in summaries] == [11 * (1 + 2)] * 2
