"""What the model was when it knew a concept: a bounded library of kept states, and a rolling pair of newest ones.

An alarm comes some rows after the change, when the model has already learned from what is new. So the live model is
copied every SNAPSHOT_ROWS rows, and a shift keeps the newest copy from before its onset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from planaria.blueprint import Blueprint
from planaria.errors import InputError

SNAPSHOT_ROWS = 512
"""Between two copies of the live model."""

Weights = Mapping[str, Tensor]
"""A model's state dict."""


@dataclass(frozen=True)
class Snapshot:
    """A model as it was after `sample` rows."""

    sample: int
    blueprint: Blueprint
    weights: Weights
    ages: tuple[tuple[int, ...], ...]
    """Rows since each head's birth, layer by layer."""

    def births(self, sample: int) -> list[list[int]]:
        """The heads' births, if they went on living at `sample`: the time in between does not count."""
        return [[sample - age for age in layer] for layer in self.ages]

    def about(self) -> dict[str, Any]:
        """Everything but the weights, JSON-able."""
        return {"sample": self.sample, "blueprint": self.blueprint.to_json(), "ages": self.ages}

    @staticmethod
    def of(model: nn.Module, blueprint: Blueprint, births: Sequence[Sequence[int]], sample: int) -> Snapshot:
        """A copy of the model, on its own device. A readout and a router forget nothing and are left out."""
        state = model.state_dict().items()
        weights = {n: v.detach().clone() for n, v in state if not n.startswith(("readout.", "router."))}
        return Snapshot(sample, blueprint, weights, tuple(tuple(sample - b for b in layer) for layer in births))

    @staticmethod
    def read(about: Mapping[str, Any], weights: Weights) -> Snapshot:
        """Inverse of `about`. Raises KeyError, TypeError, ValueError or InputError where it is not that."""
        ages = tuple(tuple(int(age) for age in layer) for layer in about["ages"])
        blueprint, held = Blueprint.from_json(about["blueprint"]), sum(value.numel() for value in weights.values())
        if blueprint.parameters > held:
            raise ValueError(f"a model of {blueprint.parameters:,} parameters and weights of {held:,} numbers")
        return Snapshot(int(about["sample"]), blueprint, weights, ages)


@dataclass(frozen=True)
class Entry:
    """What is kept of one concept."""

    snapshot: Snapshot
    """Its weights lie on the CPU."""
    used: int
    """Sample at which it was last kept or restored."""
    restored: int = 0
    """How many times the concept was restored."""


class ConceptLibrary:
    """At most `capacity` entries, by the detector's number of their concept; 0 keeps nothing."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.entries: dict[int, Entry] = {}
        self.rolling: list[Snapshot] = []
        """The newest two copies of the live model, older first."""

    def due(self, sample: int) -> bool:
        """Whether the live model is to be copied."""
        newest = self.rolling[-1].sample if self.rolling else sample - SNAPSHOT_ROWS
        return self.capacity > 0 and sample - newest >= SNAPSHOT_ROWS

    def roll(self, snapshot: Snapshot) -> None:
        """Take in a copy of the live model; the older one of two goes."""
        self.rolling = [*self.rolling[-1:], snapshot]

    def leave(self, concept: int, onset_sample: int, sample: int) -> None:
        """The stream has left a concept: keep the newest copy from before the onset, in place of an older entry.

        A change that is noticed late may have begun before both copies: the older one then mostly knows the old
        concept, and is kept only where there is no entry yet.
        """
        before = [snapshot for snapshot in self.rolling if snapshot.sample <= onset_sample]
        if not before and concept not in self.entries:
            before = self.rolling[:1]
        self.rolling = []
        if not before:
            return
        known = self.entries.get(concept)
        kept = replace(before[-1], weights={name: value.cpu() for name, value in before[-1].weights.items()})
        self.entries[concept] = Entry(kept, sample, 0 if known is None else known.restored)
        if len(self.entries) > self.capacity:
            del self.entries[self._least_worth(sample)]

    def restored(self, concept: int, sample: int) -> None:
        """The live model is this entry now."""
        entry = self.entries[concept]
        self.entries[concept] = replace(entry, used=sample, restored=entry.restored + 1)

    def _least_worth(self, sample: int) -> int:
        """Worth is (1 + times restored) / rows since it was last kept or restored: an entry that came back k times may
        be k + 1 times as old as one that never did before it goes first. Of equals, the lowest number goes."""

        def worth(concept: int) -> float:
            entry = self.entries[concept]
            return (1 + entry.restored) / max(1, sample - entry.used)

        return min(sorted(self.entries), key=worth)

    # -- state

    def state(self) -> dict[str, Any]:
        """JSON-able; the weights are in `tensors`."""
        entries = [
            {"concept": concept, "used": e.used, "restored": e.restored, **e.snapshot.about()}
            for concept, e in self.entries.items()
        ]
        return {"entries": entries, "rolling": [snapshot.about() for snapshot in self.rolling]}

    def tensors(self) -> dict[str, Tensor]:
        """All weights by place and name."""
        places = {f"concept.{concept}": entry.snapshot for concept, entry in self.entries.items()}
        places.update({f"rolling.{at}": snapshot for at, snapshot in enumerate(self.rolling)})
        return {f"{place}/{name}": value for place, kept in places.items() for name, value in kept.weights.items()}

    def load_state(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Raises InputError where they are not a library's."""
        try:
            self.entries = {
                int(one["concept"]): Entry(
                    Snapshot.read(one, below(tensors, f"concept.{one['concept']}")),
                    int(one["used"]),
                    int(one["restored"]),
                )
                for one in state["entries"]
            }
            self.rolling = [
                Snapshot.read(one, below(tensors, f"rolling.{at}")) for at, one in enumerate(state["rolling"])
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"concept library: not usable ({error}); use an older checkpoint") from None


def below(tensors: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """The tensors whose names begin with "<place>/", without that. Raises KeyError where there are none."""
    found = {name.removeprefix(f"{place}/"): t for name, t in tensors.items() if name.startswith(f"{place}/")}
    if not found:
        raise KeyError(place)
    return found
