"""What each technique costs and gains beside the plain model, held against what was claimed of it.

    python -m benchmarks.techniques                                  all of them (about an hour of one core)
    python -m benchmarks.techniques --only "share all" --seeds 0

A transformer of 6 layers (width 64, 4 heads of 16, MLP 128) learns 30,000 pictures of Fashion-MNIST, or 20,000 rows of
Shuttle, in one pass of steps of 64, without replay and without edits. The learning rate of each technique is the best
of three on TUNING_SEED. Differences to the plain model are paired by seed. Writes benchmarks/results/techniques.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS
from rich.console import Console
from rich.table import Table

from planaria.job import Job
from planaria.record import read_rows
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

TUNING_SEED = 100
RATES = (5e-4, 1e-3, 2e-3)
STREAMS: dict[str, dict[str, Any]] = {
    "fashion_mnist": {"samples": 30_000, "rows_per_context": 10_000},
    "shuttle": {"samples": 20_000, "rows_per_context": 5_000},
}


def _shared(kind: str, rank: int = 0) -> dict[str, Any]:
    return {"sharing": {"attention": kind, "mlp": kind, "difference_rank": rank}}


TECHNIQUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "share all": _shared("all"),
    "share pairs": _shared("pairs"),
    "share cycle": _shared("cycle"),
    "share sandwich": _shared("sandwich"),
    "share attention": {"sharing": {"attention": "all"}},
    "share MLPs": {"sharing": {"mlp": "all"}},
    "share all, differ by rank 2": _shared("all", 2),
    "share all, differ by rank 8": _shared("all", 8),
    "orthogonal start": {"initialisation": "orthogonal"},
    "gates": {"gate": {"active_fraction": 0.57}},
}
HALF_WAY = 0.5
"""Of the stream: the accuracy that the plain model has there is what the steps to it are counted for."""
_SMOOTHED = 5
"""Reporting intervals."""


def job_of(stream: str, technique: str, rate: float, seed: int) -> Job:
    size = STREAMS[stream]
    policy = {
        **TECHNIQUES[technique],
        "heads": {"start": 4, "max": 4},
        "controller": {"kind": "none"},
        "learner": {"loss": "naive", "learning_rate": rate, "memory": {"rows": 0}},
    }
    return Job.model_validate(
        {
            "stream": {
                "source": stream,
                "task": "classification",
                "scenario": {"contexts": [{"name": "all", "samples": size["samples"]}]},
            },
            "model": {"width": 64, "layers": 6, "head_width": 16, "mlp_width": 128, "patch": 7},
            "policy": policy,
            "batch_rows": 64,
            "samples": size["samples"],
            "seed": seed,
            "scale": {"workers": 0},
            "evaluation": {"rows_per_context": size["rows_per_context"]},
            "record": {"interval_samples": 512},
        }
    )


def run(task: tuple[str, str, float, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        began = time.process_time()
        summary = run_here(job_of(*task), folder, ROOT)
        spent = time.process_time() - began
        weights = next(folder.path.glob("checkpoints/*/model.safetensors"))
        accuracy = [row["accuracy"] for row in read_rows(folder.path, "steps")]
        return {
            "final_accuracy": summary["final_accuracy"],
            "prequential_accuracy": summary["prequential_accuracy"],
            "parameters": summary["parameters_last"],
            "bytes": weights.stat().st_size,
            "cpu_seconds": spent,
            "curve": _smooth(accuracy),
        }


def _smooth(curve: list[float]) -> list[float]:
    return [statistics.fmean(curve[max(0, at - _SMOOTHED + 1) : at + 1]) for at in range(len(curve))]


def steps_to(curve: list[float], level: float) -> int:
    """Reporting intervals until the level is reached; one more than there are where it never is."""
    return next((at + 1 for at, value in enumerate(curve) if value >= level), len(curve) + 1)


def compared(ours: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    def paired(key: str) -> list[float]:
        mean, half = interval([one[key] - other[key] for one, other in zip(ours, plain, strict=True)])
        return [round(value, 4) for value in (mean, mean - half, mean + half)]

    def ratio(key: str) -> float:
        return round(statistics.median(one[key] / other[key] for one, other in zip(ours, plain, strict=True)), 3)

    steps = []
    for one, other in zip(ours, plain, strict=True):
        level = other["curve"][int(HALF_WAY * len(other["curve"])) - 1]
        steps.append(steps_to(one["curve"], level) / steps_to(other["curve"], level))
    mean, half = interval(steps)
    return {
        "final_accuracy": round(statistics.fmean(one["final_accuracy"] for one in ours), 4),
        "final_gain": paired("final_accuracy"),
        "prequential_gain": paired("prequential_accuracy"),
        "parameters": ours[0]["parameters"],
        "bytes_of_plain": ratio("bytes"),
        "cpu_seconds_of_plain": ratio("cpu_seconds"),
        "steps_of_plain": [round(value, 3) for value in (mean, mean - half, mean + half)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(TECHNIQUES), choices=list(TECHNIQUES))
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "techniques.json")
    arguments = parser.parse_args()
    console, found = Console(width=140), []
    names = ["plain", *(name for name in arguments.only if name != "plain")]
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for stream in arguments.streams:
            tuning = [(stream, name, rate, TUNING_SEED) for name in names for rate in RATES]
            tried = {task: one["prequential_accuracy"] for task, one in zip(tuning, pool.map(run, tuning), strict=True)}
            rates = {name: max(RATES, key=lambda r, n=name: tried[stream, n, r, TUNING_SEED]) for name in names}
            lives = {
                name: list(pool.map(run, [(stream, name, rates[name], seed) for seed in arguments.seeds]))
                for name in names
            }
            table = Table("technique", "rate", "accuracy", "gain", "bytes", "CPU seconds", "steps to", title=stream)
            for name in names:
                row = {"stream": stream, "technique": name, "rate": rates[name], "seeds": arguments.seeds}
                row |= compared(lives[name], lives["plain"])
                found.append(row)
                shown = [str(row[key]) for key in ("final_accuracy", "final_gain", "bytes_of_plain")]
                table.add_row(
                    name, str(rates[name]), *shown, str(row["cpu_seconds_of_plain"]), str(row["steps_of_plain"])
                )
            console.print(table)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
