"""What a step costs as workers are added, part by part; what 64 and 1,024 of them would do, and what breaks first.

    python -m benchmarks.scale            processes 1, 2, 4 and 8, the model, and one worker's view of 64 and 1,024
    python -m benchmarks.scale --light    what rank 0, the controller and the record cost with up to 32 light workers

Every worker is a process of its own, joined by gloo. The clock is CPU time, so that eight processes on two cores tell
what each would need on a core of its own; waiting for a network is not in it, and is added by hand (ALPHA, BETA).

The model: a part that a worker does for its own rows costs a + b x rows of a worker; one that all workers do alike
a + b x watched rows + c x rows of the step; the sum over the workers a + b x bytes that a worker receives. It is
fitted on all numbers of workers but one, and asked about that one. What it says of 64 and 1,024 workers is compared
with one real worker of so many, for whom all others answer as it does itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from benchmarks.kills import job_for
from benchmarks.measure import RESULTS, write
from benchmarks.soak import job_of, write_stream
from scipy.optimize import nnls
from torch import Tensor

from planaria.job import Job
from planaria.stream import open_stream
from planaria.train.folder import RunFolder
from planaria.train.group import Alone, Group, TorchGroup
from planaria.train.keeper import Keeper
from planaria.train.lifelong import Lifelong, Summed
from planaria.train.worker import live

WORKERS, ROWS_EACH = (1, 2, 4, 8), (16, 64, 256, 1_024)
MANY = (64, 1_024)
WARM_UP_STEPS, STEPS = 12, 40
LIGHT = (1, 2, 4, 8, 16, 32)
LIGHT_ROWS, LIGHT_BATCH = 61_440, 512
ALPHA_S, BETA_S = 10e-6, 1 / 25e9
"""Assumed of a cluster's network: seconds for each of log2(workers) messages, and for a byte, twice."""
PARTS = ("read", "draw", "compute", "sum", "update", "watch", "rest")
WATCHED = 1_024


def job(data: Path, workers: int, rows_each: int, watched: int, **changes: Any) -> Job:
    """The demo's model on the soak's table; a step has as many rows for every worker."""
    small = job_of(data, 0).model_dump()
    small |= {
        "batch_rows": workers * rows_each,
        "model": {"width": 64, "layers": 2, "head_width": 8, "mlp_width": 128},
        "policy": {
            "heads": {"start": 8, "max": 8},
            "controller": {"kind": "none"},
            "learner": {"memory": {"rows": 2_000}},
        },
        "scale": {"workers": 0, "shards": workers, "watched_rows": watched},
        "stream": small["stream"] | {"context": None},
    }
    return Job.model_validate({**small, **changes})


# -- where the time goes


class Clock:
    """CPU seconds of this process in each part, those of parts within it left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[list[Any]] = []

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*given: Any, **named: Any) -> Any:
            self.enter(part)
            try:
                return work(*given, **named)
            finally:
                self.leave()

        return measured

    def enter(self, part: str) -> None:
        now = time.process_time()
        if self._open:
            name, since = self._open[-1]
            self.seconds[name] += now - since
        self._open.append([part, now])

    def leave(self) -> None:
        now = time.process_time()
        name, since = self._open.pop()
        self.seconds[name] += now - since
        if self._open:
            self._open[-1][1] = now

    def watch(self, run: Lifelong) -> None:
        """From now on the run's parts are timed."""
        for part, owner, names in (
            ("read", run, ("_next_rows",)),
            ("read", run.evaluator, ("take",)),
            ("draw", run.memory, ("draw", "held")),
            ("compute", run, ("_shard",)),
            ("sum", run.group, ("sum",)),
            ("update", run, ("_learn",)),
            ("watch", run, ("_remember", "_read", "_control")),
            ("rest", run, ("take_step",)),
        ):
            for name in names:
                setattr(owner, name, self.timed(part, getattr(owner, name)))


@dataclass(frozen=True)
class Point:
    """What a step cost a worker, on average, in CPU milliseconds."""

    workers: int
    rows_each: int
    watched: int
    """Rows of a step that are watched, at most."""
    bytes: int
    """Of what is summed over the workers."""
    milliseconds: Mapping[str, float]

    @property
    def rows(self) -> int:
        return self.workers * self.rows_each

    @property
    def total(self) -> float:
        return sum(self.milliseconds.values())


class Told(Alone):
    """A worker of so many, for whom all others answer with what it has found itself: the vector that is summed is
    filled with its own rows' statistics in place of theirs."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.run: Lifelong
        self.lengths: list[int] = []

    def sum(self, vector: Tensor) -> Tensor:
        summed = Summed(*torch.split(vector[-sum(self.lengths) :], self.lengths))
        scores_B2 = summed.scores.view(2, -1).T
        outputs_NC = summed.outputs.view(-1, self.run.blueprint.outputs)
        for rows_NW in (scores_B2, outputs_NC, summed.sketches.view(-1, self.run.sketch.features)):
            rows_NW.copy_(_repeated(rows_NW))
        return vector


def _repeated(rows_NW: Tensor) -> Tensor:
    """The rows that are not all zero, again and again."""
    own_KW = rows_NW[rows_NW.abs().sum(1) > 0]
    return own_KW[torch.arange(len(rows_NW)) % max(1, len(own_KW))] if len(own_KW) else rows_NW


def steps_of(job: Job, group: Group, steps: int, warm_up: int = WARM_UP_STEPS) -> Point:
    """Take so many steps, and say what one cost this worker."""
    torch.set_num_threads(1)
    stream = open_stream(job.stream, seed=job.seed, base=Path(), hold_out_fraction=job.evaluation.hold_out_fraction)
    run = Lifelong(job, stream, group, torch.device("cpu"))
    sizes: list[int] = []
    lengths = run._lengths

    def told(*given: int) -> list[int]:
        found = lengths(*given)
        sizes.append(sum(found))
        if isinstance(group, Told):
            group.lengths = found
        return found

    run._lengths = told
    if isinstance(group, Told):
        group.run = run
    run.begin()
    for _ in range(warm_up):
        run.take_step()
    clock = Clock()
    clock.watch(run)
    for _ in range(steps):
        assert run.take_step() is not None, "the stream is too short"
    size = 4 * (statistics.mode(sizes) + sum(parameter.numel() for parameter in run.parameters))
    spent = {part: 1_000 * clock.seconds[part] / steps for part in PARTS}
    return Point(group.size, job.batch_rows // group.size, job.scale.watched_rows, size, spent)


# -- workers as processes


def together(size: int, work: Callable[[Group], Any]) -> list[Any]:
    """What `work` comes to in each of so many processes, which are one group."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        processes = [context.Process(target=_member, args=(at, size, folder, work, results)) for at in range(size)]
        for process in processes:
            process.start()
        try:
            found = dict(results.get(timeout=900) for _ in processes)
        finally:
            for process in processes:
                process.join(timeout=10)
                process.kill()
    return [found[at] for at in range(size)]


def _member(rank: int, size: int, folder: str, work: Callable[[Group], Any], results: Any) -> None:
    torch.set_num_threads(1)
    if size == 1:
        results.put((rank, work(Alone())))
        return
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    results.put((rank, work(TorchGroup())))
    dist.destroy_process_group()


def measured(data: Path, watched: int) -> list[Point]:
    """The mean over the workers, for every number of them and of rows."""
    points = []
    for workers in WORKERS:
        for rows_each in ROWS_EACH:
            one = job(data, workers, rows_each, watched)
            steps = max(10, STEPS * 64 // max(64, rows_each))
            found: list[Point] = together(workers, lambda group, one=one, n=steps: steps_of(one, group, n))
            spent = {part: statistics.fmean(point.milliseconds[part] for point in found) for part in PARTS}
            points.append(Point(workers, rows_each, watched, found[0].bytes, spent))
            _say(points[-1])
    return points


def told(data: Path, workers: int, watched: int) -> Point:
    """One worker of so many, with rows enough for all of them."""
    one = job(data, workers, 64, watched)
    (found,) = together(1, lambda group: steps_of(one, Told(workers), 6, 3))
    _say(found)
    return found


def _say(point: Point) -> None:
    parts = ", ".join(f"{part} {ms:.2f}" for part, ms in point.milliseconds.items())
    print(f"{point.workers} x {point.rows_each}: {point.total:.1f} ms a step ({parts})", flush=True)


# -- the model


def _terms(part: str, point: Point) -> list[float]:
    """What the cost of a part is proportional to."""
    own, rows = float(point.rows_each), float(point.rows)
    if part == "compute":
        return [1.0, own]
    watched = min(rows, float(point.watched))
    if part in ("read", "draw", "rest", "update"):
        return [1.0, watched, rows]
    if part == "watch":
        return [1.0, watched]
    return [float(point.workers > 1), received(point.workers, point.bytes)]


def received(workers: int, size: int) -> float:
    """Bytes that a worker receives for a sum: all others' vectors, or beyond eight workers those of an all-reduce."""
    if workers == 1:
        return 0.0
    return float(size * (workers - 1) if 2 < workers <= 8 else 2 * size * (workers - 1) / workers)


def fit(points: Sequence[Point]) -> dict[str, list[float]]:
    """By least squares of relative errors, no cost below zero."""
    model = {}
    for part in PARTS:
        spent = np.array([point.milliseconds[part] for point in points])
        terms = np.array([_terms(part, point) for point in points])
        weight = 1 / np.maximum(spent, 0.02 * np.array([point.total for point in points]))
        model[part] = nnls(terms * weight[:, None], spent * weight)[0].tolist()
    return model


def predict(model: Mapping[str, Sequence[float]], point: Point) -> dict[str, float]:
    return {part: float(np.dot(model[part], _terms(part, point))) for part in PARTS}


def held_out(points: Sequence[Point]) -> dict[int, list[float]]:
    """By number of workers: predicted over measured, each from a fit on the other numbers."""
    ratios = {}
    for workers in WORKERS:
        model = fit([point for point in points if point.workers != workers])
        asked = [point for point in points if point.workers == workers]
        ratios[workers] = [sum(predict(model, point).values()) / point.total for point in asked]
    return ratios


def on_paper(
    model: Mapping[str, Sequence[float]], size: int, workers: int, watched: int, faster: float
) -> dict[str, Any]:
    """A step of 64 rows a worker, in milliseconds, where compute is so many times as fast as on one core here, and the
    network is ALPHA_S, BETA_S. The sum's CPU time is left out: it is the network card's there."""
    point = Point(workers, 64, watched, size, {})
    spent = predict(model, point)
    own = spent["compute"] / faster
    alike = spent["read"] + spent["draw"] + spent["watch"] + spent["rest"] + spent["update"]
    network = 1_000 * (2 * ALPHA_S * np.log2(workers) + BETA_S * 2 * size * (workers - 1) / workers)
    total = own + alike + network
    return {
        "workers": workers,
        "watched": watched,
        "faster": faster,
        "compute": own,
        **{part: spent[part] for part in ("read", "draw", "watch", "update", "rest")},
        "network": network,
        "total": total,
        "rows_per_second": 64_000 * workers / total,
    }


# -- what does not grow with the workers


def light_job(data: Path) -> Job:
    small = job_of(data, 0).model_dump()
    small |= {
        "batch_rows": LIGHT_BATCH,
        "samples": LIGHT_ROWS,
        "scale": {"workers": 0, "shards": max(LIGHT)},
        "policy": job_for(data / "unused").policy.model_dump(),  # edits often
        "storage": {"checkpoint_every_s": 2.0},
        "record": small["record"] | {"register_model": False},
    }
    return Job.model_validate(small)


def lived(one: Job, folder: Path, group: Group) -> dict[str, Any]:
    """A whole run as every worker lives it, and what this one spent on what is not learning."""
    clock, counts = Clock(), defaultdict(int)
    for owner, name, part in (
        (Lifelong, "take_step", "steps"),
        (Lifelong, "_decide", "decide"),
        (Lifelong, "state", "checkpoint"),
        (Keeper, "save", "checkpoint"),
        (Keeper, "after_step", "keep"),
        (Keeper, "wants", "keep"),
    ):
        setattr(owner, name, clock.timed(part, getattr(owner, name)))

    def publish(step: int, state: Mapping[str, Any]) -> None:
        counts["published"] += 1
        counts["published_bytes"] += len(json.dumps(state))

    saved = Keeper.save

    def save(keeper: Keeper, status: str, state: Mapping[str, bytes], *rest: Any) -> None:
        counts["checkpoints"] += 1
        counts["checkpoint_bytes"] += sum(map(len, state.values()))
        saved(keeper, status, state, *rest)

    Keeper.save = save
    summary = live(one, RunFolder(folder), Path(), group, torch.device("cpu"), tell=publish)
    return {"rank": group.rank, "cpu": dict(clock.seconds), **counts, "summary": summary}


def light(data: Path) -> list[dict[str, Any]]:
    """The same run on more and more workers: what rank 0, the controller and the record have to do."""
    from planaria.record.mlflow_store import MlflowRecorder

    one, found = light_job(data), []
    for workers in LIGHT:
        with tempfile.TemporaryDirectory(prefix="light-") as place:
            folder = Path(place) / "run"
            folder.mkdir()
            workers_told = together(workers, lambda group, folder=folder: lived(one, folder, group))
            first, summary = workers_told[0], workers_told[0]["summary"]
            began = time.process_time()
            recorder = MlflowRecorder(None, "scale", folder)
            recorder.start(one.name, one.model_dump(mode="json"))
            recorder.finish("done")
            recorded = time.process_time() - began
            decisions, checkpoints = summary["decisions"], first["checkpoints"]
            found.append(
                {
                    "workers": workers,
                    "revisions": summary["revisions"],
                    "decisions": decisions,
                    "heads_last": summary["heads_last"],
                    "rank_0_ms_a_step": 1_000 * first["cpu"]["keep"] / summary["steps"],
                    "checkpoint_ms": 1_000 * first["cpu"]["checkpoint"] / checkpoints,
                    "checkpoint_bytes": first["checkpoint_bytes"] / checkpoints,
                    "published_per_decision": first["published"] / decisions,
                    "published_bytes": first["published_bytes"] / first["published"],
                    "decision_ms_a_worker": 1_000
                    * statistics.fmean(worker["cpu"]["decide"] for worker in workers_told)
                    / decisions,
                    "record_ms_a_revision": 1_000 * recorded / summary["revisions"],
                }
            )
        print(found[-1], flush=True)
    return found


def picture(points: Sequence[Point], model: Mapping[str, Sequence[float]], path: Path) -> None:
    """What a step of 64 rows a worker costs each worker, part by part, and what the model says of it."""
    from matplotlib import pyplot as plt

    bars = [point for point in points if point.rows_each == 64]
    figure, axis = plt.subplots(figsize=(9, 4.5), constrained_layout=True)
    bottom = np.zeros(len(bars))
    for part in PARTS:
        height = np.array([point.milliseconds[part] for point in bars])
        axis.bar(range(len(bars)), height, 0.6, bottom=bottom, label=part)
        bottom += height
    said = [sum(predict(model, point).values()) for point in bars]
    axis.plot(range(len(bars)), said, "k_", markersize=24, label="the model, from 1 to 8 workers")
    names = [
        f"{point.workers:,}" + (f"\n({min(point.watched, point.rows):,})" if point.workers in MANY else "")
        for point in bars
    ]
    axis.set(
        xticks=range(len(bars)), xticklabels=names, xlabel="workers, 64 rows each (watched)", ylabel="CPU ms of a step"
    )
    axis.set_ylim(0, 120)
    for at, point in enumerate(bars):
        if point.total > 120:
            axis.annotate(f"{point.total:.0f} ms", (at, 112), ha="center", bbox={"fc": "white", "ec": "none"})
    axis.legend(loc="upper left")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--light", action="store_true", help="only what does not grow with the workers")
    parser.add_argument("--fit", action="store_true", help="measure nothing, and fit what was measured before")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="scale-data-") as place:
        data = Path(place)
        if not given.fit:
            write_stream(data, 10 * max(MANY) * 64, 26)
        if given.light:
            write("scale_light", {"light": light(data)})
            return
        everything = 10**9
        if given.fit:
            kept = json.loads((RESULTS / "scale.json").read_text())
            points = [Point(**one) for one in kept["points"]]
            many = [Point(**{name: one[name] for name in asdict(points[0])}) for one in kept["told"]]
        else:
            points = measured(data, WATCHED)
            many = [told(data, workers, watched) for workers in MANY for watched in (everything, WATCHED)]
    model, ratios = fit(points), held_out(points)
    for workers, of_workers in ratios.items():
        print(f"held out {workers}: predicted {', '.join(f'{ratio:.2f}' for ratio in of_workers)} of what was measured")
    size = points[-1].bytes
    paper = [
        on_paper(model, size, workers, watched, faster)
        for faster in (1.0, 50.0)
        for workers in (1, 8, *MANY)
        for watched in (everything, WATCHED)
    ]
    seen = [{**asdict(point), "predicted": predict(model, point)} for point in many]
    for one in (*seen, *paper):
        print(json.dumps(one))
    picture([*points, *many], model, Path(__file__).parents[1] / "docs" / "images" / "scale.png")
    write(
        "scale",
        {
            "points": [asdict(point) for point in points],
            "model": model,
            "held_out": ratios,
            "told": seen,
            "paper": paper,
            "assumed": {"alpha_s": ALPHA_S, "beta_s": BETA_S},
        },
    )


if __name__ == "__main__":
    main()
