"""The loop of a lifelong run: predict, score, learn, detect, decide, edit, for ever.

Every worker holds the same state and ends every step with the same state; a step's rows are computed in shards, and
the shards' gradients and row statistics are added in a fixed order in one collective. All randomness is a function of
(seed, step or row), so that a run that was killed and resumed, or that has another number of workers, is the same run.

Legend: B rows of the step, R replayed rows, C outputs, F sketch features.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from planaria.blueprint import (
    BEFORE_EDIT,
    AddAdapter,
    Blueprint,
    Edit,
    GrowOutputs,
    Quantisation,
    Quantise,
    Restore,
    edit_from_dict,
)
from planaria.control import Controller, Evidence, Measurement, Trial
from planaria.control.judge import Exchange
from planaria.control.judges import judge_for
from planaria.control.learned import LearnedJudge
from planaria.control.library import Snapshot, Weights
from planaria.control.propose import price_of
from planaria.control.recall import RECALL
from planaria.control.rollback import ROLLBACK, holds_before
from planaria.detect import Sketch, ToldMonitor, build_monitor
from planaria.errors import InputError, RunError
from planaria.job import Job
from planaria.learn import (
    DOUBTFUL,
    OptimizerFollower,
    ReplayMemory,
    RestoringFollower,
    Share,
    build_objective,
    build_optimizer,
    clip_gradients,
    in_order,
    load_optimizer_tensors,
    optimizer_tensors,
    project,
    put_in_order,
    row_error,
    row_loss,
    row_loss_bias_fitted,
)
from planaria.model import ROUTE, ElasticTransformer, build, check_weights
from planaria.morph import Follower, Followers, operate
from planaria.plain_json import load_json
from planaria.plain_yaml import one_line
from planaria.signals import Candidate, Decision, Features, Rows, Shift, StepReport, StepScores, Stream
from planaria.train import adapting
from planaria.train.account import Account
from planaria.train.adapting import Adapting
from planaria.train.compiling import Compiling
from planaria.train.energy import build_meter
from planaria.train.evaluate import Evaluator, table_bytes, table_from
from planaria.train.gating import Gating
from planaria.train.group import Group, own_shards, tree_sum
from planaria.train.protection import Protection
from planaria.train.pruning import Pruning
from planaria.train.reading import Reading, pass_through
from planaria.train.recollection import FILE as RECOLLECTION_FILE
from planaria.train.recollection import Recollection
from planaria.train.renewing import Renewing
from planaria.train.shares import Part, gather_rows, share_out
from planaria.train.turn import CAUSE, Turn, next_edit
from planaria.train.watch import Watch
from planaria.train.workbench import CALIBRATION_ROWS, Workbench, treat

RECENT_ROWS = 1_024
"""Newest rows a decision may look at."""
MEMORY_ROWS = 256
"""Remembered rows a decision may adapt on, and as many never replayed ones on which it is scored."""
SKETCH_FEATURES = 32
_FIRST_STEP_ROWS = 4
"""Of a job whose first steps are small."""
_EVALUATION_ROWS = 512
_BESIDE_ROWS = 2 + 3
"""Numbers of a step that are no row's: CPU seconds and joules that were spent, and the fields of a Tick. They are
followed by the seconds that each worker computed in the step before."""
_SCORED = 5
"""From which of the fields of Summed on they are known to the processor after every step."""


class Tick(NamedTuple):
    """What is to be done after a step by whoever keeps the run's folder: rank 0 wishes it, and all workers agree on it
    in the step's collective."""

    stopped: bool = False
    report: bool = False
    checkpoint: bool = False


QUIET = Tick()


class Summed(NamedTuple):
    """What the step's collective adds up beside gradients, as parts of one vector; most of them are often empty."""

    reference: Tensor
    """The replayed rows' gradient, where it is kept apart."""
    usage: Tensor
    """What hidden units did, where it is watched."""
    opened: Tensor
    """What gates did."""
    lost_again: Tensor
    """Replayed rows' losses, where the memory asks."""
    told: Tensor
    """What a readout learns from watched rows and is judged by."""
    scores: Tensor
    """Fresh rows' losses, and then their errors."""
    outputs: Tensor
    """Of each watched row."""
    sketches: Tensor
    """Of each watched row."""
    beside: Tensor
    """What the workers spent, rank 0's wishes, and how long each worker computed."""


class Lifelong:
    """All that a run is, and how it takes a step."""

    def __init__(self, job: Job, stream: Stream, group: Group, device: torch.device) -> None:
        self.job, self.stream, self.group, self.device = job, stream, group, device
        self.task = stream.fields.task
        self.shards = job.scale.shard_count
        policy = job.policy
        self.reading = Reading(policy.learner, self.task, job.seed)
        hold_back = policy.controller.kind != "none" or self.reading.judges_memory
        share = Share(self.shards, own_shards(group.rank, group.size, self.shards))
        self.memory = ReplayMemory(policy.learner.memory, self.task, job.seed, hold_back, share)
        self.objective = build_objective(policy.learner)
        self.protection, self.renewing = Protection(policy.learner), Renewing(policy.learner)
        self.gating, self.pruning = Gating(policy, job.seed), Pruning(policy)
        self.adapting = Adapting(policy, job.seed)
        self.compiling = Compiling(pass_through, job.model.compile_after_rows, device)
        self.monitor = build_monitor(policy.detector, self.task)
        self.sketch = Sketch(stream.fields, job.seed, SKETCH_FEATURES)
        self.watch = Watch(job)
        self.controller = Controller(policy, job.model.layers, job.seed, judge_for(policy.controller))
        self.recollection = Recollection(policy.controller.library if policy.controller.kind != "none" else 0)
        self.present_since = 0
        """First row that is surely of the present concept."""
        self.evaluator = Evaluator(job.evaluation, stream, self.task, job.seed)
        self.account = Account(job, stream, self.evaluator)
        self.meter = build_meter(job.energy, group, device)
        self.model: ElasticTransformer
        self.optimizer: torch.optim.Optimizer
        self.parameters: list[nn.Parameter]
        self.while_waiting: Callable[[], Tick]
        """Asked by rank 0 while it waits for new files: what is to be done meanwhile."""
        self.keep: Callable[[Mapping[str, bytes]], None]
        """Given the state where a checkpoint is due meanwhile."""
        self.before_edit: Callable[[], None]
        """Told that the model is about to be operated on: the last moment to keep it as it is."""
        self.exchange: Exchange
        """On rank 0 of a run that shares its controller: lend what it learned, borrow what others did."""
        self.let_go()
        self.between_steps = True
        """Whether the state is one that a run can go on from; not so within a step."""
        self.busy_W = np.zeros(group.size, np.float32)
        """Seconds that each worker computed in the step before the last, without waiting for others."""
        self._busy_s = 0.0
        self._evidence: Evidence | None = None
        """Of the decision that is being carried out."""

    # -- the life of a run

    def let_go(self) -> None:
        """Of those who keep its folder or share what it learns. As they hold the run, its memory is only free once it
        does not hold them."""
        self.while_waiting = Tick
        self.keep = lambda state: None
        self.before_edit = lambda: None
        self.exchange = lambda lent: None

    def begin(self) -> bool:
        """Make the first blueprint from the stream's first rows; False where the run was stopped while it waited for
        them. Raises InputError where there are none."""
        first = self._next_rows(stop=False, most=self.job.batch_rows)
        if first is None:
            return False
        if not len(first):
            raise InputError("stream: no rows; give a path with data in it")
        self.sketch.fit(first.select(slice(None)))
        model, policy = self.job.model, self.job.policy
        blueprint = Blueprint.for_fields(
            self.stream.fields,
            width=model.width,
            head_width=model.head_width,
            mlp_width=model.mlp_width,
            heads=(policy.heads.start,) * model.layers,
            outputs=len(self.stream.labels),
            patch=model.patch,
            readout=self.reading.sizes,
            attention_of=policy.sharing.owners("attention", model.layers),
            mlp_of=policy.sharing.owners("mlp", model.layers),
            difference_rank=policy.sharing.difference_rank,
            gates=None if policy.gate is None else policy.gate.gates,
            quantisation=self._quantisation_due,
            adapters=self.adapting.sizes,
        )
        self._install(blueprint)
        if self.model.router is not None:
            self.adapting.begin(self.model, self._tensors(first.select(slice(None))))
        self.reading.begin(self.model, self._tensors(first.select(slice(self._step_rows))))
        self.account.open_revision(blueprint, parent=None, cause="start", why="the blueprint that the job asks for")
        return True

    def turn(self, turn: Turn) -> None:
        """Go over to the job's policy from the one that held until here, with the edits that it takes; does nothing
        where that was done. Raises RunError where the policy is out of reach."""
        newest = self.account.records.rows("revisions")[-1]
        if self.row != turn.row or (newest["cause"], newest["sample"]) == (CAUSE, turn.row):
            return
        if self.job.policy.budget.price != turn.before.budget.price:
            self.controller.price = self.job.policy.budget.price
        self.controller.turned()
        self.recollection.before = None
        edits = 0
        try:
            while edit := next_edit(self.blueprint, turn.before, self.job.policy, self._importance):
                owners = self.blueprint.owners("attention")
                self._edit(edit, CAUSE, turn.why)
                self.controller.edited(edit, owners, self.row)
                edits += 1
        except ValueError as error:
            raise RunError(f"row {self.row}: the policy cannot be changed: {error}") from None
        self._evidence = None
        if not edits:
            self.account.close_revision()
            self.account.open_revision(self.blueprint, self.account.totals.revisions - 1, CAUSE, turn.why)

    def _importance(self) -> Sequence[Sequence[float]]:
        return self.measure(self.evidence(0)).importance

    def take_step(self, wish: Tick = QUIET) -> Tick | None:
        """One global step; None when the stream (or the job's `samples`) has ended.

        `wish` is rank 0's; the returned tick is what all workers agreed on.
        """
        began = time.perf_counter()
        rows = self._next_rows(wish.stopped, self._step_rows)
        if rows is None:
            return Tick(stopped=True)
        if not len(rows):
            return None
        if rows.start != self.row:
            raise RunError(
                f"stream: row {rows.start} came where row {self.row} was due; the source was changed meanwhile"
            )
        self.between_steps = False
        self._settle_where_told(rows)
        if self.task == "classification" and len(self.stream.labels) > self.blueprint.outputs:
            self._edit(GrowOutputs(len(self.stream.labels)), "new label", "the stream brought a label not seen before")
        due = self._quantisation_due
        if due is not None and self.blueprint.quantisation is None:
            self._edit(Quantise(due), "quantise", "the policy's last phase: the model learns as it will be exported")
            self.monitor.adapted(self.row)
        watched = self.watch.among(rows.start, len(rows))
        left_context = self.evaluator.take(rows, watched)
        if left_context:
            self.evaluator.measure(self.group.spread, self._score)
        judged = self.memory.share.by_shard(self.memory.held(self._judged(len(rows)), self.step))
        scores, seen, tick, told = self._learn(rows, watched, judged, wish)
        kept_apart = self._remember(rows, watched, seen)
        self._read(rows, watched, judged, told, kept_apart)
        if self.model.router is not None:
            taught = np.intersect1d(self.adapting.taught(rows), watched, assume_unique=True)
            self.adapting.learn(self.model, self._tensors(rows.select(taught)), rows)
        self.account.add(scores, time.perf_counter() - began, self.gating.opened)
        self._control(scores, seen)
        self._prune()
        self.account.totals.wall_seconds += time.perf_counter() - began
        self.between_steps = True
        return tick

    def finish(self) -> dict[int, tuple[float, float]]:
        """Close the record; returns the final (error, squared error) per context."""
        final = self.evaluator.measure(self.group.spread, self._score)
        spent = self.meter.spent()
        self._note_energy(*self.group.sum(torch.tensor([spent.cpu_seconds, spent.joules], device=self.device)).tolist())
        self.account.close()
        return final

    # -- one step

    @property
    def _step_rows(self) -> int:
        """How many rows this step is to have."""
        job = self.job
        if job.batch_fraction is None:
            return job.batch_rows
        known, least = self.row, max(_FIRST_STEP_ROWS, self.shards)
        alarmed = self.monitor.alarm_onset is not None
        if alarmed or self.present_since:
            known = 0 if alarmed else self.row - self.present_since
            least = max(least, job.batch_rows // 2)
        return min(job.batch_rows, max(least, int(job.batch_fraction * known)))

    @property
    def _quantisation_due(self) -> Quantisation | None:
        """What the policy asks for by now."""
        quantise = self.job.policy.quantise
        if quantise is None or self.row < quantise.first_row(self.job.samples):
            return None
        return quantise.quantisation

    def _next_rows(self, stop: bool, most: int) -> Rows | None:
        """The step's rows, as many on every worker; None where the run was stopped while it waited for rows."""
        count = most
        if self.job.samples is not None:
            count = min(count, self.job.samples - self.row)
        if not self.job.stream.follow:
            return self.stream.read(self.row, count)
        while True:
            known, due, problem = self.group.share(self._look(count, stop))
            if problem is not None:
                raise RunError(problem)
            if known == count:
                return self.stream.read(self.row, count)
            if due.checkpoint:
                self.keep(self.state())
            if due.stopped:
                return None
            time.sleep(self.job.stream.follow_poll_s)

    def _look(self, count: int, stop: bool) -> tuple[int, Tick, str | None]:
        """On rank 0: how many of `count` rows have arrived, what to do meanwhile, and what is wrong with the files."""
        if self.group.rank != 0:
            return 0, QUIET, None
        try:
            known = min(count, self.stream.available(self.row))
        except RunError as error:
            return 0, QUIET, str(error)
        if known == count or stop:
            return known, Tick(stopped=stop), None
        return known, self.while_waiting(), None

    def _learn(
        self, rows: Rows, watched: npt.NDArray[np.int64], judged: npt.NDArray[np.int64], wish: Tick
    ) -> tuple[StepScores, StepReport, Tick, Tensor]:
        """Forward, backward, one collective, one optimizer step. The last of what it returns is for the readout."""
        began = time.perf_counter()
        if self.blueprint.numeric:
            self.model.observe(self._tensors({"numeric": rows.select(watched)["numeric"]}))
        replay = self.memory.share.by_shard(self.memory.draw(self._replayed, self.step))
        alone = self.group.size == 1 and self.shards == 1
        own = own_shards(self.group.rank, self.group.size, self.shards)
        vectors: list[Tensor] = []
        lengths = self._lengths(len(rows), len(watched), len(replay), len(judged))
        for part in share_out(len(rows), replay, judged, self.shards, own):
            for parameter in self.parameters:
                parameter.grad = None
            beside_gradients = torch.zeros(sum(lengths), device=self.device)
            summed = Summed(*beside_gradients.split_with_sizes(lengths))
            self._shard(part, rows, watched, replay, judged, summed)
            if not vectors:
                spent = self.meter.spent()
                beside = np.zeros(lengths[-1], np.float32)
                wishes = wish if self.group.rank == 0 else QUIET
                beside[:_BESIDE_ROWS] = (spent.cpu_seconds, spent.joules, *wishes)
                beside[_BESIDE_ROWS + self.group.rank] = self._busy_s
                summed.beside.copy_(torch.from_numpy(beside))
            vectors.append(beside_gradients if alone else torch.cat((*self._flat_gradients(), beside_gradients)))
        vector = tree_sum(vectors)
        self._busy_s = time.perf_counter() - began
        vector = self.group.sum(vector)
        if not alone:
            self._take_gradients(vector)
        summed = Summed(*vector[-sum(lengths) :].split_with_sizes(lengths))
        if self._projects:
            self._take_gradients(project(torch.cat(self._flat_gradients()), summed.reference))
        self.protection.pull(self.parameters)
        self.pruning.masks.hold()
        length = clip_gradients(self.optimizer, self.job.policy.learner.clip_norm)
        known = vector[-sum(lengths[_SCORED:]) :].cpu().numpy()
        scores, seen = self._unpack(known, rows, watched)
        beside_rows = known[-lengths[-1] :]
        (cpu_seconds, joules, *agreed), self.busy_W = beside_rows[:_BESIDE_ROWS], beside_rows[_BESIDE_ROWS:]
        if not (np.isfinite(scores.loss_B).all() and np.isfinite(length)):
            raise RunError(
                f"step {self.step}: the loss is not finite; lower policy.learner.learning_rate, or look for extreme "
                f"values in rows {rows.start} to {rows.start + len(rows) - 1}"
            )
        self.optimizer.step()
        self.protection.stepped(self.parameters, len(rows) + len(replay))
        self.gating.stepped(self.model, summed.opened, len(rows), self.row)
        self.renewing.renew(self.model, self.optimizer, summed.usage, self._surgery_seed())
        if summed.lost_again.numel():
            self.memory.loss[replay] = summed.lost_again.cpu().numpy()
        if self.task == "regression":
            self.model.output.observe(self._target(rows.target))
        self._note_energy(float(cpu_seconds), float(joules))
        return scores, seen, Tick(*(bool(one) for one in agreed)), summed.told

    def _note_energy(self, cpu_seconds: float, joules: float) -> None:
        self.account.add_energy(cpu_seconds, joules, self.meter.method)

    def _read(
        self,
        rows: Rows,
        watched: npt.NDArray[np.int64],
        judged: npt.NDArray[np.int64],
        told: Tensor,
        kept_apart: list[int],
    ) -> None:
        """Let the readout learn the step's watched rows, but for those that memory keeps apart to judge by."""
        if self.model.readout is None:
            return
        self.reading.withhold(rows.start + int(at) for at in watched[kept_apart])
        learned = ~rows.held_out[watched]
        learned[kept_apart] = False
        target = self._target(np.concatenate((rows.target[watched], self.memory.target[judged])))
        monitor, now = self.monitor, self.row + len(rows)
        at = torch.from_numpy(learned).to(self.device)
        self.reading.learn(self.model, told, target, at, self.row, monitor.concept, monitor.contradicted)
        self.reading.redraw(self.model, self.stream, self.row, now, self._decode)

    def _decode(self, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
        """Features and targets of the rows that the readout learns from."""
        watched = self.watch.among(rows.start, len(rows))
        withheld = np.isin(rows.start + watched, self.reading.withheld)
        learned = watched[~rows.held_out[watched] & ~withheld]
        return self._tensors(rows.select(learned)), self._target(rows.target[learned])

    def _shard(
        self,
        part: Part,
        rows: Rows,
        watched: npt.NDArray[np.int64],
        replay: npt.NDArray[np.int64],
        judged: npt.NDArray[np.int64],
        summed: Summed,
    ) -> None:
        """Forward and backward of one shard; its rows' share of what is summed goes into `summed`, which is 0."""
        low, high = part.fresh.start, part.fresh.stop
        slots = replay[part.replayed]
        total = len(rows)
        beside = np.concatenate((slots, judged[part.judged]))
        if high == low and not len(beside):
            return
        fresh = rows.select(part.fresh)
        batch = _join(fresh, self.memory.select(beside)) if len(beside) else fresh
        target = self._target(np.concatenate((rows.target[low:high], self.memory.target[beside])))
        features = self._with_route(self._tensors(batch), high - low, beside)
        full = part.even and self._full(rows, replay, judged)
        passing = self.compiling.chosen(self.blueprint, self.account.life.samples, full)
        count, held_out = high - low, int(rows.held_out.sum())
        learned, replay_weight = max(1, total - held_out), self.objective.replay_weight
        share_B = np.zeros(len(target), np.float32)  # one product for all rows: slices cost more than they compute
        share_B[:count] = ~rows.held_out[low:high] / learned
        share_B[count : count + len(slots)] = (replay_weight or 0.0) / max(1, len(replay))
        places = (np.arange(total), part.fresh), (replay, part.replayed), (judged, part.judged)
        gating = self.gating.watching(self.model, self.step, places)
        with self._precision(), self.renewing.watching(self.model, summed.usage, total + len(replay)), gating:
            passed = passing(self.model, features, target, torch.from_numpy(share_B).to(self.device))
        output, loss, objective = passed.trained_BC, passed.loss_B, passed.cost
        if replay_weight is None or self.protection.teaches or self._projects:
            objective = self._objective_of(
                part, rows, replay, features, target, output, loss, learned, summed.reference
            )
        if summed.opened.numel():
            held_in = ~rows.held_out[part.fresh]
            objective = objective + self.gating.cost(self.model, summed.opened, held_in, total, self.row) / learned
        objective.backward()
        with torch.no_grad():
            if summed.lost_again.numel():
                summed.lost_again[part.replayed] = loss[count : count + len(slots)]
            everything_watched = len(watched) == total
            first, last = (low, high) if everything_watched else np.searchsorted(watched, (low, high)).tolist()
            own: slice | Tensor = slice(0, count)
            if last - first < count:
                own = torch.from_numpy(watched[first:last] - low).to(self.device)
                fresh = {name: column[watched[first:last] - low] for name, column in fresh.items()}
            if passed.told_BW is not None:
                told_BW = summed.told.view(len(watched) + len(judged), -1)
                told_BW[first:last] = passed.told_BW[own]
                told_BW[len(watched) :][part.judged] = passed.told_BW[count + len(slots) :]
            if count:
                summed.scores[low:high] = passed.answered_loss_B[:count]
                summed.scores[total + low : total + high] = passed.answered_error_B[:count]
            if last > first:
                summed.outputs.view(len(watched), -1)[first:last] = output[own]
                sketch_BF = torch.from_numpy(self.sketch(fresh))
                summed.sketches.view(len(watched), -1)[first:last] = sketch_BF.to(self.device)

    def _objective_of(
        self,
        part: Part,
        rows: Rows,
        replay: npt.NDArray[np.int64],
        features: Mapping[str, Tensor],
        target: Tensor,
        output: Tensor,
        loss: Tensor,
        learned: int,
        reference: Tensor,
    ) -> Tensor:
        """What gradients are taken of, where rows cost other than their own loss. The gradient of replayed rows that
        only set a limit goes into `reference`."""
        count, slots = part.fresh.stop - part.fresh.start, replay[part.replayed]
        fresh_loss = self.objective.fresh(output[:count], target[:count], loss[:count], rows.target)
        if self.protection.teaches:
            with self._precision():
                # what an earlier model says of a row follows from the row alone
                new = {name: column[:count] for name, column in features.items() if name != ROUTE}
                cost = self.protection.cost(self.task, new, output[:count], self.model.output.spread)
            fresh_loss = fresh_loss + cost
        held_out_B = rows.held_out[part.fresh]
        if held_out_B.any():
            fresh_loss = fresh_loss * torch.from_numpy(~held_out_B).to(self.device)
        objective = fresh_loss.sum() / learned
        if not len(slots):
            return objective
        these = slice(count, count + len(slots))
        replayed = self.objective.replayed(loss[these], partial(self._outputs_then, output[these], slots))
        lost = replayed.sum() / len(replay)
        if not self._projects:
            return objective + lost
        lost.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        torch.cat(self._flat_gradients(), out=reference)
        self.optimizer.zero_grad()
        return objective

    def _full(self, rows: Rows, replay: npt.NDArray[np.int64], judged: npt.NDArray[np.int64]) -> bool:
        """Whether the step has as many rows as nearly all steps have."""
        batch = self.job.batch_rows
        return (len(rows), len(replay), len(judged)) == (batch, self._replayed, self._judged(batch))

    def _judged(self, rows: int) -> int:
        """On how many remembered rows a step of so many fresh ones judges the readout."""
        return self.reading.drawn(min(rows, self.job.scale.watched_rows))

    @property
    def _projects(self) -> bool:
        """Whether replayed rows only say in which directions not to go: their gradient goes with the statistics."""
        return self.job.policy.learner.loss == "a_gem"

    def _lengths(self, rows: int, watched: int, replayed: int, judged: int) -> list[int]:
        """Of the fields of Summed."""
        return [
            sum(p.numel() for p in self.parameters) if self._projects else 0,
            self.renewing.length(self.model),
            self.gating.length(self.model),
            replayed if self.memory.kind == "loss_aware" else 0,
            (watched + judged) * self.reading.width(self.model),
            2 * rows,
            watched * self.blueprint.outputs,
            watched * SKETCH_FEATURES,
            _BESIDE_ROWS + self.group.size,
        ]

    @property
    def _replayed(self) -> int:
        """How many remembered rows are drawn for a step. As many for one that is smaller than others: where the first
        rows come a few at a time, they are learned from more often."""
        learner = self.job.policy.learner
        return 0 if learner.loss == "naive" else round(learner.replay_ratio * self.job.batch_rows)

    def _unpack(
        self, known: npt.NDArray[np.float32], rows: Rows, watched: npt.NDArray[np.int64]
    ) -> tuple[StepScores, StepReport]:
        """`known` begins with the scores, outputs and sketches of Summed."""
        total, count = len(rows), len(watched)
        outputs_from, sketches_from = 2 * total, 2 * total + count * self.blueprint.outputs
        sketches_to = sketches_from + count * SKETCH_FEATURES
        score_2B, everything = known[:outputs_from].reshape(2, total), count == total
        scores = StepScores(self.step, rows.start, *score_2B)
        loss_B, error_B = score_2B if everything else score_2B[:, watched]
        report = StepReport(
            step=self.step,
            start=rows.start,
            loss_B=loss_B,
            error_B=error_B,
            target_B=rows.target if everything else rows.target[watched],
            output_BC=known[outputs_from:sketches_from].reshape(count, -1),
            sketch_BF=known[sketches_from:sketches_to].reshape(count, -1),
            context_B=rows.context if isinstance(self.monitor, ToldMonitor) else None,
            row_B=None if everything else rows.start + watched,
        )
        return scores, report

    def _flat_gradients(self) -> list[Tensor]:
        return [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in self.parameters]

    def _take_gradients(self, vector: Tensor) -> None:
        at = 0
        for parameter in self.parameters:
            parameter.grad = vector[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()

    def _remember(self, rows: Rows, watched: npt.NDArray[np.int64], seen: StepReport) -> list[int]:
        """Returns which of the watched rows were put where they are never replayed."""
        chosen = self.memory.choose(rows.start, seen.target_B, ~rows.held_out[watched])
        if chosen:
            at, slots = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
            self.memory.store(
                slots,
                rows.select(watched[at[self.memory.share.holds(slots)]]),
                seen.target_B[at],
                seen.output_BC[at],
                rows.start + watched[at],
                self.monitor.concept,
                seen.loss_B[at],
            )
        return sorted({at for at, slot in chosen if self.memory.keeps_apart(slot)})

    # -- detect, decide, edit

    def _control(self, scores: StepScores, seen: StepReport) -> None:
        rows = len(scores.loss_B)
        self.controller.observe(scores, passes=3 * (rows + self._replayed))
        left = self.monitor.concept
        shift = self.monitor.update(seen)
        self._recollect(left, shift)
        self._adapt(shift)
        if shift is not None:
            self.account.note_shift(shift)
            self.controller.shifted(shift)
            if not isinstance(self.monitor, ToldMonitor):
                self.protection.settle(self.model)
        else:
            self.controller.alarmed(self.monitor.alarm_onset)
        for number, gain in self.controller.outcomes(self.row):
            self.account.records.set_gain_realised(number, gain)
        trigger = self.controller.due(self.row)
        if trigger is not None:
            decision = self._decide(trigger)
            if decision is not None:
                self._carry_out(decision)
        if self.controller.held is None:
            self.recollection.before = None

    def _adapt(self, shift: Shift | None) -> None:
        """Let the present concept's rows use its adapter; one that is new gets a new one."""
        settings, monitor = self.job.policy.adapters, self.monitor
        if settings is None:
            return
        edit = AddAdapter(settings.units)
        more = self.blueprint.adapters < settings.most and self.controller.allows(edit.apply(self.blueprint))
        alarmed, since = monitor.alarm_onset is not None, monitor.surely_since
        if self.adapting.follow(self.model, shift, monitor.concept, alarmed, since, more):
            assert shift is not None
            self._edit(edit, adapting.CAUSE, f"the {shift.kind} shift at row {shift.onset_sample} led to a new concept")
            self.adapting.added(self.blueprint.adapters, shift.onset_sample, monitor.concept)

    def _with_route(
        self,
        features: dict[str, Tensor],
        fresh: int,
        slots: npt.NDArray[np.int64],
        concept: int | None = None,
    ) -> dict[str, Tensor]:
        """Of fresh rows and then those of `slots`, with the adapter that each of them uses."""
        return self.adapting.with_route(self.model, features, fresh, self.memory.concept[slots], concept)

    def _settle_where_told(self, rows: Rows) -> None:
        """A boundary that is told is known before the rows beyond it are learned from."""
        if isinstance(self.monitor, ToldMonitor) and rows.context is not None and self.monitor.leaves(rows.context):
            self.protection.settle(self.model)

    def _decide(self, trigger: str) -> Decision | None:
        if trigger == RECALL:
            return self.controller.recall(self.step, self.row, self)
        if trigger == ROLLBACK:
            return self.controller.reconsider(self.step, self.row, self)
        if self.job.policy.controller.shared is not None:
            self._exchange()
        return self.controller.decide(trigger, self.step, self.row, self)

    def _exchange(self) -> None:
        judge = self.controller.judge
        assert isinstance(judge, LearnedJudge), "as the policy sees to"
        borrowed = self.group.share(self.exchange(judge.lend()))
        if borrowed is not None:
            judge.borrow(borrowed)

    def _recollect(self, left: int | None, shift: Shift | None) -> None:
        """Keep what the model knew of a concept that the stream has left; tag remembered rows with their concept."""
        library, monitor = self.recollection.library, self.monitor
        if shift is not None:
            self.present_since = monitor.surely_since
            self.memory.tag_since(shift.onset_sample, DOUBTFUL)
            self._tag_read(shift.onset_sample, DOUBTFUL)
            if left is not None:
                library.leave(left, shift.onset_sample, self.row)
        elif monitor.alarm_onset is None and library.due(self.row):
            library.roll(Snapshot.of(self.model, self.blueprint, self.controller.births, self.row))
        if shift is not None or monitor.concept != left:
            self.memory.tag_since(self.present_since, monitor.concept)
            self._tag_read(self.present_since, monitor.concept)
        self._exclude()

    def _tag_read(self, first_row: int, concept: int | None) -> None:
        now = self.row
        self.reading.tag_since(self.model, self.stream, first_row, now, concept, self._decode)

    def _exclude(self) -> None:
        self.memory.excluded = self._excluded(self.monitor.contradicted)

    def _excluded_in(self, concept: int) -> frozenset[int]:
        """What would be left out of replay in that concept, or now."""
        monitor = self.monitor
        return self._excluded(monitor.contradicted if concept == BEFORE_EDIT else monitor.contradicted_by(concept))

    def _excluded(self, contradicted: frozenset[int]) -> frozenset[int]:
        """Contradicting concepts are left out of replay where the library keeps the model that knew them: what is not
        kept there would be forgotten."""
        if not self.job.policy.learner.memory.by_concept:
            return frozenset()
        contradicting = contradicted & self.recollection.library.entries.keys()
        return contradicting | {DOUBTFUL} if contradicting else contradicting

    def _carry_out(self, decision: Decision) -> None:
        chosen, owners = decision.chosen, self.blueprint.owners("attention")
        if holds_before(decision):
            self.recollection.hold(self.model, self.optimizer, self.controller.births, self.row)
        treat(chosen.treatment, self.model, self.optimizer)
        revision = None
        if chosen.edit is not None:
            revision = self._edit(edit_from_dict(chosen.edit), decision.trigger, decision.why, decision)
        if chosen.edit is not None or chosen.treatment != "keep":
            self.monitor.adapted(self.row)
        self.controller.applied(decision, owners)
        self._evidence = None
        self.account.note_decision(decision, revision)

    def _prune(self) -> None:
        """Carry out the stage of pruning that is due, if one is."""
        stage = self.pruning.due(self.row)
        if stage is None:
            return
        if stage.single:
            zeros = self.pruning.masks.put_on(self.model, self.optimizer, stage.gone)
            self.account.close_revision()
            why = f"the {zeros:,} smallest weights of heads and MLPs ({100 * stage.gone:.3g}%) stay at zero from now on"
            self.account.open_revision(self.blueprint, self.account.totals.revisions - 1, "prune", why)
        else:
            evidence = self.evidence(min(self.present_since, self.row - self.job.batch_rows))
            edit, why = self.pruning.choose(stage, self.model, evidence, self._row_loss)
            if edit is not None:
                owners = self.blueprint.owners("attention")
                self._edit(edit, "prune", why)
                self.controller.pruned(edit, owners, self.row, self.blueprint.parameters)
            self._evidence = None
        self.pruning.done += 1
        self.monitor.adapted(self.row)

    def _edit(self, edit: Edit, cause: str, why: str, decision: Decision | None = None) -> int:
        """Operate on model and optimizer, and open the next revision; returns its number."""
        self.before_edit()
        totals, before = self.account.totals, self.blueprint
        self.account.close_revision()
        follow: Follower = OptimizerFollower(self.optimizer)
        weights: Weights | None = None
        if isinstance(edit, Restore):
            follow, weights = self._put_back(edit)
        operate(
            self.model,
            edit,
            seed=self._surgery_seed(),
            follow=Followers(follow, self.protection, self.pruning.masks),
            calibration=None if self._evidence is None else self._evidence.learnable(CALIBRATION_ROWS),
            weights=weights,
        )
        self.renewing.edited(edit, before)
        self.parameters = in_order(self.model)
        put_in_order(self.optimizer, self.model)
        if isinstance(edit, Restore):
            totals.restores += 1
        else:
            totals.grows += sum(self.blueprint.heads) > sum(before.heads)
            totals.shrinks += sum(self.blueprint.heads) < sum(before.heads)
        return self.account.open_revision(self.blueprint, totals.revisions - 1, cause, why, edit, decision)

    def _put_back(self, edit: Restore) -> tuple[Follower, Weights]:
        """How the optimizer follows a restored state, and the weights; the state's heads are as old as they were."""
        kept = self.recollection.snapshot(edit.concept)
        self.controller.births = kept.births(self.row)
        if edit.concept == BEFORE_EDIT:
            assert self.recollection.before is not None
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            return RestoringFollower(self.optimizer, names, self.recollection.before.optimizer), kept.weights
        onset, left = self.monitor.alarm_onset, self.monitor.concept
        suspected = (left, onset) if left is not None and onset is not None else None
        self.recollection.restored(edit.concept, self.row, suspected)
        self.monitor.assume(edit.concept)
        self.adapting.assume(edit.concept)
        self._exclude()
        return OptimizerFollower(self.optimizer), kept.weights

    def _surgery_seed(self) -> int:
        return (self.job.seed * 1_000_003 + self.step) % 2**63

    @property
    def step(self) -> int:
        return self.account.step

    @property
    def row(self) -> int:
        return self.account.row

    # -- what a decision may ask of the run (control.Bench)

    @property
    def blueprint(self) -> Blueprint:
        blueprint: Blueprint = self.model.blueprint
        return blueprint

    def seconds(self) -> float:
        return time.perf_counter()

    def evidence(self, since_row: int) -> Evidence:
        first = max(since_row, self.row - RECENT_ROWS, 0)
        rows = self.stream.read(first, self.row - first)
        learned = np.random.default_rng((self.job.seed, self.step, 1)).permutation(np.flatnonzero(~rows.held_out))
        held = self.memory.held(MEMORY_ROWS, self.step)
        slots = np.concatenate((self.memory.draw(MEMORY_ROWS, self.step, to_decide=True), held))
        recent = rows.select(learned)
        remembered = (
            gather_rows(self.memory, slots, self.group) if len(slots) else {n: v[:0] for n, v in recent.items()}
        )
        evidence = Evidence(
            recent=self._with_route(self._tensors(recent), len(learned), slots[:0]),
            recent_target=self._target(rows.target[learned]),
            held_recent=round(len(learned) * self.job.policy.controller.held_back),
            memory=self._with_route(self._tensors(remembered), 0, slots),
            memory_target=self._target(self.memory.target[slots]),
            held_memory=len(held),
        )
        self._evidence = evidence
        return evidence

    def measure(self, evidence: Evidence) -> Measurement:
        return self._workbench(evidence).measure()

    def trials(self, candidates: list[Candidate], evidence: Evidence, seed: int) -> list[Trial]:
        bench = self._workbench(evidence)
        return self.group.spread(len(candidates), lambda at: bench.trial(candidates[at], seed))

    def _workbench(self, evidence: Evidence) -> Workbench:
        return Workbench(
            self.model,
            self.optimizer,
            self.job.policy,
            evidence,
            self._row_loss,
            self._surgery_seed(),
            {concept: self.recollection.snapshot(concept).weights for concept in self.kept},
        )

    @property
    def kept(self) -> Mapping[int, Blueprint]:
        return self.recollection.blueprints

    def hindsight(
        self, concepts: Sequence[int], rows: int, remembered: int = 0, bias_fitted: bool = False
    ) -> list[Trial]:
        first = max(0, self.row - rows)
        newest = self.stream.read(first, self.row - first)
        at = np.flatnonzero(~newest.held_out)
        slots = self.memory.held(remembered, self.step, excluded=True)
        rows_new = newest.select(at)
        features = self._tensors(
            _join(rows_new, gather_rows(self.memory, slots, self.group)) if len(slots) else rows_new
        )
        target = self._target(np.concatenate((newest.target[at], self.memory.target[slots])))

        def lost(number: int) -> Trial:
            model = self.model if number == 0 else self._as_kept(concepts[number - 1])
            routed = self._with_route(features, len(at), slots, concepts[number - 1] if number else None)
            with torch.no_grad(), self._precision():
                output = model(routed).float()
            spread, new, old = self.model.output.spread, slice(len(at)), slice(len(at), None)
            recent_loss = row_loss_bias_fitted if bias_fitted else row_loss
            recent = recent_loss(self.task, output[new], target[new], spread).cpu().numpy()
            memory = row_loss(self.task, output[old], target[old], spread).cpu().numpy()
            if number:
                excluded = self._excluded_in(concepts[number - 1])
                memory[np.isin(self.memory.concept[slots], list(excluded))] = np.nan
            return Trial(recent, memory)

        return self.group.spread(1 + len(concepts), lost)

    def _as_kept(self, concept: int) -> ElasticTransformer:
        """A copy of the model with a kept state put back, and labels that came since."""
        kept = self.recollection.snapshot(concept)
        model = copy.deepcopy(self.model)
        operate(model, Restore.of(concept, kept.blueprint), seed=0, weights=kept.weights)
        return model

    def _row_loss(self, model: nn.Module, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
        with self._precision():
            output = model(features)
        return row_loss(self.task, output, target, self.model.output.spread)

    # -- evaluation

    @torch.no_grad()
    def _score(self, features: Features, target: npt.NDArray[Any]) -> tuple[float, float]:
        """(mean error, mean squared error) on held-out rows. A label the model does not know yet counts as wrong."""
        errors = []
        for low in range(0, len(target), _EVALUATION_ROWS):
            part = slice(low, low + _EVALUATION_ROWS)
            output = self.model(self._tensors({name: column[part] for name, column in features.items()}))
            errors.append(row_error(self.task, output, self._target(target[part])).double())
        error = torch.cat(errors)
        return float(error.mean()), float(error.square().mean())

    # -- what is kept of it

    def summary(self, status: str, final: Mapping[int, tuple[float, float]] | None = None) -> dict[str, Any]:
        """The content of summary.json, but for what only the folder's keeper knows."""
        price = price_of(self.blueprint, self.job.policy, self.controller.price)
        return {**self.account.summary(status, self.group.size, final), "price": price}

    def encoding(self) -> dict[str, Any]:
        """What turns raw rows into the model's inputs, and its answers into labels; saved beside a served model."""
        return {"fields": asdict(self.stream.fields), "labels": self.stream.labels, "stream": self.stream.state()}

    # -- state

    def state(self) -> dict[str, bytes]:
        """Everything that the run's future depends on, as files without code. All workers call it together: rank 0
        gathers their shares of the memory, and elsewhere it is empty."""
        shares = self.group.gather(self.memory.held_here())
        if self.group.rank != 0:
            return {}
        about = {
            "seed": self.job.seed,
            "account": self.account.state(),
            "stream": self.stream.state(),
            "monitor": self.monitor.state(),
            "sketch": self.sketch.state(),
            "controller": self.controller.state(),
            "evaluator": self.evaluator.state(),
            "recollection": self.recollection.state(),
            "present_since": self.present_since,
            "pruning": self.pruning.state(),
        }
        named = list(self.model.named_parameters())
        weights = {name: t.detach().contiguous().cpu() for name, t in self.model.state_dict().items()}
        return {
            "state.json": json.dumps(about).encode(),
            "model.safetensors": save_tensors(weights),
            "optimizer.safetensors": save_tensors(optimizer_tensors(self.optimizer, named)),
            **self.protection.files(self.model),
            **self.renewing.files(),
            **self.gating.files(),
            **self.pruning.files(self.model),
            **self.adapting.files(),
            **self.reading.files(),
            "memory.arrow": table_bytes(self.memory.to_arrow(shares)),
            "records.arrow": self.account.records.state(),
            RECOLLECTION_FILE: self.recollection.file(),
            **self.evaluator.files(),
        }

    def load_state(self, parts: Mapping[str, bytes]) -> None:
        """Inverse of `state`. Raises InputError where the parts do not belong together."""
        try:
            about = load_json(parts["state.json"])
            self.account.load_state(about["account"], parts["records.arrow"])
            weights = load_tensors(parts["model.safetensors"])
            check_weights(self.account.blueprint, weights)
            self._install(self.account.blueprint)
            self.model.load_state_dict(weights)
            load_optimizer_tensors(
                self.optimizer, dict(self.model.named_parameters()), load_tensors(parts["optimizer.safetensors"])
            )
            self.protection.load(parts, self.model, self.device)
            self.renewing.load(parts, self.device)
            self.gating.load(parts)
            if "pruning" in about:  # not in checkpoints of versions without
                self.pruning.load_state(about["pruning"])
            self.pruning.load(parts, self.model, self.device)
            self.adapting.load(parts, self.device)
            self.reading.load(parts, self.device)
            self.memory.load_arrow(self._memory_table(parts["memory.arrow"]))
            self.stream.load_state(about["stream"])
            self.monitor.load_state(about["monitor"])
            self.sketch.load_state(about["sketch"])
            self.controller.load_state(about["controller"])
            self.evaluator.load(about["evaluator"], parts)
            self.recollection.load(about["recollection"], parts[RECOLLECTION_FILE], self.device)
            self.present_since = int(about["present_since"])
            self._exclude()
        except InputError:
            raise
        except Exception as error:  # parts that somebody else wrote may be wrong in any way
            reason = one_line(str(error)) or type(error).__name__
            raise InputError(
                f"checkpoint: its parts do not fit this job ({reason}); resume it with its own job.yaml"
            ) from error

    def _memory_table(self, content: bytes) -> pa.Table:
        others = self.blueprint.outputs + self.blueprint.adapters
        return table_from(content, self.memory.capacity, self.stream.fields, others)

    def _install(self, blueprint: Blueprint) -> None:
        self.model = build(blueprint, self.job.seed, self.job.policy.initialisation).to(self.device)
        self.optimizer = build_optimizer(self.model, self.job.policy.learner)
        self.parameters = in_order(self.model)

    # -- helpers

    def _precision(self) -> AbstractContextManager[Any]:
        """That of the job. Entering autocast costs 0.2 ms even where it changes nothing."""
        if self.job.model.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _tensors(self, features: Features) -> dict[str, Tensor]:
        return {name: _tensor(column).to(self.device) for name, column in features.items()}

    def _target(self, target: npt.NDArray[Any]) -> Tensor:
        return _tensor(target).to(self.device)

    def _outputs_then(self, output: Tensor, slots: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """`output` of these slots' rows and what was remembered of it; of a regression in units of the target's spread,
        so that distances between them compare with the loss."""
        remembered = torch.from_numpy(self.memory.remembered_outputs(slots, self.blueprint.outputs)).to(self.device)
        if self.task == "classification":
            return output, remembered
        spread = self.model.output.spread.to(output.dtype)
        return output / spread, remembered / spread


def _tensor(column: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(column if column.flags.writeable and column.flags.c_contiguous else column.copy())


def _join(fresh: Features, replayed: Features) -> Features:
    return {name: np.concatenate((column, replayed[name])) for name, column in fresh.items()}
