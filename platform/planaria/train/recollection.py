"""What a run keeps of its past, equal on every worker: the concept library, and the state before the newest edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from planaria.blueprint import BEFORE_EDIT, Blueprint
from planaria.control.library import ConceptLibrary, Snapshot, Weights, below
from planaria.learn import optimizer_tensors
from planaria.model import ElasticTransformer

FILE = "library.safetensors"


@dataclass(frozen=True)
class BeforeEdit:
    """Model and optimizer as they were before an edit."""

    snapshot: Snapshot
    optimizer: Mapping[str, Tensor]


class Recollection:
    """The states that can be put back, and when each is taken and dropped."""

    def __init__(self, capacity: int) -> None:
        self.library = ConceptLibrary(capacity)
        self.before: BeforeEdit | None = None

    @property
    def blueprints(self) -> dict[int, Blueprint]:
        """Of all that can be restored, by concept, with BEFORE_EDIT for the state before the newest edit."""
        kept = {concept: entry.snapshot.blueprint for concept, entry in self.library.entries.items()}
        return kept if self.before is None else {**kept, BEFORE_EDIT: self.before.snapshot.blueprint}

    def snapshot(self, concept: int) -> Snapshot:
        """Raises KeyError where nothing is kept of it."""
        if concept != BEFORE_EDIT:
            return self.library.entries[concept].snapshot
        if self.before is None:
            raise KeyError(concept)
        return self.before.snapshot

    def hold(
        self,
        model: ElasticTransformer,
        optimizer: torch.optim.Optimizer,
        births: Sequence[Sequence[int]],
        sample: int,
    ) -> None:
        """Keep the state as it is before an edit, in place of the one before an earlier edit."""
        moments = optimizer_tensors(optimizer, model.named_parameters())
        copied = {name: value.clone() for name, value in moments.items()}
        self.before = BeforeEdit(Snapshot.of(model, model.blueprint, births, sample), copied)

    def restored(self, concept: int, sample: int, left: tuple[int, int] | None) -> None:
        """An entry was put back. `left` is (concept, onset of the change) where the stream was only suspected to have
        left that concept: what is known of it is kept now."""
        self.library.restored(concept, sample)
        if left is not None and left[0] != concept:
            self.library.leave(*left, sample)
        self.library.rolling = []

    # -- state

    def state(self) -> dict[str, Any]:
        """JSON-able; the tensors are a file of their own."""
        before = None if self.before is None else self.before.snapshot.about()
        return {**self.library.state(), "before": before}

    def file(self) -> bytes:
        tensors = self.library.tensors()
        if self.before is not None:
            tensors |= {f"before/{name}": value for name, value in self.before.snapshot.weights.items()}
            tensors |= {f"moments/{name}": value for name, value in self.before.optimizer.items()}
        return save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()})

    def load(self, state: Mapping[str, Any], content: bytes, device: torch.device) -> None:
        """Raises KeyError, ValueError or InputError where they are not a run's."""
        tensors = load_tensors(content)
        self.library.load_state(state, tensors)
        self.library.rolling = [_on(snapshot, device) for snapshot in self.library.rolling]
        self.before = None
        if state["before"] is not None:
            snapshot = _on(Snapshot.read(state["before"], below(tensors, "before")), device)
            moments = {n.removeprefix("moments/"): t for n, t in tensors.items() if n.startswith("moments/")}
            self.before = BeforeEdit(snapshot, moments)


def _on(snapshot: Snapshot, device: torch.device) -> Snapshot:
    weights: Weights = {name: value.to(device) for name, value in snapshot.weights.items()}
    return Snapshot(snapshot.sample, snapshot.blueprint, weights, snapshot.ages)
