"""A campaign from its start, or from where it was cut off, to its result."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from planaria.errors import InputError
from planaria.own_folder import check_no_links
from planaria.plain_yaml import one_line
from planaria.record.tracking import check_tracking_uri
from planaria.search.campaign import Campaign, check, dump_campaign, job_of, load_campaign
from planaria.search.history import CAMPAIGN, RUNNING, SUMMARY
from planaria.search.outcome import write_outcome
from planaria.search.places import ended_in, read_trial
from planaria.search.record import CampaignRecord
from planaria.search.report import write_campaign_report
from planaria.search.trial import tune_trial
from planaria.stream import Loaded, load_stream
from planaria.train.folder import RunFolder
from planaria.uri import refuse_uri

logger = logging.getLogger(__name__)

Tell = Callable[[str], None]
_POLL_S = 2.0


def search(
    campaign: Campaign, out: Path | None = None, *, resume: bool = False, tell: Tell = lambda line: None
) -> dict[str, Any]:
    """Run the campaign, or go on with the one that `out` holds; returns the summary.

    Every trial is a lifelong run in a process of its own. One that fails ends itself alone. Ctrl-C keeps everything:
    trials that have ended are not repeated, the others go on from their checkpoints. Raises InputError.
    """
    folder = _folder(campaign, out, resume)
    check(campaign)
    if campaign.tracking_uri is not None:
        check_tracking_uri(campaign.tracking_uri)
    new = folder.make()
    try:
        with folder.held("driver"):
            if not (folder.path / CAMPAIGN).exists():
                folder.write_text(folder.path / CAMPAIGN, dump_campaign(campaign))
            before_s = float(folder.read_json(folder.path / SUMMARY).get("seconds", 0.0))
            folder.write_json(folder.path / SUMMARY, {"name": campaign.name, "status": RUNNING, "seconds": before_s})
            began = time.monotonic()
            try:
                interrupted = _run_trials(campaign, folder.path, tell)
            except Exception as error:
                reason = one_line(f"{type(error).__name__}: {error}")
                _conclude(campaign, folder, "failed", before_s + time.monotonic() - began, reason)
                raise
            spent_s = before_s + time.monotonic() - began
            summary = _conclude(campaign, folder, "stopped" if interrupted else "done", spent_s)
    finally:
        if new:
            folder.remove_if_unused()
    return summary


def _conclude(
    campaign: Campaign, folder: RunFolder, status: str, seconds: float, reason: str | None = None
) -> dict[str, Any]:
    """Summary, page and record of a campaign that has ended, however it did."""
    summary = write_outcome(campaign, folder.path, status, seconds, reason)
    folder.write_json(folder.path / SUMMARY, summary)
    write_campaign_report(folder.path)
    CampaignRecord(campaign, folder.path).finish(summary)
    return summary


def _folder(campaign: Campaign, out: Path | None, resume: bool) -> RunFolder:
    refuse_uri(out or campaign.folder, "a campaign's folder")
    if out is None and resume:
        found = [path.parent for path in Path(campaign.folder).glob(f"{glob.escape(campaign.name)}-*/{CAMPAIGN}")]
        if not found:
            raise InputError(f"{campaign.folder}: no campaign '{campaign.name}' to go on with; leave out --resume")
        out = max(found, key=lambda path: path.stat().st_mtime)
    if out is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        return RunFolder((Path(campaign.folder) / f"{campaign.name}-{stamp}").resolve())
    folder = RunFolder(out.resolve())
    written = folder.path / CAMPAIGN
    if not resume:
        if written.exists():
            raise InputError(
                f"{folder.path}: holds a campaign already; go on with it by --resume, or give another --out"
            )
        return folder
    if not written.exists():
        raise InputError(f"{folder.path}: holds no campaign to go on with; leave out --resume")
    check_no_links(folder.path)
    before = load_campaign(written)
    free = ("at_once",) if campaign.population is not None else ("trials", "at_once")
    grown = before.model_copy(update={name: getattr(campaign, name) for name in free})
    if grown != campaign:
        changed = [name for name, value in before.model_dump().items() if value != campaign.model_dump()[name]]
        raise InputError(
            f"{written}: is another campaign ({', '.join(changed)} differ); only {' and '.join(free)} may change"
        )
    folder.write_text(written, dump_campaign(campaign))
    return folder


def _run_trials(campaign: Campaign, folder: Path, tell: Tell) -> bool:
    """Whether it was interrupted."""
    from planaria.search.searcher import PopulationSearcher, StudySearcher
    from planaria.search.space import open_study

    study = open_study(campaign, folder)
    with _ray(campaign.workers_per_trial > 0), _told(folder, campaign, tell):
        import ray.tune

        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        at_once = trials_at_once(campaign, resources)
        behind = 2 * at_once
        searcher: PopulationSearcher | StudySearcher = (
            StudySearcher(study, campaign, behind)
            if campaign.population is None
            else PopulationSearcher(study, campaign, folder)
        )
        around = {
            "campaign": campaign.model_dump_json(),
            "folder": str(folder),
            "base": str(Path.cwd()),
            "behind": behind,
            "loaded": [ray.put(rows) for rows in load_rows(campaign, resources)],
        }
        of_a_trial = {"cpu": campaign.cpus_per_trial, "gpu": campaign.gpus_per_trial}
        trainable = ray.tune.with_resources(
            ray.tune.with_parameters(tune_trial, around=around),
            {"memory": 1} if campaign.workers_per_trial else of_a_trial,  # its workers ask for what they need
        )
        tuner = ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                scheduler=_scheduler(campaign),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=ray.tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:12]}", storage_path=str(folder / "ray"), verbose=0, log_to_file=False
            ),
        )
        tuner.fit()
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)) < campaign.trials


def _scheduler(campaign: Campaign) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    halving = campaign.halving
    if halving is None:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return ASHAScheduler(
        time_attr="samples",
        metric="prequential_accuracy",
        mode="max",
        grace_period=halving.grace_samples,
        reduction_factor=halving.reduction,
        max_t=1 << 60,
    )


def trials_at_once(campaign: Campaign, resources: Mapping[str, float]) -> int:
    """Trials that run at a time. Raises InputError where not even one fits."""
    each = max(1, campaign.workers_per_trial)
    wanted = {"CPU": campaign.cpus_per_trial * each, "GPU": campaign.gpus_per_trial * each}
    for kind, number in wanted.items():
        if number > resources.get(kind, 0.0):
            there, key = resources.get(kind, 0.0), f"{kind.lower()}s_per_trial"
            raise InputError(
                f"{key}: a trial needs {number:g} but the cluster has {there:g}; lower it, or workers_per_trial"
            )
    fitting = min(int(resources[kind] / number + 1e-9) for kind, number in wanted.items() if number)
    return min(fitting, campaign.at_once or fitting)


def load_rows(campaign: Campaign, resources: Mapping[str, float]) -> list[Loaded]:
    """Rows of the campaign's streams, read once for all trials. Workers of Ray Train read their own."""
    found: list[Loaded] = []
    most = min(campaign.share_bytes, int(resources.get("object_store_memory", 0.0) / 2))
    if campaign.workers_per_trial or not most:
        return found
    for _, changes, seed in campaign.lives:
        job = job_of(campaign, {}, seed, changes)
        if any(one.is_of(job.stream, seed) for one in found):
            continue
        left = most - sum(one.size_bytes for one in found)
        rows = load_stream(job.stream, seed=seed, base=Path.cwd(), most_bytes=left)
        if rows is None:
            logger.warning(
                "%s: its rows take more than %s bytes, which share_bytes and the object store allow; every trial reads "
                "them by itself",
                job.stream.source,
                f"{left:,}",
            )
        else:
            found.append(rows)
    return found


@contextlib.contextmanager
def _ray(dashboard: bool) -> Iterator[None]:
    """The cluster that this process has joined, or a local one of its own; Ray Train asks its dashboard."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune would print a box of its own
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: trials would starve beside anything else
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=dashboard, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _told(folder: Path, campaign: Campaign, tell: Tell) -> Iterator[None]:
    """While the body runs, a thread says what each trial came to when it ends, and records it."""
    over, known = threading.Event(), set(ended_in(folder))
    record = CampaignRecord(campaign, folder)

    def look() -> None:
        new = [path for path in ended_in(folder) if path not in known]
        for path in new:
            trial = read_trial(path)
            known.add(path)
            tell(_line(trial, campaign, len(known)))
        if new:
            record.send_trials()

    def watch() -> None:
        while not over.wait(_POLL_S):
            with contextlib.suppress(OSError, ValueError, InputError):
                look()

    thread = threading.Thread(target=watch, name="planaria-search", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError, ValueError, InputError):
            look()


def _line(trial: dict[str, Any], campaign: Campaign, ended: int) -> str:
    settings = ", ".join(f"{key.rpartition('.')[2]}={json.dumps(value)}" for key, value in trial["settings"].items())
    what = trial.get("reason")
    if what is None:
        what = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in campaign.objectives)
    return f"{ended} of {campaign.trials}: trial {trial['number']} ({settings}): {what}"
