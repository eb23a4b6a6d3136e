"""The outer loop: a value ensemble from experience, so that it adapts to a deployment in a few steps.

Each iteration draws a few tasks. In each, a member's head (ANIL), or all of it (MAML), adapts to the outcomes of 16
decisions (support), and is judged by what it then says of all candidates of other decisions (query). First weights and
the rates of the inner steps follow the gradient of that, through the inner steps (Meta-SGD rates, by learn2learn).

Legend: D decisions, K candidates, X features, S support, Q query, M members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.control.features import EDIT_KINDS, NAMES
from planaria.control.value import Outcomes, ValueEnsemble, ValueNetwork
from planaria.errors import RunError
from planaria.meta.experience import Experience
from planaria.meta.job import OuterLoop

SUPPORT, QUERY = 16, 48
LEAST_DECISIONS = SUPPORT + 8
"""Of a deployment, to learn from it."""
LEAST_SEEN = 20
"""A kind of edit of which fewer were followed counts as unknown."""
LEAST_UNIT = 1e-3
"""Gains that are all alike have no spread to measure them in."""


Spread = Callable[[Callable[[int], ValueNetwork], Sequence[int]], list[ValueNetwork]]
"""A map over the members, one after the other or side by side."""


def _one_by_one(make: Callable[[int], ValueNetwork], numbers: Sequence[int]) -> list[ValueNetwork]:
    return [make(number) for number in numbers]


def train(experience: Experience, settings: OuterLoop, seed: int, spread: Spread = _one_by_one) -> ValueEnsemble:
    """Members see bootstrap samples of the streams, which is what their disagreement comes from.

    Raises RunError where there is too little experience to learn from.
    """
    if len(experience) < LEAST_DECISIONS:
        raise RunError(
            f"meta-training: {len(experience)} decisions were followed, and it takes {LEAST_DECISIONS} to learn from "
            "them; raise streams or followed, in another folder"
        )
    inputs = torch.from_numpy(np.concatenate((experience.before_DKX, experience.after_DKX)))
    there = torch.from_numpy(np.concatenate((experience.there_DK, experience.there_DK)))
    mean_X, spread_X = inputs[there].mean(0), inputs[there].std(0).clamp(min=1e-3)
    gains = (experience.return_DK - experience.return_DK[:, :1])[:, 1:][experience.there_DK[:, 1:]]
    unit = max(LEAST_UNIT, float(np.clip(gains, -1, 1).std()))
    data = _Tensors.of(experience, mean_X, spread_X, unit)
    members = spread(partial(_train_member, experience, data, settings, seed), range(settings.members))
    edits = [kind for kind in EDIT_KINDS if _seen(experience, kind) >= LEAST_SEEN]
    about = {
        "unit": unit,
        "edits": edits,
        "decisions": len(experience),
        "streams": len(_streams(experience)),
        "seed": seed,
        "mode": settings.mode,
    }
    return ValueEnsemble(members, mean_X, spread_X, about)


@dataclass(frozen=True)
class _Tensors:
    before_DKX: Tensor
    after_DKX: Tensor
    there_DK: Tensor
    return_DK: Tensor
    realised_D: Tensor
    memory_DK: Tensor
    chosen_D: Tensor

    @staticmethod
    def of(experience: Experience, mean_X: Tensor, spread_X: Tensor, unit: float) -> _Tensors:
        def standardised(features: np.ndarray) -> Tensor:
            return ((torch.from_numpy(features) - mean_X) / spread_X).clamp(-6, 6)

        return _Tensors(
            standardised(experience.before_DKX),
            standardised(experience.after_DKX),
            torch.from_numpy(experience.there_DK).float(),
            torch.from_numpy(np.clip(experience.return_DK, -3, 1)) / unit,
            torch.from_numpy(np.clip(experience.realised_D, -3, 1)) / unit,
            torch.from_numpy(np.clip(experience.memory_DK, -1, 1)) / unit,
            torch.from_numpy(experience.chosen_D),
        )


def _train_member(experience: Experience, data: _Tensors, settings: OuterLoop, seed: int, number: int) -> ValueNetwork:
    random = np.random.default_rng((seed, number))
    torch.manual_seed(seed * 1_009 + number)
    network = ValueNetwork(whole=settings.mode == "maml")
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.iterations)
    tasks = _bootstrapped(experience, random)
    for _ in range(settings.iterations):
        drawn = random.choice(len(tasks), min(settings.tasks, len(tasks)), replace=False)
        losses = [_task_loss(network, data, tasks[task], settings, random) for task in drawn]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network


def _task_loss(
    network: ValueNetwork,
    data: _Tensors,
    decisions: np.ndarray,
    settings: OuterLoop,
    random: np.random.Generator,
) -> Tensor:
    shuffled = random.permutation(decisions)
    support, query = torch.from_numpy(shuffled[:SUPPORT]), torch.from_numpy(shuffled[SUPPORT : SUPPORT + QUERY])
    answer: nn.Module = network
    if settings.mode != "pooled":
        # Also without any outcome the first weights must be good ones.
        known = support[: int(random.integers(0, SUPPORT + 1))]
        if len(known):
            answer = network.adapted(data.before_DKX[known, data.chosen_D[known]], data.realised_D[known])
    loss = torch.zeros(())
    for features in (data.before_DKX, data.after_DKX):
        returned_QK, remembered_QK = answer(features[query]).unbind(-1)
        true_QK, there_QK = data.return_DK[query], data.there_DK[query]
        gain_QK, true_gain_QK = returned_QK - returned_QK[:, :1], true_QK - true_QK[:, :1]
        kept_QK = remembered_QK - remembered_QK[:, :1]
        wrong_QK = F.huber_loss(gain_QK, true_gain_QK, reduction="none") * there_QK
        wrong_QK = wrong_QK + F.huber_loss(kept_QK, data.memory_DK[query], reduction="none") * there_QK
        loss = loss + wrong_QK.sum() / there_QK[:, 1:].sum().clamp(min=1)
        loss = loss + settings.return_weight * F.huber_loss(returned_QK[:, 0], true_QK[:, 0])
    return loss


def _seen(experience: Experience, kind: str) -> int:
    """How many followed candidates were edits of that kind."""
    return int((experience.before_DKX[..., NAMES.index(f"option_{kind}")] > 0).sum())


def _streams(experience: Experience) -> list[tuple[str, int]]:
    return sorted(set(zip(experience.task_D.tolist(), experience.seed_D.tolist(), strict=True)))


def _bootstrapped(experience: Experience, random: np.random.Generator) -> list[np.ndarray]:
    """Decisions of each task with enough of them, of as many streams as there are, drawn with replacement. Where no
    task has enough, all of them as one."""
    streams = _streams(experience)
    drawn = [streams[at] for at in random.integers(0, len(streams), len(streams))]
    places: dict[str, list[np.ndarray]] = {}
    for task, seed in drawn:
        at = np.flatnonzero((experience.task_D == task) & (experience.seed_D == seed))
        places.setdefault(task, []).append(at)
    joined = [np.concatenate(parts) for parts in places.values()]
    enough = [decisions for decisions in joined if len(decisions) >= LEAST_DECISIONS]
    return enough or [np.arange(len(experience))]


def regret(
    ensemble: ValueEnsemble,
    experience: Experience,
    *,
    looked: bool,
    support: int,
    draws: int = 8,
    seed: int = 0,
) -> np.ndarray:
    """Nats lost per decision against the candidate that was truly best, price included: one figure a decision.

    With `support`, the value first adapts to so many outcomes of other decisions of the same task (mean over draws).
    """
    random = np.random.default_rng(seed)
    features = experience.after_DKX if looked else experience.before_DKX
    lost = np.zeros(len(experience))
    for task in sorted(set(experience.task_D.tolist())):
        at = np.flatnonzero(experience.task_D == task)
        for _ in range(draws if support else 1):
            known = random.permutation(at)[:support]
            chosen = experience.chosen_D[known]
            outcomes = Outcomes(
                experience.before_DKX[known, chosen].astype(np.float64),
                experience.realised_D[known].astype(np.float64),
            )
            members = ensemble.adapted(outcomes if support else None)
            for d in at:
                mean_K, _ = ensemble.gains(features[d].astype(np.float64), members, 0.0)
                lost[d] += _lost(experience, int(d), mean_K) / (draws if support else 1)
    return lost


def _lost(experience: Experience, d: int, gain_K: np.ndarray) -> float:
    there_K, scale, price_K = experience.there_DK[d], experience.scale_D[d], experience.price_DK[d]
    believed_K = np.where(there_K, scale * gain_K - price_K, -np.inf)
    true_K = scale * (experience.return_DK[d] - experience.return_DK[d, 0]) - price_K
    return float(np.where(there_K, true_K, -np.inf).max() - true_K[int(believed_K.argmax())])
