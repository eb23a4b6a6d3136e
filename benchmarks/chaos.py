"""Do to a run on three hosts what clusters do to runs, at random moments, and compare it with one that was left alone.

    python -m benchmarks.chaos                    what results/chaos.json does not hold yet: 170 faults, 1 to 2 hours
    python -m benchmarks.chaos --seeds 1          each kind of fault once
    python -m benchmarks.chaos --kinds worker cut --seeds 2

The hosts are virtual (`benchmarks/hosts.py`), each with Ray, beside a head that keeps its state in Redis, a disk that
all of them share and an MLflow server. Every run has several faults, one after the other, each of which it has to get
over by itself. What is found is written down after each run, so that a campaign that was broken off goes on with the
rest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cluster import Cluster, MlflowServer, SharedDisk, filled, redis_program, redis_server
from benchmarks.hosts import Host, Hosts, Process, missing, until
from benchmarks.kills import differences, job_for, outcome, write_table
from benchmarks.saboteur import FOLDER_VARIABLE, MOMENTS, Pace, carried_out, order, set_pace, take_back

from planaria.job import Job, dump_job
from planaria.record.stored_run import KEY_TAG, REVISION_TAG
from planaria.record.tables import read_rows
from planaria.record.tracking import connect, embedded_uri
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

ROWS, STRETCH = 25_600, 3_200
UNDER_A_FAULT_S, AT_THE_END_S = 0.1, 1.0
"""Between two steps: while something is done to a run, and where the part of the run that is meant for it is over."""
_LAST_FAULT_BEFORE = 0.85
"""Of the run's steps: the rest is for what the last one does to it."""
SEEDS = 10
RECOVERS_WITHIN_S = 240.0
ENDS_WITHIN_S = 400.0
RESULTS = Path(__file__).parent / "results" / "chaos.json"


# -- the cluster and a run on it


@dataclass
class Scene:
    """All that a fault can be done to."""

    hosts: Hosts
    cluster: Cluster
    disk: SharedDisk
    mlflow: MlflowServer | None
    """None where runs record into their own folders."""
    control: Path

    @property
    def driver_host(self) -> Host:
        """Which carries the driver, beside a worker where it has one."""
        return self.hosts[len(self.hosts) - 1]

    @property
    def away(self) -> list[Host]:
        """Hosts with a worker of the run, but without its driver."""
        return [host for host in self.workers if host is not self.driver_host]

    @property
    def workers(self) -> list[Host]:
        """Hosts with a worker of the run on them."""
        return [host for host in self.hosts if host.processes("RayTrainWorker")]

    def make_whole(self) -> None:
        """Ray runs on all hosts again."""
        for host in self.hosts:
            if self.cluster.has_raylet(host) and host.address not in self.cluster.alive():
                # It was given up while it could not be reached, and ends by itself once it hears of that.
                until(lambda host=host: not self.cluster.has_raylet(host), 60, f"{host.name} lives on, given up")
        self.cluster.start(*[host.number for host in self.hosts if not self.cluster.has_raylet(host)])


@contextmanager
def scene(hosts_beside_head: int = 3, *, store: bool = True) -> Iterator[Scene]:
    """A head and some more hosts, Ray on all of them, and an MLflow server if a store is wanted."""
    with ExitStack() as stack:
        disk = stack.enter_context(SharedDisk())
        control = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        hosts = stack.enter_context(Hosts(1 + hosts_beside_head))
        redis = stack.enter_context(redis_server(hosts.outside, 6390)) if redis_program() else None
        mlflow = stack.enter_context(MlflowServer(hosts.outside)) if store else None
        cluster = Cluster(hosts, redis, {FOLDER_VARIABLE: str(control)})
        cluster.start(*range(len(hosts)))
        yield Scene(hosts, cluster, disk, mlflow, control)


def chaos_job(table: Path, **changes: Any) -> Job:
    """The job of `benchmarks/kills.py`, on as many workers as there are, up to two."""
    return job_for(table, **{"name": "chaos", "scale": {"workers": [1, 2], "shards": 2, "max_failures": 20}, **changes})


class NeverCame(RuntimeError):
    """What was waited for, in a run that goes on."""


class Run:
    """One run under way, its driver on a host of the cluster."""

    def __init__(self, scene: Scene, name: str, job: Path) -> None:
        self.scene, self.job = scene, job
        self.folder = RunFolder(scene.disk.path / "runs" / name)
        self.control = scene.control / name
        self.control.mkdir()
        set_pace(self.control, Pace())
        self.log = self.control / "driver.log"
        self.part_ends = 0
        """The step where the part of the run ends that is meant for the present fault."""
        self.driver: Process

    def begin(self) -> None:
        self._command("run", str(self.job), "--out", str(self.folder.path))

    def go_on(self) -> None:
        self._command("resume", str(self.folder.path))

    def _command(self, *arguments: str) -> None:
        cluster = self.scene.cluster
        command = [sys.executable, "-m", "benchmarks.saboteur", *arguments, "--address", cluster.address]
        with self.log.open("ab") as log:
            self.driver = self.scene.driver_host.start(*command, environment=cluster.environment, output=log)

    def steps(self) -> list[tuple[float, int, int]]:
        """(unix seconds, steps done, workers) of every step that was taken, in the order of time."""
        lines = (line.split() for path in self.control.glob("steps-*.txt") for line in path.read_text().splitlines())
        return sorted((float(line[0]), int(line[1]), int(line[2])) for line in lines if len(line) == 3)

    @property
    def starts(self) -> int:
        """How often workers began to take steps."""
        return sum(path.stat().st_size > 0 for path in self.control.glob("steps-*.txt"))

    @property
    def newest(self) -> int:
        """The most steps that were done so far."""
        return max((step for _, step, _ in self.steps()), default=0)

    def until(self, happens: Callable[[], bool], within_s: float, what: str) -> None:
        """Raises NeverCame where it does not happen in time, RuntimeError where the driver ends before."""
        end = time.monotonic() + within_s
        while not happens():
            if self.driver.poll() is not None:
                raise RuntimeError(f"the driver ended ({self.driver.poll()}) before {what}: {self.last_words()}")
            if time.monotonic() > end:
                raise NeverCame(f"{what}: not within {within_s:g} s: {self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        return " ".join(self.log.read_text(errors="replace").split())[-400:]

    def live(self) -> dict[str, Any]:
        return self.folder.read_json(self.folder.live)


# -- the faults


@dataclass
class Done:
    """What a fault was in detail, and when it began where that is not when it was asked for."""

    detail: str
    at: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    starts_again: bool = False
    """Whether all workers have to be started again before the run is over it; old ones may take some more steps."""


Deed = Callable[["Scene", "Run", random.Random], "Done | None"]
"""Does what a kind of fault is; None where the moment for it never came."""
KINDS: dict[str, Deed] = {}
"""Each does its fault and undoes it, as somebody who looks after a cluster would: a host is plugged in again and Ray
started on it, a job is handed in again. Nothing else helps the run."""


def kind(name: str) -> Callable[[Deed], Deed]:
    def register(deed: Deed) -> Deed:
        KINDS[name] = deed
        return deed

    return register


@kind("worker killed")
def kill_worker(scene: Scene, run: Run, choice: random.Random) -> Done:
    host = choice.choice(scene.workers)
    host.kill("RayTrainWorker")
    return Done(host.name, starts_again=True)


@kind("raylet killed")
def kill_raylet(scene: Scene, run: Run, choice: random.Random) -> Done:
    host = choice.choice(scene.away)
    host.kill("raylet/raylet")
    _gets_over(run)
    scene.make_whole()
    return Done(host.name)


@kind("host cut off")
def cut_host(scene: Scene, run: Run, choice: random.Random) -> Done:
    host = choice.choice(scene.away)
    for_s = choice.choice((4.0, 12.0, 25.0))
    host.cut()
    time.sleep(for_s)
    host.heal()
    _gets_over(run)
    scene.make_whole()
    return Done(f"{host.name} for {for_s:g} s")


@kind("driver killed")
def kill_driver(scene: Scene, run: Run, choice: random.Random) -> Done:
    run.driver.send(signal.SIGKILL)
    run.driver.wait(30)
    run.go_on()
    return Done("resumed at once", starts_again=True)


@kind("controller killed")
def kill_controller(scene: Scene, run: Run, choice: random.Random) -> Done:
    killed = sum(host.kill("ray::PublishedController") for host in scene.hosts)
    if killed != 1:
        raise RuntimeError(f"{killed} controllers were there to be killed")
    return Done("planaria's")


@kind("train controller killed")
def kill_train_controller(scene: Scene, run: Run, choice: random.Random) -> Done:
    killed = sum(host.kill("ray::TrainController") for host in scene.hosts)
    if killed != 1:
        raise RuntimeError(f"{killed} controllers were there to be killed")
    return Done("Ray Train's", starts_again=True)


@kind("head killed")
def kill_head(scene: Scene, run: Run, choice: random.Random) -> Done:
    for_s = choice.uniform(2, 10)
    scene.hosts[0].power_off()
    time.sleep(for_s)
    scene.hosts[0].boot()
    scene.cluster.start(0)
    return Done(f"for {for_s:.0f} s and as long as it takes to start")


@kind("MLflow down")
def stop_mlflow(scene: Scene, run: Run, choice: random.Random) -> Done:
    for_s, way = choice.uniform(5, 12), choice.choice(("killed", "hung"))
    assert scene.mlflow is not None
    if way == "killed":
        scene.mlflow.kill()
        time.sleep(for_s)
        scene.mlflow.start()
    else:
        scene.mlflow.hang()
        time.sleep(for_s)
        scene.mlflow.go_on()
    return Done(f"{way} for {for_s:.0f} s")


@kind("storage fails")
def fail_storage(scene: Scene, run: Run, choice: random.Random) -> Done:
    for_s, way = choice.uniform(3, 10), choice.choice(("full", "read-only"))
    with scene.disk.full() if way == "full" else scene.disk.read_only(scene.hosts):
        time.sleep(for_s)
    return Done(f"{way} for {for_s:.0f} s")


@kind("storage slow")
def slow_storage(scene: Scene, run: Run, choice: random.Random) -> Done:
    for_s, frozen_s = choice.uniform(5, 10), choice.choice((0.5, 1.0, 5.0))
    with scene.disk.slow(frozen_s):
        time.sleep(for_s)
    return Done(f"for {for_s:.0f} s, stalled for {frozen_s:g} s again and again")


@kind("full disk on a host")
def fill_host(scene: Scene, run: Run, choice: random.Random) -> Done:
    host, for_s = choice.choice(scene.workers), choice.uniform(3, 10)
    with filled(host):
        time.sleep(for_s)
    return Done(f"{host.name} for {for_s:.0f} s")


@kind("slow host")
def slow_host(scene: Scene, run: Run, choice: random.Random) -> Done:
    host = choice.choice(scene.workers)
    host.limit(0.1)
    try:
        run.until(lambda: host.name in str(run.live().get("slow")), 90, f"{host.name} was named as slow")
    finally:
        host.limit(None)
    return Done(f"{host.name} with a tenth of a core", facts={"named": run.live().get("slow")})


@kind("fewer workers at start")
def fewer_workers(scene: Scene, run: Run, choice: random.Random) -> Done:
    """The run begins while only the driver's host is there (see `disturbed_run`)."""
    return Done("1 of 2")


@kind("host joins")
def join_host(scene: Scene, run: Run, choice: random.Random) -> Done:
    since = time.time()
    scene.cluster.start(choice.choice((1, 2)))

    def grown() -> bool:
        return any(at > since and workers == 2 for at, _, workers in run.steps())

    run.until(grown, RECOVERS_WITHIN_S, "the new host was used")
    used_s = next(at for at, _, workers in run.steps() if at > since and workers == 2) - since
    scene.make_whole()
    return Done(f"used after {used_s:.0f} s", at=since, facts={"seconds_until_used": round(used_s, 1)})


def _from_within(moment: str) -> None:
    @kind(f"killed in the middle of {'an' if moment == 'edit' else 'a'} {moment}")
    def end_within(scene: Scene, run: Run, choice: random.Random) -> Done | None:
        after = choice.randrange(2)
        set_pace(run.control, Pace(0.0, run.part_ends, AT_THE_END_S))
        order(run.control, moment, after)
        try:
            run.until(lambda: carried_out(run.control, moment) is not None, 120, f"a worker came to a {moment}")
        except NeverCame:
            take_back(run.control, moment)
            return None
        at = carried_out(run.control, moment)
        (run.control / f"killed-{moment}").unlink()
        return Done(f"after {after} others", at=at, starts_again=True)


for moment in MOMENTS:
    _from_within(moment)


def _gets_over(run: Run) -> None:
    """Wait for the run's next step that it had not taken before."""
    newest = run.newest
    run.until(lambda: run.newest > newest, RECOVERS_WITHIN_S, "the next step")


# -- runs with faults


@dataclass
class Fault:
    kind: str
    seed: int
    detail: str = ""
    status: str = ""
    rows_lost: int = -1
    rows_repeated: int = -1
    same_revisions: bool = False
    """Revisions, and the final blueprint."""
    same_outcome: bool = False
    """Also every other table, all weights and state of the last checkpoint, and the summary, times aside."""
    recorded_once: bool = False
    """Every revision is in MLflow, once."""
    seconds_to_next_step: float = -1.0
    """The longest wait for a step from the fault until it was over and the run had taken a new step."""
    steps_again: int = -1
    """Steps that were computed a second time."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def perfect(self) -> bool:
        nothing_lost = self.status == "done" and self.rows_lost == self.rows_repeated == 0
        return nothing_lost and self.same_revisions and self.recorded_once


def inflict(scene: Scene, run: Run, fault: Fault) -> bool:
    """Do what the fault says, and wait until the run goes on; False where the moment for it never came."""
    began, starts = time.time(), run.starts
    done = KINDS[fault.kind](scene, run, random.Random(f"{fault.kind} {fault.seed}"))
    if done is None:
        return False
    if done.starts_again:
        run.until(lambda: run.starts > starts, RECOVERS_WITHIN_S, "the workers were started again")
    _gets_over(run)
    at = began if done.at is None else done.at
    fault.detail, fault.facts = done.detail, done.facts
    fault.seconds_to_next_step, fault.steps_again = _waits(run.steps(), at)
    return True


def _waits(steps: Sequence[tuple[float, int, int]], since: float) -> tuple[float, int]:
    """The longest wait for a step, and how many were taken again."""
    before = max((step for at, step, _ in steps if at <= since), default=0)
    times = [since, *(at for at, _, _ in steps if at > since)]
    again = sum(step <= before for at, step, _ in steps if at > since)
    return round(max(late - early for early, late in itertools.pairwise(times)), 1), again


def disturbed_run(scene: Scene, name: str, job: Path, faults: Sequence[Fault], steps: int) -> Path:
    """A run with these faults, at a random step of each of as many equal parts of it; returns its folder."""
    choice = random.Random(f"{name}")
    run = Run(scene, name, job)
    fewer = [fault for fault in faults if fault.kind == "fewer workers at start"]
    for host in scene.hosts:
        if fewer and host not in (scene.hosts[0], scene.driver_host):
            scene.cluster.stop(host)
    began = time.time()
    run.begin()
    try:
        run.until(lambda: run.newest > 0, RECOVERS_WITHIN_S, "the first step")
        for fault in fewer:
            fault.seconds_to_next_step, fault.steps_again = _waits(run.steps(), began)
            fault.detail = f"{run.steps()[0][2]} worker"
        rest = [fault for fault in faults if fault not in fewer]
        length = _LAST_FAULT_BEFORE * steps / max(1, len(rest))
        for part, fault in enumerate(rest):
            target = int((part + choice.uniform(0.1, 0.5)) * length)
            # As fast as it goes up to here, but no further than a fault could be done.
            run.part_ends = int((part + 0.9) * length)
            set_pace(run.control, Pace(0.0, target, UNDER_A_FAULT_S))
            run.until(lambda target=target: run.newest >= target, ENDS_WITHIN_S, f"step {target}")
            set_pace(run.control, Pace(UNDER_A_FAULT_S, run.part_ends, AT_THE_END_S))
            if inflict(scene, run, fault):
                _say(f"  {fault.kind} {fault.seed}: {fault.detail}: next step after {fault.seconds_to_next_step} s")
            else:
                _say(f"  {fault.kind} {fault.seed}: the run came to no such moment: not done")
        set_pace(run.control, Pace())
        status = run.driver.wait(ENDS_WITHIN_S)
        if status:
            raise RuntimeError(f"the driver ended with {status}: {run.last_words()}")
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        _say(f"  {name}: {error}")
        if run.driver.poll() == 0:
            return run.folder.path  # it was quicker than what was done to it: what was not over counts as not done
        run.driver.send(signal.SIGKILL)
        for fault in faults:
            fault.status, fault.facts = "failed", {**fault.facts, "why": str(error)[:300]}
    return run.folder.path


def judge(faults: Sequence[Fault], folder: Path, undisturbed: Mapping[str, Any], store: str | None) -> None:
    """Compare what the run came to with one that was left alone."""
    summary = RunFolder(folder).read_json(folder / "summary.json")
    if summary.get("status") != "done":
        return
    found = outcome(folder)
    of_workers = {"workers": undisturbed["summary"]["workers"]}
    found["summary"] |= of_workers
    unequal = list(differences(undisturbed, found))
    for line in unequal[:5]:
        _say(f"  {folder.name}: {line}")
    once = recorded_once(folder, store or embedded_uri(folder))
    for fault in faults:
        fault.status = fault.status or summary["status"]
        fault.rows_lost, fault.rows_repeated = summary["rows_lost"], summary["rows_repeated"]
        fault.same_revisions = not any(
            differences(undisturbed["tables"]["revisions"], found["tables"]["revisions"])
        ) and not any(differences(undisturbed["summary"]["heads_last"], found["summary"]["heads_last"]))
        fault.same_outcome, fault.recorded_once = not unequal, once


def recorded_once(folder: Path, store: str) -> bool:
    """Whether MLflow has the run once, ended, with each of its revisions once."""
    client = connect(store)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    key = json.loads((folder / "mlflow.json").read_text())["key"]
    parents = client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{key}'")
    if len(parents) != 1 or parents[0].info.status != "FINISHED":
        return False
    children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'")
    numbers = sorted(int(child.data.tags[REVISION_TAG]) for child in children if REVISION_TAG in child.data.tags)
    return numbers == sorted(row["number"] for row in read_rows(folder, "revisions"))


# -- the campaign


TOGETHER = (
    (
        1,
        (
            *("fewer workers at start", "host joins"),
            *("worker killed", "raylet killed", "host cut off", "driver killed", "train controller killed"),
            *(f"killed in the middle of {moment}" for moment in ("an edit", "a checkpoint", "a decision")),
        ),
    ),
    (
        2,
        (
            *("head killed", "controller killed", "MLflow down"),
            *("storage fails", "storage slow", "full disk on a host", "slow host"),
        ),
    ),
)
"""Kinds of fault that one run has, and how many seeds of each: those that no worker has to be started again for are
quickly over."""


def plan(kinds: Sequence[str], seeds: int, known: Sequence[Fault]) -> Iterator[list[Fault]]:
    """The faults of each run that is still to be done: the seeds one after the other, the kinds shuffled."""
    have = {(fault.kind, fault.seed) for fault in known}
    for first in range(seeds):
        for number, (count, together) in enumerate(TOGETHER):
            if first % count:
                continue
            wanted = [(name, seed) for seed in range(first, min(first + count, seeds)) for name in together]
            faults = [Fault(name, seed) for name, seed in wanted if name in kinds and (name, seed) not in have]
            random.Random(f"{first} {number}").shuffle(faults)
            # Hosts can only be missing, and then join, at the beginning.
            begin = ("fewer workers at start", "host joins")
            faults.sort(key=lambda fault: begin.index(fault.kind) if fault.kind in begin else len(begin))
            if [fault.kind for fault in faults[:1]] == ["host joins"]:
                faults.insert(0, Fault(begin[0], first))
            if faults:
                yield faults


def load(path: Path) -> list[Fault]:
    return [Fault(**fault) for fault in json.loads(path.read_text())["faults"]] if path.exists() else []


def save(path: Path, faults: Sequence[Fault]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"faults": [asdict(fault) for fault in faults]}, indent=1)
    path.write_text(text + "\n")


def prepare(scene: Scene, rows: int = ROWS) -> tuple[Path, dict[str, Any]]:
    """The job's file, and what a run of it comes to in one process, without Ray: runs are equal for every number of
    workers."""
    uri = None if scene.mlflow is None else scene.mlflow.uri
    job = chaos_job(write_table(scene.disk.path / "rows.parquet", rows, STRETCH))
    job = job.model_copy(update={"record": job.record.model_copy(update={"tracking_uri": uri})})
    path = scene.disk.path / "job.yaml"
    path.write_text(dump_job(job))
    alone = job.model_copy(update={"scale": job.scale.model_copy(update={"workers": 0})})
    with tempfile.TemporaryDirectory(prefix="undisturbed-") as folder:
        run_here(alone, RunFolder(Path(folder)), Path(folder))
        return path, outcome(Path(folder))


def disturb(scene: Scene, job: Path, faults: Sequence[Fault], undisturbed: Mapping[str, Any]) -> list[Fault]:
    """One run with these faults, and what became of it; returns those that were done to it."""
    name = f"run-{faults[0].seed}-{time.strftime('%H%M%S')}"
    folder = disturbed_run(scene, name, job, faults, undisturbed["summary"]["steps"])
    judge(faults, folder, undisturbed, None if scene.mlflow is None else scene.mlflow.uri)
    return [fault for fault in faults if fault.detail or fault.status == "failed"]


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how often each kind is done")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--again", action="store_true", help="do again what left a trace before")
    parser.add_argument("--until", metavar="HH:MM", help="begin no run after this time of the day")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what was found, in Markdown")
    given = parser.parse_args()
    if given.table:
        print(table(load(given.out)))
        return
    if (lacking := missing()) is not None:
        raise SystemExit(lacking)
    kinds = [name for name in given.kinds if name != "head killed" or redis_program()]
    known = [fault for fault in load(given.out) if fault.perfect or not given.again]
    # However it is ended, nothing of it is left on the machine.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with scene() as place:
        job, undisturbed = prepare(place)
        _say(str({key: undisturbed["summary"][key] for key in ("steps", "shifts", "decisions", "revisions")}))
        for faults in plan(kinds, given.seeds, known):
            if given.until and time.strftime("%H:%M") >= given.until:
                break
            _say(", ".join(f"{fault.kind} {fault.seed}" for fault in faults))
            known += disturb(place, job, faults, undisturbed)
            save(given.out, known)
            place.make_whole()
    print(table(known))
    sys.exit(not all(fault.perfect for fault in known))


def table(faults: Sequence[Fault]) -> str:
    """In Markdown, a line for each kind."""
    lines = [
        "| fault | times | ended done | rows lost, repeated | same revisions | same in all else | in MLflow once "
        "| seconds to the next step: median, worst |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in KINDS:
        some = [fault for fault in faults if fault.kind == name]
        if not some:
            continue
        waits = [fault.seconds_to_next_step for fault in some]
        cells = [
            name,
            str(len(some)),
            str(sum(fault.status == "done" for fault in some)),
            f"{max(fault.rows_lost for fault in some)}, {max(fault.rows_repeated for fault in some)}",
            str(sum(fault.same_revisions for fault in some)),
            str(sum(fault.same_outcome for fault in some)),
            str(sum(fault.recorded_once for fault in some)),
            f"{statistics.median(waits):.1f}, {max(waits):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
