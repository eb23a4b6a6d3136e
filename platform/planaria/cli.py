"""The `planaria` command. It reads what the user gave, calls one function, and exits with its status.

0: done. 1: a run that failed. 2: bad input, nothing was started. What is slow to import is imported by the command
that needs it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.text import Text

from planaria.addresses import mask_secrets
from planaria.errors import InputError, RunError
from planaria.plain_yaml import one_line
from planaria.uri import absolute, is_uri, local_path, name_of

if TYPE_CHECKING:
    from planaria.submit import Cluster
    from planaria.train.folder import RunFolder
    from planaria.train.result import RunResult

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
QUIET_TOO_LONG_S = 60.0

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]
Address = Annotated[str | None, Parameter(help="A Ray cluster, such as http://127.0.0.1:8265 for submitted jobs.")]
Settings = Annotated[str, Parameter(help="Changes to the job: key.path=value, such as policy.heads.max=8.")]


def _version() -> str:
    try:
        return version("planaria")
    except PackageNotFoundError:  # sent to a cluster as plain files
        return "unknown"


app = App(name="planaria", help="Continual learning on Ray, with a model that grows and shrinks its own heads.")
app.version = _version


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: run a command and exit with its status."""
    sys.exit(call(sys.argv[1:] if arguments is None else list(arguments)))


def call(arguments: list[str]) -> int:
    """Run a command; its exit status. Whatever goes wrong becomes one line."""
    as_json = "--json" in arguments
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return status if isinstance(status, int) else DONE
    except CycloptsError as error:
        return _complain(f"command line: {one_line(str(error))}", BAD_INPUT, as_json)
    except InputError as error:
        return _complain(str(error), BAD_INPUT, as_json)
    except RunError as error:
        return _complain(str(error), FAILED, as_json)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED, as_json)
    except MemoryError as error:
        why = one_line(str(error)) or "no more could be had"
        return _complain(f"memory: there is not enough ({why}); lower what the job asks for", FAILED, as_json)
    except Exception as error:
        _err().print(mask_secrets(traceback.format_exc()), soft_wrap=True, highlight=False, markup=False)
        return _complain(f"unexpected {type(error).__name__}: {one_line(str(error))}", FAILED, as_json)


@app.command
def run(
    job: Path,
    /,
    *settings: Settings,
    out: str | None = None,
    workers: int | None = None,
    address: Address = None,
    as_json: Json = False,
) -> int:
    """Run a job to its end, or for ever where its stream has none. Ctrl-C stops it at a checkpoint.

    Parameters
    ----------
    job
        The job's YAML file.
    out
        The run's folder, here or a URI that pyarrow.fs knows. Default: a new one in the job's storage.folder.
    workers
        Ray Train workers; 0 runs in this process without Ray.
    """
    if workers is not None and workers < 0:
        raise InputError(f"command line: --workers: {workers} is not allowed; give a whole number of at least 0")
    from planaria.job import load_job

    loaded = load_job(job, settings)
    with _progress(loaded.name, as_json) as progress:
        from planaria.train import launch

        result = launch.run(loaded, out=out, workers=workers, address=address, progress=progress)
    return _show_result(result, as_json)


@app.command(name="meta-train")
def meta_train(
    job: Path,
    /,
    *settings: Annotated[str, Parameter(help="Changes to the job: key.path=value, such as streams=8.")],
    out: Path | None = None,
    as_json: Json = False,
) -> int:
    """Learn from simulated streams what an edit of a model is worth. Given again, it goes on where it was stopped.

    Parameters
    ----------
    job
        The meta-training's YAML file.
    out
        Its folder. Default: one named after the job in its `folder`.
    """
    from planaria.meta.campaign import meta_train as train
    from planaria.meta.job import load_meta_job

    tell = Console(stderr=True).print
    summary = train(load_meta_job(job, settings), out, tell=tell)
    lines = [f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}" for key, value in summary.items()]
    _show(summary, "\n".join(lines), as_json)
    return DONE


@app.command
def search(
    campaign: Path,
    /,
    *settings: Annotated[str, Parameter(help="Changes to the campaign: key.path=value, such as trials=8.")],
    out: Path | None = None,
    resume: bool = False,
    as_json: Json = False,
) -> int:
    """Search a job's settings for the best: many trials, each a lifelong run. Ctrl-C keeps everything.

    Parameters
    ----------
    campaign
        The campaign's YAML file.
    out
        Its folder. Default: one named after the campaign in its `folder`.
    resume
        Go on with the campaign in that folder (default: the newest of its name) where it was stopped or killed.
    """
    from planaria.search import load_campaign
    from planaria.search import search as run_campaign

    tell = Console(stderr=True).print
    summary = run_campaign(load_campaign(campaign, settings), out, resume=resume, tell=tell)
    lines = [f"{summary['status']}: {summary['done']} of {summary['trials']} trials, {len(summary['failed'])} failed"]
    for trial in summary["best"]:
        values = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in summary["objectives"])
        lines.append(f"{values}: {trial['policy']}")
    _show(summary, "\n".join(lines), as_json)
    return DONE


@app.command
def resume(folder: str, /, *, address: Address = None, as_json: Json = False) -> int:
    """Go on with a run that was stopped or killed, from its newest checkpoint.

    Parameters
    ----------
    folder
        The run's folder, or its URI.
    address
        Of a Ray cluster to join, or of a cluster's dashboard (http://...): then the resume is handed in as a job, whose
        id is printed. The cluster's nodes must see the folder under the same path, or reach the URI.
    """
    if address is not None and address.startswith(("http://", "https://")):
        job_id = _cluster(address).submit_resume(absolute(folder))
        _show({"id": job_id, "address": address}, job_id, as_json)
        return DONE
    with _progress(name_of(absolute(folder)), as_json) as progress:
        from planaria.train import launch

        result = launch.resume(folder, address=address, progress=progress)
    return _show_result(result, as_json)


@app.command
def report(run: str, /, *, out: Path | None = None, tracking_uri: str | None = None, as_json: Json = False) -> int:
    """Write the report of a run or a campaign: one HTML page that needs nothing else.

    Parameters
    ----------
    run
        The run's folder or URI, or its MLflow run id, or a campaign's folder.
    out
        The page's path. Default: report.html in the folder, or in the current one for a URI or a run id.
    tracking_uri
        For a run id: the MLflow store. Default: the environment's MLFLOW_TRACKING_URI.
    """
    from planaria.record.report import write_report, write_report_for_run

    folder = local_path(run)
    if is_uri(run):
        with _run_folder(run) as there:
            path = write_report(there.path, out or Path("report.html"))
    elif (folder / "campaign.yaml").is_file():
        from planaria.search.report import write_campaign_report

        path = write_campaign_report(folder, out)
    elif folder.is_dir():
        if not any((folder / name).exists() for name in ("job.yaml", "summary.json", "steps.parquet")):
            raise InputError(
                f"{run}: is neither a run's folder (job.yaml is missing) nor a campaign's (campaign.yaml is missing); "
                "give one of these"
            )
        path = write_report(folder, out)
    else:
        store = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if store is None:
            raise InputError(f"{run}: there is no such folder; for an MLflow run id give --tracking-uri too")
        path = write_report_for_run(run, store, out or Path("report.html"))
    _show({"report": str(path.absolute())}, str(path.absolute()), as_json)
    return DONE


@app.command
def explain(folder: str, /, *, step: int | None = None, as_json: Json = False) -> int:
    """Say why a decision was taken: what was seen, what each option promised, what was chosen and what it brought.

    Parameters
    ----------
    folder
        The run's folder or URI. `planaria logs` lists its decisions.
    step
        The step of the decision. Default: the newest one.
    """
    from planaria.record.explain import explanation, find_decision

    with _run_folder(folder) as place:
        decision = find_decision(place.path, step)
    if as_json:
        _show(decision, "", as_json)
    else:
        _out().print(explanation(decision), highlight=False)
    return DONE


@app.command
def submit(job: Path, /, *settings: Settings, address: str, follow: bool = False, as_json: Json = False) -> int:
    """Hand a job to a Ray cluster; prints the id by which status, logs and stop know it.

    Parameters
    ----------
    job
        The job's YAML file. The cluster's nodes must see its data and its storage.folder.
    address
        The cluster's dashboard, such as http://127.0.0.1:8265.
    follow
        Show what the job prints until it ends, and exit with its status.
    """
    from planaria.job import load_job

    loaded = load_job(job, settings)
    cluster = _cluster(address)
    job_id = cluster.submit_job(loaded)
    if follow:
        if not as_json:
            _err().print(f"submitted {job_id}", highlight=False)
        return _follow(cluster, job_id, as_json)
    _show({"id": job_id, "address": address}, job_id, as_json)
    return DONE


@app.command
def status(run: str, /, *, address: Address = None, as_json: Json = False) -> int:
    """Say how a run is doing.

    Parameters
    ----------
    run
        The run's folder or URI, or with --address the id of a submitted job.
    """
    if address is not None:
        state = _cluster(address).status(run)
        _show(state, _job_line(state), as_json)
        return DONE
    with _run_folder(run) as folder:
        live, summary = folder.read_json(folder.live), folder.read_json(folder.summary)
    ended = summary.get("status") in ("done", "stopped", "failed")
    state = summary if ended or not live else live
    if not state:
        raise InputError(f"{folder.place}: the run has not written anything yet; ask again in a few seconds")
    if as_json:
        _show({"folder": folder.place, **state}, "", as_json)
        return DONE
    from planaria import screen

    if state is summary:
        _out().print(screen.summary_table(summary))
        return DONE
    quiet_s = time.time() - float(live.get("time", time.time()))
    _out().print(f"{live.get('status')}: {screen.progress_line(live)}", highlight=False, soft_wrap=True)
    if quiet_s > QUIET_TOO_LONG_S:
        go_on = f"{_program('planaria')} resume {shlex.quote(folder.place)}"
        _out().print(f"no sign of life for {quiet_s:,.0f} s; if it died: {go_on}", highlight=False, soft_wrap=True)
    return DONE


@app.command
def logs(run: str, /, *, address: Address = None, follow: bool = False) -> int:
    """Show what happened in a run: shifts, decisions and why. Of a submitted job: all that it printed.

    Parameters
    ----------
    run
        The run's folder or URI, or with --address the id of a submitted job.
    follow
        With --address: go on until the job ends, and exit with its status.
    """
    if address is None:
        if follow:
            raise InputError("command line: --follow: needs --address; a run's folder shows what it holds by now")
        with _run_folder(run) as folder:
            for line in _history(folder.path):
                _out().print(line, highlight=False, soft_wrap=True, markup=False)
        return DONE
    cluster = _cluster(address)
    if follow:
        return _follow(cluster, run, as_json=False)
    _write(cluster.logs(run))
    return DONE


@app.command
def stop(run: str, /, *, address: Address = None, as_json: Json = False) -> int:
    """Ask a run to stop at a checkpoint; `planaria resume` goes on from there.

    Parameters
    ----------
    run
        The run's folder or URI, or with --address the id of a submitted job.
    """
    if address is not None:
        asked = _cluster(address).stop(run)
        _show({"id": run, "asked": asked}, f"{run}: {'asked to stop' if asked else 'had ended already'}", as_json)
        return DONE
    with _run_folder(run) as folder:
        ended = folder.read_json(folder.summary).get("status")
        asked = ended not in ("done", "failed")
        if asked:
            folder.ask_to_stop()
    text = f"{folder.place}: {'asked to stop at its next checkpoint' if asked else f'had ended already ({ended})'}"
    _show({"folder": folder.place, "asked": asked}, text, as_json)
    return DONE


@app.command
def compare(
    job: Path,
    /,
    *settings: Settings,
    policies: Annotated[list[str], Parameter(consume_multiple=True)] | None = None,
    peers: Annotated[list[str], Parameter(consume_multiple=True)] | None = None,
    seeds: Annotated[list[int], Parameter(consume_multiple=True)] | None = None,
    avalanche: Annotated[str | None, Parameter(env_var="PLANARIA_AVALANCHE_PYTHON")] = None,
    capymoa: Annotated[str | None, Parameter(env_var="PLANARIA_CAPYMOA_PYTHON")] = None,
    processes: int | None = None,
    out: Path = Path("compare"),
    as_json: Json = False,
) -> int:
    """Run one stream through several policies, and through learners of other libraries, and show them side by side.

    Parameters
    ----------
    job
        The job's YAML file: its stream, model and evaluation are the same for all policies.
    policies
        Names or files of policies, each with changes after commas: balanced balanced,learner.loss=der++
    peers
        Learners of other libraries: river:arf river:srp river:logistic_regression (tables only); capymoa:arf
        capymoa:srp capymoa:leveraging_bagging (classes of tables only); avalanche:replay avalanche:der++
        avalanche:er_ace avalanche:naive (classes only). The last two kinds take changes after commas:
        avalanche:replay,rate=0.1,memory_rows=500 capymoa:arf,models=100
    seeds
        Each contestant runs with each of them. Default: 0 1 2.
    avalanche
        A Python that has avalanche-lib 0.6, for its learners. Default: this one.
    capymoa
        A Python that has capymoa 0.15, for its learners. Default: this one.
    processes
        Runs at a time. Default: the number of cores.
    out
        Folder for compare.json and compare.png.
    """
    from planaria.compare import Contest
    from planaria.compare import compare as run_all
    from planaria.compare.screen import table

    if processes is not None and processes < 1:
        raise InputError(f"command line: --processes: {processes} is not allowed; give a whole number of at least 1")
    own = ["balanced"] if policies is None and peers is None else policies or []
    contest = Contest(job, settings, tuple(own), tuple(peers or []), tuple(seeds or (0, 1, 2)), avalanche, capymoa)
    results = run_all(contest, out, processes=processes, tell=Console(stderr=True).print)
    if as_json:
        _show({"folder": str(out), **{key: results[key] for key in ("score", "contestants")}}, "", as_json)
        return DONE
    _out().print(table(results))
    _out().print(f"{out / 'compare.png'}, {out / 'compare.json'}", soft_wrap=True, highlight=False)
    return DONE


@app.command
def export(
    folder: str, /, *, to: str, out: Path | None = None, checkpoint: int | None = None, as_json: Json = False
) -> int:
    """Write a run's model for other programs, checked against the live model; the run may still go on.

    Parameters
    ----------
    folder
        The run's folder or URI.
    to
        safetensors, torch-export, onnx or int8 (see docs/export.md).
    out
        The file (safetensors: the folder) to write. Default: one in `export` in the run's folder, or here for a URI.
    checkpoint
        The step of a checkpoint. Default: the newest one.
    """
    from planaria.deploy import export as write
    from planaria.deploy.show import table

    made = write(folder, to, out, checkpoint)
    if as_json:
        _show(asdict(made), "", as_json)
        return DONE
    _out().print(table(made))
    _out().print(made.path, soft_wrap=True, highlight=False)
    return DONE


@app.command
def fetch(*names: str, as_json: Json = False) -> int:
    """Fetch data sets for jobs that name them; without a name, list those that there are.

    Parameters
    ----------
    names
        The sets to fetch, such as fashion_mnist.
    """
    from planaria.stream import NAMES
    from planaria.stream import fetch as fetch_set

    if not names:
        _show({"sets": list(NAMES)}, "\n".join(NAMES), as_json)
        return DONE
    places: dict[str, str] = {}
    for name in names:
        places[name] = str(fetch_set(name))
        if not as_json:
            _write(f"{name}: {places[name]}\n")
    if as_json:
        _show(places, "", as_json)
    return DONE


@app.command
def doctor(*, as_json: Json = False) -> int:
    """Check what works on this machine, and say what to do about the rest."""
    from planaria.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _out().print(finding.text, soft_wrap=True)
    failed = any(finding.level == "fail" for finding in findings)
    if as_json:
        _show({"ok": not failed, "checks": [asdict(finding) for finding in findings]}, "", as_json)
    return FAILED if failed else DONE


@contextmanager
def _progress(name: str, as_json: bool) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """What a run tells how it is doing; nothing where JSON was asked for."""
    if as_json:
        yield None
        return
    from planaria.screen import Screen

    with Screen(_out(), name) as screen:
        yield screen


def _show_result(result: RunResult, as_json: bool) -> int:
    """A run's end: what came out, and what to do with it."""
    status = FAILED if result.status == "failed" else DONE
    report_path = str(result.report) if result.report else None
    if as_json:
        facts = {"folder": str(result.folder), "status": result.status, "report": report_path}
        _show({**facts, "summary": result.summary}, "", as_json)
        return status
    from planaria.screen import summary_table

    _out().print(summary_table(result.summary))
    mlflow = _mlflow_command(result.folder) if isinstance(result.folder, Path) else None
    next_steps = [("folder", str(result.folder)), ("report", report_path), ("MLflow", mlflow)]
    if result.status == "stopped":
        next_steps.append(("go on", f"{_program('planaria')} resume {shlex.quote(str(result.folder))}"))
    for name, text in next_steps:
        if text:
            _out().print(Text.assemble(("  " + name.ljust(8), "dim"), text), soft_wrap=True, highlight=False)
    return status


def _mlflow_command(folder: Path) -> str | None:
    """What opens the run's own store in a browser; None where the run recorded to a server."""
    store = folder.absolute() / "mlflow.db"
    if not store.exists():
        return None
    return f"{_program('mlflow')} ui --host 127.0.0.1 --backend-store-uri {shlex.quote(f'sqlite:///{store}')}"


def _program(name: str) -> str:
    """How to call a program of this environment from here: by its name where the shell would find the same one."""
    ours = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not ours.exists() or (found and Path(found).samefile(ours)):
        return name
    return os.path.relpath(ours) if ours.is_relative_to(Path.cwd()) else str(ours)


def _cluster(address: str) -> Cluster:
    from planaria.submit import Cluster, choose_authentication

    choose_authentication()
    return Cluster(address)


def _follow(cluster: Cluster, job_id: str, as_json: bool) -> int:
    state = cluster.follow(job_id, (lambda text: None) if as_json else _write)
    _show(state, _job_line(state), as_json)
    return DONE if state["status"] == "SUCCEEDED" else FAILED


def _job_line(state: dict[str, Any]) -> str:
    ran_s = (state["ended"] or time.time()) - state["started"] if state["started"] else 0.0
    return f"{state['id']}: {state['status']} after {ran_s:,.0f} s. {state['message']}"


@contextmanager
def _run_folder(given: str) -> Iterator[RunFolder]:
    from planaria.train.folder import working_copy

    with working_copy(given) as folder:
        if not folder.job.is_file():
            raise InputError(
                f"{given}: is no run's folder (job.yaml is missing); for a submitted job give --address too"
            )
        yield folder


def _history(folder: Path) -> list[str]:
    """A line for each shift, decision and revision in the run's tables, in the order of the stream."""
    from planaria.record.tables import read_rows
    from planaria.signals import TOLD

    told = [
        (
            row["sample"],
            0,
            f"{row['kind']} shift: told by the stream"
            if row["detector"] == TOLD
            else f"{row['kind']} shift: {row['detector']} {row['statistic']:.4g} passed {row['threshold']:.4g}",
        )
        for row in read_rows(folder, "shifts")
    ]
    told += [
        (row["sample"], 1, f"step {row['step']:,}: {row['chosen']}, after {row['trigger']}: {row['why']}")
        for row in read_rows(folder, "decisions")
    ]
    told += [
        (row["sample"], 2, f"revision {row['number']}: heads {row['heads']}, {row['parameters']:,} parameters")
        for row in read_rows(folder, "revisions")
    ]
    return [f"{sample:>12,}  {what}" for sample, _, what in sorted(told)]


def _complain(message: str, status: int, as_json: bool) -> int:
    message = mask_secrets(message)
    if as_json:
        _write(json.dumps({"error": message, "status": status}) + "\n")
    else:
        _err().print(message, soft_wrap=True, highlight=False, markup=False)
    return status


def _show(values: dict[str, Any], text: str, as_json: bool) -> None:
    _write((json.dumps(values) if as_json else text) + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _out() -> Console:
    return Console()


def _err() -> Console:
    return Console(stderr=True)


if __name__ == "__main__":
    main()
