"""A campaign in MLflow: its run, a nested run for each trial, below these those of its seeds with their revisions."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from planaria.job import load_job
from planaria.record import MlflowRecorder
from planaria.record.report import REPORT_NAME
from planaria.record.tracking import connect, embedded_uri, experiment_id
from planaria.search.campaign import Campaign
from planaria.search.trial import folder_of, read_trials

logger = logging.getLogger(__name__)

MARKS = "mlflow.json"
_PARENT = "mlflow.parentRunId"


def record(campaign: Campaign, folder: Path, summary: Mapping[str, Any]) -> None:
    """Send what the store does not hold yet. A store that fails is told of, and never fails the campaign: going on with
    it sends the rest."""
    try:
        _send(campaign, folder, summary)
    except Exception as error:  # Stores, databases, networks and disks each have their own errors.
        logger.warning("MLflow: the campaign is not all recorded (%s); --resume sends the rest", error)


def _send(campaign: Campaign, folder: Path, summary: Mapping[str, Any]) -> None:
    uri = campaign.tracking_uri or embedded_uri(folder)
    client = connect(uri)
    experiment = experiment_id(client, uri, campaign.experiment)
    marks = _read_marks(folder)
    if "run_id" not in marks:
        marks["run_id"] = client.create_run(experiment, run_name=campaign.name).info.run_id
        _write_marks(folder, marks)
        for key, value in campaign.model_dump(mode="json").items():
            client.log_param(marks["run_id"], key, json.dumps(value) if isinstance(value, dict | list) else value)
    parent = marks["run_id"]
    for trial in read_trials(folder):
        place = folder_of(folder, trial["number"])
        known = _read_marks(place)
        if known.get("sent"):
            continue
        if "run_id" not in known:
            name = f"trial {trial['number']}"
            known["run_id"] = client.create_run(experiment, run_name=name, tags={_PARENT: parent}).info.run_id
            _write_marks(place, known)
            for key, value in trial["settings"].items():
                client.log_param(known["run_id"], key, json.dumps(value) if isinstance(value, dict | list) else value)
        for key, value in trial.get("metrics", {}).items():
            if value is not None:
                client.log_metric(known["run_id"], key, float(value))
        if "reason" in trial:
            client.set_tag(known["run_id"], "reason", trial["reason"])
        for seed_folder in sorted(place.glob("seed-*")):
            _send_seed(uri, campaign.experiment, seed_folder, known["run_id"], client)
        client.set_terminated(known["run_id"], "FINISHED" if trial["status"] == "done" else "FAILED")
        _write_marks(place, {**known, "sent": "yes"})
    client.log_metric(parent, "done", float(summary["done"]))
    client.log_metric(parent, "failed", float(len(summary["failed"])))
    client.log_text(parent, json.dumps(dict(summary), indent=1), "summary.json")
    for shown in [*sorted(folder.glob("*.png")), *folder.glob(REPORT_NAME)]:
        client.log_artifact(parent, str(shown))
    client.set_terminated(parent, "FINISHED" if summary["status"] == "done" else "KILLED")


def _send_seed(uri: str, experiment: str, folder: Path, trial_run: str, client: Any) -> None:
    if not (folder / "summary.json").exists():
        return
    recorder = MlflowRecorder(uri, experiment, folder)
    job = load_job(folder / "job.yaml").model_dump(mode="json")
    job["record"]["register_model"] = False
    run_id = recorder.start(folder.name, job)
    if run_id is None or not recorder.finish(str(json.loads((folder / "summary.json").read_text())["status"])):
        raise OSError(f"{folder} could not be sent")
    client.set_tag(run_id, _PARENT, trial_run)


def _read_marks(folder: Path) -> dict[str, str]:
    path = folder / MARKS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _write_marks(folder: Path, marks: Mapping[str, str]) -> None:
    (folder / MARKS).write_text(json.dumps(dict(marks), indent=1))
