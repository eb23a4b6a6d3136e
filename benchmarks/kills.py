"""Kill a run in every way at random moments, let it go on, and compare it with a run that was never killed.

    python -m benchmarks.kills               12 kills in 3 runs on 2 Ray Train workers: about a quarter of an hour
    python -m benchmarks.kills --runs 1      the first of them

    worker     SIGKILL of one Ray Train worker; the run heals itself
    driver     SIGKILL of the process that was started; then `planaria resume`
    ray        SIGKILL of every process of the run, Ray's and the driver; then `planaria resume`
    ctrl-c     SIGINT to the whole group, as a terminal sends it; then `planaria resume`

Prints a table and writes it as JSON. Linux only: processes are found through /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.processes import below, command

from planaria.job import Job, dump_job
from planaria.record.tables import SCHEMAS, read_rows
from planaria.train.checkpoint import CheckpointStore, step_of

ROWS, STRETCH = 25_600, 3_200
RUNS = (
    ("worker", "worker", "driver", "worker"),
    ("ctrl-c", "ray", "worker", "driver"),
    ("ray", "worker", "driver", "ray"),
)
CLOCKS = {
    "wall_seconds",
    "decision_seconds",
    "cpu_seconds",
    "energy_joules",
    "samples_per_second",
    "seconds",
    "total_seconds",
    "restarts",
    "mlflow_run_id",
}
"""What a clock measured, and what is meant to differ."""


# -- the run that is killed


def write_table(path: Path, rows: int = ROWS, stretch: int = STRETCH) -> Path:
    """Rows whose inputs move and whose rule turns round every `stretch` rows; new labels appear twice."""
    draws = np.random.default_rng(0)
    part = np.arange(rows) // stretch
    x = draws.normal(size=(rows, 4)) + 2.0 * (part % 3)[:, None]
    score = (x[:, 0] - x[:, 1]) * np.where(part % 2, -1, 1) + 0.3 * draws.normal(size=rows)
    label = np.where(score > 0, "yes", "no").astype(object)
    label[rows * 2 // 5 :: 7] = "maybe"
    label[rows * 3 // 4 :: 9] = "never"
    x[::50, 2] = np.nan
    pq.write_table(pa.table({**{f"x{at}": x[:, at] for at in range(4)}, "y": label, "part": part}), path)
    return path


def job_for(table: Path, **changes: Any) -> Job:
    """A small model that is edited often, and checkpoints that are written often."""
    values = {
        "name": "kills",
        "seed": 3,
        "batch_rows": 32,
        "stream": {
            "source": "parquet",
            "path": str(table),
            "features": {"numeric": ["x0", "x1", "x2", "x3"]},
            "target": "y",
            "context": "part",
        },
        "model": {"width": 16, "layers": 2, "head_width": 4, "mlp_width": 32},
        "policy": {
            "heads": {"start": 2, "min": 1, "max": 4, "cooldown_samples": 300},
            "controller": {
                "thrift_every_samples": 600,
                "wait_samples": 128,
                "inner_steps": 3,
                "inner_rows": 16,
                "certainty": 0.0,
            },
            "learner": {"memory": {"rows": 300}, "learning_rate": 0.005},
            "budget": {"price": 0.1, "decision_fraction": 1.0},
        },
        "scale": {"workers": 2, "shards": 2},
        "storage": {"checkpoint_every_s": 1.5},
        "record": {"interval_samples": 400, "register_model": False},
    }
    return Job.model_validate({**values, **changes})


class Driver:
    """One `planaria` command in a process of its own, and the processes below it."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "planaria.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": ""},
        )

    def wait(self) -> tuple[int, str]:
        output, _ = self.process.communicate()
        return self.process.returncode, output

    def kill(self, kind: str, choice: random.Random) -> None:
        """Raises RuntimeError where there is no process of that kind (any more)."""
        mine = [one.pid for one in below(self.process.pid)]
        if kind == "worker":
            kill_worker(self.process.pid, choice)
        elif kind == "ctrl-c":
            os.killpg(self.process.pid, signal.SIGINT)
        else:
            _kill([self.process.pid, *(mine if kind == "ray" else [])])
        if kind != "worker":
            self.wait()
            self._await_end_of(mine)

    def _await_end_of(self, processes: list[int]) -> None:
        """Ray's processes end with their driver; its two agents ask a dead head for a minute first, and are helped."""
        agents = [pid for pid in processes if "Agent" in command(pid)]
        gone_by = time.monotonic() + 60
        while any(_alive(pid) for pid in processes if pid not in agents) and time.monotonic() < gone_by:
            time.sleep(0.1)
        left = {pid: command(pid)[:80] for pid in processes if pid not in agents and _alive(pid)}
        _kill([*agents, *left])
        if left:
            raise RuntimeError(f"processes of the run outlived its driver by a minute: {left}")


def kill_worker(driver: int, choice: random.Random) -> None:
    """SIGKILL one of the Ray Train workers below a process."""
    workers = [one.pid for one in below(driver) if "RayTrainWorker" in command(one.pid)]
    if not workers:
        raise RuntimeError("there is no worker to kill")
    _kill([choice.choice(workers)])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


# -- what a run has come to


def step_now(folder: Path) -> int:
    """The step that the run's watchers see; -1 before there is one."""
    try:
        return int(json.loads((folder / "live.json").read_text())["step"])
    except (OSError, ValueError, KeyError):
        return -1


def starts(folder: Path) -> list[dict[str, Any]]:
    path = folder / "starts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def timeless(value: Any) -> Any:
    """Without what a clock measured."""
    if isinstance(value, Mapping):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [timeless(item) for item in value] if isinstance(value, (list, tuple)) else value


def outcome(folder: Path) -> dict[str, Any]:
    """All that a finished run leaves, times aside: two runs were the same if these are equal."""
    name, parts = next(CheckpointStore(str(folder / "checkpoints"), 1).whole())
    return {
        "step": step_of(name),
        "state": timeless(json.loads(parts["state.json"])),
        "arrays": {part: content for part, content in parts.items() if part not in ("state.json", "records.arrow")},
        "tables": {table: timeless(read_rows(folder, table)) for table in SCHEMAS},
        "summary": timeless(json.loads((folder / "summary.json").read_text())),
    }


def differences(left: Any, right: Any, at: str = "") -> Iterator[str]:
    """Where two outcomes are not equal, in words. NaN equals NaN here."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted({*left, *right}):
            yield from differences(left.get(key), right.get(key), f"{at}/{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from differences(one, other, f"{at}/{number}")
    elif left != right and not (left != left and right != right):
        yield f"{at}: {str(left)[:60]} is not {str(right)[:60]}"


# -- the kills


@dataclass
class Kill:
    run: int
    kind: str
    seed: int
    at_step: int
    """At least: the last step that the run's watchers saw or that was checkpointed."""
    from_step: int = -1
    """The checkpoint from which it went on."""
    seconds_to_next_step: float = -1.0
    """Until the workers went on, the start of Ray and of the command included."""
    status: str = ""
    rows_lost: int = -1
    rows_repeated: int = -1
    same_weights: bool = False
    same_revisions: bool = False
    same_summary: bool = False


def killed_run(number: int, kinds: tuple[str, ...], job: Path, folder: Path, steps: int) -> list[Kill]:
    """Run a job, kill it at a random step of each of len(kinds) equal parts of it, and let it come to its end.

    The step that watchers see is up to a second old, so each part is killed in its first half at the latest by then.
    """
    choice = random.Random(number)
    kills: list[Kill] = []
    driver = Driver("run", str(job), "--out", str(folder))
    for part, kind in enumerate(kinds):
        target = (part + choice.uniform(0.1, 0.4)) * steps / len(kinds)
        while step_now(folder) < target:
            if driver.process.poll() is not None:
                raise RuntimeError(f"run {number} ended before it was killed: {driver.wait()[1]}")
            time.sleep(0.02)
        if step_now(folder) >= steps:
            raise RuntimeError(f"run {number} was too quick to be killed by '{kind}'; give it more rows")
        kill = Kill(number, kind, number, step_now(folder))
        begun, killed_at = len(starts(folder)), time.time()
        driver.kill(kind, choice)
        if kind != "worker":
            driver = Driver("resume", str(folder))
        while len(starts(folder)) == begun:
            if driver.process.poll() is not None:
                raise RuntimeError(f"run {number} did not go on after '{kind}': {driver.wait()[1]}")
            time.sleep(0.02)
        again = starts(folder)[begun]
        kill.from_step, kill.seconds_to_next_step = again["step"], round(again["time"] - killed_at, 1)
        kill.at_step = max(kill.at_step, kill.from_step)
        kills.append(kill)
    status, output = driver.wait()
    if status != 0:
        raise RuntimeError(f"run {number} ended with exit status {status}: {output}")
    return kills


def judge(kills: list[Kill], folder: Path, undisturbed: Mapping[str, Any]) -> None:
    found = outcome(folder)
    for line in differences(undisturbed, found):
        print(f"  run {kills[0].run}: {line}")
    for kill in kills:
        kill.status = found["summary"]["status"]
        kill.rows_lost, kill.rows_repeated = found["summary"]["rows_lost"], found["summary"]["rows_repeated"]
        kill.same_weights = found["arrays"] == undisturbed["arrays"]
        kill.same_revisions = not any(differences(undisturbed["tables"], found["tables"]))
        kill.same_summary = not any(differences(undisturbed["summary"], found["summary"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=len(RUNS), help=f"how many of the {len(RUNS)} runs to do")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        job = Path(place) / "job.yaml"
        job.write_text(dump_job(job_for(write_table(Path(place) / "rows.parquet"))))
        status, output = Driver("run", str(job), "--out", f"{place}/undisturbed").wait()
        if status != 0:
            raise SystemExit(output)
        undisturbed = outcome(Path(place) / "undisturbed")
        of_it = {key: undisturbed["summary"][key] for key in ("steps", "shifts", "decisions", "revisions")}
        print(f"undisturbed, 2 Ray Train workers: {of_it}")
        kills: list[Kill] = []
        for number, kinds in enumerate(RUNS[: given.runs]):
            folder = Path(place) / f"killed-{number}"
            of_run = killed_run(number, kinds, job, folder, of_it["steps"])
            judge(of_run, folder, undisturbed)
            kills += of_run
            for kill in of_run:
                print("  ".join(f"{name} {value}" for name, value in asdict(kill).items()))
            given.out.parent.mkdir(parents=True, exist_ok=True)
            found = {"undisturbed": undisturbed["summary"], "kills": [asdict(kill) for kill in kills]}
            given.out.write_text(json.dumps(found, indent=1) + "\n")
    perfect = sum(k.same_weights and k.same_revisions and k.same_summary for k in kills)
    lost, repeated = max(k.rows_lost for k in kills), max(k.rows_repeated for k in kills)
    print(f"{perfect} of {len(kills)} kills left no trace; at most {lost} rows lost and {repeated} repeated")
    sys.exit(perfect != len(kills))


if __name__ == "__main__":
    main()
