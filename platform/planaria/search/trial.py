"""One trial: the job with its settings, lived through once for each stream and seed, or a leg of these lives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from planaria.errors import InputError, RunError
from planaria.job import Job
from planaria.plain_yaml import dump_yaml, one_line
from planaria.ranges import Value
from planaria.search.campaign import OBJECTIVES, Campaign, job_of
from planaria.search.places import folder_of, write_result
from planaria.search.population import Present, leg_score, present, write_leg
from planaria.search.teaching import taught
from planaria.stream import Loaded
from planaria.train.folder import RunFolder
from planaria.train.launch import run_on_workers
from planaria.train.turn import Turn
from planaria.train.worker import WHOLE, Leg, run_here

_REPORTS = 60
"""Of a life's rows."""

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Around:
    """What all trials of a campaign have in common."""

    campaign: Campaign
    folder: Path
    base: Path
    """Of relative paths."""
    behind: int = 1
    """How many numbers before a trial those are that teach it."""
    loaded: Sequence[Loaded] = field(default_factory=tuple)
    """Rows of streams that are in memory."""


def live_trial(around: Around, number: int, settings: Mapping[str, Value], report: Report) -> dict[str, Any]:
    """What the trial comes to: the means of its summaries' numbers. A life that is done is not lived through again, one
    that was cut off goes on from its checkpoint. Raises InputError and RunError, with the reason in trial.json too."""
    campaign, place = around.campaign, folder_of(around.folder, number)
    place.mkdir(parents=True, exist_ok=True)
    try:
        lives: list[tuple[dict[str, Any], float]] = []
        for name, stream, seed in campaign.lives:
            job = job_of(campaign, settings, seed, stream)
            life = RunFolder(place / name)
            kind = job.policy.controller.kind
            begun_with = taught(around.folder, number, around.behind, kind) if campaign.teach else None
            if begun_with is not None:
                life.make()
                life.write_json(life.inherited, begun_with)
            before = sum(int(summary["samples"]) for summary, _ in lives)
            lives.append(_live(around, life, job, report, before))
        metrics = _come_to(campaign, lives)
    except (InputError, RunError) as error:
        write_result(place, number, settings, {"status": "failed", "reason": str(error)})
        raise
    write_result(place, number, settings, {"status": "done", "metrics": metrics})
    return metrics


def live_leg(around: Around, number: int, turn: int) -> bool:
    """Go on with a trial of a population up to the next turn; whether its streams have ended, in which case it leaves
    what it came to. Raises InputError and RunError."""
    campaign, place = around.campaign, folder_of(around.folder, number)
    assert campaign.population is not None
    now = present(place)
    lives = []
    try:
        for name, stream, seed in campaign.lives:
            job = job_of(campaign, now.settings, seed, stream)
            until = campaign.population.every_samples * (turn + 1)
            leg = Leg(until, _turn(around, now, job, name, stream, seed))
            lives.append(_live(around, RunFolder(place / name), job, lambda progress: None, 0, leg))
        over = all(summary["status"] == "done" for summary, _ in lives)
        metrics = _come_to(campaign, lives) if over else {}
    except (InputError, RunError) as error:
        write_leg(place, turn, {"status": "failed", "reason": str(error)})
        raise
    score = leg_score(now, {name: lives[at][0] for at, (name, _, _) in enumerate(campaign.lives)}, campaign)
    if over:
        rest = {"status": "done", "metrics": metrics, "turns": now.history}
        write_result(place, number, now.settings, rest)
    write_leg(place, turn, {"status": "done" if over else "paused", "score": score})
    return over


def _turn(around: Around, now: Present, job: Job, name: str, stream: Mapping[str, Value], seed: int) -> Turn | None:
    if now.before is None or name not in now.marks:
        return None
    before = job_of(around.campaign, now.before, seed, stream).policy
    return Turn(int(now.marks[name]["samples"]), before, now.why)


def _live(
    around: Around, folder: RunFolder, job: Job, report: Report, before: int, leg: Leg = WHOLE
) -> tuple[dict[str, Any], float]:
    """The summary of a life, and the CPU seconds it took. `before` is how many rows the trial has behind it."""
    cost = folder.path / "cpu_seconds.json"
    spent = float(folder.read_json(cost).get("cpu_seconds", 0.0))
    summary = folder.read_json(folder.summary)
    if summary.get("status") == "done":
        return summary, spent
    folder.make()
    folder.write_text(folder.job, dump_yaml(job.model_dump(mode="json")))
    began = time.process_time()

    def tell(progress: Mapping[str, Any]) -> None:
        folder.write_json(cost, {"cpu_seconds": spent + time.process_time() - began})
        samples = progress["samples"] + before
        report({"samples": samples, "prequential_accuracy": progress.get("prequential_accuracy", 0.0)})

    if job.scale.bounds[1]:
        name = "-".join(folder.path.parts[-3:])
        summary = run_on_workers(job, folder, around.base, name, tell, leg)
        folder.write_json(cost, {"cpu_seconds": summary["cpu_seconds"]})
        return summary, float(summary["cpu_seconds"])
    rows = max(job.batch_rows, (job.samples or 60_000) // _REPORTS)
    loaded = next((one for one in around.loaded if one.is_of(job.stream, job.seed)), None)
    leg = Leg(leg.until_row, leg.turn, loaded)
    summary = run_here(job, folder, around.base, report=tell, report_rows=rows, leg=leg)
    spent += time.process_time() - began
    folder.write_json(cost, {"cpu_seconds": spent})
    return summary, spent


def _come_to(campaign: Campaign, lives: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, Any]:
    """Means over the lives; raises InputError where an objective is none of them."""
    summaries = [summary for summary, _ in lives]
    metrics: dict[str, Any] = {name: _mean(name, summaries) for name in OBJECTIVES if name in summaries[0]}
    metrics["cpu_seconds"] = sum(seconds for _, seconds in lives)
    missing = [name for name in campaign.objectives if metrics.get(name) is None]
    if missing:
        raise InputError(f"objectives: this job's runs have no {missing[0]}; name another one")
    return metrics


def _mean(name: str, summaries: Sequence[Mapping[str, Any]]) -> float | None:
    values = [summary.get(name) for summary in summaries]
    known = [float(value) for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def tune_trial(config: Mapping[str, Any], around: Mapping[str, Any]) -> None:
    """Ray Tune's trainable. `around` holds the campaign as JSON, folders, and where in the object store rows are."""
    import ray

    torch.set_num_threads(1)
    here = Around(
        Campaign.model_validate_json(around["campaign"]),
        Path(around["folder"]),
        Path(around["base"]),
        around["behind"],
        ray.get(list(around["loaded"])),
    )
    try:
        _live_on_tune(here, config)
    except (InputError, RunError):
        raise
    except Exception as error:  # whatever it is, the campaign goes on, and says why this one did not
        reason, place = one_line(f"{type(error).__name__}: {error}"), folder_of(here.folder, config["number"])
        if "turn" in config:
            write_leg(place, config["turn"], {"status": "failed", "reason": reason})
        else:
            write_result(place, config["number"], config["settings"], {"status": "failed", "reason": reason})
        raise


def _live_on_tune(here: Around, config: Mapping[str, Any]) -> None:
    import ray.tune

    if "turn" in config:
        over = live_leg(here, config["number"], config["turn"])
        ray.tune.report({"finished": over})
        return
    metrics = live_trial(here, config["number"], config["settings"], lambda progress: ray.tune.report(dict(progress)))
    ray.tune.report({**metrics, "finished": True})
