"""The demo's stream, elastic against fixed sizes: does an elastic model keep up with the largest?

    python -m benchmarks.elastic                                  seeds 0 to 9: elastic, and fixed at heads.max
    python -m benchmarks.elastic --seeds 100 101 --sizes 2 4 6    tuning seeds: what capacity is worth
    python -m benchmarks.elastic --policy lasting --sizes 2 10 --out benchmarks/results/lasting.json

Every run is jobs/fashion_shift.yaml without Ray, with that policy (`balanced` where none is named); "fixed" is the same
with the controller off. As many runs as there are cores go on at once. Writes benchmarks/results/elastic.json (with
--out, another file), where what is run again replaces itself.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from planaria.job import Job, load_job
from planaria.record import read_rows
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

ROOT = Path(__file__).resolve().parents[1]
JOB = ROOT / "jobs" / "fashion_shift.yaml"
WITHIN_SAMPLES = 1_000
"""An abrupt shift counts as detected when it is reported within so many samples."""
HELD_OUT = "evaluation.rows_per_context=2000"


def elastic_job(seed: int, policy: str = "balanced") -> Job:
    return load_job(JOB, [f"seed={seed}", "scale.workers=0", HELD_OUT, f"policy={policy}"])


def fixed_job(seed: int, heads: int, policy: str = "balanced") -> Job:
    most = max(heads, elastic_job(seed, policy).policy.heads.max)
    still = ["policy.controller.kind=none", f"policy.heads.start={heads}", f"policy.heads.max={most}"]
    return load_job(JOB, [f"seed={seed}", "scale.workers=0", HELD_OUT, f"policy={policy}", *still])


def run(job: Job) -> dict[str, Any]:
    """The summary of one run, with what its shifts and decisions show."""
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        began = time.process_time()
        summary = run_here(job, folder, ROOT)
        shifts = read_rows(folder.path, "shifts")
        decisions = read_rows(folder.path, "decisions")
    found = [row["delay"] for row in shifts if row["delay"] is not None]
    return {
        **{
            key: summary[key]
            for key in ("seed", "samples", "prequential_accuracy", "prequential_loss", "final_accuracy")
        },
        **{key: summary[key] for key in ("forgetting", "grows", "shrinks", "heads_last", "heads_mean")},
        **{key: summary[key] for key in ("parameters_mean", "parameters_largest", "flops_per_sample_mean")},
        "true_changes": summary["true_changes"],
        "delays": found,
        "false_alarms": len(shifts) - len(found),
        "decisions": len(decisions),
        "decision_share": summary["decision_seconds"] / summary["wall_seconds"],
        "cpu_seconds": time.process_time() - began,
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of its 95% interval (Student's t)."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


def show(console: Console, results: dict[str, list[dict[str, Any]]]) -> None:
    columns = ["prequential_accuracy", "final_accuracy", "prequential_loss", "heads_mean", "parameters_mean"]
    columns += ["flops_per_sample_mean", "grows", "shrinks", "decision_share", "cpu_seconds"]
    table = Table("run", *columns, title=f"{JOB.name}: mean ± half of the 95% interval")
    for name, runs in results.items():
        cells = [interval([float(row[column]) for row in runs]) for column in columns]
        table.add_row(name, *(f"{mean:,.4g} ± {half:.2g}" for mean, half in cells))
    console.print(table)


def detection(runs: list[dict[str, Any]]) -> dict[str, Any]:
    delays = [delay for row in runs for delay in row["delays"]]
    samples = sum(row["samples"] for row in runs)
    false = sum(row["false_alarms"] for row in runs)
    return {
        "true_changes": sum(row["true_changes"] for row in runs),
        "detected": len(delays),
        "detected_within_1000": sum(delay <= WITHIN_SAMPLES for delay in delays),
        "median_delay": float(np.median(delays)) if delays else None,
        "longest_delay": max(delays, default=None),
        "false_alarms": false,
        "false_alarms_per_20000": 20_000 * false / samples,
    }


def _seeds(runs: list[dict[str, Any]]) -> list[int]:
    return [run["seed"] for run in runs]


def _earlier(out: Path, policy: str) -> dict[str, list[dict[str, Any]]]:
    """Runs of the same policy that the file has."""
    known = json.loads(out.read_text()) if out.exists() else {}
    return dict(known["runs"]) if known.get("policy", "balanced") == policy and "runs" in known else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument(
        "--sizes", type=int, nargs="*", help="fixed sizes, in heads a layer; heads.max if none is given"
    )
    parser.add_argument("--only", choices=["elastic", "fixed"])
    parser.add_argument("--policy", default="balanced")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at once")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "elastic.json")
    arguments = parser.parse_args()
    console = Console(width=200)
    largest = elastic_job(0, arguments.policy).policy.heads.max
    sizes = [largest] if arguments.sizes is None else arguments.sizes
    wanted: list[tuple[str, Job]] = []
    for seed in arguments.seeds:
        if arguments.only != "fixed":
            wanted.append(("elastic", elastic_job(seed, arguments.policy)))
        if arguments.only != "elastic":
            wanted += [(f"fixed at {heads}", fixed_job(seed, heads, arguments.policy)) for heads in sizes]
    made: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (name, job), found in zip(wanted, pool.map(run, [job for _, job in wanted]), strict=True):
            made.setdefault(name, []).append(found)
            console.print(f"seed {job.seed}, {name}: final accuracy {found['final_accuracy']:.4f}")
    results = {**_earlier(arguments.out, arguments.policy), **made}
    show(console, results)
    summary: dict[str, Any] = {"job": JOB.name, "policy": arguments.policy, "runs": results}
    if "elastic" in results:
        summary["detection"] = detection(results["elastic"])
        console.print(summary["detection"])
        for name, fixed in results.items():
            if name == "elastic" or _seeds(fixed) != _seeds(results["elastic"]):
                continue
            pairs = zip(results["elastic"], fixed, strict=True)
            gains = interval([ours["final_accuracy"] - other["final_accuracy"] for ours, other in pairs])
            summary[f"final_accuracy_over_{name}"] = gains
            console.print("final accuracy, elastic - {} (paired): {:+.4f} ± {:.4f}".format(name, *gains))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
