"""What pruning takes away and what it costs, beside the model that is not pruned and one as small from the start.

    python -m benchmarks.pruning                      20 minutes of one core; runs that the file has are not repeated
    python -m benchmarks.pruning --streams shuttle --seeds 0

The streams and the model are those of benchmarks.techniques. Each seed learns the first third once; from there on it
learns the rest without pruning, and again under each way of pruning, whose steps are over at three fifths of the
stream. Everything learns the same rows, at the plain model's learning rate. Differences are paired by seed. Adds its
rows to benchmarks/results/techniques.json, and every run to benchmarks/results/pruning.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS
from benchmarks.techniques import STREAMS, TIMED_ROWS, job_of, times_beside_plain, write
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from planaria.blueprint import Blueprint
from planaria.job import Job
from planaria.model import ElasticTransformer, build, predict
from planaria.stream import open_stream
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

RATE = {"fashion_mnist": 2e-3, "shuttle": 1e-3}
"""What benchmarks.techniques found best for the plain model."""
FIFTH = 0.831
"""Of the parameters of heads and hidden units are gone where 1/5 of all are left."""
ZEROS = "80% of the weights at zero"
COARSE = "prune 20% by magnitude"
WAYS: dict[str, dict[str, Any]] = {
    COARSE: {"fine": 0.2},
    "prune to a fifth": {"fine": FIFTH},
    "prune to a fifth, by magnitude": {"fine": FIFTH, "fine_by": "magnitude"},
    "prune to a fifth, by sensitivity": {"coarse": 0.0, "fine": FIFTH, "steps": 9},
    ZEROS: {"coarse": 0.0, "fine": 0.0, "unstructured": 0.8},
}
PLAIN, SMALL = "pruning: not pruned", "a fifth from the start"
SMALL_MODEL: dict[str, Any] = {"heads": 1, "mlp_width": 11}
HELD_OUT_ROWS = 5_000


def job_for(stream: str, way: str, seed: int) -> Job:
    job, samples = job_of(stream, "plain", RATE[stream], seed), STREAMS[stream]["samples"]
    if way == SMALL:
        heads = job.policy.heads.model_copy(update={"start": SMALL_MODEL["heads"]})
        model = job.model.model_copy(update={"mlp_width": SMALL_MODEL["mlp_width"]})
        return job.model_copy(update={"model": model, "policy": job.policy.model_copy(update={"heads": heads})})
    values = job.model_dump()
    if way in WAYS:
        values["policy"]["prune"] = {"from_samples": samples // 3, "every_samples": samples // 30, **WAYS[way]}
    return Job.model_validate(values)


def opened(job: Job) -> Lifelong:
    stream = open_stream(job.stream, seed=job.seed, base=ROOT, hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    return run


def live(run: Lifelong, rows: float) -> None:
    while run.row < rows and run.take_step() is not None:
        pass


class HeldOut:
    """Rows that nothing learns from."""

    def __init__(self, run: Lifelong) -> None:
        rows = run.stream.held_out(0, HELD_OUT_ROWS)
        assert rows is not None
        self.features = {name: torch.from_numpy(column.copy()) for name, column in rows.select(slice(None)).items()}
        self.target = torch.from_numpy(rows.target.copy())

    def accuracy(self, model: ElasticTransformer) -> float:
        return float((predict(model, self.features) == self.target).double().mean())

    @property
    def timed(self) -> Mapping[str, Tensor]:
        return {name: column[:TIMED_ROWS] for name, column in self.features.items()}


def after(run: Lifelong, held_out: HeldOut) -> dict[str, Any]:
    weights = save({name: value.contiguous() for name, value in run.model.state_dict().items()})
    return {
        "accuracy": held_out.accuracy(run.model),
        "parameters": run.blueprint.parameters,
        "bytes": len(weights),
        "compressed_bytes": len(zlib.compress(weights, 9)),
        "blueprint": json.loads(run.blueprint.to_json()),
    }


def seed_of(stream: str, seed: int, ways: list[str]) -> dict[str, dict[str, Any]]:
    """Everything of one seed, by name."""
    third, batch = STREAMS[stream]["samples"] // 3, job_for(stream, PLAIN, seed).batch_rows
    trunk = opened(job_for(stream, PLAIN, seed))
    live(trunk, third - batch)
    held_out, state, found = HeldOut(trunk), trunk.state(), {}
    for name in ways:
        run = opened(job_for(stream, name, seed))
        if name != SMALL:
            run.load_state(state)
        live(run, third)
        at_once = held_out.accuracy(run.model)
        live(run, math.inf)
        found[name] = {"at_once": at_once, **after(run, held_out)}
    return found


def times_of(stream: str, blueprint: dict[str, Any]) -> dict[str, float]:
    """Of passes of a model of these shapes; what its weights are does not matter."""
    held_out = HeldOut(opened(job_for(stream, PLAIN, 0)))
    return times_beside_plain(build(Blueprint.from_json(json.dumps(blueprint))), held_out.timed)


def row_of(stream: str, name: str, seeds: Mapping[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Means over the seeds, and differences to the model that was not pruned."""
    ours, plain = ([one[which] for one in seeds.values() if name in one] for which in (name, PLAIN))

    def paired(values: list[float]) -> list[float]:
        mean, half = interval(values)
        return [round(value, 4) for value in (mean, mean - half, mean + half)]

    def ratio(key: str) -> float:
        return round(statistics.fmean(one[key] / other[key] for one, other in zip(ours, plain, strict=True)), 3)

    pairs, times = list(zip(ours, plain, strict=True)), times_of(stream, ours[0]["blueprint"])
    return {
        "stream": stream,
        "technique": name,
        "rate": RATE[stream],
        "seeds": [int(seed) for seed, one in seeds.items() if name in one],
        "final_accuracy": round(statistics.fmean(one["accuracy"] for one in ours), 4),
        "final_gain": paired([one["accuracy"] - other["accuracy"] for one, other in pairs]),
        "accuracy_of_plain": paired([one["accuracy"] / other["accuracy"] for one, other in pairs]),
        "gain_at_once": paired([one["at_once"] - other["at_once"] for one, other in pairs]),
        "parameters_of_plain": ratio("parameters"),
        "bytes_of_plain": ratio("bytes"),
        "compressed_bytes_of_plain": ratio("compressed_bytes"),
        **{
            f"{shown}_of_plain": round(times[key], 3)
            for key, shown in (
                ("forward", "forward_256"),
                ("forward_64", "forward_64"),
                ("backward", "forward_backward_64"),
            )
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--only", nargs="+", default=[*WAYS, SMALL], choices=[*WAYS, SMALL])
    parser.add_argument("--out", type=Path, default=RESULTS / "techniques.json")
    parser.add_argument("--runs", type=Path, default=RESULTS / "pruning.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140)
    runs: dict[str, dict[str, Any]] = json.loads(arguments.runs.read_text()) if arguments.runs.exists() else {}
    for seed in arguments.seeds:
        for stream in arguments.streams:
            of_stream = runs.setdefault(stream, {})
            known = of_stream.setdefault(str(seed), {})
            due = [name for name in (PLAIN, *arguments.only) if name not in known]
            known |= seed_of(stream, seed, due) if due else {}
            arguments.runs.write_text(json.dumps(runs, indent=1) + "\n")
            console.print(
                f"{stream}, seed {seed}", {name: one["accuracy"] for name, one in of_stream[str(seed)].items()}
            )
    for stream in arguments.streams:
        rows = [row_of(stream, name, runs[stream]) for name in (PLAIN, *arguments.only)]
        write(rows, arguments.out)
        shown = ["final_accuracy", "accuracy_of_plain", "gain_at_once", "parameters_of_plain", "bytes_of_plain"]
        shown += ["compressed_bytes_of_plain", "forward_256_of_plain", "forward_backward_64_of_plain"]
        table = Table("", *shown, title=stream)
        for row in rows:
            table.add_row(row["technique"], *(str(row[key]) for key in shown))
        console.print(table)


if __name__ == "__main__":
    main()
