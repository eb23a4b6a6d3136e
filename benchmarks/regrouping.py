"""Sharing that changes while the model learns, against every static grouping with as many parameters.

    python -m benchmarks.regrouping            (about half an hour of one core)

A transformer of 6 layers (width 64, 4 heads of 16, patches of 7) learns 24,000 pictures of Fashion-MNIST in six
contexts, the fourth of which is the first again, in steps of 64 with as many remembered rows. All runs have the same
controller, which may treat optimizer and output layer, restore kept models and, in the dynamic ones, regroup; heads are
fixed. First the dynamic ones run; then every static grouping with MLPs as wide as gives it their mean number of
parameters. Learning rates, and how sharing begins and what it costs, are chosen on TUNING_SEED and other contexts.
Differences are paired by seed. Writes benchmarks/results/regrouping.json.
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

from planaria.blueprint import Blueprint
from planaria.job import Job
from planaria.policy import Sharing
from planaria.record import read_rows
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

TUNING_SEED = 100
LAYERS, WIDTH, HEADS, HEAD_WIDTH, PATCH, MLP_WIDTH = 6, 64, 4, 16, 7, 128
ROWS = 4_000
"""Of a context."""
_UPRIGHT: dict[str, Any] = {"name": "upright"}
CONTEXTS: list[dict[str, Any]] = [
    _UPRIGHT,
    {"name": "turned", "transform": "rotate", "degrees": 90},
    {"name": "shuffled", "transform": "permute_patches", "patch": PATCH, "variant": 1},
    _UPRIGHT,
    {"name": "inverted", "transform": "invert"},
    {"name": "upside down", "transform": "rotate", "degrees": 180},
]
_ASLANT: dict[str, Any] = {"name": "aslant", "transform": "rotate", "degrees": 45}
TUNING_CONTEXTS: list[dict[str, Any]] = [
    _ASLANT,
    {"name": "shuffled", "transform": "permute_patches", "patch": PATCH, "variant": 7},
    {"name": "lying", "transform": "rotate", "degrees": 270},
    _ASLANT,
    {"name": "reshuffled", "transform": "permute_patches", "patch": PATCH, "variant": 8},
    {"name": "tipped", "transform": "rotate", "degrees": 135},
]
RATES = (1e-3, 2e-3)
STATIC = ("none", "pairs", "cycle", "sandwich", "all")
BEGINNINGS = ("none", "pairs", "all")
PRICES = (0.02, 0.1)
Setting = tuple[str, float | None, float]
"""How layers share at first, the price where they may regroup, and the learning rate."""


def job_of(setting: Setting, seed: int, mlp_width: int = MLP_WIDTH) -> Job:
    grouping, price, rate = setting
    contexts = TUNING_CONTEXTS if seed >= TUNING_SEED else CONTEXTS
    regroup = None if price is None else {"price": price}
    return Job.model_validate(
        {
            "stream": {
                "source": "fashion_mnist",
                "task": "classification",
                "scenario": {"contexts": [{**context, "samples": ROWS} for context in contexts]},
            },
            "model": {
                "width": WIDTH,
                "layers": LAYERS,
                "head_width": HEAD_WIDTH,
                "mlp_width": mlp_width,
                "patch": PATCH,
            },
            "policy": {
                "budget": {"decision_credit": 120_000},
                "heads": {"start": HEADS, "min": HEADS, "max": HEADS, "cooldown_samples": 1_000},
                "sharing": {"attention": grouping, "mlp": grouping, "regroup": regroup},
                "controller": {"thrift_every_samples": 1_500, "wait_samples": 512},
                "learner": {"learning_rate": rate, "memory": {"rows": 1_000}},
            },
            "batch_rows": 64,
            "seed": seed,
            "scale": {"workers": 0},
            "evaluation": {"rows_per_context": 1_000},
            "record": {"interval_samples": 1_024},
        }
    )


def run(task: tuple[Setting, int, int]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        began = time.process_time()
        summary = run_here(job_of(*task), folder, ROOT)
        spent = time.process_time() - began
        edits = [row["edit"]["kind"] for row in read_rows(folder.path, "revisions") if row["edit"]]
    kept = ("prequential_accuracy", "final_accuracy", "forgetting", "parameters_mean", "parameters_last")
    return {
        **{key: summary[key] for key in kept},
        "cpu_seconds": spent,
        "share": edits.count("share"),
        "unshare": edits.count("unshare"),
        "restore": edits.count("restore"),
    }


def width_for(grouping: str, parameters: float) -> int:
    """Of the MLPs, so that a model of such a grouping has that many parameters."""

    def counted(mlp_width: int) -> int:
        sharing = Sharing.model_validate({"attention": grouping, "mlp": grouping})
        return Blueprint(
            "classification",
            WIDTH,
            HEAD_WIDTH,
            mlp_width,
            (HEADS,) * LAYERS,
            10,
            image_shape=(1, 28, 28),
            patch=PATCH,
            attention_of=sharing.owners("attention", LAYERS),
            mlp_of=sharing.owners("mlp", LAYERS),
        ).parameters

    return min(range(1, 2_000), key=lambda width: abs(counted(width) - parameters))


def best(tried: dict[Setting, dict[str, Any]]) -> Setting:
    """By what was right before it was learned and what is known at the end, both."""
    return max(tried, key=lambda one: tried[one]["prequential_accuracy"] + tried[one]["final_accuracy"])


def compared(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: round(statistics.fmean(one[key] for one in others), 4)
        for key in ("prequential_accuracy", "final_accuracy", "forgetting", "parameters_mean", "cpu_seconds")
    }
    for key in ("prequential_accuracy", "final_accuracy", "forgetting"):
        mean, half = interval([one[key] - other[key] for one, other in zip(ours, others, strict=True)])
        found[f"dynamic_minus_it_{key}"] = [round(value, 4) for value in (mean, mean - half, mean + half)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "regrouping.json")
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:

        def tuned(settings: list[Setting], mlp_width: int = MLP_WIDTH) -> dict[Setting, dict[str, Any]]:
            tasks = [(setting, TUNING_SEED, mlp_width) for setting in settings]
            return dict(zip(settings, pool.map(run, tasks), strict=True))

        def lives(setting: Setting, mlp_width: int = MLP_WIDTH) -> list[dict[str, Any]]:
            return list(pool.map(run, [(setting, seed, mlp_width) for seed in arguments.seeds]))

        tried = tuned([(start, price, rate) for start in BEGINNINGS for price in PRICES for rate in RATES])
        chosen = best(tried)
        dynamic = lives(chosen)
        parameters = statistics.fmean(one["parameters_mean"] for one in dynamic)
        rows = [{"grouping": "dynamic", "setting": chosen, "runs": dynamic, **compared(dynamic, dynamic)}]
        for grouping in STATIC:
            width = width_for(grouping, parameters)
            setting = best(tuned([(grouping, None, rate) for rate in RATES], width))
            runs = lives(setting, width)
            rows.append(
                {"grouping": grouping, "setting": setting, "mlp_width": width, "runs": runs, **compared(dynamic, runs)}
            )
    table = Table("grouping", "setting", "parameters", "prequential", "final", "dynamic minus it, prequential", "final")
    for row in rows:
        shown = ["parameters_mean", "prequential_accuracy", "final_accuracy"]
        shown += ["dynamic_minus_it_prequential_accuracy", "dynamic_minus_it_final_accuracy"]
        table.add_row(row["grouping"], str(row["setting"]), *(str(row[key]) for key in shown))
    Console(width=160).print(table)
    told = [{"setting": setting, **one} for setting, one in tried.items()]
    arguments.out.write_text(json.dumps({"seeds": arguments.seeds, "rows": rows, "tuning": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
