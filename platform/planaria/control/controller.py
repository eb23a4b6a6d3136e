"""The controller: when to decide, on what evidence, and what became of it.

Equal on every worker: it sees all-reduced reports only, and its clock counts rows, not seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, get_args

from planaria.blueprint import BEFORE_EDIT, Blueprint, Edit, edit_from_dict
from planaria.control import recall, rollback
from planaria.control.births import births_after
from planaria.control.decide import edit_kind
from planaria.control.judge import Judge, Outcome, Situation
from planaria.control.look_ahead import Evidence, Measurement, Trial, row_passes
from planaria.control.propose import Scores, facts_of, fits, long_run_gain, price_of, propose
from planaria.control.pulse import FAST_ROWS, Pulse
from planaria.control.setbacks import Setbacks
from planaria.errors import InputError
from planaria.policy import Policy
from planaria.signals import Candidate, Decision, Shift, ShiftKind, StepScores

MOST_CANDIDATES = 11
USUAL_RECENT, USUAL_MEMORY = 340, 256
"""Rows on which a candidate is scored."""
SETBACK_WAITS = 4
"""A kind of edit that was taken back is left alone for so many times `thrift_every_samples` rows, at first."""
MOST_PATIENCE = 4
"""Between shifts, every decision that keeps the model doubles the wait for the next, up to so many times."""
PRICE_RATE = 2e-5
"""Nats by which a row moves the price, for a run that uses all its heads where it may use none on average."""


class Bench(Protocol):
    """What a decision may ask of the run. Implemented by the training loop."""

    @property
    def blueprint(self) -> Blueprint: ...

    def evidence(self, since_row: int) -> Evidence:
        """Recent rows (none from before `since_row`) and remembered ones."""

    def measure(self, evidence: Evidence) -> Measurement:
        """Head importance, growth scores and loss on the evidence."""

    def trials(self, candidates: list[Candidate], evidence: Evidence, seed: int) -> list[Trial]:
        """Look ahead on every candidate, spread over the workers; equal on all of them."""

    @property
    def kept(self) -> Mapping[int, Blueprint]:
        """What can be restored: concepts of the library, and BEFORE_EDIT where an edit's outcome is open."""

    def hindsight(
        self, concepts: Sequence[int], rows: int, remembered: int = 0, bias_fitted: bool = False
    ) -> list[Trial]:
        """What the live model, and after it each kept state, loses on the newest `rows` rows (each with its output's
        bias fitted to them, or as it is) and on up to `remembered` rows that were never replayed: NaN for those whose
        labels contradict the concept. Forward only, spread over the workers; equal on all of them."""

    def seconds(self) -> float:
        """A clock, for the record alone."""


@dataclass
class OpenOutcome:
    """A decision whose outcome is not known yet."""

    decision: int
    trigger: str
    kind: str
    predicted: float
    loss_before: float
    price_paid: float
    due_sample: int
    rows: int = 0
    loss_sum: float = 0.0
    """Of the rows since the decision."""


class Controller:
    """Decides on shifts, and between them whenever `thrift_every_samples` rows have passed."""

    def __init__(self, policy: Policy, layers: int, seed: int, judge: Judge) -> None:
        self.policy, self.seed = policy, seed
        self.ceiling: int | None = None
        """Parameters that pruning left: no edit may take the model above that."""
        self.pulse = Pulse()
        self.judge = judge
        self.births = [[-policy.heads.cooldown_samples] * policy.heads.start for _ in range(layers)]
        """Per layer and head: the sample at which it was born."""
        self.price = policy.budget.price
        self.pending: Shift | None = None
        self.last_edit_sample = -policy.heads.cooldown_samples
        self.patience = 1
        self.next_thrift_sample = policy.controller.thrift_every_samples
        self.passes_trained = 0
        self.passes_spent = 0
        """Charged to the decision budget."""
        self.passes_recalling = 0
        """Forward passes to score what is kept; not charged, as they are bounded by the size of the library."""
        self.decisions = 0
        self.loss_remembered = 0.0
        """On remembered rows, at the last decision that looked at any."""
        self.open: list[OpenOutcome] = []
        self.recall_watch = recall.RecallWatch()
        self.held: rollback.HeldEdit | None = None
        """The edit before which the state is kept, until its outcome is known."""
        self.setbacks = Setbacks(SETBACK_WAITS * policy.controller.thrift_every_samples)

    def observe(self, report: StepScores, passes: int) -> None:
        """Take in a step that cost `passes` row-passes of training."""
        self.pulse.update(report)
        self.passes_trained += passes
        for outcome in self.open:
            outcome.rows += len(report.loss_B)
            outcome.loss_sum += report.loss_sum
        mean = self.policy.budget.mean_heads
        if mean is not None:  # dual ascent on the budget: the price is its multiplier
            used = sum(map(len, self.births)) / len(self.births)
            self.price = max(0.0, self.price + PRICE_RATE * (used - mean) / self.policy.heads.max * len(report.loss_B))

    def shifted(self, shift: Shift) -> None:
        """A shift is waiting for its decision; edits whose outcome it would blur are given up."""
        self.pulse.shifted()
        self.setbacks.shifted()
        if not self.recall_watch.shifted(shift.onset_sample):
            self.open.clear()
            self.held = None
            if self.policy.controller.kind != "none":
                self.pending = shift
        self.patience = 1
        self.next_thrift_sample = shift.sample + self.policy.controller.thrift_every_samples

    def alarmed(self, onset_sample: int | None) -> None:
        """Onset of the alarm that the detector is looking into, or None where there is none."""
        self.recall_watch.alarmed(onset_sample)

    def due(self, sample: int) -> str | None:
        """Why a decision is due now, if one is."""
        settings = self.policy.controller
        if settings.kind == "none":
            return None
        if self.recall_watch.due(sample, settings.recall_samples):
            return recall.RECALL
        if self.held is not None and self.held.doubted and self.recall_watch.alarm is None:
            return rollback.ROLLBACK
        if self.pending is not None:
            waited = sample - self.pending.onset_sample >= settings.wait_samples
            return f"{self.pending.kind} shift" if waited and self._can_pay(decisions=1) else None
        if sample < self.next_thrift_sample or self._cooling(sample):
            return None
        # A shift may come at any time, and goes first: thrift leaves enough for one.
        return "thrift" if self._can_pay(decisions=2) else None

    def decide(self, trigger: str, step: int, sample: int, bench: Bench) -> Decision:
        """Measure, propose, and let the judge choose."""
        began = bench.seconds()
        since = self.pending.onset_sample if self.pending is not None else sample - self.pulse.since_shift
        self.pending = None
        evidence = bench.evidence(max(0, since))
        measured = bench.measure(evidence)
        self.passes_spent += self._measuring()
        mature = [[self._mature(b, sample) for b in layer] for layer in self.births]
        scores = Scores(measured.importance, measured.growth, mature, measured.distance, measured.strain)
        candidates = propose(trigger, bench.blueprint, scores, self.pulse.loss_fast, self.policy, self.price)
        observation = {**self.pulse.observation(), **self._observation(trigger, bench.blueprint, scores, sample)}
        candidates = candidates[: MOST_CANDIDATES - 1]
        if trigger.endswith("shift"):
            rows = min(recall.RECALL_ROWS, sample - since)
            kept = self._scored_entries(bench, rows)
            candidates += self._best_entry(kept, bench.blueprint, scores)
            observation["library_fit"] = recall.library_fit(kept)
        candidates = [c for c in candidates if not self.setbacks.barred(edit_kind(c), sample)]
        if self._cooling(sample):
            candidates = [c for c in candidates if c.edit is None]
        each = row_passes(self.policy.controller, evidence.held_recent, evidence.held_memory)
        observation["remembers"] = float(evidence.held_memory > 0)
        observation["memory_drift"] = self._memory_drift(measured.loss_memory)

        def look(numbers: Sequence[int]) -> list[Trial]:
            self.passes_spent += len(numbers) * each
            return bench.trials([candidates[number] for number in numbers], evidence, self.seed * 1_000_003 + step)

        looks = max(0, int((self._earned() - self.passes_spent) // each))
        situation = Situation(
            self.decisions,
            sample,
            trigger,
            self.pulse.loss_fast,
            observation,
            tuple(candidates),
            looks,
        )
        verdict = self.judge.judge(situation, look)
        self.decisions += 1
        self._wait_for_thrift(trigger, verdict.chosen, sample)
        return Decision(
            step, sample, trigger, verdict.chosen, verdict.candidates, verdict.why, observation, bench.seconds() - began
        )

    def _wait_for_thrift(self, trigger: str, chosen: Candidate, sample: int) -> None:
        """Where there was nothing to do, look less often."""
        kept = chosen.edit is None and not trigger.endswith("shift")
        self.patience = min(2 * self.patience, MOST_PATIENCE) if kept else 1
        self.next_thrift_sample = sample + self.patience * self.policy.controller.thrift_every_samples

    def _memory_drift(self, loss_memory: float | None) -> float:
        """Relative rise of the loss on remembered rows since the last decision that looked at any."""
        if loss_memory is None:
            return 0.0
        drift = loss_memory / self.loss_remembered - 1 if self.loss_remembered else 0.0
        self.loss_remembered = loss_memory
        return drift

    def recall(self, step: int, sample: int, bench: Bench) -> Decision | None:
        """Score what is kept of earlier concepts on the newest rows, and restore an entry that is clearly better; None
        where none is: the normal decision follows. Not charged to the decision budget: its cost is bounded by the size
        of the library, and a shift must not wait longer for its decision because there is one."""
        began, watch = bench.seconds(), self.recall_watch
        rows = watch.rows(sample, self.policy.controller.recall_samples)
        candidates = self._scored_entries(bench, rows)
        chosen = recall.recalled(candidates)
        if chosen is not None and chosen.edit is not None:  # only now, as few get here: what would be forgotten
            trials = bench.hindsight([chosen.edit["concept"]], rows, remembered=USUAL_MEMORY, bias_fitted=True)
            self.passes_recalling += sum(len(trial.recent_R) + len(trial.memory_M) for trial in trials)
            weighed = recall.scored([candidates[0], chosen], trials, self.policy.controller.memory_weight)
            candidates = [weighed[1] if candidate is chosen else candidate for candidate in candidates]
            candidates[0], chosen = weighed[0], weighed[1] if weighed[1].value > 0 else None
        watch.done(sample, restored=chosen is not None)
        if chosen is None:
            return None
        self.pending = None
        self.open.clear()
        self.decisions += 1
        self.next_thrift_sample = sample + self.policy.controller.thrift_every_samples
        observation = {**self.pulse.observation(), "library_fit": recall.library_fit(candidates)}
        why = f"{chosen.name}: " + recall.in_words(candidates[0], chosen, rows)
        seconds = bench.seconds() - began
        return Decision(step, sample, "recurring shift", chosen, tuple(candidates), why, observation, seconds)

    def reconsider(self, step: int, sample: int, bench: Bench) -> Decision:
        """Compare the state before a doubtful edit with the live one, and undo the edit if that is clearly better."""
        began = bench.seconds()
        held, self.held = self.held, None
        self.decisions += 1
        before = recall.restoring(BEFORE_EDIT, bench.kept[BEFORE_EDIT], bench.blueprint, self._price)
        candidates = [recall.keeping(bench.blueprint, self._price), replace(before, treatment="keep")]
        trials = bench.hindsight([BEFORE_EDIT], rollback.ROLLBACK_ROWS, remembered=USUAL_MEMORY)
        self.passes_spent += sum(len(trial.recent_R) + len(trial.memory_M) for trial in trials)
        candidates = recall.scored(candidates, trials, self.policy.controller.memory_weight)
        chosen, why = rollback.verdict(candidates)
        if held is not None and chosen.edit is not None:
            self.setbacks.undone(held.kind, sample)
        observation, seconds = self.pulse.observation(), bench.seconds() - began
        return Decision(step, sample, rollback.ROLLBACK, chosen, tuple(candidates), why, observation, seconds)

    @property
    def passes_in_all(self) -> int:
        """What deciding and recalling have cost so far, in row-passes."""
        return self.passes_spent + self.passes_recalling

    def _scored_entries(self, bench: Bench, rows: int) -> list[Candidate]:
        """Keep, and entries of the library within the limits, with what they lose on the newest rows: all of them on a
        few rows, and then the best that do better there than the live model on all rows."""
        live, budget = bench.blueprint, self.policy.budget
        entries = {concept: kept for concept, kept in bench.kept.items() if concept != BEFORE_EDIT}
        candidates = recall.within(entries, live, lambda candidate: fits(candidate, live, budget), self._price)
        if len(candidates) == 1:
            return candidates
        screened = self._scored(candidates, bench, max(1, rows // recall.SCREENED))
        better = recall.finalists(screened)
        return self._scored([candidates[0], *better], bench, rows) if better else screened

    def _scored(self, candidates: list[Candidate], bench: Bench, rows: int) -> list[Candidate]:
        concepts = [candidate.edit["concept"] for candidate in candidates if candidate.edit is not None]
        trials = bench.hindsight(concepts, rows, bias_fitted=True)
        self.passes_recalling += sum(len(trial.recent_R) for trial in trials)
        return recall.scored(candidates, trials)

    def _best_entry(self, kept: Sequence[Candidate], blueprint: Blueprint, scores: Scores) -> list[Candidate]:
        best = recall.best_kept(kept)
        if best is None or best.edit is None:
            return []
        edit, unknown = edit_from_dict(best.edit), math.nan
        doubling_gain = self.policy.controller.capacity_gain * self.pulse.loss_fast
        facts = {**facts_of(edit, blueprint, scores), "fit": recall.library_fit(kept)}
        prior = long_run_gain(edit, blueprint, scores, doubling_gain)
        # What it loses as it is was only to find it: it is looked ahead on like every other candidate, or not at all.
        blank = replace(best, loss_recent=unknown, loss_memory=unknown, value=unknown, standard_error=unknown)
        return [replace(blank, prior=prior, facts=facts)]

    def _price(self, blueprint: Blueprint) -> float:
        return price_of(blueprint, self.policy, self.price)

    def applied(self, decision: Decision, owners: Sequence[int]) -> None:
        """The choice is carried out: wait for what it brings, and after an edit note births and start the cool-down.
        `owners` says for each layer whose attention it used before.

        Keeping is waited for as well: what the loss does without an edit is what edits are held against.
        """
        self._expect(decision)
        if rollback.holds_before(decision):
            self.held = rollback.HeldEdit(self.decisions - 1, edit_kind(decision.chosen))
        edit = decision.chosen.edit
        if edit is None:
            return
        if decision.trigger != rollback.ROLLBACK:
            self.setbacks.chose(edit_kind(decision.chosen), decision.sample)
        self.edited(edit_from_dict(edit), owners, decision.sample)

    def edited(self, edit: Edit, owners: Sequence[int], sample: int) -> None:
        """An edit was made: note births, start the cool-down."""
        self.births = births_after(edit, self.births, sample, owners)
        self.last_edit_sample = sample

    def turned(self) -> None:
        """The policy changed: outcomes that this would blur are given up."""
        self.open.clear()
        self.held = None

    def pruned(self, edit: Edit, owners: Sequence[int], sample: int, parameters: int) -> None:
        """Pruning left the model that many parameters, and it is not grown above that again. Edits whose outcome that
        blurs are given up. `owners` is as in `applied`."""
        self.births = births_after(edit, self.births, sample, owners)
        self.open.clear()
        self.held = None
        self.last_edit_sample = sample
        self._limit(parameters)

    def allows(self, blueprint: Blueprint) -> bool:
        """Whether an edit may lead there: within the policy's budget, and what pruning left."""
        return self.policy.budget.allows(blueprint)

    def _limit(self, parameters: int | None) -> None:
        if parameters is None:
            return
        self.ceiling = parameters
        most = min(parameters, self.policy.budget.parameters or parameters)
        budget = self.policy.budget.model_copy(update={"parameters": most})
        self.policy = self.policy.model_copy(update={"budget": budget})

    def _expect(self, decision: Decision) -> None:
        keep = decision.candidates[0]
        horizon = max(self.policy.heads.cooldown_samples, 2 * FAST_ROWS)
        self.open.append(
            OpenOutcome(
                decision=self.decisions - 1,
                trigger=decision.trigger,
                kind=edit_kind(decision.chosen),
                predicted=decision.chosen.value,
                loss_before=self.pulse.loss_fast,
                price_paid=decision.chosen.price - keep.price,
                due_sample=decision.sample + horizon,
            )
        )

    def outcomes(self, sample: int) -> list[tuple[int, float]]:
        """(decision, gain realised) of those whose horizon has passed: fall of the loss to its mean over the horizon,
        minus the price paid."""
        ripe = [outcome for outcome in self.open if sample >= outcome.due_sample]
        self.open = [outcome for outcome in self.open if sample < outcome.due_sample]
        for outcome in ripe:
            self.judge.learn(_outcome(outcome))
            if self.held is not None and outcome.decision == self.held.decision:
                gain = _fall(outcome) - outcome.price_paid
                doubted = rollback.doubtful(outcome.predicted, gain, outcome.loss_before)
                if not doubted:
                    self.setbacks.went_well(self.held.kind)
                self.held = replace(self.held, doubted=True) if doubted else None
        return [(outcome.decision, _fall(outcome) - outcome.price_paid) for outcome in ripe]

    def state(self) -> dict[str, Any]:
        return {
            "pulse": self.pulse.state(),
            "judge": self.judge.state(),
            "births": self.births,
            "price": self.price,
            "ceiling": self.ceiling,
            "pending": None if self.pending is None else asdict(self.pending),
            "last_edit_sample": self.last_edit_sample,
            "patience": self.patience,
            "next_thrift_sample": self.next_thrift_sample,
            "passes_trained": self.passes_trained,
            "passes_spent": self.passes_spent,
            "passes_recalling": self.passes_recalling,
            "decisions": self.decisions,
            "loss_remembered": self.loss_remembered,
            "open": [asdict(outcome) for outcome in self.open],
            "recall": self.recall_watch.state(),
            "held": None if self.held is None else asdict(self.held),
            "setbacks": self.setbacks.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Raises InputError where the state is not a controller's."""
        try:
            self.pulse = Pulse.from_state(state["pulse"])
            self.judge.load_state(state["judge"])
            self.births = [[int(b) for b in layer] for layer in state["births"]]
            self.price = float(state["price"])
            self.pending = None if state["pending"] is None else Shift(**state["pending"])
            self.last_edit_sample = int(state["last_edit_sample"])
            self.patience, self.next_thrift_sample = int(state["patience"]), int(state["next_thrift_sample"])
            self.passes_trained, self.passes_spent = int(state["passes_trained"]), int(state["passes_spent"])
            self.passes_recalling, self.decisions = int(state["passes_recalling"]), int(state["decisions"])
            self.loss_remembered = float(state["loss_remembered"])
            self._limit(state.get("ceiling"))
            self.open = [OpenOutcome(**outcome) for outcome in state["open"]]
            self.recall_watch = recall.RecallWatch(**state["recall"])
            self.held = None if state["held"] is None else rollback.HeldEdit(**state["held"])
            self.setbacks = Setbacks.from_state(state["setbacks"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"controller state: not usable ({error}); use an older checkpoint") from None

    def _cooling(self, sample: int) -> bool:
        return sample - self.last_edit_sample < self.policy.heads.cooldown_samples

    def _mature(self, born: int, sample: int) -> bool:
        return sample - born >= self.policy.heads.cooldown_samples

    def _can_pay(self, decisions: int) -> bool:
        """Is there decision budget for so many decisions of the usual size?"""
        each = self._measuring() + self.judge.least_looks * row_passes(
            self.policy.controller, USUAL_RECENT, USUAL_MEMORY
        )
        return self.passes_spent + decisions * each <= self._earned()

    def _measuring(self) -> int:
        """Passes to measure importance and growth (and likeness), forward and backward, and the loss on memory."""
        return (7 if self.policy.sharing.regroup is None else 10) * self.policy.controller.scoring_rows

    def _earned(self) -> float:
        """Passes that decisions may have spent by now."""
        budget = self.policy.budget
        return max(budget.decision_credit, budget.decision_fraction * self.passes_trained)

    def _observation(self, trigger: str, blueprint: Blueprint, scores: Scores, sample: int) -> dict[str, float]:
        cooldown = max(1, self.policy.heads.cooldown_samples)
        relative = sorted(h / max(1e-12, sum(layer) / len(layer)) for layer in scores.importance for h in layer)
        mature = [ripe for layer in scores.mature for ripe in layer]
        return {
            **{f"shift_{kind}": float(trigger == f"{kind} shift") for kind in get_args(ShiftKind)},
            "shift_age": self.pulse.since_shift / cooldown,
            "edit_age": (sample - self.last_edit_sample) / cooldown,
            "heads_log": math.log2(sum(blueprint.heads) / blueprint.layers),
            "heads_fraction": sum(blueprint.heads) / (self.policy.heads.max * blueprint.layers),
            "heads_mature": sum(mature) / len(mature),
            "importance_lowest": relative[0],
            "importance_second": relative[min(1, len(relative) - 1)],
            "growth_strongest": max(scores.growth),
            "growth_weakest": min(scores.growth),
            "samples_since_edit": float(sample - self.last_edit_sample),
            "price": price_of(blueprint, self.policy, self.price),
            "decision_budget_left": 1 - self.passes_spent / self._earned(),
            "library_fit": 0.0,
        }


def _fall(outcome: OpenOutcome) -> float:
    return outcome.loss_before - outcome.loss_sum / max(1, outcome.rows)


def _outcome(done: OpenOutcome) -> Outcome:
    return Outcome(done.decision, done.trigger, done.kind, done.predicted, _fall(done), done.price_paid)
