"""Episodes: whole simulated streams lived through, many at once, with the controller and the detectors of real runs.

What a run is made of is all here but Ray, files and records: planaria's model (in a population), optimizer, replay
memory, shift monitor, controller and its workbench. Decisions can be branched: every candidate is followed over the
stream's own next rows, beside the episode and without touching it, which says what each would have brought.

Legend: P episodes or branches, B fresh rows of a step, K candidates, C classes, Z blocks of a horizon.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from planaria.blueprint import BEFORE_EDIT, Blueprint, Restore, edit_from_dict
from planaria.control import Controller, Evidence, Measurement, Trial
from planaria.control.judge import Judge
from planaria.control.library import ConceptLibrary, Snapshot
from planaria.control.recall import RECALL
from planaria.control.rollback import ROLLBACK, holds_before
from planaria.learn import build_optimizer
from planaria.learn.losses import row_loss, row_loss_bias_fitted
from planaria.meta.population import Population
from planaria.meta.script import BATCH_ROWS, Script, rows_of_step
from planaria.meta.simulate import HEAD_WIDTH, MAX_HEADS, MLP_WIDTH, WIDTH, SimStream, Source
from planaria.model import ElasticTransformer, build
from planaria.policy import Policy
from planaria.signals import Candidate, Decision, StepReport
from planaria.train.workbench import Workbench

RECENT_ROWS, MEMORY_ROWS = 512, 256
BLOCK_STEPS, BLOCKS = 25, 20
"""A branch is followed for so many steps, its loss noted block by block: long enough to see the next shift, most of the
time, since heads that are there when it comes are worth more than those that grow after it."""
_AT_ONCE = 96
"""Branches trained side by side: more would not fit the caches."""

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass
class Branching:
    """A decision and what each of its candidates would have brought."""

    decision: Decision
    row: int
    loss: float
    trials: list[Trial]
    loss_KZ: Floats
    """Mean prequential loss of each candidate, block by block of the horizon."""
    memory_K: Floats
    """Loss on remembered rows, never replayed, at its end."""


@dataclass
class Life:
    """What an episode came to."""

    stream: SimStream
    loss_S: Floats
    """Mean prequential loss of each step."""
    error_S: Floats
    heads_S: Floats
    """Live heads at each step."""
    decisions: list[Decision]
    branchings: list[Branching]
    extra: float
    """Row-passes spent on decisions, relative to those of training."""


@dataclass
class _Started:
    """A decision whose candidates are still to be followed."""

    decision: Decision
    step: int
    loss: float
    trials: list[Trial]
    starts: list[tuple[ElasticTransformer, torch.optim.Optimizer]]
    held_rows: Integers


def policy_for(stream: SimStream, **controller: object) -> Policy:
    """Settings of an episode: those of a run, with waits in proportion to shorter phases."""
    return Policy.model_validate(
        {
            "heads": {"start": 3, "min": 1, "max": MAX_HEADS, "cooldown_samples": 1_000},
            "budget": {"price": stream.price, "decision_credit": 5_000, "decision_fraction": 0.05},
            "controller": {
                "thrift_every_samples": 1_500,
                "wait_samples": 256,
                "inner_rows": 12,
                "scoring_rows": 32,
                **controller,
            },
            "learner": {"learning_rate": 3e-3, "memory": {"rows": 500}},
        }
    )


class Episode:
    """One stream and all that lives on it but the model, which has a place in the population."""

    def __init__(self, stream: SimStream, script: Script, policy: Policy, judge: Judge, branch: bool) -> None:
        self.stream, self.script, self.policy = stream, script, policy
        self.steps = script.steps
        self.step = 0
        self.controller = Controller(policy, layers=1, seed=stream.seed, judge=judge)
        self.decisions: list[Decision] = []
        self.started: list[_Started] = []
        self.loss: list[float] = []
        self.error: list[float] = []
        self.heads: list[int] = []
        self._branch = branch
        self.library = ConceptLibrary(policy.controller.library)
        self.concept = 0
        """Number of the concept that the stream seems to be in."""
        self.concepts = 1
        self.alarm_onset: int | None = None
        self.recalled = False
        """A concept was restored on the present alarm."""
        self.before: tuple[ElasticTransformer, torch.optim.Optimizer, list[list[int]]] | None = None
        """Model, optimizer and births before the newest edit, until its outcome is known."""
        # Of the decision being taken:
        self.model: ElasticTransformer
        self.optimizer: torch.optim.Optimizer
        self._trials: list[Trial] = []
        self._held = np.zeros(0, np.int64)

    @property
    def row(self) -> int:
        """The first one that was not learned from yet."""
        return self.step * BATCH_ROWS

    @property
    def blueprint(self) -> Blueprint:
        blueprint: Blueprint = self.model.blueprint
        return blueprint

    def take_in(self, loss_B: Floats, output_BC: Floats, heads: int, passes: int) -> bool:
        """A step was learned from; True where a decision is due."""
        rows = rows_of_step(self.step)
        target_B = self.stream.target[rows]
        error_B = (output_BC.argmax(1) != target_B).astype(np.float32)
        report = StepReport(self.step, int(rows[0]), loss_B, error_B, target_B, output_BC, output_BC)
        self.loss.append(float(loss_B.mean()))
        self.error.append(float(error_B.mean()))
        self.heads.append(heads)
        self.controller.observe(report, passes)
        shift, self.alarm_onset = self.script.shifts.get(self.step), self.script.alarms.get(self.step)
        self.step += 1
        if shift is not None:
            if not self.recalled:
                self.library.leave(self.concept, shift.onset_sample, self.row)
                self.concept, self.concepts = self.concepts, self.concepts + 1
            self.recalled = False
            self.controller.shifted(shift)
        else:
            self.recalled = self.recalled and self.alarm_onset is not None
            self.controller.alarmed(self.alarm_onset)
        self.controller.outcomes(self.row)
        return self.controller.due(self.row) is not None

    def roll(self, model: ElasticTransformer) -> None:
        """Keep a copy of the live model, for the library."""
        self.library.roll(Snapshot.of(model, model.blueprint, self.controller.births, self.row))

    def decide(self, model: ElasticTransformer, optimizer: torch.optim.Optimizer) -> bool:
        """Take the decision that is due, in place; True where the model or its optimizer changed."""
        self.model, self.optimizer, self._trials = model, optimizer, []
        owners = model.blueprint.owners("attention")
        loss = self.controller.pulse.loss_fast
        decision = self._decided()
        if decision is None:
            return False
        horizon_fits = self.step + BLOCK_STEPS * BLOCKS <= self.steps
        if self._branch and horizon_fits and len(self._trials) == len(decision.candidates):
            starts = [self._bench.under(candidate) for candidate in decision.candidates]
            self.started.append(_Started(decision, self.step, loss, self._trials, starts, self._held))
        self._carry_out(decision)
        self.controller.applied(decision, owners)
        self.decisions.append(decision)
        if self.controller.held is None:
            self.before = None
        return decision.chosen.edit is not None or decision.chosen.treatment != "keep"

    def _decided(self) -> Decision | None:
        trigger = self.controller.due(self.row)
        assert trigger is not None
        if trigger == RECALL:
            return self.controller.recall(self.step, self.row, self)
        if trigger == ROLLBACK:
            return self.controller.reconsider(self.step, self.row, self)
        return self.controller.decide(trigger, self.step, self.row, self)

    def _carry_out(self, decision: Decision) -> None:
        chosen = decision.chosen
        edit = None if chosen.edit is None else edit_from_dict(chosen.edit)
        if edit is None and chosen.treatment == "keep":
            return
        if isinstance(edit, Restore) and edit.concept == BEFORE_EDIT:
            assert self.before is not None
            self.model, self.optimizer, self.controller.births = self.before
            return
        if holds_before(decision):
            births = [list(layer) for layer in self.controller.births]
            self.before = (self.model, self.optimizer, births)
        if isinstance(edit, Restore):
            snapshot = self.library.entries[edit.concept].snapshot
            self.model = _model_of(snapshot)
            self.optimizer = build_optimizer(self.model, self.policy.learner)
            self.controller.births = snapshot.births(self.row)
            self.library.restored(edit.concept, self.row)
            self.recalled = self.alarm_onset is not None
            if self.alarm_onset is not None and self.concept != edit.concept:
                self.library.leave(self.concept, self.alarm_onset, self.row)
            self.library.rolling, self.concept = [], edit.concept
        else:
            self.model, self.optimizer = self._bench.under(chosen)

    # -- what a decision may ask (control.Bench)

    @property
    def kept(self) -> dict[int, Blueprint]:
        kept = {concept: entry.snapshot.blueprint for concept, entry in self.library.entries.items()}
        return kept if self.before is None else {**kept, BEFORE_EDIT: self.before[0].blueprint}

    def hindsight(
        self, concepts: Sequence[int], rows: int, remembered: int = 0, bias_fitted: bool = False
    ) -> list[Trial]:
        newest = np.arange(max(0, self.row - rows), self.row)
        held = self.script.memory(self.step)
        slots = held.held(remembered, self.step) if remembered else np.zeros(0, np.int64)
        old = held.columns["row"][slots]
        models = [self.model]
        for concept in concepts:
            known = self.before[0] if concept == BEFORE_EDIT and self.before is not None else None
            models.append(known or _model_of(self.library.entries[concept].snapshot))
        newest_loss = row_loss_bias_fitted if bias_fitted else row_loss
        return [Trial(self._losses(model, newest, newest_loss), self._losses(model, old, row_loss)) for model in models]

    @torch.no_grad()
    def _losses(self, model: ElasticTransformer, rows: Integers, loss: Callable[..., Tensor]) -> Floats:
        if not len(rows):
            return np.zeros(0, np.float32)
        target = torch.from_numpy(self.stream.target[rows])
        losses = loss("classification", model(tensors(self.stream, rows)), target, torch.ones(()))
        return np.asarray(losses.numpy())

    def seconds(self) -> float:
        return time.perf_counter()

    def evidence(self, since_row: int) -> Evidence:
        recent = np.arange(max(since_row, self.row - RECENT_ROWS, 0), self.row)
        recent = np.random.default_rng((self.stream.seed, self.step, 1)).permutation(recent)
        memory = self.script.memory(self.step)
        held = memory.held(MEMORY_ROWS, self.step)
        remembered = memory.columns["row"][np.concatenate((memory.draw(MEMORY_ROWS, self.step, to_decide=True), held))]
        self._held = memory.columns["row"][held]
        evidence = Evidence(
            recent=tensors(self.stream, recent),
            recent_target=torch.from_numpy(self.stream.target[recent]),
            held_recent=round(len(recent) * self.policy.controller.held_back),
            memory=tensors(self.stream, remembered),
            memory_target=torch.from_numpy(self.stream.target[remembered]),
            held_memory=len(held),
        )
        seed = self.stream.seed * 1_000_003 + self.step
        kept = {concept: entry.snapshot.weights for concept, entry in self.library.entries.items()}
        self._bench = Workbench(self.model, self.optimizer, self.policy, evidence, _row_loss, seed, kept)
        return evidence

    def measure(self, evidence: Evidence) -> Measurement:
        return self._bench.measure()

    def trials(self, candidates: list[Candidate], evidence: Evidence, seed: int) -> list[Trial]:
        self._trials = [self._bench.trial(candidate, seed) for candidate in candidates]
        return self._trials


@dataclass(frozen=True)
class Start:
    """What an episode begins with."""

    stream: SimStream
    script: Script
    judge: Judge
    policy: Policy


def live(starts: Sequence[Start], *, branch: bool = False) -> list[Life]:
    """Live through streams of one family side by side; the more, the cheaper each. Their scripts must replay equally
    many rows. With `branch`, decisions for which every candidate was looked ahead on are followed further."""
    episodes = [Episode(start.stream, start.script, start.policy, start.judge, branch) for start in starts]
    population = _born(episodes)
    active = list(range(len(episodes)))
    while active:
        _step(population, [episodes[at] for at in active])
        going = [place for place, at in enumerate(active) if episodes[at].step < episodes[at].steps]
        if len(going) < len(active):
            population.keep(going)
            active = [active[place] for place in going]
    branchings = _follow(episodes) if branch else [[] for _ in episodes]
    return [_life(episode, found) for episode, found in zip(episodes, branchings, strict=True)]


def tensors(stream: SimStream, rows: Integers) -> dict[str, Tensor]:
    """Those rows of a stream as the model's inputs."""
    return {name: torch.from_numpy(column[rows]) for name, column in stream.features.items()}


def first_blueprint(stream: SimStream | Source[Any], heads: int) -> Blueprint:
    """Of the model that every family is made for."""
    return Blueprint.for_fields(
        stream.fields,
        width=WIDTH,
        head_width=HEAD_WIDTH,
        mlp_width=MLP_WIDTH,
        heads=(heads,),
        outputs=stream.outputs,
        patch=stream.patch,
    )


def _born(episodes: Sequence[Episode]) -> Population:
    first = episodes[0]
    heads = first.policy.heads
    blueprint = first_blueprint(first.stream, heads.start)
    population = Population(blueprint, heads.max, first.policy.learner, len(episodes))
    for place, episode in enumerate(episodes):
        model = build(first_blueprint(episode.stream, episode.policy.heads.start), episode.stream.seed)
        population.put(place, model, build_optimizer(model, episode.policy.learner))
    return population


def _step(population: Population, episodes: Sequence[Episode]) -> None:
    seen = population.step(*_batch(episodes, [episode.step for episode in episodes]), BATCH_ROWS)
    loss_PB, output_PBC = seen.loss_PB[:, :BATCH_ROWS].numpy(), seen.output_PBC[:, :BATCH_ROWS].numpy()
    heads_P = population.live_PLN.sum((1, 2)).tolist()
    for place, episode in enumerate(episodes):
        passes = 3 * (BATCH_ROWS + int(episode.script.replays_S[episode.step]))
        due = episode.take_in(loss_PB[place], output_PBC[place], int(heads_P[place]), passes)
        if due and episode.decide(*population.take(place)):
            population.put(place, episode.model, episode.optimizer)
        watched = episode.policy.controller.kind != "none" and episode.alarm_onset is None
        if watched and episode.library.due(episode.row):
            episode.roll(population.take(place)[0])


def _batch(episodes: Sequence[Episode], steps: Sequence[int]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Features, targets and weights of each one's rows at its step: fresh ones, then replayed ones."""
    streams = [episode.stream for episode in episodes]
    rows = [episode.script.rows(step) for episode, step in zip(episodes, steps, strict=True)]
    features = {
        name: torch.from_numpy(np.stack([s.features[name][at] for s, at in zip(streams, rows, strict=True)]))
        for name in streams[0].features
    }
    target_PB = torch.from_numpy(np.stack([s.target[at] for s, at in zip(streams, rows, strict=True)]))
    weight_PB = torch.full(target_PB.shape, 1 / BATCH_ROWS)
    weight_PB[:, BATCH_ROWS:] = episodes[0].script.replay_weight(steps[0])
    return features, target_PB, weight_PB


@dataclass
class _Followed:
    """One candidate of one decision, on its way."""

    episode: int
    started: _Started
    number: int
    losses: list[float] = field(default_factory=list)
    memory: float = float("nan")


def _follow(episodes: Sequence[Episode]) -> list[list[Branching]]:
    """All candidates of all branched decisions over the horizon."""
    everyone = [
        _Followed(at, started, number)
        for at, episode in enumerate(episodes)
        for started in episode.started
        for number in range(len(started.starts))
    ]
    for low in range(0, len(everyone), _AT_ONCE):
        _follow_some(episodes, everyone[low : low + _AT_ONCE])
    found: list[list[Branching]] = [[] for _ in episodes]
    for branches in _by_decision(everyone):
        started = branches[0].started
        loss_KS = np.array([branch.losses for branch in branches], np.float32)
        found[branches[0].episode].append(
            Branching(
                started.decision,
                started.step * BATCH_ROWS,
                started.loss,
                started.trials,
                loss_KS.reshape(len(branches), BLOCKS, BLOCK_STEPS).mean(2),
                np.array([branch.memory for branch in branches], np.float32),
            )
        )
    return found


def _by_decision(everyone: Sequence[_Followed]) -> Iterator[list[_Followed]]:
    at = 0
    while at < len(everyone):
        count = len(everyone[at].started.starts)
        yield list(everyone[at : at + count])
        at += count


def _follow_some(episodes: Sequence[Episode], branches: Sequence[_Followed]) -> None:
    first = episodes[0]
    blueprint = first_blueprint(first.stream, first.policy.heads.start)
    population = Population(blueprint, first.policy.heads.max, first.policy.learner, len(branches))
    for place, branch in enumerate(branches):
        population.put(place, *branch.started.starts[branch.number])
    lived = [episodes[branch.episode] for branch in branches]
    for ahead in range(BLOCK_STEPS * BLOCKS):
        steps = [branch.started.step + ahead for branch in branches]
        seen = population.step(*_batch(lived, steps), BATCH_ROWS)
        for branch, loss in zip(branches, seen.loss_PB[:, :BATCH_ROWS].mean(1).tolist(), strict=True):
            branch.losses.append(loss)
    for place, branch in enumerate(branches):
        if len(branch.started.held_rows):
            model, _ = population.take(place)
            rows = branch.started.held_rows
            with torch.no_grad():
                stream = lived[place].stream
                loss = _row_loss(model, tensors(stream, rows), torch.from_numpy(stream.target[rows]))
            branch.memory = float(loss.mean())


def _life(episode: Episode, branchings: list[Branching]) -> Life:
    return Life(
        episode.stream,
        np.array(episode.loss, np.float32),
        np.array(episode.error, np.float32),
        np.array(episode.heads, np.float32),
        episode.decisions,
        branchings,
        episode.controller.passes_in_all / max(1, episode.controller.passes_trained),
    )


def _model_of(snapshot: Snapshot) -> ElasticTransformer:
    model = build(snapshot.blueprint)
    model.load_state_dict(dict(snapshot.weights))
    return model


def _row_loss(model: nn.Module, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
    return row_loss("classification", model(features), target, torch.ones(()))
