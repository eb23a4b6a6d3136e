"""Concepts that return: what restoring kept models, and leaving contradicting rows out of replay, bring.

    python -m benchmarks.recurring                 seeds 0 to 2, with and without library and tags, one after the other

Three label permutations of Fashion-MNIST in turn, nine phases of 4,000 rows, the default model and policy, without
Ray. "Recurring phases" are the last six, whose concept has been before. Rows until recovery: until the mean accuracy
of 256 rows in a row reaches 95% of what the phase's concept had in the last 1,000 rows of its phase before. Writes
benchmarks/results/recurring.json (with --out, another file).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from planaria.job import Job
from planaria.stream import open_stream
from planaria.train.allocator import reuse_freed_memory
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

ROOT = Path(__file__).resolve().parents[1]
CONCEPTS, PHASES, PHASE_ROWS = 3, 9, 4_000
WINDOW_ROWS, FORMER_ROWS, SHARE = 256, 1_000, 0.95
VARIANTS = {
    "library and tags": (8, True),
    "library alone": (8, False),
    "neither": (0, True),
}
"""Entries of the library, and whether contradicting rows are left out of replay (never done without a library)."""


def job_for(seed: int, library: int, by_concept: bool) -> Job:
    contexts = [
        {"name": f"labels {n}", "samples": PHASE_ROWS, "transform": "permute_labels", "variant": n}
        for n in range(CONCEPTS)
    ]
    return Job.model_validate(
        {
            "stream": {
                "source": "fashion_mnist",
                "scenario": {"contexts": contexts, "repeat": PHASES // CONCEPTS},
            },
            "seed": seed,
            "scale": {"workers": 0},
            "policy": {
                "controller": {"library": library},
                "learner": {"memory": {"by_concept": by_concept}},
            },
        }
    )


def live(job: Job) -> tuple[Lifelong, npt.NDArray[np.float32]]:
    """The run, and whether each row was predicted correctly before it was learned from."""
    stream = open_stream(job.stream, seed=job.seed, base=ROOT, hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    right: list[npt.NDArray[np.float32]] = []
    learn = run._learn

    def watched(*arguments: Any) -> Any:
        seen, tick = learn(*arguments)
        right.append(1 - seen.error_B)
        return seen, tick

    run._learn = watched  # type: ignore[method-assign]
    while run.take_step() is not None:
        pass
    return run, np.concatenate(right)


def recovery(right: npt.NDArray[np.float32]) -> tuple[float, list[int], list[float]]:
    """(accuracy in recurring phases, rows until recovery in each of them, accuracy of every phase). A phase that does
    not recover counts in full."""
    phases = right.reshape(PHASES, PHASE_ROWS)
    waits = []
    for number in range(CONCEPTS, PHASES):
        former = SHARE * phases[number - CONCEPTS, -FORMER_ROWS:].mean()
        window = np.convolve(phases[number], np.ones(WINDOW_ROWS) / WINDOW_ROWS, "valid")
        there = np.flatnonzero(window >= former)
        waits.append(int(there[0]) if len(there) else PHASE_ROWS)
    return float(phases[CONCEPTS:].mean()), waits, [round(float(a), 4) for a in phases.mean(1)]


def measure(seed: int, name: str) -> dict[str, Any]:
    began = time.process_time()
    run, right = live(job_for(seed, *VARIANTS[name]))
    accuracy, waits, phases = recovery(right)
    records = run.account.records
    restores = [
        (row["sample"] % PHASE_ROWS, row["sample"] // PHASE_ROWS, row["edit"])
        for row in records.rows("revisions")
        if row["edit"] is not None and "restore" in str(row["edit"])
    ]
    return {
        "seed": seed,
        "variant": name,
        "accuracy_recurring": accuracy,
        "accuracy_all": float(right.mean()),
        "rows_until_recovery": waits,
        "accuracy_of_phase": phases,
        "restored": restores,
        "decisions": [(row["sample"], row["trigger"], row["chosen"]) for row in records.rows("decisions")],
        "shifts": [(row["sample"], row["onset_sample"], row["kind"], row["concept"]) for row in records.rows("shifts")],
        "cpu_seconds": time.process_time() - began,
    }


def show(console: Console, results: list[dict[str, Any]]) -> None:
    table = Table("variant", "accuracy, recurring phases", "rows until recovery, median (mean)", "restores", "CPU s")
    for name in dict.fromkeys(row["variant"] for row in results):
        mine = [row for row in results if row["variant"] == name]
        waits = [wait for row in mine for wait in row["rows_until_recovery"]]
        accuracies = [row["accuracy_recurring"] for row in mine]
        table.add_row(
            name,
            f"{np.mean(accuracies):.4f} ± {np.std(accuracies):.4f}",
            f"{np.median(waits):.0f} ({np.mean(waits):.0f})",
            f"{np.mean([len(row['restored']) for row in mine]):.1f}",
            f"{np.mean([row['cpu_seconds'] for row in mine]):.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "recurring.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reuse_freed_memory()
    results = []
    for seed in arguments.seeds:
        results += [measure(seed, name) for name in arguments.variants]
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    show(Console(width=160), results)


if __name__ == "__main__":
    main()
