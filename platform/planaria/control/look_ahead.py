"""Looking ahead: adapt a copy of each candidate on recent rows, score it on rows held back and on memory.

All candidates see the same rows in the same order (common random numbers), so that their differences are paired.
Legend: R recent rows, M memory rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from planaria.blueprint import Share, Unshare
from planaria.control.adapt import adapt, fast_learner
from planaria.policy import Controller
from planaria.signals import Candidate

RowLoss = Callable[[nn.Module, Mapping[str, Tensor], Tensor], Tensor]
"""(model, features, target) -> loss of each row."""
Branch = Callable[[Candidate], tuple[nn.Module, list[Tensor]]]
"""A copy of the live model under a candidate, with the per-parameter rates it would adapt at."""


@dataclass(frozen=True)
class Evidence:
    """Rows for one decision: recent ones in random order, and remembered ones (perhaps none).

    Candidates are made and adapted on the first rows of each, and scored on the last `held_recent` and `held_memory`.
    """

    recent: Mapping[str, Tensor]
    recent_target: Tensor
    held_recent: int
    memory: Mapping[str, Tensor]
    memory_target: Tensor
    held_memory: int
    """These were never replayed."""

    @property
    def learn_recent(self) -> int:
        return len(self.recent_target) - self.held_recent

    @property
    def learn_memory(self) -> int:
        return len(self.memory_target) - self.held_memory

    def learnable(self, rows: int) -> dict[str, Tensor]:
        """Inputs of up to `rows` rows, half of them recent: none of those that candidates are scored on, as a refit to
        those would flatter removals."""
        recent, memory = (min(rows // 2, count) for count in (self.learn_recent, self.learn_memory))
        return {name: torch.cat((column[:recent], self.memory[name][:memory])) for name, column in self.recent.items()}


@dataclass(frozen=True)
class Measurement:
    """What the model shows on a decision's evidence, before anything is tried."""

    importance: list[list[float]]
    """Per layer and head: how much the loss depends on it."""
    growth: list[float]
    """Per layer: how strongly the loss pulls at a fresh head, relative to the live ones."""
    loss_memory: float | None
    """Mean loss on remembered rows that were never replayed, in nats; None where there are none."""
    distance: Mapping[Share, float] = field(default_factory=dict)
    """Where layers may regroup: how far apart the weights are that each of these edits would join."""
    strain: Mapping[Unshare, float] = field(default_factory=dict)
    """Where layers may regroup: how hard each of these layers pulls against those that it shares with."""


@dataclass(frozen=True)
class Trial:
    """What one candidate showed: the loss of every row held back, and of every memory row."""

    recent_R: npt.NDArray[np.float32]
    memory_M: npt.NDArray[np.float32]


def row_passes(settings: Controller, held_recent: int, held_memory: int) -> int:
    """Cost of one trial in passes of one row through the model (forward 1, backward 2)."""
    inner = settings.inner_steps * settings.inner_rows * (2 if held_memory else 1) * 3
    return inner + held_recent + held_memory


def run_trial(
    candidate: Candidate,
    branch: Branch,
    evidence: Evidence,
    row_loss: RowLoss,
    settings: Controller,
    *,
    clip_norm: float,
    seed: int,
) -> Trial:
    """Adapt one candidate for a few inner steps and score it."""
    model, rates = branch(candidate)
    learner = fast_learner(model, rates)
    learn_R, score_R = _split(len(evidence.recent_target), evidence.learn_recent)
    learn_M, score_M = _split(len(evidence.memory_target), evidence.learn_memory)
    draws = np.random.default_rng((seed, 2))
    few = settings.inner_rows
    for step in range(settings.inner_steps):
        recent_at, memory_at = draws.choice(learn_R, few), draws.choice(learn_M, few) if len(learn_M) else learn_M
        loss_N = row_loss(learner.module, *_take_both(evidence, recent_at, memory_at))
        loss = loss_N[:few].mean() + (loss_N[few:].mean() if len(learn_M) else 0)
        # Falling steps: without momentum, the noise of the last ones would drown what candidates differ by.
        adapt(learner, loss, clip_norm, share=1 - step / settings.inner_steps)
    with torch.no_grad():
        scored = row_loss(learner.module, *_take_both(evidence, score_R, score_M)).cpu().numpy()
    return Trial(scored[: len(score_R)], scored[len(score_R) :])


def score(candidates: Sequence[Candidate], trials: Sequence[Trial], settings: Controller) -> list[Candidate]:
    """Fill in losses, value and standard error; the first candidate is the one that keeps everything.

    value = look-ahead weight x gain in loss over keeping (memory weighted)
            + long-run gain expected of the capacity - its extra price.
    """
    keep, kept = candidates[0], trials[0]
    lasting = settings.look_ahead_weight
    scored = []
    for candidate, trial in zip(candidates, trials, strict=True):
        gain_R, gain_M = kept.recent_R - trial.recent_R, kept.memory_M - trial.memory_M
        weight = settings.memory_weight if len(gain_M) else 0.0
        gain = float(gain_R.mean()) + (weight * float(gain_M.mean()) if weight else 0.0)
        error = np.sqrt(_variance_of_mean(gain_R) + weight**2 * _variance_of_mean(gain_M))
        scored.append(
            replace(
                candidate,
                loss_recent=float(trial.recent_R.mean()),
                loss_memory=float(trial.memory_M.mean()) if len(trial.memory_M) else float("nan"),
                value=lasting * gain + candidate.prior - (candidate.price - keep.price),
                standard_error=lasting * float(error),
            )
        )
    return scored


def _variance_of_mean(values: npt.NDArray[np.float32]) -> float:
    return float(values.var(dtype=np.float64) / len(values)) if len(values) > 1 else 0.0


def _split(rows: int, learn: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.arange(learn), np.arange(learn, rows)


def _take_both(
    evidence: Evidence, recent_at: npt.NDArray[np.int64], memory_at: npt.NDArray[np.int64]
) -> tuple[dict[str, Tensor], Tensor]:
    """Recent rows and after them remembered ones: one pass through the model costs less than two."""
    device = evidence.recent_target.device
    recent, memory = torch.from_numpy(recent_at).to(device), torch.from_numpy(memory_at).to(device)

    def take(of_recent: Tensor, of_memory: Tensor) -> Tensor:
        return torch.cat((of_recent.index_select(0, recent), of_memory.index_select(0, memory)))

    features = {name: take(column, evidence.memory[name]) for name, column in evidence.recent.items()}
    return features, take(evidence.recent_target, evidence.memory_target)
