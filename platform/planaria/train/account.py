"""What a run has come to: sums over its rows, each counted exactly once; its tables; and the summary made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from planaria.active import active_flops, active_fractions, active_parameters
from planaria.blueprint import Blueprint, Edit, edit_to_dict
from planaria.job import Job
from planaria.record.tables import Records, decision_row, shift_row
from planaria.signals import Decision, Shift, StepScores, Stream
from planaria.train.evaluate import Evaluator


@dataclass
class Totals:
    """Sums over the whole run; all of it is exactly once, but for the seconds."""

    samples: int = 0
    row_number_sum: int = 0
    loss: float = 0.0
    error: float = 0.0
    squared_error: float = 0.0
    parameters: float = 0.0
    parameters_active: float = 0.0
    active_fraction: float = 0.0
    flops: float = 0.0
    heads: float = 0.0
    wall_seconds: float = 0.0
    decision_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all workers' processes."""
    energy_joules: float = 0.0
    decisions: int = 0
    shifts: int = 0
    grows: int = 0
    shrinks: int = 0
    restores: int = 0
    revisions: int = 0


@dataclass(frozen=True)
class Used:
    """What of a blueprint a row uses on average, each of whose gates was open to these shares of the rows."""

    blueprint: Blueprint
    opened: Sequence[float]
    parameters: float
    flops: float
    fractions: Sequence[float]
    """For each layer, of its gated parameters."""
    fraction: float

    @staticmethod
    def of(blueprint: Blueprint, opened: Sequence[float]) -> Used:
        fractions = active_fractions(blueprint, opened)
        parameters, flops = active_parameters(blueprint, opened), active_flops(blueprint, opened)
        return Used(blueprint, opened, parameters, flops, fractions, float(np.mean(fractions)))


@dataclass
class Stretch:
    """Sums over the present interval, or the present revision's life."""

    samples: int = 0
    loss: float = 0.0
    error: float = 0.0
    squared_error: float = 0.0
    seconds: float = 0.0
    parameters_active: float = 0.0
    flops: float = 0.0
    active: list[float] = field(default_factory=list)
    """For each layer the share of its gated parameters, times rows."""

    def add_active(self, samples: int, used: Used) -> None:
        self.parameters_active += samples * used.parameters
        self.flops += samples * used.flops
        before = self.active or [0.0] * len(used.fractions)
        self.active = [sum_so_far + samples * share for sum_so_far, share in zip(before, used.fractions, strict=True)]

    def add(self, samples: int, loss: float, error: float, squared_error: float, seconds: float) -> None:
        self.samples += samples
        self.loss += loss
        self.error += error
        self.squared_error += squared_error
        self.seconds += seconds


class Account:
    """Equal on every worker, but for the seconds. `step` and `row` are the first ones that are not done yet."""

    def __init__(self, job: Job, stream: Stream, evaluator: Evaluator) -> None:
        self.job, self.stream, self.evaluator = job, stream, evaluator
        self.task = stream.fields.task
        self.step, self.row = 0, 0
        self.records = Records(job.record.interval_samples, job.record.max_intervals)
        self.totals, self.interval, self.life = Totals(), Stretch(), Stretch()
        self.blueprint: Blueprint
        """Of the present revision."""
        self.heads_first: list[int] = []
        self.parameters_first = 0
        self.energy_methods: list[str] = []
        """How the joules were found: several where the run went on elsewhere."""
        self._used: Used | None = None
        """Of the newest step: without gates, of all steps of a blueprint."""
        self.change_noticed = -1
        """First row of the newest true change that a shift was reported for. For evaluation only."""

    def add(self, seen: StepScores, seconds: float, opened: Sequence[float] = ()) -> None:
        """A step was learned from. `opened` is the share of its rows that each gate was open to."""
        totals, count = self.totals, len(seen.loss_B)
        loss, error = seen.loss_sum, seen.error_sum
        counted = self.task == "classification"  # 0 or 1
        squared_error = error if counted else float(np.square(seen.error_B, dtype=np.float64).sum())
        totals.samples += count
        totals.row_number_sum += count * seen.start + count * (count - 1) // 2
        totals.loss += loss
        totals.error += error
        totals.squared_error += squared_error
        totals.parameters += count * self.blueprint.parameters
        if self._used is None or self._used.blueprint is not self.blueprint or self._used.opened is not opened:
            self._used = Used.of(self.blueprint, opened)
        used = self._used
        totals.parameters_active += count * used.parameters
        totals.active_fraction += count * used.fraction
        totals.flops += count * used.flops
        self.interval.add_active(count, used)
        totals.heads += count * sum(self.blueprint.heads)
        for stretch in (self.interval, self.life):
            stretch.add(count, loss, error, squared_error, seconds)
        self.row += count
        self.step += 1
        if self.interval.samples >= self.records.interval_samples:
            self._close_interval()

    def add_energy(self, cpu_seconds: float, joules: float, method: str) -> None:
        """What all workers together have spent since the last time."""
        self.totals.cpu_seconds += cpu_seconds
        self.totals.energy_joules += joules
        if method not in self.energy_methods:
            self.energy_methods.append(method)

    def close(self) -> None:
        """The stream has ended."""
        if self.interval.samples:
            self._close_interval()
        self.close_revision()

    # -- tables

    def open_revision(
        self,
        blueprint: Blueprint,
        parent: int | None,
        cause: str,
        why: str,
        edit: Edit | None = None,
        decision: Decision | None = None,
    ) -> int:
        """A blueprint begins its life, from this row on; returns the revision's number."""
        number = self.totals.revisions
        self.totals.revisions += 1
        self.blueprint = blueprint
        if number == 0:
            self.heads_first, self.parameters_first = list(blueprint.heads), blueprint.parameters
        self.records.open_revision(
            {
                "number": number,
                "parent": parent,
                "step": self.step,
                "sample": self.row,
                "cause": cause,
                "why": why,
                "edit": None if edit is None else edit_to_dict(edit),
                "blueprint": asdict(blueprint),
                "heads": list(blueprint.heads),
                "parameters": blueprint.parameters,
                "flops_per_sample": blueprint.flops_per_sample,
                "scores": [] if decision is None else decision.candidates,
                "gain_predicted": None if decision is None else decision.chosen.value,
            }
        )
        self.life = Stretch()
        return number

    def close_revision(self) -> None:
        """The present blueprint has lived up to the row before this one."""
        life = self.life
        count = max(1, life.samples)
        scores = {"mae": life.error / count, "rmse": (life.squared_error / count) ** 0.5}
        if self.task == "classification":
            scores = {"accuracy": 1 - life.error / count}
        self.records.close_revision(
            self.totals.revisions - 1,
            last_step=self.step - 1,
            last_sample=self.row,
            samples=life.samples,
            loss=life.loss / count if life.samples else None,
            samples_per_second=life.samples / life.seconds if life.seconds else None,
            **(scores if life.samples else {}),
        )

    def note_shift(self, shift: Shift) -> None:
        self.totals.shifts += 1
        changed = self.stream.change_before(shift.sample)
        delay = None
        if changed is not None and 0 < changed != self.change_noticed:
            self.change_noticed, delay = changed, shift.sample - changed
        self.records.add_shift(shift_row(shift, delay))

    def note_decision(self, decision: Decision, revision: int | None) -> None:
        """`revision` is the one that it led to."""
        self.totals.decisions += 1
        self.totals.decision_seconds += decision.seconds
        self.records.add_decision(decision_row(self.totals.decisions - 1, decision, revision))

    def _close_interval(self) -> None:
        part, totals = self.interval, self.totals
        if self.task == "classification":
            scores = {
                "accuracy": 1 - part.error / part.samples,
                "prequential_accuracy": 1 - totals.error / totals.samples,
            }
        else:
            scores = {
                "mae": part.error / part.samples,
                "rmse": (part.squared_error / part.samples) ** 0.5,
                "prequential_mae": totals.error / totals.samples,
                "prequential_rmse": (totals.squared_error / totals.samples) ** 0.5,
            }
        self.records.add_interval(
            {
                "step": self.step,
                "samples": self.row,
                "wall_seconds": totals.wall_seconds,
                "loss": part.loss / part.samples,
                "prequential_loss": totals.loss / totals.samples,
                "samples_per_second": part.samples / part.seconds if part.seconds else None,
                "parameters": self.blueprint.parameters,
                "heads": list(self.blueprint.heads),
                "parameters_active": part.parameters_active / part.samples,
                "active_fraction": [share / part.samples for share in part.active],
                "flops_per_sample": round(part.flops / part.samples),
                "context": self.evaluator.current,
                "revision": totals.revisions - 1,
                **scores,
            }
        )
        self.interval = Stretch()

    # -- the summary

    def summary(
        self, status: str, workers: int, final: Mapping[int, tuple[float, float]] | None = None
    ) -> dict[str, Any]:
        """The content of summary.json, but for what only the folder's keeper knows."""
        totals, count = self.totals, max(1, self.totals.samples)
        expected = self.row * (self.row - 1) // 2
        intact = totals.samples == self.row and totals.row_number_sum == expected
        summary: dict[str, Any] = {
            "name": self.job.name,
            "status": status,
            "task": self.task,
            "samples": totals.samples,
            "steps": self.step,
            "workers": workers,
            "seed": self.job.seed,
            "prequential_loss": totals.loss / count,
            "shifts": totals.shifts,
            "decisions": totals.decisions,
            "revisions": totals.revisions,
            "grows": totals.grows,
            "shrinks": totals.shrinks,
            "restores": totals.restores,
            "heads_first": self.heads_first,
            "heads_last": list(self.blueprint.heads),
            "heads_mean": totals.heads / count,
            "parameters_first": self.parameters_first,
            "parameters_last": self.blueprint.parameters,
            "parameters_mean": totals.parameters / count,
            "parameters_active_mean": totals.parameters_active / count,
            "active_fraction_mean": totals.active_fraction / count if totals.samples else 1.0,
            "parameters_largest": replace(
                self.blueprint,
                heads=(self.job.policy.heads.max,) * self.blueprint.layers,
                mlp_width=self.job.model.mlp_width,
                mlp_widths=(),
            ).parameters,
            "flops_per_sample_mean": totals.flops / count,
            "decision_seconds": totals.decision_seconds,
            "samples_per_second": totals.samples / totals.wall_seconds if totals.wall_seconds else 0.0,
            "wall_seconds": totals.wall_seconds,
            "cpu_seconds": totals.cpu_seconds,
            "energy_joules": totals.energy_joules,
            "energy_method": ", then ".join(self.energy_methods),
            "rows_lost": 0 if intact else max(1, self.row - totals.samples),
            "rows_repeated": 0 if intact else max(0, totals.samples - self.row),
            "flaws": {flaw: sum(columns.values()) for flaw, columns in self.stream.counts.items()},
        }
        if self.stream.contexts:
            summary["contexts"] = self.stream.contexts
            summary["true_changes"] = self._true_changes()
        return {**summary, **self._accuracies(final)}

    def _true_changes(self) -> int:
        """How many times the stream has truly changed so far, where contexts are known. For evaluation only."""
        changes, row = 0, self.row - 1
        while row > 0 and (changed := self.stream.change_before(row)) is not None and changed > 0:
            changes, row = changes + 1, changed - 1
        return changes

    def _accuracies(self, final: Mapping[int, tuple[float, float]] | None) -> dict[str, Any]:
        totals, count = self.totals, max(1, self.totals.samples)
        if self.task == "regression":
            scores: dict[str, Any] = {
                "prequential_mae": totals.error / count,
                "prequential_rmse": (totals.squared_error / count) ** 0.5,
            }
            if final:
                scores["final_mae"] = float(np.mean([error for error, _ in final.values()]))
                scores["final_rmse"] = float(np.mean([square**0.5 for _, square in final.values()]))
                scores["mae_per_context"] = {self._context_name(c): error for c, (error, _) in final.items()}
        else:
            scores = {"prequential_accuracy": 1 - totals.error / count}
            if final:
                scores["final_accuracy"] = float(np.mean([1 - error for error, _ in final.values()]))
                scores["accuracy_per_context"] = {self._context_name(c): 1 - error for c, (error, _) in final.items()}
        if final:
            lost = self.evaluator.forgetting(final)
            scores["forgetting"] = float(np.mean(list(lost.values()))) if lost else 0.0
            scores["forgetting_per_context"] = {self._context_name(c): rise for c, rise in lost.items()}
        return scores

    def _context_name(self, context: int) -> str:
        names = self.stream.contexts
        return names[context] if context < len(names) else str(context)

    # -- state

    def state(self) -> dict[str, Any]:
        """JSON-able; the tables are a file of their own."""
        return {
            "step": self.step,
            "row": self.row,
            "blueprint": self.blueprint.to_json(),
            "totals": asdict(self.totals),
            "interval": asdict(self.interval),
            "life": asdict(self.life),
            "heads_first": self.heads_first,
            "parameters_first": self.parameters_first,
            "energy_methods": self.energy_methods,
            "change_noticed": self.change_noticed,
        }

    def load_state(self, state: Mapping[str, Any], records: bytes) -> None:
        """Raises KeyError, TypeError, ValueError or InputError where they are not an account's."""
        self.records.load_state(records)
        self.step, self.row = int(state["step"]), int(state["row"])
        self.blueprint = Blueprint.from_json(state["blueprint"])
        self.totals, self.interval = Totals(**state["totals"]), Stretch(**state["interval"])
        self.life = Stretch(**state["life"])
        self.heads_first, self.parameters_first = list(state["heads_first"]), int(state["parameters_first"])
        self.energy_methods = list(state["energy_methods"])
        self.change_noticed = int(state["change_noticed"])
