"""`planaria compare`: every contestant on the same streams, one process each, and what came out side by side."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planaria.compare import avalanche_peers, capymoa_peers, river_peers
from planaria.compare.interpreter import Library
from planaria.compare.outcome import Outcome, to_json
from planaria.errors import InputError, RunError
from planaria.job import Job, load_job
from planaria.uri import refuse_uri

POINTS = 60
"""Of each curve, about."""


@dataclass(frozen=True)
class Contest:
    """Who learns which stream."""

    job: Path
    settings: tuple[str, ...]
    """Changes to the job, for all."""
    policies: tuple[str, ...]
    """Each a policy, or a policy and changes to it: "balanced,learner.loss=der++"."""
    peers: tuple[str, ...]
    """Each "library:learner", of Avalanche's and CapyMOA's also with changes: "avalanche:replay,rate=0.1"."""
    seeds: tuple[int, ...]
    avalanche: str | None = None
    """A Python that has Avalanche; None is this one."""
    capymoa: str | None = None
    """A Python that has CapyMOA; None is this one."""

    def jobs(self) -> dict[tuple[str, int], Job]:
        """The job of every policy with every seed, in this process without Ray. Raises InputError."""
        return {
            (policy, seed): load_job(
                self.job, [*_policy_settings(policy), *self.settings, f"seed={seed}", "scale.workers=0"]
            )
            for policy in self.policies
            for seed in self.seeds
        }

    def peer_jobs(self) -> dict[tuple[str, int], Job]:
        """The job of every peer with every seed: its stream matters, its model does not. Raises InputError."""
        jobs = {
            (peer, seed): load_job(self.job, [*self.settings, f"seed={seed}", "scale.workers=0"])
            for peer in self.peers
            for seed in self.seeds
        }
        for (peer, _), job in jobs.items():
            library, _, learner = peer.partition(":")
            if library not in _CHECKS or not learner:
                raise InputError(
                    f"--peers: '{peer}' is not known; give river:arf, avalanche:replay, capymoa:arf and the like"
                )
            _CHECKS[library](learner, job)
        return jobs

    def interpreters(self) -> dict[str, str]:
        """A Python for each library that may live in another one and has a peer here. Raises InputError."""
        asked = {peer.partition(":")[0] for peer in self.peers}
        given = {"avalanche": self.avalanche, "capymoa": self.capymoa}
        return {name: library.interpreter(given[name]) for name, library in _LIBRARIES.items() if name in asked}


_CHECKS: Mapping[str, Callable[[str, Job], None]] = {
    "river": river_peers.check,
    "avalanche": avalanche_peers.check,
    "capymoa": capymoa_peers.check,
}
_LIBRARIES: Mapping[str, Library] = {"avalanche": avalanche_peers.LIBRARY, "capymoa": capymoa_peers.LIBRARY}
_RUNS: Mapping[str, Callable[[str, Job, Path, int, str], Outcome]] = {
    "avalanche": avalanche_peers.run,
    "capymoa": capymoa_peers.run,
}
"""Of those in another Python."""


def compare(
    contest: Contest, out: Path, *, processes: int | None = None, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Run all of it, write compare.json and compare.png to `out`, and return what compare.json holds.

    Raises InputError before anything is started, RunError where a contestant fails; then nothing is written.
    """
    refuse_uri(out, "compare: --out")
    jobs = {**contest.jobs(), **contest.peer_jobs()}
    if not jobs:
        raise InputError("compare: nobody to compare; give --policies or --peers, and --seeds")
    if next(iter(jobs.values())).stream.follow:
        raise InputError("stream.follow: a stream without an end cannot be compared on; set it to false")
    pythons = contest.interpreters()
    base, context = Path.cwd(), multiprocessing.get_context("spawn")
    # Here, once for all contestants: what cannot be opened is told now, and what is to be made is made once.
    rows = {seed: _rows_of(job, base) for seed, job in {seed: job for (_, seed), job in jobs.items()}.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another folder") from None
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        waiting = {
            pool.submit(_one, name, job, base, max(1, rows[seed] // POINTS), pythons): (name, seed)
            for (name, seed), job in jobs.items()
        }
        for done in as_completed(waiting):
            name, seed = waiting[done]
            try:
                outcomes.append(done.result())
            except (InputError, RunError) as error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise type(error)(f"{name}, seed {seed}: {error}") from None
            tell(f"{name}, seed {seed}: {outcomes[-1].score:.4f} in {outcomes[-1].cpu_seconds:.0f} CPU seconds")
    order = {name: place for place, name in enumerate(dict.fromkeys(name for name, _ in jobs))}
    outcomes.sort(key=lambda outcome: (order[outcome.name], outcome.seed))
    task = next(iter(jobs.values())).stream.task
    results = {
        "job": contest.job.name,
        "settings": list(contest.settings),
        "seeds": list(contest.seeds),
        "score": "accuracy" if task == "classification" else "mean absolute error",
        "contestants": [{"name": name, **_summary([one for one in outcomes if one.name == name])} for name in order],
        "runs": [to_json(outcome) for outcome in outcomes],
    }
    from planaria.compare.picture import draw

    draw(results, out / "compare.png")
    unfinished = out / ".compare.json"
    unfinished.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(unfinished, out / "compare.json")
    return results


def _policy_settings(policy: str) -> list[str]:
    name, *changes = policy.split(",")
    for change in changes:
        if "=" not in change:
            raise InputError(f"--policies: '{change}' in '{policy}' is no change; write key.path=value")
    return [f"policy={name}", *(f"policy.{change.strip()}" for change in changes)]


def _one(name: str, job: Job, base: Path, interval: int, pythons: Mapping[str, str]) -> Outcome:
    """In a process of its own, on one thread: side by side, several would only get in each other's way."""
    import pandas  # noqa: F401 - comes with pyarrow's first array, as river has it from the beginning
    import torch
    import torch._dynamo  # comes with torch's first optimizer: a second that is not learning, as other imports are not

    torch.set_num_threads(1)
    library, _, learner = name.partition(":")
    if library == "river":
        return river_peers.run(learner, job, base, interval)
    if library in _RUNS:
        return _RUNS[library](learner, job, base, interval, pythons[library])
    return _planaria(name, job, base, interval)


def _rows_of(job: Job, base: Path) -> int:
    """How long its stream is, or a guess. Raises InputError where it cannot be opened."""
    from planaria.stream import open_stream
    from planaria.train.boundaries import check_boundaries

    stream = open_stream(job.stream, seed=job.seed, base=base, hold_out_fraction=job.evaluation.hold_out_fraction)
    check_boundaries(job, stream)
    return job.samples or stream.total_rows or POINTS * 1_000


def _planaria(name: str, job: Job, base: Path, interval: int) -> Outcome:
    from planaria.record import read_rows
    from planaria.train.folder import RunFolder
    from planaria.train.worker import run_here

    record = job.record.model_copy(update={"interval_samples": interval})
    job = job.model_copy(update={"record": record})
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.make()
        began = time.process_time()
        summary = run_here(job, folder, base)
        spent = time.process_time() - began
        steps = read_rows(folder.path, "steps")
    classes = job.stream.task == "classification"
    column = "accuracy" if classes else "mae"
    return Outcome(
        name=name,
        seed=job.seed,
        samples=summary["samples"],
        score=summary[f"prequential_{column}"],
        final=summary.get(f"final_{column}"),
        parameters=summary["parameters_mean"],
        cpu_seconds=spent,
        curve=[(row["samples"], row[column]) for row in steps],
    )


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means over seeds, each with half of its 95% interval (Student's t; None of one seed)."""
    columns: dict[str, list[float | None]] = {
        "score": [one.score for one in outcomes],
        "final": [one.final for one in outcomes],
        "parameters": [one.parameters for one in outcomes],
        "samples_per_cpu_second": [one.samples / max(1e-9, one.cpu_seconds) for one in outcomes],
    }
    found: dict[str, Any] = {}
    for column, values in columns.items():
        known = [value for value in values if value is not None]
        found[column] = float(np.mean(known)) if known else None
        found[f"{column}_ci95"] = _half(known) if known else None
    return found


def _half(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
