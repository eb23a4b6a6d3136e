"""One trial: the job with its settings, lived through in this process, once for each seed."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from planaria.errors import InputError, RunError
from planaria.plain_yaml import dump_yaml
from planaria.search.campaign import OBJECTIVES, Campaign, Value, job_of
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

TRIALS = "trials"
RESULT = "trial.json"
_REPORTS = 60
"""Of a seed's rows."""

Report = Callable[[Mapping[str, Any]], None]


def folder_of(campaign_folder: Path, number: int) -> Path:
    return campaign_folder / TRIALS / f"{number:04d}"


def live_trial(
    campaign: Campaign, folder: Path, base: Path, number: int, settings: Mapping[str, Value], report: Report
) -> dict[str, Any]:
    """What the trial comes to: the means of its summaries' numbers. A seed that is done is not lived through again, one
    that was cut off goes on from its checkpoint. Raises InputError and RunError, with the reason in trial.json too."""
    place = folder_of(folder, number)
    place.mkdir(parents=True, exist_ok=True)
    try:
        summaries: list[dict[str, Any]] = []
        seconds = 0.0
        for seed in campaign.seeds:
            seed_folder = RunFolder(place / f"seed-{seed}")
            summary, spent = _one_seed(campaign, seed_folder, base, settings, seed, len(summaries), report)
            summaries.append(summary)
            seconds += spent
    except (InputError, RunError) as error:
        _write(place, number, settings, {"status": "failed", "reason": str(error)})
        raise
    metrics = {name: _mean(name, summaries) for name in OBJECTIVES if name in summaries[0]}
    metrics["cpu_seconds"] = seconds
    missing = [name for name in campaign.objectives if metrics.get(name) is None]
    if missing:
        reason = f"objectives: this job's runs have no {missing[0]}; name another one"
        _write(place, number, settings, {"status": "failed", "reason": reason})
        raise InputError(reason)
    _write(place, number, settings, {"status": "done", "metrics": metrics})
    return metrics


def _one_seed(
    campaign: Campaign,
    folder: RunFolder,
    base: Path,
    settings: Mapping[str, Value],
    seed: int,
    before: int,
    report: Report,
) -> tuple[dict[str, Any], float]:
    """The summary of the seed's run, and the CPU seconds it took."""
    cost = folder.path / "cpu_seconds.json"
    spent = float(folder.read_json(cost).get("cpu_seconds", 0.0))
    summary = folder.read_json(folder.summary)
    if summary.get("status") == "done":
        return summary, spent
    job = job_of(campaign, settings, seed)
    folder.make()
    folder.write_text(folder.job, dump_yaml(job.model_dump(mode="json")))
    began = time.process_time()

    def tell(progress: Mapping[str, Any]) -> None:
        folder.write_json(cost, {"cpu_seconds": spent + time.process_time() - began})
        samples = progress["samples"] + before * (job.samples or 0)
        report({"samples": samples, "prequential_accuracy": progress.get("prequential_accuracy", 0.0)})

    rows = max(job.batch_rows, (job.samples or 60_000) // _REPORTS)
    summary = run_here(job, folder, base, report=tell, report_rows=rows)
    spent += time.process_time() - began
    folder.write_json(cost, {"cpu_seconds": spent})
    return summary, spent


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """All trials that have ended, by number."""
    return [json.loads(path.read_text()) for path in sorted((folder / TRIALS).glob(f"*/{RESULT}"))]


def tune_trial(config: Mapping[str, Any], campaign: str, folder: str, base: str) -> None:
    """Ray Tune's trainable."""
    import ray.tune

    torch.set_num_threads(1)
    metrics = live_trial(
        Campaign.model_validate_json(campaign),
        Path(folder),
        Path(base),
        config["number"],
        config["settings"],
        lambda progress: ray.tune.report(dict(progress)),
    )
    ray.tune.report({**metrics, "finished": True})


def _mean(name: str, summaries: list[dict[str, Any]]) -> float | None:
    values = [summary[name] for summary in summaries]
    return None if any(value is None for value in values) else statistics.fmean(values)


def _write(place: Path, number: int, settings: Mapping[str, Value], rest: Mapping[str, Any]) -> None:
    partial = place / f".{RESULT}"
    partial.write_text(json.dumps({"number": number, "settings": dict(settings), **rest}, indent=1) + "\n")
    partial.replace(place / RESULT)
