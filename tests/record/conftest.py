"""A plausible run folder: eight contexts, seven shifts, ten decisions, eight revisions; made up, for tests alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planaria.blueprint import Blueprint
from planaria.record import Records, decision_row, shift_row
from planaria.signals import Candidate, Decision, Shift, ShiftKind

BATCH, INTERVAL, CONTEXT = 128, 1_000, 11_250
CONTEXTS = (0, 1, 2, 3, 1, 4, 0, 5)
KINDS: tuple[ShiftKind, ...] = ("abrupt", "abrupt", "gradual", "recurring", "abrupt", "recurring", "abrupt")
DELAYS: tuple[int | None, ...] = (310, 420, 905, 270, 380, 240, 350)
# What was chosen at each decision, in order of the stream.
CHOICES: tuple[tuple[int, str, str], ...] = (
    (12_400, "abrupt shift", "grow layer 1 by 1"),
    (18_200, "thrift", "keep"),
    (23_800, "abrupt shift", "grow layer 0 by 1"),
    (35_600, "gradual shift", "grow layer 1 by 1"),
    (46_200, "recurring shift", "restore concept 1"),
    (52_500, "thrift", "shrink layer 0 by 1"),
    (57_600, "rollback", "recycle a head of layer 1"),
    (68_700, "recurring shift", "keep, reset"),
    (74_900, "thrift", "shrink layer 1 by 1"),
    (79_900, "abrupt shift", "keep"),
)
TRUSTED = (18_200, 52_500, 74_900)
"""Samples of the decisions that did not look ahead."""
MEASURED = 8
"""Of so many decisions the outcome is known."""


def blueprint(heads: tuple[int, ...], task: str = "classification") -> Blueprint:
    return Blueprint(
        task="regression" if task == "regression" else "classification",
        width=64,
        head_width=8,
        mlp_width=128,
        heads=heads,
        outputs=1 if task == "regression" else 10,
        image_shape=(1, 28, 28),
    )


def candidates(
    heads: tuple[int, ...], trigger: str, chosen: str, looks: bool, rng: np.random.Generator, more: np.random.Generator
) -> list[Candidate]:
    """Keep, one head more or less in each layer, and what the trigger offers besides. The chosen one is worth most,
    unless it keeps the model; the three most promising, the chosen one and keeping are looked ahead."""
    keep = Candidate("keep", None, "keep", heads, blueprint(heads).parameters, 0.61, 0.48, 0.02, 0.0, 0.0)
    keep = replace(keep, standard_error=0.0, predicted=0.0, predicted_error=0.0)
    found = []
    for layer in range(len(heads)):
        for change, verb in ((1, "grow"), (-1, "shrink")):
            after = tuple(n + change if i == layer else n for i, n in enumerate(heads))
            if min(after) < 1 or max(after) > 6:
                continue
            name = f"{verb} layer {layer} by 1"
            value = 0.034 + 0.02 * rng.random() if name == chosen else -0.03 * rng.random()
            error = 0.006 + 0.006 * rng.random()
            edit: dict[str, Any] = {"kind": f"{verb}_heads", "layer": layer, "count": 1}
            found.append(Candidate(name, edit, "temper", after, 0, 0.61 - value, 0.48, 0.003 * change, 0, value, error))
    besides: list[tuple[str, dict[str, Any] | None, str]] = [
        ("recycle a head of layer 1", {"kind": "recycle_head", "layer": 1, "head": 0}, "keep")
    ]
    if trigger.endswith("shift"):
        besides.append(("keep, reset", None, "reset"))
    if trigger == "recurring shift":
        besides.append(("restore concept 1", {"kind": "restore", "concept": 1}, "keep"))
    for name, edit_besides, treatment in besides:
        value = 0.04 if name == chosen else 0.01 * float(more.standard_normal())
        found.append(Candidate(name, edit_besides, treatment, heads, 0, 0.61 - value, 0.48, 0.0, 0, value, 0.008))
    return [keep if looks else _untried(keep), *_learned(found, chosen, looks, more)]


def _learned(found: list[Candidate], chosen: str, looks: bool, more: np.random.Generator) -> list[Candidate]:
    """With what was predicted of each; only some of them keep what looking ahead showed."""
    learned = []
    for option in found:
        predicted = option.value + 0.008 * float(more.standard_normal())
        size = blueprint(option.heads).parameters
        learned.append(replace(option, predicted=predicted, predicted_error=0.015, parameters=size))
    best = sorted(learned, key=lambda option: option.predicted, reverse=True)[:3]
    return [o if looks and (o in best or o.name == chosen) else _untried(o) for o in learned]


def _untried(option: Candidate) -> Candidate:
    """Without what looking ahead would have shown: its value is what was predicted of it."""
    unknown = float("nan")
    judged = replace(option, value=option.predicted, standard_error=option.predicted_error)
    return replace(judged, loss_recent=unknown, loss_memory=unknown)


def observation(trigger: str, rng: np.random.Generator) -> dict[str, float]:
    rise = 0.02 if trigger in ("thrift", "rollback") else 0.55
    seen = {"loss_before": 0.42, "loss_after": 0.42 + rise, "loss_rise": rise, "novelty": rise + 0.25}
    kinds = {f"shift_{kind}": float(trigger == f"{kind} shift") for kind in ("abrupt", "gradual", "recurring")}
    return {**kinds, **seen, **{name: float(rng.random()) for name in ("heads_fraction", "budget_left", "slope")}}


def fill(records: Records, *, regression: bool = False, until: int = 90_000) -> list[float]:
    """Run through the made-up stream up to `until` samples; returns the errors of all rows so far."""
    rng, more = np.random.default_rng(0), np.random.default_rng(1)
    task = "regression" if regression else "classification"
    heads, number, opened, errors, born = (2, 2), 0, 0, [], 0
    choices = list(CHOICES)
    shifts = [(CONTEXT * (i + 1) + (delay or 0), i) for i, delay in enumerate(DELAYS)]

    def open_revision(sample: int, parent: int | None, cause: str, why: str, decision: Decision | None) -> None:
        made = blueprint(heads, task)
        records.open_revision(
            {
                "number": number,
                "parent": parent,
                "step": sample // BATCH,
                "sample": sample,
                "cause": cause,
                "why": why,
                "edit": decision.chosen.edit if decision else None,
                "blueprint": json.loads(made.to_json()),
                "heads": heads,
                "parameters": made.parameters,
                "flops_per_sample": made.flops_per_sample,
                "scores": decision.candidates if decision else [],
                "gain_predicted": decision.chosen.value if decision else None,
            }
        )

    def close_revision(sample: int) -> None:
        score = {"mae": 2.1, "rmse": 3.0} if regression else {"accuracy": 1 - float(np.mean(errors[born:]))}
        lived = {"samples": sample - opened, "samples_per_second": 480.0, "loss": 0.5, **score}
        records.close_revision(number, last_step=sample // BATCH - 1, last_sample=sample, **lived)

    open_revision(0, None, "start", "the first blueprint", None)
    for i in range(until // INTERVAL):
        samples = (i + 1) * INTERVAL
        while shifts and shifts[0][0] <= samples:
            sample, index = shifts.pop(0)
            shift = Shift(
                step=sample // BATCH,
                sample=sample,
                detector="page_hinkley" if index % 2 else "mmd",
                kind=KINDS[index],
                statistic=23.5 + index,
                threshold=20.0,
                onset_sample=CONTEXT * (index + 1) + 60,
                concept=1 if KINDS[index] == "recurring" else None,
            )
            records.add_shift(shift_row(shift, DELAYS[index]))
        while choices and choices[0][0] <= samples:
            sample, trigger, name = choices.pop(0)
            looks = sample not in TRUSTED
            options = candidates(heads, trigger, name, looks, rng, more)
            chosen = next(option for option in options if option.name == name)
            why = (
                "no edit beats keeping by 1 standard error"
                if name == "keep"
                else f"{name}: worth {chosen.value:.3f} nats a row, more than 1 standard error above keeping"
            )
            seen, seconds = observation(trigger, more), 2.4 if looks else 0.04
            decision = Decision(sample // BATCH, sample, trigger, chosen, tuple(options), why, seen, seconds)
            counted, edited = records.count("decisions"), chosen.edit is not None
            records.add_decision(decision_row(counted, decision, number + 1 if edited else None))
            if edited:
                close_revision(sample)
                heads, number, opened, born = chosen.heads, number + 1, sample, len(errors)
                open_revision(sample, number - 1, trigger, why, decision)
            if counted < MEASURED:
                fell = 0.3 if trigger.endswith("shift") else 0.0
                records.set_gain_realised(counted, 0.8 * chosen.value + fell + 0.01 * float(more.standard_normal()))
        since = (samples - 1) % CONTEXT
        known = 0.86 if CONTEXTS[min(7, (samples - 1) // CONTEXT)] in CONTEXTS[: (samples - 1) // CONTEXT] else 0.82
        right = known - (known - (0.72 if known > 0.85 else 0.35)) * float(np.exp(-since / 2_000))
        errors.append(1 - right + 0.01 * float(rng.standard_normal()))
        made = blueprint(heads, task)
        scores = (
            {"mae": 6 * errors[-1], "rmse": 8 * errors[-1], "prequential_mae": 6 * float(np.mean(errors))}
            | {"prequential_rmse": 8 * float(np.mean(errors))}
            if regression
            else {"accuracy": 1 - errors[-1], "prequential_accuracy": 1 - float(np.mean(errors))}
        )
        records.add_interval(
            {
                "step": samples // BATCH,
                "samples": samples,
                "wall_seconds": samples / 480,
                "loss": 2 * errors[-1],
                "prequential_loss": 2 * float(np.mean(errors)),
                "samples_per_second": 480.0,
                "parameters": made.parameters,
                "heads": heads,
                "flops_per_sample": made.flops_per_sample,
                "context": CONTEXTS[min(7, (samples - 1) // CONTEXT)],
                "revision": number,
                **scores,
            }
        )
    if until >= 90_000:
        close_revision(until)
    return errors


def write_run(
    folder: Path,
    *,
    name: str = "fashion_shift",
    status: str = "done",
    regression: bool = False,
    until: int = 90_000,
    reason: str | None = None,
) -> Path:
    """A run's folder: tables, job.yaml, and a summary unless it is still running."""
    folder.mkdir(parents=True, exist_ok=True)
    records = Records(INTERVAL, 4_000)
    errors = fill(records, regression=regression, until=until)
    records.write(folder)
    (folder / "job.yaml").write_text(
        f"name: {json.dumps(name)}\nseed: 0\nstream: {{source: fashion_mnist}}\n"
        "record: {tracking_uri: 'postgresql://user:hunter2@db/mlflow'}\n"
    )
    if status == "running":
        return folder
    (folder / "summary.json").write_text(json.dumps(summary(records, errors, status, regression, reason)))
    return folder


def summary(records: Records, errors: list[float], status: str, regression: bool, reason: str | None) -> dict[str, Any]:
    steps, revisions = records.rows("steps"), records.rows("revisions")
    grows, shrinks = (sum(kind in (row["edit"] or "") for row in revisions) for kind in ("grow_heads", "shrink_heads"))
    scores: dict[str, Any] = {
        "prequential_accuracy": 1 - float(np.mean(errors)),
        "final_accuracy": 0.812,
        "accuracy_per_context": {"0": 0.86, "1": 0.88, "2": 0.79, "3": 0.74, "4": 0.80, "5": 0.80},
        "forgetting": 0.03,
        "forgetting_per_context": {"0": 0.01, "1": 0.0, "2": 0.05, "3": 0.09, "4": 0.03, "5": 0.0},
    }
    if regression:
        scores = {"prequential_mae": 6 * float(np.mean(errors)), "prequential_rmse": 8 * float(np.mean(errors))}
        scores["mae_per_context"] = {"0": 1.1, "1": 0.9, "2": 1.7}
    return {
        "samples": steps[-1]["samples"],
        "steps": steps[-1]["step"],
        "workers": 2,
        "seed": 0,
        **scores,
        "shifts": records.count("shifts"),
        "revisions": records.count("revisions"),
        "grows": grows,
        "shrinks": shrinks,
        "heads_first": [2, 2],
        "heads_last": list(revisions[-1]["heads"]),
        "parameters_first": revisions[0]["parameters"],
        "parameters_last": revisions[-1]["parameters"],
        "parameters_mean": float(np.mean([row["parameters"] for row in steps])),
        "flops_per_sample_mean": float(np.mean([row["flops_per_sample"] for row in steps])),
        "decision_seconds": 24.0,
        "samples_per_second": 480.0,
        "wall_seconds": steps[-1]["wall_seconds"],
        "cpu_seconds": 250.0,
        "energy_joules": 2_500.0,
        "energy_method": "estimated: the workers' CPU time x 10 W a core",
        "restarts": 1,
        "rows_lost": 0,
        "rows_repeated": 0,
        "mlflow_run_id": None,
        "status": status,
        **({"reason": reason} if reason else {}),
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder under tmp_path; the keywords are those of `write_run`."""

    def make(folder: str = "run", **options: Any) -> Path:
        return write_run(tmp_path / folder, **options)

    return make


@pytest.fixture
def filled() -> Records:
    records = Records(INTERVAL, 4_000)
    fill(records)
    return records


@pytest.fixture
def example_run_folder(make_run: Callable[..., Path]) -> Path:
    return make_run()
