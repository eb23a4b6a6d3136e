"""The loop at small batches, one thread: planaria, plain and compiled, beside a bare PyTorch loop and Avalanche.

    python -m benchmarks.peers.speed --avalanche peers/bin/python        (with avalanche-lib and safetensors)

The same transformer, rows, fused AdamW, memory of 1,000 and as many replayed rows for all; no readout, no edits. Each
has a process of its own; they take turns of some hundred rows, and what is reported are ratios of CPU seconds, medians
over the turns. Writes benchmarks/results/peers_speed.json.
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
TURNS, WARM_TURNS = 21, 6
BATCHES = (10, 32, 128)
COMPILE_AFTER_ROWS = 1_200


def take_turns(which: str, batch: int) -> None:
    """In a process of its own: a turn for every line on standard input."""
    import time

    import torch
    from benchmarks import speed

    from planaria.train.allocator import reuse_freed_memory

    torch.set_num_threads(1)
    reuse_freed_memory()
    speed.MEMORY_ROWS = 1_000
    if which == "bare":
        loop: Any = speed.bare_loop(batch)
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


def measure(batch: int, avalanche: str | None, place: Path) -> dict[str, Any]:
    compiled = ("planaria compiled", "planaria compiled bfloat16", "planaria der++ compiled")
    own = ("bare", "planaria", "planaria der++", *compiled)
    commands = {which: [sys.executable, "-m", "benchmarks.peers.speed", "--turns", which, str(batch)] for which in own}
    if avalanche is not None:
        script, path = str(Path(__file__).with_name("avalanche_transformer.py")), str(export(place))
        for learner in ("replay", "der++"):
            commands[f"avalanche {learner}"] = [avalanche, script, path, learner, str(batch), str(ROWS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
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
        "batch": batch,
        "rows_per_cpu_second": {
            which: round(ROWS // batch * batch / statistics.median(s)) for which, s in seconds.items()
        },
        "times_bare": {
            which: round(statistics.median(b / own for b, own in zip(seconds["bare"], s, strict=True)), 3)
            for which, s in seconds.items()
        },
        "peak_mib": {which: round(each[-1]["peak_mib"]) for which, each in turns.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avalanche", help="a Python that has Avalanche and safetensors")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--turns", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns:
        take_turns(arguments.turns[0], int(arguments.turns[1]))
        return
    # Not at the head of the file: their memory would count as that of the loops.
    from benchmarks.measure import write
    from rich.console import Console
    from rich.table import Table

    console, found = Console(width=140), []
    with tempfile.TemporaryDirectory() as place:
        for batch in arguments.batches:
            found.append(measure(batch, arguments.avalanche, Path(place)))
            table = Table("loop", "rows a CPU-second", "x bare", "peak MiB", title=f"batches of {batch}")
            for which, speed in found[-1]["rows_per_cpu_second"].items():
                table.add_row(
                    which, f"{speed:,}", str(found[-1]["times_bare"][which]), str(found[-1]["peak_mib"][which])
                )
            console.print(table)
    console.print(write("peers_speed", {"rows": ROWS, "turns": TURNS - WARM_TURNS, "batches": found}))


if __name__ == "__main__":
    main()
