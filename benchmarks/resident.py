"""What sharing and sparsity save of memory, checkpoints and time in a model large enough to fill memory.

    python -m benchmarks.resident            two minutes of one core

A transformer of 6 layers (width 384, 12 heads of 32, MLP 1,536; 10.7 million parameters) takes steps of 16 pictures of
Fashion-MNIST in planaria's loop, plain and with each technique, each in a process of its own, which take turns step by
step. Resident memory is what the process has more than before the model was built: weights, gradients, Adam's moments
and what a step needs. All figures are of the plain model's. Writes benchmarks/results/resident.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.elastic import ROOT
from benchmarks.measure import median_ratio, resident_bytes
from benchmarks.techniques import TECHNIQUES

SHAPE = {"width": 384, "layers": 6, "head_width": 32, "mlp_width": 1_536, "patch": 7}
HEADS, ROWS = 12, 16
STEPS, WARM_STEPS = 16, 4
PRUNED = {"heads": {"start": 2, "min": 1, "max": HEADS}, "mlp_width": 308}
"""A fifth of the heads and hidden units, as what pruning leaves."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    **{name: TECHNIQUES[name] for name in ("share all", "share pairs", "share all, differ by rank 8")},
    "pruned to a fifth": PRUNED,
    "gates, per stream": {"gate": {"per": "stream", "warm_up_samples": 0, "active_fraction": 0.5}},
}


def take_turns(case: str) -> None:
    """In a process of its own: a step for every line on standard input."""
    import torch
    from benchmarks.speed import begun

    from planaria.job import Job

    torch.set_num_threads(1)
    policy = {"controller": {"kind": "none"}, "heads": {"start": HEADS, "max": HEADS}, **CASES[case]}
    shape = {**SHAPE, "mlp_width": policy.pop("mlp_width", SHAPE["mlp_width"])}
    policy["learner"] = {"loss": "naive", "memory": {"rows": 0}, **policy.get("learner", {})}
    before = resident_bytes()
    job = Job.model_validate(
        {
            "stream": {"source": "fashion_mnist"},
            "model": shape,
            "batch_rows": ROWS,
            "policy": policy,
            "scale": {"workers": 0},
        }
    )
    run = begun(job)
    for _ in sys.stdin:
        began = time.process_time()
        run.take_step()
        spent = time.process_time() - began
        found = {"cpu_seconds": spent, "resident": resident_bytes() - before, "parameters": run.blueprint.parameters}
        if run.step == STEPS:
            found["checkpoint"] = sum(len(part) for part in run.state().values())
        print(json.dumps(found), flush=True)


def measure() -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    running = {
        case: subprocess.Popen(
            [sys.executable, "-m", "benchmarks.resident", "--turns", case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        for case in CASES
    }
    turns: dict[str, list[dict[str, Any]]] = {case: [] for case in running}
    try:
        for _ in range(STEPS):
            for case, process in running.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                turns[case].append(json.loads(process.stdout.readline()))
    finally:
        for process in running.values():
            process.kill()
    plain, found = turns["plain"], []
    for case, each in turns.items():
        last = each[-1]
        times = [[turn["cpu_seconds"] for turn in some[WARM_STEPS:]] for some in (each, plain)]
        ratios = {key: last[key] / plain[-1][key] for key in ("parameters", "checkpoint", "resident")}
        row = {"technique": case, **ratios, "step": median_ratio(*times)}
        found.append({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    found[0] |= {
        "plain_parameters": plain[-1]["parameters"],
        "plain_checkpoint_mib": round(plain[-1]["checkpoint"] / 2**20, 1),
        "plain_resident_mib": round(plain[-1]["resident"] / 2**20, 1),
        "plain_step_ms": round(1e3 * statistics.median(turn["cpu_seconds"] for turn in plain[WARM_STEPS:]), 1),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", choices=list(CASES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turns:
        take_turns(arguments.turns)
        return
    from benchmarks.measure import write
    from rich.console import Console
    from rich.table import Table

    found = measure()
    table = Table(
        "technique", "parameters", "checkpoint", "resident memory", "CPU time of a step", title="of the plain"
    )
    for row in found:
        table.add_row(
            row["technique"], *(f"{row[key]:.2f}" for key in ("parameters", "checkpoint", "resident", "step"))
        )
    console = Console(width=120)
    console.print(table)
    console.print(found[0])
    console.print(write("resident", {"rows": ROWS, "steps": STEPS, "figures": found}))


if __name__ == "__main__":
    main()
