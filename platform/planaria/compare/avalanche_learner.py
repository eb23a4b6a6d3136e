"""One of Avalanche's learners on an exported stream, by an interpreter that has Avalanche and need not have planaria.

    python avalanche_learner.py STREAM.npz '{"learner": "replay", "rate": 0.03, ...}'

STREAM.npz and the settings are what avalanche_peers.py writes. Prints one line of JSON. A multilayer perceptron with
one hidden layer, plain SGD, one pass; every visit of a context is an experience, so all boundaries are told.

Avalanche's ER-ACE remembers rows of a visit, the first one apart, as the visit begins: what it replays of them may come
before their turn to be predicted. Its prequential accuracy is that little too high.

Shape legend: R rows of the stream, I inputs, H held-out rows of a context.

Source: Avalanche (Lomonaco et al. 2021, Carta et al. 2023), its own losses, memories and penalties.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training import DER, ER_ACE, Naive
from avalanche.training.plugins import (
    AGEMPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    ReplayPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ExperienceBalancedBuffer
from torch import Tensor, nn


def main() -> None:
    found = learn(np.load(sys.argv[1]), json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")


def learn(stream: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole stream, once. `cpu_seconds` is that of learning: no reading, no predicting, no evaluating."""
    torch.set_num_threads(1)
    torch.manual_seed(settings["seed"])
    random.seed(settings["seed"])  # A-GEM draws with it what it remembers
    x_RI, y_R = _inputs(stream, "x"), torch.from_numpy(stream["target"])
    visit_R, learned_R = stream["visit"], ~stream["held_out"]
    chosen = [np.flatnonzero((visit_R == visit) & learned_R) for visit in np.unique(visit_R)]
    parts = [(x_RI[rows], y_R[rows]) for rows in chosen if len(rows)]
    hidden, classes = settings["hidden"], int(stream["classes"])
    model = nn.Sequential(nn.Linear(x_RI.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, classes))
    ahead = Prequential(model, x_RI, y_R, learned_R) if settings["in_order"] else None
    strategy = _strategy(model, settings, len(parts), [] if ahead is None else [ahead])
    benchmark = tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0] * len(parts))
    began = time.process_time()
    for experience in benchmark.train_stream:
        strategy.train(experience, num_workers=0, shuffle=not settings["in_order"])
    spent = time.process_time() - began
    found: dict[str, Any] = {
        "final_accuracy": _final_accuracy(model, stream),
        "cpu_seconds": spent - (0.0 if ahead is None else ahead.seconds),
        "samples": len(y_R),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    if ahead is not None:
        right_R = ahead.finished()
        interval = settings["interval"]
        whole = right_R[: len(right_R) // interval * interval].reshape(-1, interval).mean(1)
        found["prequential_accuracy"] = float(right_R.mean())
        found["curve"] = [[(place + 1) * interval, float(score)] for place, score in enumerate(whole)]
    return found


class Prequential(SupervisedPlugin):  # type: ignore[misc]
    """Predicts the rows up to a minibatch's last before the minibatch is learned from, held-out ones among them."""

    def __init__(
        self, model: nn.Module, x_RI: Tensor, y_R: Tensor, learned_R: np.ndarray[Any, np.dtype[np.bool_]]
    ) -> None:
        super().__init__()
        self.model, self.x_RI, self.y_R = model, x_RI, y_R
        self.seconds = 0.0
        """CPU time of predicting: not the learner's."""
        self._learned = np.flatnonzero(learned_R).tolist()
        self._right_R = np.zeros(len(y_R), np.bool_)
        self._predicted, self._used, self._left_of_visit = 0, 0, 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._left_of_visit = len(strategy.experience.dataset)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        began = time.process_time()
        fresh = min(strategy.train_mb_size, self._left_of_visit)
        rows = self._learned[self._used : self._used + fresh]
        # Replay appends what it remembers; what is fresh comes first.
        assert torch.equal(strategy.mb_x[:fresh], self.x_RI[rows]), "Avalanche does not go in the stream's order"
        self._left_of_visit, self._used = self._left_of_visit - fresh, self._used + fresh
        self._predict(rows[-1] + 1)
        self.seconds += time.process_time() - began

    def finished(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether each row was predicted rightly."""
        self._predict(len(self.y_R))
        return self._right_R

    def _predict(self, stop: int) -> None:
        new = slice(self._predicted, stop)
        if new.start == new.stop:
            return
        self.model.eval()
        with torch.no_grad():
            self._right_R[new] = (self.model(self.x_RI[new]).argmax(1) == self.y_R[new]).numpy()
        self.model.train()
        self._predicted = stop


class ShuffledBuffer(ExperienceBalancedBuffer):  # type: ignore[misc]
    """Replay's memory in random order: told to keep the stream's order, Avalanche keeps that of the memory too."""

    @property
    def buffer(self) -> Any:
        whole = super().buffer
        return whole.subset(torch.randperm(len(whole)).tolist())


def _strategy(model: nn.Module, settings: dict[str, Any], visits: int, plugins: list[Any]) -> Any:
    learner, batch, memory = settings["learner"], settings["batch_rows"], settings["memory_rows"]
    common = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=settings["rate"]),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": batch,
        "train_epochs": 1,
        "evaluator": EvaluationPlugin(loggers=[]),
    }
    if learner in ("der", "der++"):
        beta = 0.5 if learner == "der++" else 0.0
        return DER(mem_size=memory, batch_size_mem=batch, alpha=0.1, beta=beta, plugins=plugins, **common)
    if learner == "er_ace":
        return ER_ACE(mem_size=memory, batch_size_mem=batch, plugins=plugins, **common)
    return Naive(plugins=[*plugins, *_protection(settings, visits)], **common)


def _protection(settings: dict[str, Any], visits: int) -> list[Any]:
    """What makes another learner of a naive one."""
    learner, memory, weight = settings["learner"], settings["memory_rows"], settings["weight"]
    if learner == "replay":
        return [ReplayPlugin(memory, storage_policy=ShuffledBuffer(memory) if settings["in_order"] else None)]
    if learner == "a_gem":
        # Its memory is split evenly beforehand; of each visit at least one row is drawn.
        return [AGEMPlugin(max(1, memory // visits), sample_size=max(settings["batch_rows"], visits))]
    if learner == "ewc":
        return [EWCPlugin(weight)]
    if learner == "lwf":
        return [LwFPlugin(weight)]
    if learner == "si":
        return [SynapticIntelligencePlugin(weight)]
    assert learner == "naive", learner
    return []


def _final_accuracy(model: nn.Module, stream: Any) -> float | None:
    """Mean over contexts, of their held-out rows; None where there are none."""
    model.eval()
    right = []
    with torch.no_grad():
        for context in range(int(stream["held_contexts"])):
            answer_H = model(_inputs(stream, f"held_x_{context}")).argmax(1)
            right.append(float((answer_H == torch.from_numpy(stream[f"held_target_{context}"])).float().mean()))
    return float(np.mean(right)) if right else None


def _inputs(stream: Any, name: str) -> Tensor:
    """float32; pixels are kept as bytes until here."""
    mean, deviation = stream["scale"].tolist()
    raw = torch.from_numpy(stream[name])
    x = raw.float() / 255 if raw.dtype == torch.uint8 else raw
    return torch.as_tensor((x - mean) / deviation)


if __name__ == "__main__":
    main()
