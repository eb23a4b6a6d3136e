"""Five million rows and 200 shifts through one run: does it take more memory, files, rows of the store, disk or time as
it goes on?

    python -m benchmarks.soak --every 2            two Ray Train workers; 3 to 20 minutes of two free cores
    python -m benchmarks.soak --workers 0 --every 2 --out soak_alone

Writes a Parquet folder of numbers and categories with missing values, in stretches of one concept each, of which there
are a dozen, and runs `planaria run` on it with every part of a run at work. Once in --every seconds it looks at all
processes of the run (memory that they have allocated, open files), its folder, Ray's session folder and the rows of
the MLflow store. What is reported are slopes over the stream behind the warm-up, as a share of the level there; of what
keeps each revision for good, also what one adds; and a step's time in the last tenth beside the first tenth, of equal
blueprints, as the run's own table of steps has it (decisions left out). That table is full at the end of the warm-up.
Writes benchmarks/results/soak.json and docs/images/soak.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.measure import Figure, as_rows, show, write
from benchmarks.processes import allocated_bytes, below, open_files
from scipy import stats

from planaria.job import Job, dump_job
from planaria.record.tables import read_rows

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parents[1]
ROWS, SHIFTS, CONCEPTS = 5_000_000, 200, 12
NUMERIC = 6
BATCH = 512
_INTERVAL = 2_000
"""Rows of one line of the table of steps, at first."""
WARM_UP = 0.2
"""Of the stream: until then the memory fills, the library of concepts too, and processes grow to their size."""
_ENOUGH = 5
"""Intervals of a blueprint, to tell its median step."""
MEMORY, FILES, STORE, DISK, SESSION = "memory", "open files", "store rows", "run folder", "Ray session folder"
_KEPT_FOR_GOOD = (STORE, DISK, SESSION)
"""Each revision is recorded; each shift and decision is a line of Ray's logs."""
UNITS = {MEMORY: "MiB", FILES: "", STORE: "", DISK: "MiB", SESSION: "MiB"}

Sample = dict[str, Any]


# -- the stream and the job


def write_stream(folder: Path, rows: int, shifts: int) -> None:
    """One file a stretch. A concept has inputs of its own, and a rule of its own."""
    words = pa.array([f"place {n}" for n in range(12)])
    bounds = np.linspace(0, rows, shifts + 2).astype(int)
    order = _concepts(shifts + 1)
    for stretch, (first, last) in enumerate(itertools.pairwise(bounds)):
        count, concept = int(last - first), order[stretch]
        rule = np.random.default_rng((1, concept))
        centre, weights = rule.normal(size=NUMERIC) * 1.5, rule.normal(size=NUMERIC)
        draws = np.random.default_rng((2, stretch))
        numbers = draws.normal(size=(count, NUMERIC)).astype(np.float32)
        score = numbers @ weights + 0.3 * draws.normal(size=count)
        label = np.digitize(score, [-1.0, 1.0])
        numbers += centre.astype(np.float32)
        numbers[draws.random(numbers.shape) < 0.02] = np.nan
        columns: dict[str, Any] = {f"x{at}": numbers[:, at] for at in range(NUMERIC)}
        columns["place"] = words.take(pa.array(draws.integers(0, len(words), count)))
        columns |= {"y": label, "part": np.full(count, concept)}
        pq.write_table(pa.table(columns), folder / f"part-{stretch:05d}.parquet")


def _concepts(count: int) -> list[int]:
    """At random, and never twice in a row."""
    draws, order = np.random.default_rng(0), [0]
    while len(order) < count:
        order.append(int((order[-1] + draws.integers(1, CONCEPTS)) % CONCEPTS))
    return order


def job_of(data: Path, workers: int, rows: int = ROWS) -> Job:
    return Job.model_validate(
        {
            "name": "soak",
            "stream": {
                "source": "parquet",
                "path": str(data),
                "features": {"numeric": [f"x{at}" for at in range(NUMERIC)], "categorical": ["place"]},
                "target": "y",
                "context": "part",
            },
            "batch_rows": BATCH,
            "model": {"width": 16, "layers": 1, "head_width": 4, "mlp_width": 32},
            "policy": {"heads": {"start": 2, "max": 4}, "learner": {"memory": {"rows": 1_000}, "replay_ratio": 0.25}},
            "scale": {"workers": workers, "shards": max(1, workers)},
            "evaluation": {"hold_out_fraction": 0.01, "rows_per_context": 200},
            "record": {"interval_samples": _INTERVAL, "max_intervals": int(WARM_UP * rows) // _INTERVAL},
        }
    )


# -- what a run holds


def look(out: Path, session: Path | None) -> Sample | None:
    """Nothing before the run has begun to learn, or while its store is being made."""
    try:
        live, stored = json.loads((out / "live.json").read_text()), _store_rows(out / "mlflow.db")
    except (OSError, ValueError, sqlite3.OperationalError):
        return None
    running = [process.pid for process in below(os.getpid())]
    kept = ("samples", "step", "decisions", "revision", "shifts", "heads", "restarts")
    return {
        **{name: live[name] for name in kept},
        MEMORY: sum(map(allocated_bytes, running)) / 2**20,
        FILES: sum(map(open_files, running)),
        STORE: stored,
        DISK: _bytes(out) / 2**20,
        SESSION: 0.0 if session is None else _bytes(session) / 2**20,
    }


def _store_rows(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return sum(connection.execute(f'select count(*) from "{name}"').fetchone()[0] for name in names)


def _bytes(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except OSError:
                continue
    return total


def soak(
    rows: int, shifts: int, workers: int, every: float, place: Path
) -> tuple[list[Sample], dict[str, Any], list[tuple[int, tuple[int, ...], float]]]:
    data, out, temporary = place / "data", place / "run", Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    data.mkdir()
    write_stream(data, rows, shifts)
    (place / "soak.yaml").write_text(dump_job(job_of(data, workers, rows)))
    planaria_run = [sys.executable, "-m", "planaria.cli", "run", str(place / "soak.yaml"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(temporary)}
    environment["PYTHONPATH"] = str(ROOT / "platform")
    samples: list[Sample] = []
    process: subprocess.Popen[bytes] | None = None
    try:
        with (place / "log.txt").open("w") as log:
            process = subprocess.Popen(planaria_run, stdout=log, stderr=log, env=environment, cwd=place)
            while process.poll() is None:
                time.sleep(every)
                found = look(out, temporary if workers else None)
                before = samples[-1]["samples"] if samples else 0
                # As soon as the last row is learned, processes end one after the other.
                if found is not None and before < found["samples"] < rows:
                    samples.append(found)
                    _tell(found, rows)
        if process.returncode:
            raise SystemExit(
                f"the run ended with status {process.returncode}:\n{(place / 'log.txt').read_text()[-2000:]}"
            )
        summary = json.loads((out / "summary.json").read_text())
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)
    return samples, summary, step_times(out)


def _tell(sample: Sample, rows: int) -> None:
    shown = ", ".join(f"{name} {sample[name]:,.0f} {unit}".rstrip() for name, unit in UNITS.items())
    print(f"{sample['samples']:>9,} of {rows:,}, {sample['shifts']} shifts: {shown}", file=sys.stderr, flush=True)


# -- what became of it


def slope(samples: Sequence[Sample], name: str, rows: int) -> tuple[float, float, float]:
    """(growth over the stream behind the warm-up as a share of the mean level there, half of its 95% interval, level).

    The interval takes neighbouring samples for independent, which makes it narrow.
    """
    late = [sample for sample in samples if sample["samples"] >= WARM_UP * rows]
    at, values = [sample["samples"] / rows for sample in late], [float(sample[name]) for sample in late]
    level = statistics.fmean(values)
    if len(set(values)) == 1:
        return 0.0, 0.0, level
    line = stats.linregress(at, values)
    half = stats.t.ppf(0.975, len(at) - 2) * line.stderr
    share = (1 - WARM_UP) / level
    return float(share * line.slope), float(share * half), level


def per_revision(samples: Sequence[Sample], name: str, rows: int) -> float:
    """What a revision adds, behind the warm-up."""
    late = [sample for sample in samples if sample["samples"] >= WARM_UP * rows]
    return float((late[-1][name] - late[0][name]) / max(1, late[-1]["revision"] - late[0]["revision"]))


def step_times(run: Path) -> list[tuple[int, tuple[int, ...], float]]:
    """(rows so far, heads, milliseconds of a step) of every interval of the run's table of steps that one blueprint
    was there for; without decisions."""
    found = []
    for before, after in itertools.pairwise(read_rows(run, "steps")):
        if before["revision"] == after["revision"] and after["samples_per_second"]:
            found.append((after["samples"], tuple(after["heads"]), 1e3 * BATCH / after["samples_per_second"]))
    return found


def late_beside_early(
    windows: Sequence[tuple[int, tuple[int, ...], float]], rows: int
) -> dict[str, tuple[float, float]]:
    """For each blueprint that both tenths have five times, the median step of the last one over that of the first one,
    and half of its 95% interval (bootstrap). The first tenth begins behind the first twentieth, in which the memory
    fills."""
    tenths: tuple[Mapping[Any, list[float]], Mapping[Any, list[float]]] = (defaultdict(list), defaultdict(list))
    for sample, heads, milliseconds in windows:
        if 0.05 * rows <= sample < 0.15 * rows:
            tenths[0][heads].append(milliseconds)
        elif sample >= 0.9 * rows:
            tenths[1][heads].append(milliseconds)
    both = [heads for heads in tenths[0] if min(len(tenth[heads]) for tenth in tenths) >= _ENOUGH]
    return {str(list(heads)): _ratio(tenths[1][heads], tenths[0][heads]) for heads in both}


def _ratio(late: Sequence[float], early: Sequence[float]) -> tuple[float, float]:
    draws = np.random.default_rng(0)
    medians = [np.median(draws.choice(np.array(each), (2_000, len(each))), axis=1) for each in (late, early)]
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    return statistics.median(late) / statistics.median(early), float(high - low) / 2


def picture(samples: Sequence[Sample], windows: Sequence[tuple[int, tuple[int, ...], float]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 5.5), constrained_layout=True)
    millions = [sample["samples"] / 1e6 for sample in samples]
    for axis, (name, unit) in zip(axes.flat, UNITS.items(), strict=False):
        axis.plot(millions, [sample[name] for sample in samples], color="tab:blue", linewidth=1)
        axis.set(title=f"{name}, {unit}" if unit else name, ylim=(0, None), xlabel="million rows")
    last = axes.flat[len(UNITS)]
    last.scatter([at / 1e6 for at, _, _ in windows], [each for _, _, each in windows], s=4, color="tab:blue")
    last.set(title="ms of a step, without decisions", ylim=(0, None), xlabel="million rows")
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--shifts", type=int, default=SHIFTS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--out", default="soak", help="name of the result's file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = arguments.rows
        samples, summary, windows = soak(rows, arguments.shifts, arguments.workers, arguments.every, Path(place))
    ratios = late_beside_early(windows, rows)
    figures = []
    for name, unit in UNITS.items():
        growth, half, level = slope(samples, name, rows)
        figures.append(Figure(f"{name} behind the warm-up", level, unit))
        kept_for_good = name in _KEPT_FOR_GOOD
        figures.append(
            Figure(
                f"  growth over that stretch (+- {half:.2g})", growth, "of it", at_most=None if kept_for_good else 0.05
            )
        )
        if kept_for_good:
            figures.append(Figure("  for each new revision", per_revision(samples, name, rows), unit))
    figures += [
        Figure(f"a step late / early, heads {heads} (+- {half:.2g})", ratio, "", at_most=1.05)
        for heads, (ratio, half) in ratios.items()
    ]
    for name in (
        "true_changes",
        "shifts",
        "revisions",
        "samples",
        "rows_lost",
        "rows_repeated",
        "wall_seconds",
        "cpu_seconds",
    ):
        figures.append(Figure(name.replace("_", " "), float(summary[name]), ""))
    show(f"{rows:,} rows, {arguments.shifts} shifts, {arguments.workers} workers", figures)
    kept = {key: getattr(arguments, key) for key in ("rows", "shifts", "workers")}
    path = write(arguments.out, {**kept, "figures": as_rows(figures), "samples": _few(samples)})
    picture(samples, windows, ROOT / "docs" / "images" / f"{arguments.out}.png")
    print(path)


def _few(samples: Sequence[Sample], most: int = 100) -> list[dict[str, Any]]:
    kept = samples[:: max(1, len(samples) // most)]
    return [{"samples": one["samples"], **{name: round(float(one[name]), 1) for name in UNITS}} for one in kept]


if __name__ == "__main__":
    main()
