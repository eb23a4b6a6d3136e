"""What each technique costs and gains beside the plain model, held against what was claimed of it.

    python -m benchmarks.techniques                                  all of them (about an hour of one core)
    python -m benchmarks.techniques --only "share all" --seeds 0
    python -m benchmarks.techniques --only adabelief meta_sgd        the rows of others in the file stay

A transformer of 6 layers (width 64, 4 heads of 16, MLP 128) learns 30,000 pictures of Fashion-MNIST, or 20,000 rows of
Shuttle, in one pass of steps of 64, without replay and without edits. The learning rate of each technique is the best
of its own on TUNING_SEED. Differences to the plain model are paired by seed. Writes benchmarks/results/techniques.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS, alternate, median_ratio
from rich.console import Console
from rich.table import Table

from planaria.active import active_parameters
from planaria.blueprint import Blueprint
from planaria.job import Job
from planaria.model import ElasticTransformer, build
from planaria.morph import openings
from planaria.record import read_rows
from planaria.stream import open_stream
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
    "gates per row": {"gate": {"per": "row", "active_fraction": 0.5}},
    "gates per row, straight-through": {"gate": {"per": "row", "kind": "straight_through", "active_fraction": 0.57}},
    "gates per stream": {"gate": {"per": "stream", "active_fraction": 0.5}},
    "share all, gates per stream": {**_shared("all"), "gate": {"per": "stream", "active_fraction": 0.5}},
    "smaller from the start": {"heads": {"start": 2, "max": 4}},
    "adabelief": {"learner": {"optimizer": "adabelief"}},
    "meta_sgd": {"learner": {"optimizer": "meta_sgd"}},
}
MLP_WIDTH = {"smaller from the start": 84}
"""128 elsewhere: the smaller model has as many parameters as the gates are to leave."""
RATES_OF = {"plain": (5e-4, 1e-3, 2e-3, 4e-3), "adabelief": (5e-4, 1e-3, 2e-3, 4e-3), "meta_sgd": (0.03, 0.1, 0.3, 1.0)}
"""Where they are other ones: optimizers are compared at the best of four."""
BUDGETS = (0.25, 0.5, 1.0)
"""Of the stream: the accuracy on the next rows is compared there."""
HALF_WAY = 0.5
"""Of the stream: the accuracy that the plain model has there is what the steps to it are counted for."""
TIMED_ROWS, TIMED_ROUNDS = 1_024, 5
_SMOOTHED = 5
"""Reporting intervals."""


def job_of(stream: str, technique: str, rate: float, seed: int) -> Job:
    size, mlp_width = STREAMS[stream], MLP_WIDTH.get(technique, 128)
    policy = {
        "heads": {"start": 4, "max": 4},
        **TECHNIQUES[technique],
        "controller": {"kind": "none"},
        "learner": {
            **TECHNIQUES[technique].get("learner", {}),
            "loss": "naive",
            "learning_rate": rate,
            "memory": {"rows": 0},
        },
    }
    return Job.model_validate(
        {
            "stream": {
                "source": stream,
                "task": "classification",
                "scenario": {"contexts": [{"name": "all", "samples": size["samples"]}]},
            },
            "model": {"width": 64, "layers": 6, "head_width": 16, "mlp_width": mlp_width, "patch": 7},
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
            "energy_joules": summary["energy_joules"],
            "energy_method": summary["energy_method"],
            **({} if task[-1] == TUNING_SEED else in_use(folder, job_of(*task))),
            "curve": _smooth(accuracy),
        }


def in_use(folder: RunFolder, job: Job) -> dict[str, float]:
    """What the run's last model uses of itself on held-out rows, and its times against the plain model's."""
    import torch
    from safetensors.torch import load_file

    checkpoint = max(folder.path.glob("checkpoints/*/"))
    about = json.loads((checkpoint / "state.json").read_text())
    model = build(Blueprint.from_json(about["account"]["blueprint"]))
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    stream = open_stream(job.stream, seed=job.seed, base=ROOT, hold_out_fraction=job.evaluation.hold_out_fraction)
    stream.read(0, 2_000)
    held_out = stream.held_out(0, TIMED_ROWS)
    assert held_out is not None
    features = {name: torch.from_numpy(column.copy()) for name, column in held_out.select(slice(None)).items()}
    shares: list[float] = []
    if model.blueprint.gates is not None:
        shares = [share for layer in openings(model, features) for share in (layer != 0).double().mean(0).tolist()]
    return {"active": active_parameters(model.blueprint, shares), **times_beside_plain(model, features)}


def times_beside_plain(model: ElasticTransformer, features: Mapping[str, Any]) -> dict[str, float]:
    """CPU time of passes over rows, over that of the plain model of the same input, both taken in turn."""
    import torch
    import torch.nn.functional as F

    heads = (4,) * model.blueprint.layers
    plain = build(replace(model.blueprint, gates=None, heads=heads, mlp_width=128, mlp_widths=()))
    target = torch.zeros(TIMED_ROWS, dtype=torch.int64)

    def forward(which: ElasticTransformer, rows: int) -> None:
        with torch.no_grad():
            for low in range(0, TIMED_ROWS, rows):
                which({name: column[low : low + rows] for name, column in features.items()})

    def both(which: ElasticTransformer, rows: int) -> None:
        for low in range(0, TIMED_ROWS, rows):
            which.zero_grad()
            output = which({name: column[low : low + rows] for name, column in features.items()})
            F.cross_entropy(output, target[low : low + rows]).backward()

    found = {}
    for name, work, rows in (("forward", forward, 256), ("forward_64", forward, 64), ("backward", both, 64)):
        works = {"own": partial(work, model, rows), "plain": partial(work, plain, rows)}
        seconds = alternate(works, TIMED_ROUNDS)
        found[name] = median_ratio(seconds["own"], seconds["plain"])
    return found


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

    def ratio_to_whole(key: str) -> float:
        return round(
            statistics.fmean(one[key] / other["parameters"] for one, other in zip(ours, plain, strict=True)), 3
        )

    def median(key: str) -> float:
        return round(statistics.median(one[key] for one in ours), 3)

    steps = []
    for one, other in zip(ours, plain, strict=True):
        level = other["curve"][int(HALF_WAY * len(other["curve"])) - 1]
        steps.append(steps_to(one["curve"], level) / steps_to(other["curve"], level))
    mean, half = interval(steps)
    for one in (*ours, *plain):
        one |= {f"accuracy_at_{part:g}": one["curve"][int(part * len(one["curve"])) - 1] for part in BUDGETS}
    return {
        "final_accuracy": round(statistics.fmean(one["final_accuracy"] for one in ours), 4),
        "final_gain": paired("final_accuracy"),
        "prequential_gain": paired("prequential_accuracy"),
        "accuracy_at": {
            f"{part:g}": round(statistics.fmean(one[f"accuracy_at_{part:g}"] for one in ours), 4) for part in BUDGETS
        },
        "gain_at": {f"{part:g}": paired(f"accuracy_at_{part:g}") for part in BUDGETS},
        "parameters": ours[0]["parameters"],
        "bytes_of_plain": ratio("bytes"),
        "cpu_seconds_of_plain": ratio("cpu_seconds"),
        "energy_of_plain": ratio("energy_joules"),
        "energy_method": ours[0]["energy_method"],
        "accuracy_of_plain": round(
            sum(one["final_accuracy"] for one in ours) / sum(other["final_accuracy"] for other in plain), 4
        ),
        "active_of_plain": ratio_to_whole("active"),
        "forward_256_of_plain": median("forward"),
        "forward_64_of_plain": median("forward_64"),
        "forward_backward_64_of_plain": median("backward"),
        "steps_of_plain": [round(value, 3) for value in (mean, mean - half, mean + half)],
    }


def write(found: list[dict[str, Any]], out: Path) -> None:
    """In the place of earlier rows of the same technique on the same stream; all others stay."""
    done = {(row["stream"], row["technique"]) for row in found}
    earlier = json.loads(out.read_text()) if out.exists() else []
    kept = [row for row in earlier if (row["stream"], row["technique"]) not in done]
    rows = sorted([*kept, *found], key=lambda row: (list(STREAMS).index(row["stream"]), row["technique"] != "plain"))
    out.write_text(json.dumps(rows, indent=1) + "\n")


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
            tuning = [(stream, name, rate, TUNING_SEED) for name in names for rate in RATES_OF.get(name, RATES)]
            tried = {task: one["prequential_accuracy"] for task, one in zip(tuning, pool.map(run, tuning), strict=True)}
            rates = {
                name: max(RATES_OF.get(name, RATES), key=lambda r, n=name: tried[stream, n, r, TUNING_SEED])
                for name in names
            }
            lives = {
                name: list(pool.map(run, [(stream, name, rates[name], seed) for seed in arguments.seeds]))
                for name in names
            }
            columns = ("technique", "rate", "accuracy", "gain", "bytes", "active", "energy", "forward", "steps to")
            table = Table(*columns, title=stream)
            for name in names:
                row = {"stream": stream, "technique": name, "rate": rates[name], "seeds": arguments.seeds}
                row |= compared(lives[name], lives["plain"])
                found.append(row)
                shown = ["final_accuracy", "final_gain", "bytes_of_plain", "active_of_plain", "energy_of_plain"]
                shown += ["forward_256_of_plain", "steps_of_plain"]
                table.add_row(name, str(rates[name]), *(str(row[key]) for key in shown))
            console.print(table)
            write(found, arguments.out)


if __name__ == "__main__":
    main()
