"""One run in an MLflow store. Every method may be called again with the same values: nothing is stored twice."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planaria.addresses import mask_secrets
from planaria.plain_json import read_json
from planaria.record.tables import Row, to_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATUSES = {"running": "RUNNING", "done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

BATCH_METRICS = 1_000
"""MLflow's limit for one call."""
PARAMETER_CHARACTERS = 500
MOST_LAYERS = 16
"""Layers whose heads get a metric each."""

KEY_TAG, REVISION_TAG, DESCRIBED_TAG = "planaria.key", "planaria.revision", "planaria.described"
_PARENT_TAG, _NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"

_STREAM_METRICS = (
    "samples",
    "loss",
    "accuracy",
    "mae",
    "rmse",
    "prequential_loss",
    "prequential_accuracy",
    "prequential_mae",
    "prequential_rmse",
    "samples_per_second",
    "parameters",
    "flops_per_sample",
    "revision",
)
_AT_BIRTH = {
    "first_step": "step",
    "first_sample": "sample",
    "parameters": "parameters",
    "flops_per_sample": "flops_per_sample",
    "gain_predicted": "gain_predicted",
    "gain_realised": "gain_realised",
}
_AT_DEATH = ("last_step", "last_sample", "samples", "accuracy", "mae", "rmse", "loss", "samples_per_second")


@dataclass
class _Revision:
    """What the store holds of a revision."""

    run_id: str
    status: str
    described: bool = False
    metrics: set[str] = field(default_factory=set)


class StoredRun:
    """The parent run of a stream, with its nested runs. Raises whatever the store raises."""

    def __init__(self, client: MlflowClient, experiment: str, key: str, name: str) -> None:
        """Find the run that has this key, or make it; and learn what the store holds of it already."""
        self._client, self._experiment = client, experiment
        run = self._find(key) or client.create_run(experiment, tags={KEY_TAG: key}, run_name=name)
        self.run_id: str = run.info.run_id
        self._started_ms = int(run.info.start_time)
        self._params: dict[str, str] = dict(run.data.params)
        self._status: str = run.info.status
        self._last_step = self._last_step_of("samples")
        self._last_shift: dict[str, int] = {}
        self._revisions = {int(r.data.tags[REVISION_TAG]): _known_revision(r) for r in self._nested()}
        self._clock: tuple[list[int], list[float]] = ([], [])

    def describe(self, job: Mapping[str, Any]) -> None:
        """Send the job as parameters. One that has another value by now, which MLflow refuses, becomes a tag."""
        from mlflow.entities import Param, RunTag

        values = flatten(job)
        params = [Param(name, value) for name, value in values.items() if name not in self._params]
        changed = {name: value for name, value in values.items() if self._params.get(name, value) != value}
        for some in _chunks(params, 100):
            self._client.log_batch(self.run_id, params=some)
        tags = [RunTag(f"changed.{name}", value) for name, value in changed.items()]
        if tags:
            self._client.log_batch(self.run_id, tags=tags)
        self._params |= values

    def reopen(self) -> None:
        """Let a run that had ended run again."""
        if self._status != "RUNNING":
            self._client.update_run(self.run_id, status="RUNNING")
            self._status = "RUNNING"

    def send_steps(self, rows: Sequence[Row]) -> None:
        """Send the stream's metrics of the steps that the store does not have."""
        from mlflow.entities import Metric

        self._clock = ([row["samples"] for row in rows], [row["wall_seconds"] or 0.0 for row in rows])
        batch: list[Any] = []
        last = self._last_step
        for row in rows:
            if row["step"] <= self._last_step:
                continue
            when = self._time_ms(row["samples"])
            metrics = [Metric(name, value, when, row["step"]) for name, value in _stream_values(row).items()]
            # One call is one transaction: the metrics of a step go together.
            if batch and len(batch) + len(metrics) > BATCH_METRICS:
                self._client.log_batch(self.run_id, metrics=batch)
                batch, self._last_step = [], last
            batch, last = batch + metrics, row["step"]
        if batch:
            self._client.log_batch(self.run_id, metrics=batch)
            self._last_step = last

    def send_shifts(self, rows: Sequence[Row]) -> None:
        """Send each new alarm as a metric of its kind: the statistic, at the step of the alarm."""
        from mlflow.entities import Metric

        for kind in sorted({row["kind"] for row in rows}):
            name = f"shift_{kind}"
            if name not in self._last_shift:
                self._last_shift[name] = self._last_step_of(name)
            new = [row for row in rows if row["kind"] == kind and row["step"] > self._last_shift[name]]
            metrics = [Metric(name, row["statistic"], self._time_ms(row["sample"]), row["step"]) for row in new]
            for some in _chunks(metrics, BATCH_METRICS):
                self._client.log_batch(self.run_id, metrics=some)
                self._last_shift[name] = some[-1].step

    def send_revisions(self, rows: Sequence[Row], ended: str | None = None) -> None:
        """Send what is new of each revision. One that still lives ends with the run, as `ended`, where given."""
        for row in rows:
            lives = row["last_step"] is None
            status = (ended or "RUNNING") if lives else "FINISHED"
            known = self._revisions.get(row["number"]) or self._create(row)
            if not known.described:
                self._describe_revision(row, known)
            self._send_revision_metrics(row, known)
            if known.status == status:
                continue
            if status == "RUNNING":
                self._client.update_run(known.run_id, status=status)
            else:
                self._client.set_terminated(known.run_id, status=status, end_time=self._time_ms(row["last_sample"]))
            known.status = status

    def send_summary(self, summary: Mapping[str, Any], samples: int) -> None:
        """Send the summary's numbers as metrics at the last step."""
        from mlflow.entities import Metric, RunTag

        step, when = int(summary.get("steps") or 0), self._time_ms(samples)
        numbers = {name: value for name, value in summary.items() if _is_number(value)}
        metrics = [
            Metric(_name(key), value, when, step) for key, value in numbers.items() if key not in _STREAM_METRICS
        ]
        for prefix in ("accuracy", "mae"):
            per_context = summary.get(f"{prefix}_per_context")
            if isinstance(per_context, Mapping):
                metrics += [Metric(_name(f"{prefix}_in_{c}"), v, when, step) for c, v in per_context.items()]
        tags = [
            RunTag(f"planaria.{name}", str(summary[name])) for name in ("status", "seed", "workers") if name in summary
        ]
        for some in _chunks(metrics, BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=some)
        self._client.log_batch(self.run_id, tags=tags)

    def send_files(self, paths: Iterable[Path], place: str | None = None) -> None:
        """Send files as artifacts, over those that are there. Addresses in text files lose their secrets."""
        for path in paths:
            if path.suffix in (".json", ".yaml"):
                name = f"{place}/{path.name}" if place else path.name
                self._client.log_text(self.run_id, mask_secrets(path.read_text()), name)
            elif path.exists():
                self._client.log_artifact(self.run_id, str(path), place)

    def end(self, status: str) -> None:
        if self._status != status:
            self._client.set_terminated(self.run_id, status=status)
            self._status = status

    def _find(self, key: str) -> Run | None:
        found = self._client.search_runs([self._experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return found[0] if found else None

    def _nested(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            query = f"tags.`{_PARENT_TAG}` = '{self.run_id}'"
            page = self._client.search_runs([self._experiment], query, max_results=1_000, page_token=token)
            yield from (run for run in page if REVISION_TAG in run.data.tags)
            token = page.token
            if not token:
                return

    def _last_step_of(self, metric: str) -> int:
        return max((point.step for point in self._client.get_metric_history(self.run_id, metric)), default=-1)

    def _create(self, row: Row) -> _Revision:
        tags = {_PARENT_TAG: self.run_id, REVISION_TAG: str(row["number"])}
        born = self._time_ms(row["sample"])
        run = self._client.create_run(self._experiment, born, tags, run_name=f"revision {row['number']}")
        known = self._revisions[row["number"]] = _Revision(run.info.run_id, run.info.status)
        return known

    def _describe_revision(self, row: Row, known: _Revision) -> None:
        from mlflow.entities import Param, RunTag

        blueprint = row["blueprint"] or {}
        values = flatten(
            {"heads": row["heads"], "parent": row["parent"], "cause": row["cause"], "blueprint": blueprint}
        )
        note = RunTag(_NOTE_TAG, f"{row['cause'] or ''}: {row['why'] or ''}")
        self._client.log_text(known.run_id, to_json(blueprint), "blueprint.json")
        if row["scores"]:
            self._client.log_text(
                known.run_id, to_json({"edit": row["edit"], "candidates": row["scores"]}), "edit.json"
            )
        params = [Param(name, value) for name, value in values.items()]
        self._client.log_batch(known.run_id, params=params, tags=[note, RunTag(DESCRIBED_TAG, "yes")])
        known.described = True

    def _send_revision_metrics(self, row: Row, known: _Revision) -> None:
        from mlflow.entities import Metric

        new = [point for point in _revision_points(row) if point[0] not in known.metrics]
        if not new:
            return
        metrics = [Metric(name, value, self._time_ms(sample), max(0, step)) for name, value, step, sample in new]
        self._client.log_batch(known.run_id, metrics=metrics)
        known.metrics |= {metric.key for metric in metrics}

    def _time_ms(self, sample: int | None) -> int:
        """When the sample was seen, by the run's own clock: a resend has the same time, and is not stored again."""
        samples, walls = self._clock
        if sample is None or not samples:
            return self._started_ms
        place = min(bisect_left(samples, sample), len(samples) - 1)
        return self._started_ms + round(1_000 * walls[place])


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested mappings as one: {"model.width": "64"}. Long values are cut, secrets in addresses masked."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else to_json(value)
        text = mask_secrets(text)
        cut = f"{text[: PARAMETER_CHARACTERS - 1]}…" if len(text) > PARAMETER_CHARACTERS else text
        flat[_name(name)] = cut
    return flat


def _name(text: str) -> str:
    """MLflow takes letters, digits, and _-./ and space, up to 250 of them; a path must not climb."""
    return re.sub(r"[^\w\-./ ]|\.\.|^[/.]|/$", "_", text, flags=re.A)[:240]


def _stream_values(row: Row) -> dict[str, float]:
    values = {name: float(row[name]) for name in _STREAM_METRICS if row[name] is not None}
    heads = row["heads"] or []
    if heads:
        values["heads"] = float(sum(heads))
    if 1 < len(heads) <= MOST_LAYERS:
        values |= {f"heads_layer_{layer}": float(count) for layer, count in enumerate(heads)}
    return values


def _revision_points(row: Row) -> list[tuple[str, float, int, int]]:
    """(name, value, step, sample) of what is final of a revision by now.

    What it was born with and what it gained stand at its first step; its life, once it is over, at its last.
    """
    birth = {name: row[column] for name, column in _AT_BIRTH.items()}
    birth["heads"] = sum(row["heads"]) if row["heads"] else None
    points = [(name, value, row["step"], row["sample"]) for name, value in birth.items()]
    if row["last_step"] is not None:
        points += [(name, row[name], row["last_step"], row["last_sample"]) for name in _AT_DEATH]
    return [(name, float(value), step, sample) for name, value, step, sample in points if value is not None]


def _known_revision(run: Run) -> _Revision:
    described = DESCRIBED_TAG in run.data.tags
    return _Revision(run.info.run_id, run.info.status, described, set(run.data.metrics))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json, or nothing while there is none."""
    try:
        summary = read_json(folder / "summary.json")
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
