"""What campaigns cost and what they bring.

    python -m benchmarks.search overhead     a campaign beside the same trials by hand: about ten minutes on 2 cores

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

from planaria.search.campaign import Campaign, load_campaign
from planaria.search.places import read_trials

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
    seen: dict[tuple[int, int], float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            seen.update(_below(os.getpid()))

    watcher, began = threading.Thread(target=watch), time.monotonic()
    watcher.start()
    try:
        work()
        wall = time.monotonic() - began
        while _below(os.getpid()):  # what outlives its parent for a moment
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(_LOOK_S)
    finally:
        over.set()
        watcher.join()
    return Spent(sum(seen.values()), wall)


def _below(parent: int) -> dict[tuple[int, int], float]:
    """CPU seconds of every process below one, by its id and its start."""
    ticks = os.sysconf("SC_CLK_TCK")
    children: dict[int, list[tuple[int, int, float]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            one = int(path.parent.name), int(fields[19]), (int(fields[11]) + int(fields[12])) / ticks
            children.setdefault(int(fields[1]), []).append(one)
    found, at = {}, [parent]
    while at:
        for pid, start, seconds in children.get(at.pop(), ()):
            found[pid, start] = seconds
            at.append(pid)
    return found


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
    given = parser.parse_args()
    if given.part == "overhead":
        merge("overhead", overhead(given.campaign, given.trials, given.at_once))


if __name__ == "__main__":
    main()
