"""planaria's command, with workers that note every step and that end themselves where they are told to.

    python -m benchmarks.saboteur run JOB.yaml ...

For the chaos suite (`benchmarks/chaos.py`): a kill in the middle of an edit, of a checkpoint's write or of a decision
has to come from within. Orders and notes are files in a folder of the run's name below the one that an environment
variable names; it must be set where the cluster's hosts are started.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from planaria import cli
from planaria.train import launch, lifelong, worker
from planaria.train.checkpoint import CheckpointStore
from planaria.train.lifelong import Lifelong, Tick
from planaria.train.workbench import Workbench

FOLDER_VARIABLE = "PLANARIA_CHAOS_FOLDER"
MOMENTS = ("edit", "checkpoint", "decision")
"""In the middle of which a worker can be told to end itself."""
T = TypeVar("T")


def control_folder(run: Path) -> Path:
    return Path(os.environ[FOLDER_VARIABLE]) / run.name


def order(control: Path, moment: str, after: int) -> None:
    """Tell the next worker that comes to the moment to end itself once it has passed `after` others of its kind."""
    partial = control / f".{moment}"
    partial.write_text(str(after))
    partial.rename(control / f"kill-{moment}")


def take_back(control: Path, moment: str) -> None:
    (control / f"kill-{moment}").unlink(missing_ok=True)


def carried_out(control: Path, moment: str) -> float | None:
    """When a worker ended itself, in unix seconds."""
    done = control / f"killed-{moment}"
    return json.loads(done.read_text())["time"] if done.exists() else None


def ray_worker(config: dict[str, Any]) -> dict[str, Any]:
    """In place of planaria's own, which it calls."""
    control = control_folder(Path(config["folder"]))
    control.mkdir(parents=True, exist_ok=True)
    _note_steps(control)
    lifelong.operate = _deadly(lifelong.operate, control, "edit")  # type: ignore[assignment]
    Workbench.trial = _deadly(Workbench.trial, control, "decision")  # type: ignore[method-assign]
    _cut_writes_short(control)
    return worker.ray_worker(config)


@dataclass(frozen=True)
class Pace:
    """How fast steps may follow each other, so that a run is neither over before all was done to it nor slower than it
    need be."""

    every_s: float = 0.0
    until_step: int = 0
    then_every_s: float = 0.0

    def seconds(self, step: int) -> float:
        return self.every_s if step < self.until_step else self.then_every_s


def set_pace(control: Path, pace: Pace) -> None:
    partial = control / ".pace"
    partial.write_text(json.dumps(asdict(pace)))
    partial.rename(control / "pace.json")


def _note_steps(control: Path) -> None:
    """Rank 0 writes down when each step was done, and waits between them as it is told to."""
    take_step = Lifelong.take_step
    notes = (control / f"steps-{time.time_ns()}-{os.getpid()}.txt").open("a", buffering=1)

    @wraps(take_step)
    def noted(self: Lifelong, *arguments: Any) -> Tick | None:
        if self.group.rank != 0:
            return take_step(self, *arguments)
        time.sleep(Pace(**json.loads((control / "pace.json").read_text())).seconds(self.step))
        tick = take_step(self, *arguments)
        notes.write(f"{time.time():.3f} {self.step} {self.group.size}\n")
        return tick

    Lifelong.take_step = noted  # type: ignore[method-assign]


def _deadly(work: Callable[..., T], control: Path, moment: str) -> Callable[..., T]:
    """`work`, after which the worker ends itself where that was ordered: what follows from it is then never done."""

    @wraps(work)
    def ordered(*arguments: Any, **named: Any) -> T:
        done = work(*arguments, **named)
        _end_if_ordered(control, moment)
        return done

    return ordered


def _cut_writes_short(control: Path) -> None:
    """A checkpoint's file of which half is written, by a worker that then ends itself."""
    write = CheckpointStore._write

    def cut(self: CheckpointStore, path: str, content: bytes) -> None:
        if (control / "kill-checkpoint").exists():
            write(self, path, content[: len(content) // 2])
            _end_if_ordered(control, "checkpoint")
        write(self, path, content)

    CheckpointStore._write = cut  # type: ignore[method-assign]


def _end_if_ordered(control: Path, moment: str) -> None:
    waiting, taken = control / f"kill-{moment}", control / f"taken-{moment}-{os.getpid()}"
    try:
        waiting.rename(taken)
    except FileNotFoundError:
        return  # not ordered, or another worker's
    after = int(taken.read_text())
    if after > 0:
        order(control, moment, after - 1)
        return
    (control / f"killed-{moment}").write_text(json.dumps({"time": time.time(), "process": os.getpid()}))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from benchmarks.saboteur import ray_worker as own  # by its name in the module, not in this script

    launch.ray_worker = own
    cli.main()
