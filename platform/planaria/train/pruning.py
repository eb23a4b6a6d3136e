"""Pruning in a run: what goes when, and which single weights stay at zero.

Equal on every worker: scores are of equal weights on equal rows. Legend: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from planaria.blueprint import Prune
from planaria.control import Evidence
from planaria.learn.flat import FlatOptimizer
from planaria.model import ElasticTransformer
from planaria.morph.importance import RowLoss
from planaria.morph.pruning import least_missed, magnitudes, sensitivities, smallest_weights
from planaria.policy import Policy

BATCHES = 8
"""Of the rows on which sensitivity is measured."""
_FILE = "masks.safetensors"


@dataclass(frozen=True)
class Stage:
    """One step of pruning."""

    sample: int
    """It is due once so many rows have been learned from."""
    by: Literal["magnitude", "sensitivity"]
    gone: float
    """Share of the parameters of heads and hidden units that is gone after it; where it is `single`, of the weights
    that are left then."""
    single: bool = False
    """Whether weights go one by one, and stay as zeros."""


def stages(policy: Policy) -> list[Stage]:
    """What the policy asks for. Of what coarse pruning leaves, each fine step takes the same share."""
    settings, found = policy.prune, list[Stage]()
    if settings is None:
        return found
    if settings.coarse:
        found.append(Stage(settings.from_samples, "magnitude", settings.coarse))
    first = len(found)
    for step in range(1, settings.steps + 1) if settings.fine > settings.coarse else ():
        left = (1 - settings.coarse) * ((1 - settings.fine) / (1 - settings.coarse)) ** (step / settings.steps)
        sample = settings.from_samples + (first + step - 1) * settings.every_samples
        found.append(Stage(sample, settings.fine_by, 1 - left))
    if settings.unstructured:
        sample = settings.from_samples + len(found) * settings.every_samples
        found.append(Stage(sample, "magnitude", settings.unstructured, single=True))
    return found


class Pruning:
    """Which stages a run has been through, and the masks that the last one left."""

    def __init__(self, policy: Policy) -> None:
        self.stages, self.least_heads = stages(policy), policy.heads.min
        self.done = 0
        self.whole = 0
        """Parameters of heads and hidden units when pruning began."""
        self.masks = Masks()

    def due(self, sample: int) -> Stage | None:
        """The next stage, where its time has come."""
        if self.done == len(self.stages) or sample < self.stages[self.done].sample:
            return None
        return self.stages[self.done]

    def choose(
        self, stage: Stage, model: ElasticTransformer, evidence: Evidence, row_loss: RowLoss
    ) -> tuple[Prune | None, str]:
        """What goes in a stage, and why; None where everything that may go has gone."""
        blueprint = model.blueprint
        self.whole = self.whole or blueprint.prunable
        left = round((1 - stage.gone) * self.whole)
        if stage.by == "magnitude":
            saliency, how = magnitudes(model), "the smallest weights beside the others of their layer"
        else:
            batches = _batches(evidence)
            saliency = sensitivities(model, batches, row_loss)
            rows = sum(len(target_B) for _, target_B in batches)
            how = f"the least |weight x gradient| on {rows} recent and remembered rows"
        edit = least_missed(blueprint, saliency, left, self.least_heads)
        return edit, (
            f"stage {self.done + 1} of {len(self.stages)}, by {stage.by}: heads and hidden units with {how} go, until "
            f"{100 * stage.gone:.3g}% of the {self.whole:,} parameters of such are gone"
        )

    def state(self) -> dict[str, Any]:
        """JSON-able; the masks are a file of their own."""
        return {"done": self.done, "whole": self.whole}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.done, self.whole = int(state["done"]), int(state["whole"])

    def files(self, model: nn.Module) -> dict[str, bytes]:
        """What of it belongs into a checkpoint beside the state."""
        tensors = self.masks.tensors(model)
        return {_FILE: save_tensors(tensors)} if tensors else {}

    def load(self, files: Mapping[str, bytes], model: nn.Module, device: torch.device) -> None:
        """Inverse of `files`. Raises KeyError where they are not of such a run."""
        self.masks.load(load_tensors(files[_FILE]) if _FILE in files else {}, model, device)


class Masks:
    """Weights that stay at zero: they, their gradients and their momentum. They follow through surgery (see
    planaria.morph.Follower)."""

    def __init__(self) -> None:
        self.of: dict[nn.Parameter, Tensor] = {}
        """1 where a weight may be other than zero."""

    @torch.no_grad()
    def put_on(self, model: ElasticTransformer, optimizer: torch.optim.Optimizer, fraction: float) -> int:
        """Set that fraction of the weights of heads and MLPs to zero; returns how many these are."""
        named = dict(model.named_parameters())
        self.of = {named[name]: mask.to(torch.bool) for name, mask in smallest_weights(model, fraction).items()}
        lasting = optimizer.lasting if isinstance(optimizer, FlatOptimizer) else ()
        for parameter, mask in self.of.items():
            parameter.mul_(mask)
            for slot, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == mask.shape and slot not in lasting:
                    value.mul_(mask)
        return sum(int((~mask).sum()) for mask in self.of.values())

    def hold(self) -> None:
        """Before the optimizer's step: weights without gradient and momentum stay where they are."""
        for parameter, mask in self.of.items():
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    def replaced(
        self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0, dimension: int = 0
    ) -> None:
        """New rows have all their weights."""
        mask = self.of.pop(old, None)
        if mask is not None and len(kept):
            self.of[new] = torch.ones_like(new, dtype=torch.bool)
            self.of[new].narrow(dimension, 0, len(kept)).copy_(mask.index_select(dimension, kept))

    def added(self, name: str, new: nn.Parameter, source: nn.Parameter | None) -> None:
        if source is not None and source in self.of:
            self.of[new] = self.of[source].clone()

    def dropped(self, old: nn.Parameter) -> None:
        self.of.pop(old, None)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """For safetensors."""
        return {name: self.of[p].cpu().contiguous() for name, p in model.named_parameters() if p in self.of}

    def load(self, tensors: Mapping[str, Tensor], model: nn.Module, device: torch.device) -> None:
        """Inverse of `tensors`. Raises KeyError where one fits no parameter."""
        named = dict(model.named_parameters())
        self.of = {named[name]: mask.to(device) for name, mask in tensors.items()}


def _batches(evidence: Evidence) -> Sequence[tuple[Mapping[str, Tensor], Tensor]]:
    """All its rows, recent and remembered ones in each batch."""
    features = {name: torch.cat((column, evidence.memory[name])) for name, column in evidence.recent.items()}
    target_B = torch.cat((evidence.recent_target, evidence.memory_target))
    parts = [slice(at, None, BATCHES) for at in range(min(BATCHES, len(target_B)))]
    return [({name: column[part] for name, column in features.items()}, target_B[part]) for part in parts]
