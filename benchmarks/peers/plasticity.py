"""Does a model that learns for ever stay able to learn? 200 permutations of Fashion-MNIST, one after the other.

    python -m benchmarks.peers.plasticity

jobs/online_permuted_fashion_mnist.yaml as it is, and the same without what keeps it able to learn. Accuracy on every
row before it is learned, of contexts 2 to 21 and of the last 20. Writes benchmarks/results/plasticity.json and
docs/images/plasticity.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS
from rich.console import Console

from planaria.job import load_job
from planaria.record import read_rows
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

JOB = ROOT / "jobs" / "online_permuted_fashion_mnist.yaml"
PICTURE = ROOT / "docs" / "images" / "plasticity.png"
ROWS = 1_000
"""Of a context."""
WAYS = {
    "the job as it is": (),
    "plain training": ("policy.learner.readout=null", "policy.learner.weight_decay=0.01"),
}


def curve(settings: tuple[str, ...], seed: int) -> list[float]:
    """Accuracy in each context."""
    import torch

    torch.set_num_threads(1)
    job = load_job(JOB, [*settings, f"seed={seed}", f"record.interval_samples={ROWS}"])
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        run_here(job, folder, ROOT)
        return [row["accuracy"] for row in read_rows(folder.path, "steps")]


def draw(found: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.2), constrained_layout=True)
    smooth = np.ones(10) / 10
    for place, one in enumerate(found):
        curves = np.array([np.convolve(each, smooth, "valid") for each in one["curves"]])
        at = np.arange(curves.shape[1]) + 5
        axis.plot(at, curves.mean(0), color=f"C{place}", label=one["way"], linewidth=1.6)
        axis.fill_between(at, curves.min(0), curves.max(0), color=f"C{place}", alpha=0.15, linewidth=0)
    axis.set(xlabel="permutation", ylabel="accuracy before learning (mean of 10 permutations)")
    axis.set_title(f"Online permuted Fashion-MNIST, {ROWS:,} rows a permutation")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(PICTURE, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--processes", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "plasticity.json")
    arguments = parser.parse_args()
    console, found = Console(width=140), []
    with ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {
            way: [pool.submit(curve, settings, seed) for seed in arguments.seeds] for way, settings in WAYS.items()
        }
        for way, runs in waiting.items():
            curves = [run.result() for run in runs]
            early = [float(np.mean(each[1:21])) for each in curves]
            late = [float(np.mean(each[-20:])) for each in curves]
            row: dict[str, Any] = {"way": way, "seeds": arguments.seeds}
            change = [after - before for before, after in zip(early, late, strict=True)]
            for name, values in (("contexts_2_to_21", early), ("last_20", late), ("change", change)):
                mean, half = interval(values)
                row |= {name: round(mean, 4), f"{name}_ci95": [round(mean - half, 4), round(mean + half, 4)]}
            console.print(row)
            found.append({**row, "curves": [[round(value, 4) for value in each] for each in curves]})
            arguments.out.write_text(json.dumps(found) + "\n")
    draw(found)


if __name__ == "__main__":
    main()
