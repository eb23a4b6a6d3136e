"""Every learner by itself, its own setting searched first: which one keeps what, and what the defaults should be.

    python -m benchmarks.peers.learners

Split and permuted Fashion-MNIST, 10,000 rows in one pass, batches of 10, 1,000 remembered rows; no readout, no edits.
Every setting of a learner is tried on TUNING_SEED, the best one is run on the others. What protects is told the
boundaries; the last rows are the same learners with those that the detector finds. Writes
benchmarks/results/learners.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS
from rich.console import Console
from rich.table import Table

from planaria.job import load_job
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

ROWS = 10_000
TUNING_SEED = 100
STREAMS = {"split_fashion_mnist": 5, "permuted_fashion_mnist": 10}
"""How many contexts each has."""
PLAIN = (
    "policy=balanced",
    "policy.controller.kind=none",
    "policy.learner.memory.rows=1000",
    "policy.detector.boundaries=told",
)
GRIDS: Mapping[str, tuple[tuple[str, ...], str, tuple[Any, ...]]] = {
    "naive": (("loss=naive",), "", ()),
    "ER": ((), "", ()),
    "ER, reservoir": (("memory.kind=reservoir",), "", ()),
    "ER, ring": (("memory.kind=ring",), "", ()),
    "ER, loss-aware": (("memory.kind=loss_aware",), "", ()),
    "ER-ACE": (("loss=er_ace",), "", ()),
    "DER": (("loss=der",), "alpha", (0.1, 0.3, 1.0, 3.0)),
    "DER++": (("loss=der++",), "alpha", (0.1, 0.3, 1.0)),
    "A-GEM": (("loss=a_gem",), "", ()),
    "online EWC": (("loss=naive", "protect.kind=ewc"), "protect.weight", (1, 10, 100, 1_000)),
    "SI": (("loss=naive", "protect.kind=si"), "protect.weight", (0.1, 1, 10, 100)),
    "LwF": (("loss=naive", "protect.kind=lwf"), "protect.weight", (0.3, 1, 3, 10)),
    "ER + online EWC": (("protect.kind=ewc",), "protect.weight", (1, 10, 100)),
    "ER + SI": (("protect.kind=si",), "protect.weight", (0.1, 1, 10)),
    "ER + LwF": (("protect.kind=lwf",), "protect.weight", (0.1, 0.3, 1)),
    "ER + renewal": ((), "renew.rate", (1e-5, 1e-4, 1e-3)),
}
"""Of each learner: what makes it, the setting that is searched, and the values tried."""


def final_accuracy(stream: str, settings: tuple[str, ...], seed: int) -> float:
    import torch

    torch.set_num_threads(1)
    rows = ROWS // STREAMS[stream]
    shorter = (f"stream.scenario.samples_per_context={rows}", "evaluation.rows_per_context=1000")
    job = load_job(ROOT / "jobs" / f"{stream}.yaml", [*PLAIN, *settings, *shorter, f"seed={seed}"])
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        return float(run_here(job, folder, ROOT)["final_accuracy"])


def _settings(made: tuple[str, ...], searched: str, value: Any) -> tuple[str, ...]:
    own = tuple(f"policy.learner.{setting}" for setting in made)
    return (*own, f"policy.learner.{searched}={value}") if searched else own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "learners.json")
    arguments = parser.parse_args()
    console, found = Console(width=140), []
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for stream in STREAMS:
            table = Table("learner", "setting", "tried", "final accuracy", title=stream)
            for name, (made, searched, values) in GRIDS.items():
                tried = {}
                if values:
                    options = [_settings(made, searched, value) for value in values]
                    scores = pool.map(partial(final_accuracy, stream, seed=TUNING_SEED), options)
                    tried = dict(zip(values, scores, strict=True))
                best = max(tried, key=lambda value: tried[value]) if tried else None
                chosen = _settings(made, searched, best)
                modes = {"": chosen}
                if "protect" in searched:
                    modes[", boundaries found"] = (*chosen, "policy.detector.boundaries=detected")
                for mode, settings in modes.items():
                    scores = list(pool.map(partial(final_accuracy, stream, settings), arguments.seeds))
                    mean, half = interval(scores)
                    row = {"stream": stream, "learner": name + mode, "searched": searched, "best": best}
                    row |= {"tried": {str(value): round(score, 4) for value, score in tried.items()}}
                    row |= {"final_accuracy": round(mean, 4), "ci95": [round(mean - half, 4), round(mean + half, 4)]}
                    found.append(row)
                    table.add_row(
                        name + mode, f"{searched} {best or ''}", str(row["tried"]), f"{mean:.4f} ± {half:.4f}"
                    )
                    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            console.print(table)


if __name__ == "__main__":
    main()
