"""The standard picture streams: planaria, with boundaries found and told, beside Avalanche's learners, which are
told them all.

    python -m venv peers && peers/bin/pip install 'avalanche-lib>=0.6,<0.7'
    python -m benchmarks.peers.images --avalanche peers/bin/python
    python -m benchmarks.peers.images --equal-bytes

One pass, batches of 10, 1,000 remembered rows. planaria: jobs/split_fashion_mnist.yaml, permuted_ and rotated_, as they
are. Avalanche: the same rows, shuffled within each context as it does by itself, an MLP 784-512-10, its rate chosen for
every stream and learner on TUNING_SEED, which is not reported. Writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.elastic import ROOT, interval
from benchmarks.measure import RESULTS
from rich.console import Console

from planaria.compare import avalanche_peers
from planaria.job import Job, load_job
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

STREAMS = ("split_fashion_mnist", "permuted_fashion_mnist", "rotated_fashion_mnist")
LEARNERS = ("replay", "der++")
RATES = (0.01, 0.03, 0.1)
TUNING_SEED = 100
SCALE = (0.286, 0.353)
"""Mean and deviation of Fashion-MNIST's pixels."""


EQUAL_BYTES = (
    "model.width=32",
    "policy.learner.memory.rows=100",
    "policy.learner.readout.features=528",
    "policy.learner.readout.concepts=1",
    "policy.learner.readout.sums=float32",
)
"""With these, all that planaria keeps of the split stream takes no more memory than a perceptron of 407,050 float32
weights and its 1,000 rows. Chosen on TUNING_SEED."""
COUNTED_STEPS = 400
BOUNDARIES = {"never told": "detected", "told": "told"}
"""In the results, and as the policy has them."""


def job_of(stream: str, seed: int, *settings: str) -> Job:
    return load_job(ROOT / "jobs" / f"{stream}.yaml", [f"seed={seed}", *settings])


def ours(stream: str, boundaries: str, seed: int, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    import torch
    import torch._dynamo  # comes with the first optimizer, a second that is not the run's

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        job = job_of(stream, seed, f"policy.detector.boundaries={BOUNDARIES[boundaries]}", *settings)
        began = time.process_time()
        summary = run_here(job, folder, ROOT)
        spent = time.process_time() - began
    kept = ("final_accuracy", "prequential_accuracy", "samples", "shifts", "true_changes")
    return {**{key: summary[key] for key in kept}, "parameters": summary["parameters_mean"], "cpu_seconds": spent}


def held_bytes(job: Job) -> dict[str, int]:
    """The most that a run of the job keeps from step to step, in memory, by part."""
    from benchmarks.speed import begun

    run = begun(job)
    held = {}
    for _ in range(COUNTED_STEPS):
        run.take_step()
        now = _held_now(run)
        held = {part: max(size, held.get(part, 0)) for part, size in now.items()}
    return held


def _held_now(run: Any) -> dict[str, int]:
    moments = [value for state in run.optimizer.state.values() for value in state.values() if value.ndim]
    sums = [*run.reading.concepts.values(), *run.reading.fading]
    memory = [*run.memory.columns.values(), run.memory.target, run.memory.remembered, run.memory.concept]
    return {
        "model": sum(value.nbytes for value in run.model.state_dict().values()),
        "optimizer": sum(value.nbytes for value in moments),
        "sums": sum(each.nbytes for each in sums),
        "memory": sum(column.nbytes for column in memory),
    }


def export(stream: str, seed: int, folder: Path) -> Path:
    """The job's rows, in order, and those that it is evaluated on."""
    path = folder / f"{stream}-{seed}.npz"
    if path.exists():
        return path
    avalanche_peers.export(job_of(stream, seed), ROOT, path, SCALE)
    return path


def avalanche(python: str, folder: Path, stream: str, learner: str, rate: float, seed: int) -> dict[str, Any]:
    recipe = avalanche_peers.recipe(f"{learner},rate={rate}", job_of(stream, seed))
    found = avalanche_peers.start(python, export(stream, seed, folder), recipe, interval=None)
    kept = ("final_accuracy", "samples", "parameters", "cpu_seconds", "peak_mb")
    return {key: found[key] for key in kept}


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    mean, half = interval([run["final_accuracy"] for run in runs])
    speed, _ = interval([run["samples"] / run["cpu_seconds"] for run in runs])
    parameters = float(np.mean([run["parameters"] for run in runs]))
    return {
        "final_accuracy": round(mean, 4),
        "ci95": [round(mean - half, 4), round(mean + half, 4)],
        "samples_per_cpu_second": round(speed),
        "parameters": round(parameters),
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avalanche", help="a Python that has Avalanche; without it, planaria alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--streams", nargs="+", default=list(STREAMS))
    parser.add_argument("--equal-bytes", action="store_true", help="the split stream, in a perceptron's memory, alone")
    parser.add_argument("--boundaries", nargs="+", default=list(BOUNDARIES), choices=list(BOUNDARIES))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    arguments = parser.parse_args()
    console = Console(width=140)
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"ours": [], "peers": []}
    if arguments.avalanche is not None:
        avalanche_peers.LIBRARY.interpreter(arguments.avalanche)
    with (
        ProcessPoolExecutor(arguments.processes, mp_context=multiprocessing.get_context("spawn")) as pool,
        tempfile.TemporaryDirectory() as place,
    ):
        if arguments.equal_bytes:
            stream = "split_fashion_mnist"
            own = list(pool.map(partial(ours, stream, "never told", settings=EQUAL_BYTES), arguments.seeds))
            row = {"stream": f"{stream} at equal bytes", "policy": "remembering", "boundaries": "never told"}
            row |= {
                "settings": EQUAL_BYTES,
                "held_bytes": held_bytes(job_of(stream, 0, *EQUAL_BYTES)),
                **summed_up(own),
            }
            kept["ours"] = [one for one in kept["ours"] if one["stream"] != row["stream"]] + [row]
            console.print({key: value for key, value in row.items() if key != "runs"})
            arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
            return
        for stream in arguments.streams:
            for boundaries in arguments.boundaries:
                own = list(pool.map(partial(ours, stream, boundaries), arguments.seeds))
                row = {"stream": stream, "policy": "remembering", "boundaries": boundaries, **summed_up(own)}
                same = (stream, boundaries)
                kept["ours"] = [one for one in kept["ours"] if (one["stream"], one["boundaries"]) != same] + [row]
                console.print({key: value for key, value in row.items() if key != "runs"})
                arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
            if arguments.avalanche is None:
                continue
            peer = partial(avalanche, arguments.avalanche, Path(place), stream)
            for seed in (TUNING_SEED, *arguments.seeds):
                export(stream, seed, Path(place))
            for learner in LEARNERS:
                tried = list(pool.map(partial(peer, learner, seed=TUNING_SEED), RATES))
                best = max(zip(RATES, tried, strict=True), key=lambda one: one[1]["final_accuracy"])[0]
                runs = list(pool.map(partial(_peer_of, peer, learner, best), arguments.seeds))
                row = {"stream": stream, "library": "avalanche 0.6.0", "learner": learner, "rate": best}
                row |= {"boundaries": "told", **summed_up(runs)}
                same = (stream, learner)
                kept["peers"] = [one for one in kept["peers"] if (one["stream"], one["learner"]) != same] + [row]
                console.print({key: value for key, value in row.items() if key != "runs"})
                arguments.out.write_text(json.dumps(kept, indent=1) + "\n")


def _peer_of(peer: partial[dict[str, Any]], learner: str, rate: float, seed: int) -> dict[str, Any]:
    return peer(learner, rate, seed)


if __name__ == "__main__":
    main()
