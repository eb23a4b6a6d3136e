"""What planaria's loop costs beside a bare PyTorch loop, and what its parts cost in training steps.

    python -m benchmarks.speed

Fashion-MNIST, the demo's model and policy `balanced`, in one process with one torch thread; about four CPU minutes.
Throughput and peak memory against `benchmarks/bare.py` with the same model, batch, optimizer and replay; surgery,
decisions, detection and recording in units of one training step. Clock: CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.bare import BareLoop
from benchmarks.measure import Figure, alternate, as_rows, cpu_seconds, median_ratio, repeat, show, write

from planaria.blueprint import Blueprint, Edit, GrowHeads, ShrinkHeads
from planaria.model import build
from planaria.train.allocator import reuse_freed_memory

BATCH = 128
HEADS = 8
"""Of each of two layers, as policy `balanced` starts."""
STILL = {"controller": {"kind": "none"}, "heads": {"start": HEADS}}
MEMORY_ROWS = 2_000
WARM_STEPS = 60
"""Enough for the memory to be full and the detector to be settled."""
BLOCK_STEPS, BLOCKS = 4, 61
"""Short turns, many of them: what slows the machine for a while then slows both loops."""
MEMORY_STEPS = 250
"""Of each loop whose peak memory is measured; 32,000 rows."""
EDIT_ROUNDS = 11
WATCHED_STEPS = 150
ALLOCATOR_ROUNDS = 5
DEMO_ROWS = 106_000
"""All of the demo's stream."""
EARLY_ROWS = 50_000
"""The share of decisions is given for these alone, too: at first there is little training to pay with."""


def demo_model() -> Blueprint:
    """The blueprint of jobs/fashion_shift.yaml with policy `balanced`."""
    return Blueprint(
        task="classification",
        width=64,
        head_width=8,
        mlp_width=128,
        heads=(HEADS, HEADS),
        outputs=10,
        image_shape=(1, 28, 28),
        patch=7,
    )


def bare_loop(batch: int = BATCH) -> BareLoop:
    """Reads the images from the Arrow file into plain arrays; imports nothing of planaria but the model."""
    import pyarrow as pa

    from planaria.stream.sets import fetch

    table = pa.ipc.open_file(pa.memory_map(str(fetch("fashion_mnist") / "train.arrow"))).get_batch(0)
    images = table.column("image").flatten().to_numpy().reshape(-1, 1, 28, 28)
    labels = table.column("label").to_numpy().astype(np.int64)
    return BareLoop(build(demo_model()), images, labels, batch=batch, memory_rows=MEMORY_ROWS)


def planaria_loop(policy: dict[str, Any], batch: int = BATCH, **model: Any) -> Any:
    """The loop in this process, on Fashion-MNIST as it is."""
    from planaria.job import Job

    values = {
        "stream": {"source": "fashion_mnist"},
        "model": {"width": 64, "layers": 2, "head_width": 8, "mlp_width": 128, "patch": 7, **model},
        "batch_rows": batch,
        "policy": policy,
        "scale": {"workers": 0},
    }
    return begun(Job.model_validate(values))


def begun(job: Any) -> Any:
    from planaria.stream import open_stream
    from planaria.train.group import Alone
    from planaria.train.lifelong import Lifelong

    stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=0.0)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    return run


def steps(loop: Any, count: int) -> Callable[[], None]:
    return repeat(loop.take_step, count)


# -- throughput


def throughput(batch: int) -> tuple[float, dict[str, float]]:
    """Of planaria relative to the bare loop, and the CPU seconds of one step of each."""
    bare, still = bare_loop(batch), planaria_loop(STILL, batch)
    bare.take_step()
    still.take_step()
    assert still.blueprint == bare.model.blueprint, "both loops train the same model"
    alternate({"bare": steps(bare, WARM_STEPS), "still": steps(still, WARM_STEPS)}, 1)
    seconds = alternate({"bare": steps(bare, BLOCK_STEPS), "still": steps(still, BLOCK_STEPS)}, BLOCKS)
    step = {name: statistics.median(each) / BLOCK_STEPS for name, each in seconds.items()}
    return median_ratio(seconds["bare"], seconds["still"]), step


def speeds() -> tuple[list[Figure], float]:
    """Also returns the CPU seconds of one step of planaria's loop."""
    ratio, step = throughput(BATCH)
    small, small_step = throughput(BATCH // 2)
    return [
        Figure("throughput / bare loop", ratio, "x", at_least=0.90),
        Figure("  a training step of the bare loop", step["bare"] * 1e3, "ms CPU"),
        Figure("  a training step of planaria", step["still"] * 1e3, "ms CPU"),
        Figure("throughput / bare loop, half the batch", small, "x"),
        Figure(
            "  what planaria adds to a step of half the batch",
            (small_step["still"] - small_step["bare"]) * 1e3,
            "ms CPU",
        ),
    ], step["still"]


# -- the demo's stream, with decisions


def demo_run() -> tuple[list[Figure], list[dict[str, Any]]]:
    """The demo's job with policy `balanced` in one process: what every decision cost, and all of them together."""
    from planaria.job import load_job

    path = Path(__file__).parents[1] / "jobs" / "fashion_shift.yaml"
    run = begun(load_job(path, ["policy=balanced", "scale.workers=0", "scale.shards=1", f"samples={DEMO_ROWS}"]))
    cost: list[float] = []
    decided: dict[int, dict[str, Any]] = {}
    while True:
        before, began = run.account.totals.decisions, time.process_time()
        if run.take_step() is None:
            break
        cost.append(time.process_time() - began)
        if run.account.totals.decisions > before:
            row = run.account.records.rows("decisions")[-1]
            tried = len(json.loads(row["candidates"]))
            decided[len(cost) - 1] = {"trigger": row["trigger"], "chosen": row["chosen"], "candidates": tried}
    ordinary = statistics.median(seconds for at, seconds in enumerate(cost) if at not in decided)
    for at, decision in decided.items():
        nearby = [seconds for near, seconds in enumerate(cost) if abs(near - at) <= 10 and near not in decided]
        decision["sample"] = (at + 1) * run.job.batch_rows
        decision["steps"] = (cost[at] - statistics.median(nearby)) / statistics.median(nearby)
        decision["seconds"] = cost[at] - statistics.median(nearby)
    decisions = list(decided.values())
    early = EARLY_ROWS // run.job.batch_rows
    share = sum(decision["seconds"] for decision in decisions) / sum(cost)
    early_share = sum(decision["seconds"] for at, decision in decided.items() if at < early) / sum(cost[:early])
    by_size = [decision["steps"] for decision in decisions]
    return (
        [
            Figure("a decision, median", statistics.median(by_size), "steps", at_most=150),
            Figure("a decision, the dearest", max(by_size), "steps", at_most=150),
            Figure("all decisions / the run's time (the demo's stream)", 100 * share, "%", at_most=15),
            Figure(f"  in its first {EARLY_ROWS:,} rows", 100 * early_share, "%", at_most=15),
            Figure("decisions made", len(decisions), ""),
            Figure("an ordinary step of that run", ordinary * 1e3, "ms CPU"),
        ],
        decisions,
    )


# -- surgery


def surgery(step: float) -> list[Figure]:
    """Grow and shrink by one head on copies of a trained model, with the optimizer's moments and the refit."""
    from planaria.learn import OptimizerFollower
    from planaria.morph import operate

    figures = []
    edits: Sequence[tuple[str, int, Edit]] = (
        ("grow by a head (8 to 9)", 8, GrowHeads(0, 1)),
        ("grow by 4 heads (6 to 10)", 6, GrowHeads(0, 4)),
        ("shrink by a head, refit included (8 to 7)", 8, ShrinkHeads(0, (1,))),
        ("shrink by a head, refit included (10 to 9)", 10, ShrinkHeads(0, (2,))),
    )
    for name, heads, edit in edits:
        run = planaria_loop({**STILL, "heads": {"start": heads}})
        steps(run, 6)()
        rows = run.stream.read(run.row - 4 * BATCH, 4 * BATCH)
        calibration = {"image": torch.from_numpy(rows.select(slice(None))["image"])}
        seconds = []
        for _ in range(EDIT_ROUNDS):
            model, optimizer = copy.deepcopy((run.model, run.optimizer))
            follow = OptimizerFollower(optimizer)
            seconds.append(cpu_seconds(partial(operate, model, edit, seed=1, follow=follow, calibration=calibration)))
        figures.append(Figure(name, statistics.median(seconds) / step, "steps", at_most=2))
    return figures


# -- detection and recording


class Stopwatch:
    """Stands before one part of a run and adds up the CPU seconds of every call, within the loop, caches cold."""

    def __init__(self, part: Any) -> None:
        self.part, self.seconds, self.calls = part, 0.0, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        result = self.part(*arguments, **named)
        self.seconds += time.process_time() - began
        self.calls += 1
        return result

    def update(self, report: Any) -> Any:
        """As a monitor."""
        return self(report)


def watching() -> list[Figure]:
    """CPU of the parts that watch and record, within a run, per step of it."""
    from planaria.record.tables import Records
    from planaria.train.folder import RunFolder
    from planaria.train.keeper import GLANCE_EVERY_S, Keeper

    run = planaria_loop(STILL)
    steps(run, WARM_STEPS)()
    monitor, sketch = run.monitor, run.sketch
    detect, sketched = Stopwatch(monitor.update), Stopwatch(sketch)
    averages = Stopwatch(run.controller.observe)
    run.monitor, run.sketch, run.controller.observe = detect, sketched, averages
    step = cpu_seconds(steps(run, WATCHED_STEPS)) / WATCHED_STEPS
    run.monitor, run.sketch, run.controller.observe = monitor, sketch, averages.part

    interval = dict(run.account.records.rows("steps")[-1])
    records = Records(1_000, 4_000)
    rows = iter([{**interval, "samples": 1_000 * (at + 1)} for at in range(500)])
    record = cpu_seconds(repeat(lambda: records.add_interval(next(rows)), 500)) / 500 * BATCH / 1_000
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        folder.make()
        keeper = Keeper(run, folder, lambda number, state: None)
        keeper.save("running", run.state())
        glance = cpu_seconds(repeat(lambda: keeper.glance("running"), 50)) / 50
        save = statistics.median(cpu_seconds(lambda: keeper.save("running", run.state())) for _ in range(5))
    # Both go by the clock, so their share of a step is their share of the time.
    glance_share, save_share = glance / GLANCE_EVERY_S, save / run.job.storage.checkpoint_every_s
    shares = [watch.seconds / WATCHED_STEPS / step for watch in (detect, sketched, averages)]
    share = sum(shares) + record / step + glance_share
    return [
        Figure("detection and recording / a step", 100 * share, "%", at_most=5),
        Figure("  detector (loss, inputs, pairs)", 100 * shares[0], "% of a step"),
        Figure("  sketch of the inputs", 100 * shares[1], "% of a step"),
        Figure("  controller's running averages", 100 * shares[2], "% of a step"),
        Figure("  table of intervals", 100 * record / step, "% of a step"),
        Figure("  live.json, once a second", 100 * glance_share, "% of the time"),
        Figure("a checkpoint every 15 s (beside the above)", 100 * save_share, "% of the time"),
    ]


# -- peak memory, each loop in a process of its own


def peak_bytes(which: str) -> int:
    return int(in_process("--peak", which))


def in_process(*arguments: str) -> str:
    """What this script prints last in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def run_for_peak(which: str) -> int:
    loop = bare_loop() if which == "bare" else planaria_loop(STILL if which == "still" else {})
    steps(loop, MEMORY_STEPS)()
    # Not ru_maxrss, which a process takes over from the one that started it.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024


def memory() -> list[Figure]:
    peaks = {which: peak_bytes(which) for which in ("bare", "still", "edits")}
    return [
        Figure("peak memory, controller off / bare loop", peaks["still"] / peaks["bare"], "x", at_most=1.3),
        Figure("peak memory, with decisions / bare loop", peaks["edits"] / peaks["bare"], "x", at_most=1.3),
        *(Figure(f"peak memory, {which}", peak / 2**20, "MiB") for which, peak in peaks.items()),
    ]


# -- the C library's allocator, in processes of their own


def allocator() -> list[Figure]:
    """A step of planaria's loop where the C library keeps what a step frees, relative to one where it does not."""
    seconds: dict[str, list[float]] = {"kept": [], "returned": []}
    for _ in range(ALLOCATOR_ROUNDS):
        for freed, found in seconds.items():
            found.append(float(in_process("--freed", freed)))
    ratio = median_ratio(seconds["kept"], seconds["returned"])
    return [Figure("a step, freed memory kept / returned to the system", ratio, "x")]


def run_for_step(freed: str) -> float:
    if freed == "kept":
        reuse_freed_memory()
    loop = planaria_loop(STILL)
    steps(loop, WARM_STEPS)()
    return statistics.median(cpu_seconds(steps(loop, BLOCK_STEPS)) for _ in range(25)) / BLOCK_STEPS


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peak", choices=("bare", "still", "edits"), help=argparse.SUPPRESS)
    arguments.add_argument("--freed", choices=("kept", "returned"), help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    if chosen.freed:
        print(run_for_step(chosen.freed))
        return
    reuse_freed_memory()  # as planaria's workers do; the bare loop has its share of it
    if chosen.peak:
        print(run_for_peak(chosen.peak))
        return
    figures, step = speeds()
    figures += surgery(step) + watching()
    of_decisions, decisions = demo_run()
    figures += of_decisions + memory() + allocator()
    show(f"planaria's loop: Fashion-MNIST, 2 x {HEADS} heads, width 64, batch 128 + 128 replayed, 1 thread", figures)
    print(write("speed", {"figures": as_rows(figures), "decisions": decisions}))


if __name__ == "__main__":
    main()
