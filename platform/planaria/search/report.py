"""One self-contained page about a campaign, from what lies in its folder: of one that goes on or failed as well."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planaria.addresses import mask_secrets
from planaria.errors import InputError
from planaria.ranges import Range
from planaria.record.facts import duration, plural, short_number, words_of
from planaria.record.page import both_sizes, page_template
from planaria.record.report import REPORT_NAME
from planaria.record.story import Tile
from planaria.record.tables import write_atomically
from planaria.search.campaign import OBJECTIVES, Campaign, given, job_of
from planaria.search.history import CUT_OFF, RUNNING, Attempt, History, read_history
from planaria.search.picture import draw_front, draw_parallel, label
from planaria.search.policies import policy_path, policy_text, run_command, write_policies

MOST_TRIALS = 500
"""Rows of the table. The best ones are always among them."""
_DIRECTIONS = {"max": "as high as it can be", "min": "as low as it can be"}
_ALGORITHMS = {
    "tpe": "tree-structured Parzen estimators (tpe): by a model of which settings did well",
    "nsga2": "NSGA-II (nsga2): by selection and crossover",
    "random": "chance (random)",
    "pbt": "population based training (pbt): the worst take over what the best have become, with settings near theirs",
}


@dataclass(frozen=True)
class Searched:
    """A row of the table of what was searched."""

    key: str
    values: str
    when: str
    job: str
    """What the job has."""


@dataclass(frozen=True)
class Best:
    """One of the trials that nothing beats."""

    number: int
    found: str
    settings: Sequence[tuple[str, str]]
    file: str
    policy: str | None
    command: str


def write_campaign_report(folder: Path, target: Path | None = None) -> Path:
    """Write `report.html` (or `target`) for a campaign's folder, and the policies that it names, and return its path.

    Raises InputError where the folder holds no campaign or one that cannot be read, RunError where the page cannot be
    written.
    """
    history = read_history(folder)
    texts = [policy_text(history.campaign, trial) for trial in history.best]
    write_policies(folder, history.best, texts)
    page = render(history, texts)
    path = target or folder / REPORT_NAME
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def render(history: History, policies: Sequence[str | None]) -> str:
    """The page; `policies` are those of the best trials, in their order."""
    campaign, done = history.campaign, history.of("done")
    rows = [{"number": one.number, "settings": one.settings, "metrics": one.metrics} for one in done]
    log = [key for key, values in campaign.search.items() if values.log]
    marked = {trial["number"] for trial in history.best}
    shown = [one for one in history.attempts if one.number in marked] if len(history.attempts) > MOST_TRIALS else []
    newest = [one for one in history.attempts if one not in shown][-(MOST_TRIALS - len(shown)) :]
    return page_template("campaign.html.j2").render(
        name=campaign.name,
        status=history.status,
        style={CUT_OFF: "stopped"}.get(history.status, history.status),
        goes_on=history.status == RUNNING,
        resume=_resume(history) if history.status not in (RUNNING, "done") else None,
        reason=history.reason,
        lead=_lead(history),
        tiles=_tiles(history),
        searched=_searched(campaign),
        front=both_sizes(lambda size: draw_front(rows, history.best, campaign.objectives, size)) if rows else [],
        parallel=both_sizes(lambda size: draw_parallel(rows, history.best, campaign.objectives, log, size))
        if rows
        else [],
        importance=[(words_of(name), _bars(shares)) for name, shares in history.importance.items()],
        best=[_best(history, trial, policy) for trial, policy in zip(history.best, policies, strict=True)],
        seeds=", ".join(map(str, campaign.seeds)),
        keys=[(key, label(key)) for key in campaign.search],
        objectives=[(name, words_of(name)) for name in campaign.objectives],
        trials=sorted([*shown, *newest], key=lambda one: one.number),
        left_out=len(history.attempts) - len(shown) - len(newest),
        marked=marked,
        as_job=_as_job(campaign, history.attempts),
        written=_written,
        duration=duration,
        times=_times(history),
        tracking_uri=mask_secrets(campaign.tracking_uri) if campaign.tracking_uri else None,
        run_id=history.run_id,
        campaign_yaml=mask_secrets((history.folder / "campaign.yaml").read_text(encoding="utf-8")),
    )


def _lead(history: History) -> list[tuple[str, str]]:
    """What was asked, in lines."""
    campaign = history.campaign
    changes = ", ".join(f"{key}={_written(value)}" for key, value in campaign.settings.items())
    told = [("Job", mask_secrets(campaign.job + (f", with {changes}" if changes else "")))]
    for name, mode in campaign.objectives.items():
        told.append(("Objective", f"{words_of(name)}, {_DIRECTIONS[mode]} ({OBJECTIVES[name]})"))
    told.append(("Chosen by", f"{_ALGORITHMS[campaign.algorithm]}, seed {campaign.seed}"))
    if campaign.halving is not None:
        grace, share = campaign.halving.grace_samples, campaign.halving.reduction
        told.append(("Halving", f"after {grace:,} rows, and then ever later, one trial in {share} goes on"))
    if campaign.population is not None:
        rules = campaign.population
        told.append(("Population", f"every {rules.every_samples:,} rows the worst {rules.share:.0%} take over others"))
    for at, stream in enumerate(campaign.streams):
        told.append((f"Stream {at}", ", ".join(f"{key}={_written(value)}" for key, value in stream.items())))
    many = "; what counts is the mean" if len(campaign.lives) > 1 else ""
    told.append(
        ("Seeds", f"{', '.join(map(str, campaign.seeds))}: each trial lives through the stream with each{many}")
    )
    return told


def _tiles(history: History) -> list[Tile]:
    campaign = history.campaign
    counts = {"failed": len(history.of("failed")), "fell behind": len(history.of("fell behind"))}
    counts["under way" if history.status == RUNNING else "cut off"] = len(history.of("begun"))
    note = ", ".join(f"{count} {words}" for words, count in counts.items() if count) or "none failed"
    tiles = [Tile("trials that ended", f"{len(history.of('done'))} of {campaign.trials}", note)]
    for name, mode in campaign.objectives.items():
        values = [trial["metrics"][name] for trial in history.best]
        if values:
            best = max(values) if mode == "max" else min(values)
            tiles.append(
                Tile(
                    f"best {words_of(name)}",
                    _figure(best),
                    f"of {plural(len(values), 'trial', 'trials')} that nothing beats",
                )
            )
    spent = sum(one.cpu_seconds for one in history.attempts)
    wall = f"{duration(history.wall_seconds)} by the clock" if history.wall_seconds else "so far"
    return [*tiles, Tile("CPU time of all trials", duration(spent), wall)]


def _searched(campaign: Campaign) -> list[Searched]:
    try:
        job = job_of(campaign, {}, campaign.seeds[0])
    except InputError:  # it was moved, or changed since
        job = None
    return [
        Searched(
            key,
            _range_words(values),
            " and ".join(f"{other} is {' or '.join(map(_written, some))}" for other, some in values.when.items()),
            "not known" if job is None else _written(given(job, key)),
        )
        for key, values in campaign.search.items()
    ]


def _range_words(values: Range) -> str:
    if values.one_of is not None:
        return "one of " + ", ".join(map(_written, values.one_of))
    low, high = values.integers or values.between or (0, 0)
    kind = "whole numbers" if values.integers else "numbers"
    return f"{kind} from {low:g} to {high:g}{', by ratio' * values.log}"


def _bars(shares: Mapping[str, float]) -> list[tuple[str, float, str]]:
    """Name, length and words, the greatest first."""
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    return [(key, 100 * share, f"{100 * share:.0f}%") for key, share in ordered]


def _best(history: History, trial: Mapping[str, Any], policy: str | None) -> Best:
    campaign = history.campaign
    return Best(
        number=trial["number"],
        found=", ".join(f"{words_of(name)} {_figure(trial['metrics'][name])}" for name in campaign.objectives),
        settings=[(key, _written(value)) for key, value in trial["settings"].items()],
        file=policy_path(Path(), trial).as_posix(),
        policy=None if policy is None else mask_secrets(policy),
        command=mask_secrets(run_command(campaign, history.folder, trial)),
    )


def _as_job(campaign: Campaign, attempts: Sequence[Attempt]) -> set[int]:
    """Numbers of the trials that lived as the job does."""
    try:
        job = job_of(campaign, {}, campaign.seeds[0])
    except InputError:
        return set()
    return {
        one.number
        for one in attempts
        if one.settings and all(_written(value) == _written(given(job, key)) for key, value in one.settings.items())
    }


def _times(history: History) -> list[tuple[str, str, str]]:
    """What, how long, and a note."""
    done, others = history.of("done"), [one for one in history.attempts if one.state != "done"]
    spent = [one.cpu_seconds for one in done]
    rows = []
    if history.wall_seconds:
        rows.append(("by the clock", duration(history.wall_seconds), "starts that were killed are not counted"))
    rows.append(("CPU time of all trials", duration(sum(one.cpu_seconds for one in history.attempts)), ""))
    if done:
        rows.append(("of a trial that is done", duration(sum(spent) / len(done)), f"{duration(max(spent))} at most"))
    if others:
        lost = duration(sum(one.cpu_seconds for one in others))
        rows.append(("of trials that are not", lost, f"{plural(len(others), 'trial', 'trials')}"))
    return rows


def _resume(history: History) -> str:
    return f"planaria search {history.folder.resolve() / 'campaign.yaml'} --out {history.folder.resolve()} --resume"


def _figure(value: float) -> str:
    return short_number(value) if abs(value) >= 1_000 else f"{value:.4g}"


def _written(value: object) -> str:
    """A setting or a number as the page shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
