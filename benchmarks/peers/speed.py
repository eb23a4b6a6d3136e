"""The loop at small batches, one thread: planaria, plain and compiled, beside a bare PyTorch loop and Avalanche.

    python -m benchmarks.peers.speed --avalanche peers/bin/python        (with avalanche-lib and safetensors)

The same transformer, rows, fused AdamW, memory of 1,000 and as many replayed rows for all; no readout, no edits. Where
it does not say otherwise, all of them, Avalanche too, have planaria's attention, which does without the last layer's
keys and values. Each has a process of its own; they take turns of some hundred rows, and a ratio is that of CPU
seconds, the median over the turns. All are kept on one core, as two are seldom equally fast, and how a process happens
to lie in memory changes its speed by several per cent for as long as it lives, so all are started several times: what
is reported is the mean over the starts, and half of its 95% interval. Writes benchmarks/results/peers_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
ROWS = 600
"""Of a turn."""
TURNS, WARM_TURNS = 15, 6
STARTS = 5
BATCHES = (10, 32, 128)
COMPILE_AFTER_ROWS = 1_200
WITH_KEYS = "bare, with keys"
"""A bare loop whose last layer computes a key and a value of every token, as attention is usually written."""


def take_turns(which: str, batch: int) -> None:
    """In a process of its own: a turn for every line on standard input."""
    import time

    import torch
    from benchmarks import speed

    from planaria.train.allocator import reuse_freed_memory

    torch.set_num_threads(1)
    reuse_freed_memory()
    speed.MEMORY_ROWS = 1_000
    if which.startswith("bare"):
        loop: Any = speed.bare_loop(batch)
        for layer in range(loop.model.blueprint.layers):
            loop.model.block(layer).attention.absorbs = which != WITH_KEYS
    else:
        learner = {"loss": "der++" if "der++" in which else "er", "memory": {"rows": 1_000, "kind": "reservoir"}}
        model: dict[str, Any] = {"compile_after_rows": COMPILE_AFTER_ROWS} if "compiled" in which else {}
        if "bfloat16" in which:
            model["precision"] = "bfloat16"
        loop = speed.planaria_loop({**speed.STILL, "learner": learner}, batch, **model)
    for _ in sys.stdin:
        began = time.process_time()
        for _ in range(ROWS // batch):
            loop.take_step()
        spent = time.process_time() - began
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in status if line.startswith("VmHWM"))
        print(json.dumps({"cpu_seconds": spent, "peak_mib": int(peak.split()[1]) / 1024}), flush=True)


def export(place: Path) -> Path:
    from benchmarks import speed

    loop = speed.bare_loop(10)
    path, order = place / "stream.npz", loop.order[: ROWS * TURNS]
    np.savez(path, image=loop.images[order], target=loop.labels[order], blueprint=speed.demo_model().to_json())
    return path


def measure(batch: int, avalanche: str | None, place: Path) -> dict[str, dict[str, float]]:
    """One start of all."""
    compiled = ("planaria compiled", "planaria compiled bfloat16", "planaria der++ compiled")
    own = ("bare", WITH_KEYS, "planaria", "planaria der++", *compiled)
    commands = {which: [sys.executable, "-m", "benchmarks.peers.speed", "--turns", which, str(batch)] for which in own}
    if avalanche is not None:
        script, path = str(Path(__file__).with_name("avalanche_transformer.py")), str(export(place))
        for learner in ("replay", "der++"):
            commands[f"avalanche {learner}"] = [avalanche, script, path, learner, str(batch), str(ROWS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    running = {
        which: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        for which, command in commands.items()
    }
    turns: dict[str, list[dict[str, float]]] = {which: [] for which in running}
    try:
        for turn in range(TURNS):
            for which in list(running) if turn % 2 == 0 else list(running)[::-1]:
                process = running[which]
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                turns[which].append(json.loads(process.stdout.readline()))
    finally:
        for process in running.values():
            process.kill()
    seconds = {which: [turn["cpu_seconds"] for turn in each[WARM_TURNS:]] for which, each in turns.items()}
    return {
        which: {
            "rows_per_cpu_second": ROWS // batch * batch / statistics.median(s),
            "times_bare": statistics.median(bare / own for bare, own in zip(seconds["bare"], s, strict=True)),
            "peak_mib": turns[which][-1]["peak_mib"],
        }
        for which, s in seconds.items()
    }


def summed_up(batch: int, starts: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    from benchmarks.elastic import interval

    def mean(which: str, what: str) -> float:
        return statistics.fmean(start[which][what] for start in starts)

    ratios = {which: interval([start[which]["times_bare"] for start in starts]) for which in starts[0]}
    return {
        "batch": batch,
        "rows_per_cpu_second": {which: round(mean(which, "rows_per_cpu_second")) for which in ratios},
        "times_bare": {which: round(ratio, 3) for which, (ratio, _) in ratios.items()},
        "times_bare_ci95": {which: round(half, 3) for which, (_, half) in ratios.items()},
        "peak_mib": {which: round(mean(which, "peak_mib")) for which in ratios},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avalanche", help="a Python that has Avalanche and safetensors")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--starts", type=int, default=STARTS)
    parser.add_argument("--turns", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns:
        take_turns(arguments.turns[0], int(arguments.turns[1]))
        return
    if arguments.starts < 2:
        parser.error(f"--starts is {arguments.starts}; an interval needs at least 2")
    # Not at the head of the file: their memory would count as that of the loops.
    from benchmarks.measure import write
    from rich.console import Console
    from rich.table import Table

    console, found = Console(width=140), []
    with tempfile.TemporaryDirectory() as place:
        for batch in arguments.batches:
            starts = [measure(batch, arguments.avalanche, Path(place)) for _ in range(arguments.starts)]
            found.append(summed_up(batch, starts))
            table = Table("loop", "rows a CPU-second", "x bare", "+-", "peak MiB", title=f"batches of {batch}")
            columns = ("rows_per_cpu_second", "times_bare", "times_bare_ci95", "peak_mib")
            for which in starts[0]:
                table.add_row(which, *(f"{found[-1][column][which]:,}" for column in columns))
            console.print(table)
    content = {"rows": ROWS, "turns": TURNS - WARM_TURNS, "starts": arguments.starts, "batches": found}
    console.print(write("peers_speed", content))


if __name__ == "__main__":
    main()
