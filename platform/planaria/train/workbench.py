"""Where a decision's candidates are tried: a model and its optimizer, left as they are, and copies under an edit.

The training loop and the simulator of meta-training both decide with it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from planaria.blueprint import Restore, edit_from_dict
from planaria.control import Evidence, Measurement, Trial, run_trial
from planaria.control.adapt import adam_rates
from planaria.control.look_ahead import RowLoss
from planaria.learn import OptimizerFollower, reset_moments
from planaria.model import ElasticTransformer
from planaria.morph import distances, growth_scores, head_importance, operate, strains, temper
from planaria.policy import Policy
from planaria.signals import Candidate

TEMPER = 0.3
"""Output layers are scaled by this when tempered (measured in docs/controller.md)."""
CALIBRATION_ROWS = 512
"""Inputs to which the output projection is refitted when heads go."""
_RATE_ROWS = 64
"""Rows whose gradients stand for Adam's moments where those were reset."""


@dataclass(frozen=True)
class Workbench:
    """One decision's; every method is a pure function of its fields."""

    model: ElasticTransformer
    optimizer: torch.optim.Optimizer
    policy: Policy
    evidence: Evidence
    row_loss: RowLoss
    surgery_seed: int
    kept: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)
    """The weights that a restoring edit puts back, by its concept."""

    def measure(self) -> Measurement:
        """Head importance, growth scores, loss and how alike layers are, from recent and remembered rows."""
        evidence, half = self.evidence, self.policy.controller.scoring_rows // 2
        features = {n: torch.cat((v[:half], evidence.memory[n][-half:])) for n, v in evidence.recent.items()}
        target = torch.cat((evidence.recent_target[:half], evidence.memory_target[-half:]))
        importance = head_importance(self.model, features, target, self.row_loss)
        growth = growth_scores(self.model, features, target, self.row_loss, seed=self.surgery_seed)
        if self.policy.sharing.regroup is None:
            return Measurement(importance, growth, self._loss_memory(half))
        strain = strains(self.model, features, target, self.row_loss)
        return Measurement(importance, growth, self._loss_memory(half), distances(self.model), strain)

    @torch.no_grad()
    def _loss_memory(self, rows: int) -> float | None:
        rows = min(rows, self.evidence.held_memory)
        if not rows:
            return None
        features = {name: column[-rows:] for name, column in self.evidence.memory.items()}
        return float(self.row_loss(self.model, features, self.evidence.memory_target[-rows:]).mean())

    def trial(self, candidate: Candidate, seed: int) -> Trial:
        """What a copy under the candidate shows after a few steps. Equal seeds draw equal rows."""
        clip = self.policy.learner.clip_norm
        return run_trial(
            candidate, self._branch, self.evidence, self.row_loss, self.policy.controller, clip_norm=clip, seed=seed
        )

    def under(self, candidate: Candidate) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
        """Copies of model and optimizer as the candidate would leave them."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        treat(candidate.treatment, model, optimizer)
        if candidate.edit is not None:
            edit = edit_from_dict(candidate.edit)
            operate(
                model,
                edit,
                seed=self.surgery_seed,
                follow=OptimizerFollower(optimizer),
                calibration=self.evidence.learnable(CALIBRATION_ROWS),
                weights=self.kept[edit.concept] if isinstance(edit, Restore) else None,
            )
        return model, optimizer

    def _branch(self, candidate: Candidate) -> tuple[nn.Module, list[Tensor]]:
        """A copy of the model under the candidate, and the per-parameter rates at which it would adapt."""
        model, optimizer = self.under(candidate)
        parameters = list(model.parameters())
        if candidate.treatment == "keep" or self.policy.learner.optimizer in ("sgd", "meta_sgd"):
            return model, adam_rates(parameters, optimizer, None)
        few = {name: column[:_RATE_ROWS] for name, column in self.evidence.recent.items()}
        loss = self.row_loss(model, few, self.evidence.recent_target[:_RATE_ROWS]).mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        clip = self.policy.learner.clip_norm / nn.utils.get_total_norm(filled).clamp(min=1e-12)
        return model, adam_rates(parameters, optimizer, [g * clip.clamp(max=1.0) for g in filled])


def treat(treatment: str, model: ElasticTransformer, optimizer: torch.optim.Optimizer) -> None:
    """Carry out what a candidate says of optimizer and output layer."""
    if treatment in ("reset", "temper"):
        reset_moments(optimizer)
    if treatment == "temper":
        temper(model, TEMPER)
