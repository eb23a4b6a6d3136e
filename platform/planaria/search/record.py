"""A campaign in MLflow: its run, a nested run for each trial, below these those of its seeds with their revisions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planaria.job import load_job
from planaria.plain_json import read_json
from planaria.record import MlflowRecorder
from planaria.record.report import REPORT_NAME
from planaria.record.tracking import connect, embedded_uri, experiment_id
from planaria.search.campaign import Campaign
from planaria.search.places import folder_of, lives_in, read_trials
from planaria.search.population import leg_path
from planaria.train.folder import RunFolder

logger = logging.getLogger(__name__)

MARKS = "mlflow.json"
_PARENT = "mlflow.parentRunId"


class CampaignRecord:
    """A campaign in the store. A store that fails is told of, and never fails the campaign: going on with it sends the
    rest."""

    def __init__(self, campaign: Campaign, folder: Path) -> None:
        self.campaign, self.folder = campaign, folder
        self._ready: tuple[str, Any, str, str] | None = None
        """Address of the store, its client, the experiment and the campaign's run."""

    def send_trials(self) -> None:
        """Those that have ended and are not in the store yet."""
        self._guard(self._send_trials)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The rest, and how the campaign ended."""
        self._guard(lambda: self._finish(summary))

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # Stores, databases, networks and disks each have their own errors.
            logger.warning("MLflow: the campaign is not all recorded (%s); --resume sends the rest", error)

    def _open(self) -> tuple[str, Any, str, str]:
        if self._ready is None:
            uri = self.campaign.tracking_uri or embedded_uri(self.folder)
            client = connect(uri)
            experiment = experiment_id(client, uri, self.campaign.experiment)
            marks = _read_marks(self.folder)
            if "run_id" not in marks:
                marks["run_id"] = client.create_run(experiment, run_name=self.campaign.name).info.run_id
                _write_marks(self.folder, marks)
                _log_params(client, marks["run_id"], self.campaign.model_dump(mode="json"))
            self._ready = uri, client, experiment, marks["run_id"]
        return self._ready

    def _send_trials(self) -> None:
        for trial in read_trials(self.folder):
            place = folder_of(self.folder, trial["number"])
            if not _read_marks(place).get("sent"):
                self._send_trial(trial, place)

    def _send_trial(self, trial: Mapping[str, Any], place: Path) -> None:
        uri, client, experiment, parent = self._open()
        known = _read_marks(place)
        if "run_id" not in known:
            name = f"trial {trial['number']}"
            known["run_id"] = client.create_run(experiment, run_name=name, tags={_PARENT: parent}).info.run_id
            _write_marks(place, known)
            _log_params(client, known["run_id"], trial["settings"])
        for key, value in trial.get("metrics", {}).items():
            if value is not None:
                client.log_metric(known["run_id"], key, float(value))
        if "reason" in trial:
            client.set_tag(known["run_id"], "reason", trial["reason"])
        _send_turns(client, known["run_id"], trial, place)
        for life in lives_in(place):
            _send_life(uri, self.campaign.experiment, life, known["run_id"], client)
        client.set_terminated(known["run_id"], "FINISHED" if trial["status"] == "done" else "FAILED")
        _write_marks(place, {**known, "sent": "yes"})

    def _finish(self, summary: Mapping[str, Any]) -> None:
        _, client, _, parent = self._open()
        self._send_trials()
        client.log_metric(parent, "done", float(summary["done"]))
        client.log_metric(parent, "failed", float(len(summary["failed"])))
        client.log_text(parent, json.dumps(dict(summary), indent=1), "summary.json")
        for shown in [*sorted(self.folder.glob("*.png")), *self.folder.glob(REPORT_NAME)]:
            client.log_artifact(parent, str(shown))
        client.set_terminated(parent, "FINISHED" if summary["status"] == "done" else "KILLED")


def _send_turns(client: Any, run_id: str, trial: Mapping[str, Any], place: Path) -> None:
    """Of a population: the score of every leg, and whom the trial went on as."""
    turns = trial.get("turns", [])
    for one in turns:
        score = RunFolder(place).read_json(leg_path(place, one["turn"])).get("score")
        if score is not None:
            client.log_metric(run_id, "leg_score", float(score), step=one["turn"])
    if turns:
        taken_over = [str(one["from"]) for one in turns if "from" in one]
        client.set_tag(run_id, "parent_trial", ", ".join(taken_over) or "none")
        client.log_text(run_id, json.dumps(turns, indent=1), "turns.json")


def _log_params(client: Any, run_id: str, values: Mapping[str, Any]) -> None:
    """In as few calls as can be: each is a transaction."""
    from mlflow.entities import Param

    texts = {key: json.dumps(value) if isinstance(value, dict | list) else str(value) for key, value in values.items()}
    client.log_batch(run_id, params=[Param(key, text) for key, text in texts.items()])


def _send_life(uri: str, experiment: str, folder: Path, trial_run: str, client: Any) -> None:
    if not (folder / "summary.json").exists():
        return
    recorder = MlflowRecorder(uri, experiment, folder)
    job = load_job(folder / "job.yaml").model_dump(mode="json")
    job["record"]["register_model"] = False
    run_id = recorder.start(folder.name, job)
    if run_id is None or not recorder.finish(str(read_json(folder / "summary.json")["status"])):
        raise OSError(f"{folder} could not be sent")
    client.set_tag(run_id, _PARENT, trial_run)


def _read_marks(folder: Path) -> dict[str, str]:
    path = folder / MARKS
    return dict(read_json(path)) if path.exists() else {}


def _write_marks(folder: Path, marks: Mapping[str, str]) -> None:
    (folder / MARKS).write_text(json.dumps(dict(marks), indent=1))
