"""Concepts that return: what restoring kept models, and leaving contradicting rows out of replay, bring.

    python -m benchmarks.recurring     seeds 0 to 2, with and without library and tags, and an oracle, one by one

Three label permutations of Fashion-MNIST in turn, nine phases of 4,000 rows, the default model and policy, without
Ray. "Recurring phases" are the last six, whose concept has been before. Rows until recovery: until the mean accuracy
of 256 rows in a row reaches 95% of what the phase's concept had in the last 1,000 rows of its phase before. Rows of the
first time: until the same accuracy was reached in the phase in which the concept first came. The oracle has a model of
its own for each concept and always knows which one it is in. Writes
benchmarks/results/recurring.json (with --out, another file).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
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
ORACLE = "oracle library"
"""Entries of the library, and whether contradicting rows are left out of replay (never done without a library)."""


def job_for(seed: int, library: int, by_concept: bool, concepts: Sequence[int] = range(CONCEPTS)) -> Job:
    contexts = [
        {"name": f"labels {n}", "samples": PHASE_ROWS, "transform": "permute_labels", "variant": n} for n in concepts
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
        seen, *others = learn(*arguments)
        right.append(1 - seen.error_B)
        return seen, *others

    run._learn = watched  # type: ignore[method-assign]
    while run.take_step() is not None:
        pass
    return run, np.concatenate(right)


def live_with_oracle(seed: int) -> npt.NDArray[np.float32]:
    """Whether each row was predicted correctly by a model that has only ever seen the row's concept."""
    visits = PHASES // CONCEPTS
    alone = [live(job_for(seed, 0, True, [n]))[1].reshape(visits, PHASE_ROWS) for n in range(CONCEPTS)]
    return np.stack(alone, 1).reshape(-1)


def recovery(right: npt.NDArray[np.float32]) -> dict[str, Any]:
    """A phase that does not recover counts in full."""
    phases = right.reshape(PHASES, PHASE_ROWS)
    again, first = [], []
    for number in range(CONCEPTS, PHASES):
        former = SHARE * phases[number - CONCEPTS, -FORMER_ROWS:].mean()
        again.append(_until(phases[number], former))
        first.append(_until(phases[number % CONCEPTS], former))
    return {
        "accuracy_recurring": float(phases[CONCEPTS:].mean()),
        "accuracy_all": float(right.mean()),
        "rows_until_recovery": again,
        "rows_of_the_first_time": first,
        "accuracy_of_phase": [round(float(a), 4) for a in phases.mean(1)],
    }


def _until(right: npt.NDArray[np.float32], accuracy: float) -> int:
    """Rows before the first window with that accuracy."""
    window = np.convolve(right, np.ones(WINDOW_ROWS) / WINDOW_ROWS, "valid")
    there = np.flatnonzero(window >= accuracy)
    return int(there[0]) if len(there) else PHASE_ROWS


def measure(seed: int, name: str) -> dict[str, Any]:
    began = time.process_time()
    if name == ORACLE:
        found = recovery(live_with_oracle(seed))
        return {"seed": seed, "variant": name, **found, "restored": [], "cpu_seconds": time.process_time() - began}
    run, right = live(job_for(seed, *VARIANTS[name]))
    records = run.account.records
    restores = [
        (row["sample"] % PHASE_ROWS, row["sample"] // PHASE_ROWS, row["edit"])
        for row in records.rows("revisions")
        if row["edit"] is not None and "restore" in str(row["edit"])
    ]
    return {
        "seed": seed,
        "variant": name,
        **recovery(right),
        "restored": restores,
        "decisions": [(row["sample"], row["trigger"], row["chosen"]) for row in records.rows("decisions")],
        "shifts": [(row["sample"], row["onset_sample"], row["kind"], row["concept"]) for row in records.rows("shifts")],
        "cpu_seconds": time.process_time() - began,
    }


def show(console: Console, results: list[dict[str, Any]]) -> None:
    table = Table(
        "variant",
        "accuracy, recurring phases",
        "rows until recovery, median (mean)",
        "the first time",
        "restores",
        "CPU s",
    )
    for name in dict.fromkeys(row["variant"] for row in results):
        mine = [row for row in results if row["variant"] == name]
        waits = [wait for row in mine for wait in row["rows_until_recovery"]]
        first = [wait for row in mine for wait in row["rows_of_the_first_time"]]
        accuracies = [row["accuracy_recurring"] for row in mine]
        table.add_row(
            name,
            f"{np.mean(accuracies):.4f} ± {np.std(accuracies):.4f}",
            f"{np.median(waits):.0f} ({np.mean(waits):.0f})",
            f"{np.median(first):.0f} ({np.mean(first):.0f})",
            f"{np.mean([len(row['restored']) for row in mine]):.1f}",
            f"{np.mean([row['cpu_seconds'] for row in mine]):.0f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, ORACLE], default=[*VARIANTS, ORACLE])
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
