"""A base that all concepts share, with an adapter for each of them, against one shared model with as many parameters.

    python -m benchmarks.adapters            (about a quarter of an hour of one core)

Pictures: six contexts of 4,000 of Fashion-MNIST, the fourth of which is the first again. Table: Agrawal's, four
concepts of 5,000 rows, whose inputs are alike and whose labels differ. Transformers of 3 layers (width 64, 4 heads of
16), in steps of 64 with as many remembered rows, of 500 that are kept. The shared model has wider MLPs, so that it has
as many parameters as the base with all its adapters. Learning rates are chosen on TUNING_SEED, on other contexts or
other rows. Held-out rows are routed by the model itself; for comparison they are also told their adapter. Differences
are paired by seed. Adds to benchmarks/results/adapters.json, and does not measure again what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS
from benchmarks.regrouping import CONTEXTS, ROWS, TUNING_CONTEXTS, TUNING_SEED
from rich.console import Console
from rich.table import Table

from planaria.job import Job
from planaria.stream import open_stream
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong

BASE_MLP = 64
SHAPES = {"pictures": (5, 10), "table": (4, 12)}
"""Concepts, and units of an adapter for each, which makes 19% of all parameters."""
RATES = (1e-3, 2e-3, 4e-3)
SHARED, FOUND, TOLD, LARGER = "shared", "adapters, contexts found", "adapters, contexts told", "shared, larger"
"""The last one has as many parameters more as the router has fixed and solved numbers."""
TUNED_AS = {SHARED: SHARED, FOUND: TOLD, TOLD: TOLD, LARGER: SHARED}
ROUTER_UNITS = 123
"""Hidden units of a layer that have as many parameters as a router of pictures has numbers (47,474)."""
FIGURES = ("prequential_accuracy", "final_accuracy", "forgetting")


def job_of(stream: str, kind: str, rate: float, seed: int) -> Job:
    concepts, units = SHAPES[stream]
    more = {SHARED: concepts * units, LARGER: concepts * units + ROUTER_UNITS, FOUND: 0, TOLD: 0}
    contexts = TUNING_CONTEXTS if seed >= TUNING_SEED else CONTEXTS
    pictures = {
        "source": "fashion_mnist",
        "task": "classification",
        "scenario": {"contexts": [{**context, "samples": ROWS} for context in contexts]},
    }
    return Job.model_validate(
        {
            "stream": pictures if stream == "pictures" else {"source": "agrawal_abrupt"},
            "model": {
                "width": 64,
                "layers": 3,
                "head_width": 16,
                "mlp_width": BASE_MLP + more[kind],
                "patch": 7,
            },
            "policy": {
                "heads": {"start": 4, "min": 4, "max": 4},
                "controller": {"kind": "none"},
                "detector": {"boundaries": "told" if kind == TOLD else "detected"},
                "adapters": None if more[kind] else {"units": units, "most": concepts},
                "learner": {"learning_rate": rate, "memory": {"rows": 500}},
            },
            "batch_rows": 64,
            "seed": seed,
            "scale": {"workers": 0},
            "evaluation": {"rows_per_context": 1_000},
            "record": {"interval_samples": 1_024},
        }
    )


def live(job: Job) -> dict[str, Any]:
    began = time.process_time()
    stream = open_stream(job.stream, seed=job.seed, base=ROOT, hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, Alone(), torch.device("cpu"))
    run.begin()
    learned_in: dict[int, int] = {}
    """Of each context, the adapter that its last rows were learned with."""
    while run.take_step() is not None:
        assert run.evaluator.current is not None
        learned_in[run.evaluator.current] = run.adapting.present
    summary = run.summary("done", run.finish())
    spent = time.process_time() - began
    found = {key: summary[key] for key in (*FIGURES, "parameters_last", "shifts")}
    return {**found, "adapters": run.blueprint.adapters, "cpu_seconds": spent, **routing(run, learned_in)}


@torch.no_grad()
def routing(run: Lifelong, learned_in: dict[int, int]) -> dict[str, float]:
    """How many held-out rows find the adapter that their context was learned with, and what accuracy would be if all
    did; means over contexts."""
    router = run.model.router
    if router is None:
        return {}
    share, right = [], []
    for context, adapter in learned_in.items():
        held = run.evaluator.held_out(context)
        if held is None:
            continue
        features, target = run._tensors(held[0]), run._target(held[1])
        share.append(float((router(features).argmax(1) == adapter).float().mean()))
        route_K = torch.eye(run.blueprint.adapters)[adapter]
        told = {**features, "route": route_K.expand(len(target), -1)}
        right.append(float((run.model(told).argmax(1) == target).float().mean()))
    return {"routed_right": statistics.fmean(share), "final_accuracy_if_told": statistics.fmean(right)}


class Measured:
    """Runs in a file, each made once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def run(self, stream: str, kind: str, rate: float, seed: int) -> dict[str, Any]:
        asked = {"stream": stream, "kind": kind, "rate": rate, "seed": seed}
        for one in self.runs:
            if asked.items() <= one.items():
                return one
        self.runs.append({**asked, **live(job_of(stream, kind, rate, seed))})
        self.write()
        return self.runs[-1]

    def rate(self, stream: str, kind: str) -> float:
        """The best by what was right before it was learned and what is known at the end, both."""
        tried = [self.run(stream, TUNED_AS[kind], rate, TUNING_SEED) for rate in RATES]
        best = max(tried, key=lambda one: one["prequential_accuracy"] + one["final_accuracy"])
        return float(best["rate"])

    def write(self) -> None:
        self.path.write_text(json.dumps({"rows": self.rows(), "runs": self.runs}, indent=1) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Means over the seeds, beside the shared model's of the same seeds."""
        found = []
        for stream in SHAPES:
            of = {
                kind: {one["seed"]: one for one in self.runs if (one["stream"], one["kind"]) == (stream, kind)}
                for kind in TUNED_AS
            }
            for kind, by_seed in of.items():
                seeds = sorted(seed for seed in by_seed if seed < TUNING_SEED and seed in of[SHARED])
                if seeds:
                    shared = [of[SHARED][seed] for seed in seeds]
                    compared = _compared([by_seed[seed] for seed in seeds], shared)
                    found.append({"stream": stream, "kind": kind, "seeds": seeds, **compared})
        return found


def _compared(runs: list[dict[str, Any]], shared: list[dict[str, Any]]) -> dict[str, Any]:
    keys = [key for key in runs[0] if key not in ("stream", "kind", "seed")]
    found: dict[str, Any] = {key: round(statistics.fmean(one[key] for one in runs), 4) for key in keys}
    pairs = list(zip(runs, shared, strict=True))
    for key in FIGURES:
        found[f"{key}_minus_shared"] = _interval([one[key] - other[key] for one, other in pairs])
    found["cpu_ratio"] = _interval([one["cpu_seconds"] / other["cpu_seconds"] for one, other in pairs])
    return found


def _interval(values: list[float]) -> list[float]:
    """Mean, and the ends of its 95% interval, where there are values enough for one."""
    mean, half = interval(values)
    return [round(value, 4) for value in ((mean, mean - half, mean + half) if len(values) > 1 else (mean,))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--streams", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--kinds", nargs="+", choices=list(TUNED_AS), default=list(TUNED_AS))
    parser.add_argument("--out", type=Path, default=RESULTS / "adapters.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = Measured(arguments.out)
    for stream in arguments.streams:
        kinds = [kind for kind in arguments.kinds if stream == "pictures" or kind != LARGER]
        rates = {kind: measured.rate(stream, kind) for kind in kinds}
        for seed in arguments.seeds:
            for kind in kinds:  # side by side in time, so that CPU seconds compare
                measured.run(stream, kind, rates[kind], seed)
    shown = ("parameters_last", *FIGURES, "routed_right", "final_accuracy_if_told", "cpu_ratio")
    shown += ("final_accuracy_minus_shared", "forgetting_minus_shared")
    table = Table("stream", "kind", *shown)
    for row in measured.rows():
        table.add_row(row["stream"], row["kind"], *(str(row.get(key, "-")) for key in shown))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
