"""One self-contained page about a run, from what lies in its folder: of a run that goes on or failed as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from planaria.addresses import mask_secrets
from planaria.errors import InputError
from planaria.own_folder import check_no_links
from planaria.plain_json import read_json
from planaria.plain_yaml import load_yaml, one_line, read_text
from planaria.record import outcome_plots, outcomes, plots, story
from planaria.record.cards import cards
from planaria.record.facts import SHIFT_SYMBOLS, Run
from planaria.record.page import both_sizes, page_template
from planaria.record.tables import read_rows, write_atomically

REPORT_NAME = "report.html"
MOST_REVISIONS = 300
FEWEST_FOR_REGRET = 2
"""Decisions whose values are known."""
STATUSES = ("running", "done", "stopped", "failed")


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Write `report.html` (or `target`) for a run's folder and return its path.

    Raises InputError where the folder does not exist or a file in it is broken, RunError where the page cannot be
    written.
    """
    run = read_run(folder)
    try:
        page = render(run)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{folder}: holds what no run writes ({one_line(str(error))})") from error
    path = target or folder / REPORT_NAME
    write_atomically(path, lambda file: file.write(page.encode()))
    return path


def read_run(folder: Path) -> Run:
    """What a run's folder holds so far. Nothing but the folder itself must exist."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the folder of a run")
    check_no_links(folder)
    summary, job_yaml = _read_json(folder / "summary.json"), _read_job(folder / "job.yaml")
    job, store = _parse_job(job_yaml), _read_json(folder / "mlflow.json")
    steps = read_rows(folder, "steps")
    return Run(
        name=str(job.get("name") or folder.resolve().name),
        status=str(summary.get("status") or ("running" if steps else "not started")),
        summary=summary,
        steps=steps,
        revisions=read_rows(folder, "revisions"),
        shifts=read_rows(folder, "shifts"),
        decisions=read_rows(folder, "decisions"),
        job_yaml=job_yaml,
        tracking_uri=store.get("tracking_uri"),
        run_id=summary.get("mlflow_run_id") or store.get("run_id"),
    )


def render(run: Run) -> str:
    """The page. All text of the run is escaped; nothing is loaded from anywhere."""
    events, older_events = story.timeline(run)
    edits, older_edits = cards(run, edits=True)
    kept, older_kept = cards(run, edits=False)
    return page_template("report.html.j2").render(
        run=run,
        known_status=run.status in STATUSES,
        reason=run.summary.get("reason") or run.summary.get("error"),
        lead=story.lead(run),
        tiles=story.tiles(run),
        figures=_figures(run),
        kinds=[(kind, symbol) for kind, symbol in SHIFT_SYMBOLS.items() if _has(run.shifts, kind)],
        events=events,
        older_events=older_events,
        edits=edits,
        older_edits=older_edits,
        kept=kept,
        older_kept=older_kept,
        hindsight=_hindsight(run),
        revisions=run.revisions[-MOST_REVISIONS:],
        contexts=story.context_bars(run),
        forgetting=story.mean_forgetting(run),
        costs=story.costs(run),
    )


def write_report_for_run(run_id: str, tracking_uri: str, target: Path) -> Path:
    """Write the report of a run that is known by its MLflow id, from the records it left in the store.

    Raises InputError where the store or the run cannot be read, or holds no records of ours.
    """
    from planaria.record.mlflow_store import fetched_records

    with fetched_records(run_id, tracking_uri) as folder:
        return write_report(folder, target)


def _figures(run: Run) -> list[tuple[str, Markup]]:
    """(class, SVG) for wide and for narrow screens; none before the first interval."""
    if not run.steps:
        return []
    return both_sizes(
        lambda size: plots.draw_run(run.steps, run.shifts, run.revisions, regression=run.regression, size=size)
    )


def _hindsight(run: Run) -> dict[str, Any]:
    """What the part on predicted and realised gains shows. Without decisions it is left out."""
    found, regret = outcomes.outcomes(run.decisions), outcomes.regret(run.decisions)
    between, after = ([o for o in found if o.after_shift == side] for side in (False, True))
    counts = {kind: sum(o.kind == kind for o in found) for kind in outcomes.KINDS}
    enough = len(regret.estimated) >= FEWEST_FOR_REGRET
    return {
        "figures": both_sizes(lambda size: outcome_plots.draw_outcomes(found, size)) if found else [],
        "kinds": [(kind, count) for kind, count in counts.items() if count],
        "count": len(found),
        "kept": len(run.decisions),
        "numbers": [
            (name, outcomes.agreement_words(some))
            for name, some in (("between shifts", between), ("after a shift", after), ("all together", found))
        ],
        "most": outcome_plots.MOST_MARKERS,
        "thinned": any(
            sum(o.kind == kind for o in side) > outcome_plots.MOST_MARKERS
            for side in (between, after)
            for kind in outcomes.KINDS
        ),
        "regret": regret,
        "regret_figures": both_sizes(lambda size: outcome_plots.draw_regret(regret, run.samples, size))
        if enough
        else [],
    }


def _has(shifts: Any, kind: str) -> bool:
    return any(row["kind"] == kind for row in shifts)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); resume the run to write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is not a JSON object; resume the run to write it again")
    return value


def _read_job(path: Path) -> str:
    try:
        return mask_secrets(read_text(path)) if path.exists() else ""
    except InputError as error:
        raise InputError(f"{error}; put the run's job file there") from None


def _parse_job(text: str) -> Mapping[str, Any]:
    """The job as a mapping; an empty one where the text is no YAML mapping, since the report can do without."""
    try:
        job = load_yaml(text, "job.yaml") if text else {}
    except InputError:
        return {}
    return job if isinstance(job, dict) else {}
