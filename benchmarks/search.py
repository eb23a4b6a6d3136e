"""What campaigns cost and what they bring.

    python -m benchmarks.search overhead     a campaign beside the same trials by hand: about ten minutes on 2 cores
    python -m benchmarks.search sharing      rows that trials share, beside rows that each reads: two minutes
    python -m benchmarks.search teaching     trials that begin with what earlier ones learned, beside those that do
                                             not: a quarter of an hour
    python -m benchmarks.search win DIR      the policies that a campaign of jobs/search_pictures.yaml found, beside
                                             the job's own, on contexts that it did not see: half an hour

By hand means `planaria run` for each trial, as many at a time as the campaign has, and, stricter, one process for each
of these places that lives through its share of the trials one after the other and records them.

Prints a table and merges it into benchmarks/results/search.json. CPU seconds are those of all processes that were
started, Ray's too. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, Figure, as_rows, show, write
from benchmarks.processes import Started, below
from scipy import stats

from planaria.job import load_job
from planaria.plain_yaml import dump_yaml
from planaria.search.campaign import Campaign, load_campaign
from planaria.search.places import read_trials
from planaria.search.space import draw_all, open_study
from planaria.search.trial import Around, live_trial
from planaria.stream import load_stream
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

ROOT = Path(__file__).parent.parent
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_S = 0.1


@dataclass(frozen=True)
class Spent:
    cpu_seconds: float
    wall_seconds: float


def spent_on(work: Callable[[], object]) -> Spent:
    """By the processes that the work starts, and by all that these start: those that lose their parent become children
    of this one, which waits for them. Ray's raylet does not wait for its workers, so that the kernel forgets what these
    spent: all are looked at ten times a second, and what was seen last counts."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl: cannot become the parent of what loses its own")
    seen: dict[Started, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            seen.update(below(os.getpid()))

    watcher, began = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    try:
        work()
        wall = time.monotonic() - began
        while below(os.getpid()):  # what outlives its parent for a moment
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(_LOOK_S)
    finally:
        over.set()
        watcher.join()
    return Spent(sum(seen.values()), wall)


# -- overhead

LOOP = """
import json, sys
from pathlib import Path
from planaria.job import load_job
from planaria.train.launch import run
for settings, out in json.loads(sys.argv[2]):
    run(load_job(sys.argv[1], settings), out=Path(out))
"""


def overhead(campaign_file: Path, trials: int, places: int) -> dict[str, Any]:
    """A campaign and the same trials by hand, once each in the same call."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "campaign"
        changes = [f"trials={trials}", f"at_once={places}", "algorithm=random"]
        command = [sys.executable, "-m", "planaria.cli", "search", str(campaign_file), *changes, "--out", str(out)]
        searched = spent_on(lambda: subprocess.run(command, check=True, capture_output=True))
        campaign = load_campaign(out / "campaign.yaml")
        runs = [
            (written(campaign, trial["settings"], seed), str(Path(folder) / f"hand-{trial['number']}-{seed}"))
            for trial in read_trials(out)
            for seed in campaign.seeds
        ]
        by_hand = spent_on(lambda: _in_places([[_run(campaign, *one)] for one in runs], places))
        loops = [
            [sys.executable, "-c", LOOP, campaign.job, json.dumps([(s, f"{o}-loop") for s, o in runs[at::places]])]
            for at in range(places)
        ]
        looped = spent_on(lambda: _in_places([[one] for one in loops], places))
    figures = [
        Figure("campaign", searched.cpu_seconds, "CPU s"),
        Figure("campaign", searched.wall_seconds, "s"),
        Figure("by hand: planaria run", by_hand.cpu_seconds, "CPU s"),
        Figure("by hand: planaria run", by_hand.wall_seconds, "s"),
        Figure("by hand: a loop in each of the processes", looped.cpu_seconds, "CPU s"),
        Figure("by hand: a loop in each of the processes", looped.wall_seconds, "s"),
        Figure("campaign / planaria run, CPU", searched.cpu_seconds / by_hand.cpu_seconds, "", at_most=1.1),
        Figure("campaign / planaria run, wall", searched.wall_seconds / by_hand.wall_seconds, "", at_most=1.1),
        Figure("campaign / loop, CPU", searched.cpu_seconds / looped.cpu_seconds, "", at_most=1.1),
        Figure("campaign / loop, wall", searched.wall_seconds / looped.wall_seconds, "", at_most=1.1),
    ]
    show(f"overhead: {trials} trials of {campaign_file.name}, {places} at a time", figures)
    return {"campaign": campaign_file.name, "trials": trials, "at_once": places, "figures": as_rows(figures)}


def written(campaign: Campaign, settings: dict[str, Any], seed: int) -> list[str]:
    """What a trial changes in the job, as `planaria run` takes it."""
    changes = {**campaign.settings, **settings, "seed": seed, "scale.workers": 0}
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _run(campaign: Campaign, settings: Sequence[str], out: str) -> list[str]:
    return [sys.executable, "-m", "planaria.cli", "run", campaign.job, *settings, "--out", out]


def _in_places(queues: Sequence[Sequence[Sequence[str]]], places: int) -> None:
    def work(queue: Sequence[Sequence[str]]) -> None:
        for command in queue:
            subprocess.run(command, check=True, capture_output=True)

    with ThreadPoolExecutor(places) as pool:
        list(pool.map(work, queues))


# -- sharing

READER = """
import json, resource, sys, time
from pathlib import Path
import ray
from planaria.job import load_job
from planaria.stream import open_stream

ray.init(address=sys.argv[1], namespace="rows", log_to_driver=False)
job = load_job(sys.argv[2], json.loads(sys.argv[3]))
loaded = None
if sys.argv[4] == "shared":
    loaded = ray.get(ray.get(ray.get_actor("keeper").held.remote()))[0]
def private():
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) * 1024
before, began = private(), time.process_time()
stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=0.0, loaded=loaded)
row = 0
while len(rows := stream.read(row, job.batch_rows)):
    rows.select(slice(None))
    row += len(rows)
print(json.dumps([time.process_time() - began, private() - before, row]))
"""


def sharing(folder: Path, readers: int) -> dict[str, Any]:
    """CPU seconds and memory of its own that a trial spends on a stream: read by itself, and mapped."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import ray

    draws = np.random.default_rng(0)
    columns = {f"x{at}": draws.normal(size=400_000).round(4) for at in range(12)}
    table = pa.table({**columns, "y": draws.integers(0, 3, 400_000)})
    pyarrow.csv.write_csv(table, folder / "rows.csv")
    names = ", ".join(columns)
    (folder / "csv.yaml").write_text(
        f"stream: {{source: csv, path: {folder}/rows.csv, features: {{numeric: [{names}]}}, target: y}}\n"
        "batch_rows: 1024\nscale: {workers: 0}\n"
    )
    jobs = {
        "400,000 rows of CSV, 12 columns": (folder / "csv.yaml", []),
        "Fashion-MNIST, 60,000 rows": (
            ROOT / "jobs" / "fashion_shift.yaml",
            ["stream.scenario=null", "batch_rows=1024"],
        ),
    }
    figures = []
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="rows")

    class Keeper:
        def __init__(self, references: list[Any]) -> None:
            self.references = references

        def held(self) -> list[Any]:
            return self.references

    for what, (path, changes) in jobs.items():
        job = load_job(path, changes)
        began = time.process_time()
        rows = load_stream(job.stream, seed=job.seed, base=Path.cwd(), most_bytes=1 << 32)
        assert rows is not None
        keeper = ray.remote(num_cpus=0)(Keeper).options(name="keeper").remote([ray.put(rows)])
        once = time.process_time() - began
        address = ray.get_runtime_context().gcs_address
        found: dict[str, list[list[float]]] = {"alone": [], "shared": []}
        for _ in range(readers):
            for how, seen in found.items():
                command = [sys.executable, "-c", READER, address, str(path), json.dumps(changes), how]
                answer = subprocess.run(command, check=True, capture_output=True, text=True)
                seen.append(json.loads(answer.stdout.splitlines()[-1]))
        ray.kill(keeper)
        figures.append(Figure(f"{what}: size", rows.size_bytes / 2**20, "MiB"))
        figures.append(Figure(f"{what}: read once and put into the store", once, "CPU s"))
        for how, seen in found.items():
            figures.append(Figure(f"{what}: {how}, a pass", statistics.median(one[0] for one in seen), "CPU s"))
            own = statistics.median(one[1] for one in seen) / 2**20
            figures.append(Figure(f"{what}: {how}, memory of its own", own, "MiB"))
    ray.shutdown()
    show(f"rows shared through the object store, medians of {readers} processes", figures)
    return {"readers": readers, "figures": as_rows(figures)}


# -- teaching

TAUGHT_JOB = {
    "stream": {
        "source": "fashion_mnist",
        "task": "classification",
        "scenario": {
            "contexts": [
                {"name": "upright", "samples": 1500},
                {"name": "turned", "samples": 1500, "transform": "rotate", "degrees": 75},
                {"name": "shuffled", "samples": 1500, "transform": "permute_patches", "patch": 7, "variant": 21},
                {"name": "inverted", "samples": 1500, "transform": "invert"},
            ]
        },
    },
    "model": {"width": 32, "layers": 2, "head_width": 8, "mlp_width": 64, "patch": 7},
    "policy": {"heads": {"cooldown_samples": 500}, "controller": {"thrift_every_samples": 1000, "wait_samples": 384}},
    "batch_rows": 64,
    "scale": {"workers": 0},
}
TAUGHT_CAMPAIGN = {
    "name": "taught",
    "job": "job.yaml",
    "search": {
        "policy.learner.learning_rate": {"between": [0.001, 0.008], "log": True},
        "policy.heads.start": {"integers": [2, 8]},
        "policy.budget.price": {"between": [0.02, 0.3], "log": True},
    },
    "algorithm": "random",
}


def teaching(folder: Path, trials: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Campaigns whose trials teach beside the same trials by themselves, one campaign for each seed. What counts are
    the later half of the trials."""
    (folder / "job.yaml").write_text(dump_yaml(TAUGHT_JOB))
    kept: dict[bool, list[list[dict[str, Any]]]] = {True: [], False: []}
    for seed in seeds:
        for teach in (True, False):
            path = folder / "campaign.yaml"
            own = {"teach": teach, "trials": trials, "seeds": [seed], "seed": seed}
            path.write_text(dump_yaml({**TAUGHT_CAMPAIGN, **own}))
            campaign = load_campaign(path)
            around = Around(campaign, folder / f"{seed}-{teach}", folder, behind=1)
            around.folder.mkdir()
            for number, settings in draw_all(open_study(campaign, around.folder), campaign).items():
                live_trial(around, number, settings, lambda progress: None)
            kept[teach].append(read_trials(around.folder))
            print(f"seed {seed}, teach {teach}: done", file=sys.stderr)
    later = slice(trials // 2, None)
    figures = []
    for name in ("prequential_accuracy", "parameters_mean", "heads_mean", "cpu_seconds"):
        means = {
            teach: [statistics.fmean(trial["metrics"][name] for trial in one[later]) for one in kept[teach]]
            for teach in kept
        }
        gains = [with_ - without for with_, without in zip(means[True], means[False], strict=True)]
        mean, half = mean_and_interval(gains)
        figures.append(Figure(f"{name}, taught", statistics.fmean(means[True]), ""))
        figures.append(Figure(f"{name}, alone", statistics.fmean(means[False]), ""))
        figures.append(Figure(f"{name}, taught - alone", mean, f"+- {half:.3g}"))
    show(f"teaching: the later half of {trials} trials, {len(seeds)} campaigns, 95% intervals", figures)
    return {"trials": trials, "seeds": list(seeds), "figures": as_rows(figures)}


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """And half the width of its 95% interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


# -- what it found

UNSEEN: list[dict[str, Any]] = [
    {"name": "three quarters", "samples": 4000, "transform": "rotate", "degrees": 270},
    {"name": "quarter turn", "samples": 4000, "transform": "rotate", "degrees": 90},
    {"name": "reshuffled", "samples": 4000, "transform": "permute_patches", "patch": 7, "variant": 1},
    {"name": "inverted", "samples": 4000, "transform": "invert"},
    {"name": "upside down", "samples": 4000, "transform": "rotate", "degrees": 180},
]
"""None of them is in jobs/search_pictures.yaml, which has upright pictures, other angles and other shuffles."""


def win(found: Path, seeds: Sequence[int], trials: Sequence[int]) -> dict[str, Any]:
    """The policies of these trials (all that nothing beat, where none is named) beside the one that the job has."""
    summary = json.loads((found / "summary.json").read_text())
    policies = {"default": "lasting"}
    for trial in summary["best"]:
        if not trials or trial["number"] in trials:
            policies[f"trial {trial['number']}"] = str(Path(trial["policy"]).resolve())
    job = ROOT / "jobs" / "fashion_shift.yaml"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
    for seed in seeds:
        for name, policy in policies.items():
            with tempfile.TemporaryDirectory() as out:
                folder = RunFolder(Path(out))
                scenario = json.dumps({"contexts": UNSEEN})
                own = [f"policy={policy}", f"seed={seed}", "scale={workers: 0}", f"stream.scenario={scenario}"]
                began = time.process_time()
                run = run_here(load_job(job, own), folder, Path.cwd())
            runs[name].append({**run, "cpu_seconds": time.process_time() - began})
            print(f"seed {seed}, {name}: {run['prequential_accuracy']:.4f}", file=sys.stderr)
    figures, measures = [], ("prequential_accuracy", "final_accuracy", "parameters_mean", "cpu_seconds")
    for name, kept in runs.items():
        for measure in measures:
            mean, half = mean_and_interval([run[measure] for run in kept])
            figures.append(Figure(f"{name}: {measure}", mean, f"+- {half:.3g}"))
        if name == "default":
            continue
        pairs = list(zip(kept, runs["default"], strict=True))
        for measure in measures[:2]:
            mean, half = mean_and_interval([own[measure] - other[measure] for own, other in pairs])
            figures.append(Figure(f"{name} - default: {measure}", mean, f"+- {half:.3g}"))
            if measure == measures[0]:
                figures.append(Figure(f"{name} - default: {measure}, lower end", mean - half, "", at_least=0.0))
        ratio = statistics.median(own["cpu_seconds"] / other["cpu_seconds"] for own, other in pairs)
        figures.append(Figure(f"{name} / default: CPU", ratio, ""))
    rows = sum(context["samples"] for context in UNSEEN)
    show(f"{rows:,} rows of unseen contexts, seeds {', '.join(map(str, seeds))}, 95% intervals", figures)
    texts = {name: Path(policy).read_text() for name, policy in policies.items() if name != "default"}
    return {"seeds": list(seeds), "contexts": UNSEEN, "policies": texts, "figures": as_rows(figures)}


# -- the command


def merge(name: str, values: Any) -> Path:
    """Into the results of this benchmark, beside those of its other parts."""
    path = RESULTS / "search.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.pop("machine", None)
    return write("search", {**known, name: values})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    cost = parts.add_parser("overhead")
    cost.add_argument("--campaign", type=Path, default=ROOT / "jobs" / "search_tables.yaml")
    cost.add_argument("--trials", type=int, default=24)
    cost.add_argument("--at-once", type=int, default=2)
    shared = parts.add_parser("sharing")
    shared.add_argument("--readers", type=int, default=3)
    taught = parts.add_parser("teaching")
    taught.add_argument("--trials", type=int, default=6)
    taught.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    won = parts.add_parser("win")
    won.add_argument("found", type=Path, help="the campaign's folder")
    won.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    won.add_argument("--trials", type=int, nargs="*", default=[])
    given = parser.parse_args()
    if given.part == "overhead":
        merge("overhead", overhead(given.campaign, given.trials, given.at_once))
    elif given.part == "win":
        merge("win", win(given.found, given.seeds, given.trials))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if given.part == "sharing":
                merge("sharing", sharing(Path(folder), given.readers))
            else:
                merge("teaching", teaching(Path(folder), given.trials, given.seeds))


if __name__ == "__main__":
    main()
