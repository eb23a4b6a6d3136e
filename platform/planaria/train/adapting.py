"""Adapters in a run: which one the present concept's rows use, when there is to be another, and what the router learns.

Equal on every worker: it follows from what the monitor says and from rows that every worker reads.
Legend: B fresh rows, R remembered rows, K adapters, F features of the router.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from planaria.learn import UNSETTLED, Discriminant
from planaria.model import ROUTE, ElasticTransformer
from planaria.policy import Policy
from planaria.signals import Rows, Shift

CAUSE = "new concept"
"""Of the revisions that begin with an adapter."""
_ABOUT, _SUMS = "adapters.json", "adapters.safetensors"
_LEARNED_EVERY = 4
"""One row in so many teaches the router: it knows the concepts well after a few hundred of them."""
_LAG_ROWS = 1_536
"""A shift that began so long ago is known by now: rows wait until then before they are summed up for good."""
_SOLVED_AFTER_ROWS = 256
_KNOWN_ROWS = 48
"""Of an adapter, that teach the router, before rows are routed to it."""


class Adapting:
    """A concept that the monitor enters for the first time gets an adapter that no other concept has, as long as there
    are fewer than the policy allows; from then on the concept that the router takes its rows for lends its own. Until a
    concept is known by its number, its adapter is held for it."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.settings, self.seed = policy.adapters, seed
        self.adapter_of: dict[int, int] = {}
        """By the monitor's number of the concept."""
        self.present = 0
        """Adapter that fresh rows use."""
        self._discriminant: Discriminant
        self._waiting: list[tuple[int, int, Tensor]] = []
        """(first row, adapter, descriptions) of rows that are not summed up yet, oldest first."""
        self._unsolved_rows = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """For the first blueprint: (adapters, units of each)."""
        return (0, 0) if self.settings is None else (1, self.settings.units)

    def begin(self, model: ElasticTransformer, features: Mapping[str, Tensor]) -> None:
        """Draw the router's random features from the stream's first rows."""
        assert model.router is not None
        model.router.features.fit(features, self.seed)
        self._discriminant = Discriminant(model.router.features.size, 1, model.output.bias.device)

    # -- what rows use

    def with_route(
        self,
        model: ElasticTransformer,
        features: dict[str, Tensor],
        fresh: int,
        concept_R: npt.NDArray[np.int64],
        concept: int | None = None,
    ) -> dict[str, Tensor]:
        """The features, and what their rows use: the first `fresh` ones the present adapter, or that of `concept`, the
        others that of the concept which they are remembered of, or what the router says where that is not known."""
        if self.settings is None:
            return features
        assert model.router is not None
        adapter_of = {**self.adapter_of, UNSETTLED: self.present}
        told = [adapter_of.get(of, -1) for of in concept_R.tolist()]
        first = self.present if concept is None else self.adapter_of.get(concept, self.present)
        adapter = torch.tensor([first] * fresh + told, dtype=torch.int64)
        route_BK = F.one_hot(adapter.clamp(min=0), model.blueprint.adapters).float().to(model.output.bias.device)
        doubtful = torch.nonzero(adapter < 0)[:, 0].to(route_BK.device)
        if len(doubtful):
            route_BK[doubtful] = model.router({name: column[doubtful] for name, column in features.items()})
        return {**features, ROUTE: route_BK}

    # -- what the monitor says

    def follow(
        self, model: ElasticTransformer, shift: Shift | None, concept: int | None, alarmed: bool, since: int, more: bool
    ) -> bool:
        """After a step: `concept` is the present one, None while it settles; `since` is its first sure row, `alarmed`
        whether the monitor doubts it; `more` says whether another adapter may come. True where one is to be added:
        then `added` is due."""
        if self.settings is None:
            return False
        if shift is not None and shift.concept is None and concept not in self.adapter_of:
            return self._enter(model, shift.onset_sample, more, concept)
        known = shift.concept if shift is not None and concept is None else concept
        if known is None or alarmed:
            return False
        if known not in self.adapter_of:
            self.adapter_of[known] = self.present
        elif self.adapter_of[known] != self.present:
            self._use(self.adapter_of[known], since if shift is None else shift.onset_sample)
        return False

    def assume(self, concept: int) -> None:
        """The model was restored to what it knew of a concept: its rows are expected."""
        self.present = self.adapter_of.get(concept, self.present)

    def added(self, adapters: int, since: int, concept: int | None) -> None:
        """There are so many adapters now: the last one is the present concept's, whose rows began at `since`."""
        self._discriminant.widen(adapters)
        self._enter_with(adapters - 1, since, concept)

    def _enter(self, model: ElasticTransformer, onset: int, more: bool, concept: int | None) -> bool:
        adapters = model.blueprint.adapters
        free = sorted(set(range(adapters)) - set(self.adapter_of.values()) - {self.present})
        if not free and more:
            return True
        self._enter_with(free[0] if free else self._nearest(model, onset), onset, concept)
        return False

    def _enter_with(self, adapter: int, since: int, concept: int | None) -> None:
        self._use(adapter, since)
        if concept is not None:
            self.adapter_of[concept] = adapter

    def _nearest(self, model: ElasticTransformer, onset: int) -> int:
        """The adapter that the router takes most of the newest rows for."""
        assert model.router is not None
        newest = [described for first, _, described in self._waiting if first >= onset]
        return int(model.router.route(torch.cat(newest)).sum(0).argmax()) if newest else self.present

    def _use(self, adapter: int, since: int) -> None:
        """Fresh rows use it, and so should have those from `since` on."""
        self.present = adapter
        self._waiting = [(first, adapter if first >= since else of, rows) for first, of, rows in self._waiting]
        self._unsolved_rows = _SOLVED_AFTER_ROWS

    # -- the router

    def taught(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Which of a step's rows teach the router, counted within the step."""
        number_B = rows.start + np.arange(len(rows))
        return np.flatnonzero(~rows.held_out & (number_B % _LEARNED_EVERY == 0))

    def learn(self, model: ElasticTransformer, taught: Mapping[str, Tensor], rows: Rows) -> None:
        """A step's rows; `taught` are the features of those that `taught` names."""
        assert model.router is not None
        if len(next(iter(taught.values()))):
            self._waiting.append((rows.start, self.present, model.router.describe(taught)))
        while self._waiting and self._waiting[0][0] < rows.start - _LAG_ROWS:
            _, adapter, described_BF = self._waiting.pop(0)
            self._discriminant.add(described_BF, adapter)
        self._unsolved_rows += len(rows)
        if self._unsolved_rows >= _SOLVED_AFTER_ROWS:
            self._solve(model)

    def _solve(self, model: ElasticTransformer) -> None:
        router = model.router
        assert router is not None
        newest = Discriminant.of({name: value.clone() for name, value in self._discriminant.tensors().items()})
        for adapter in sorted({adapter for _, adapter, _ in self._waiting}):
            newest.add(torch.cat([rows for _, of, rows in self._waiting if of == adapter]), adapter)
        self._unsolved_rows = 0
        if not bool((newest.rows_K >= _KNOWN_ROWS).any()):
            return
        weight_FK, offset_K = newest.solve()
        router.weight_FK.copy_(weight_FK)
        router.offset_K.copy_(offset_K)
        router.known_K.copy_((newest.rows_K >= _KNOWN_ROWS).float())

    # -- state

    def files(self) -> dict[str, bytes]:
        """What of it belongs into a checkpoint; what routes rows is in the model."""
        if self.settings is None:
            return {}
        tensors = self._discriminant.tensors()
        tensors |= {f"waiting/{at}": rows for at, (_, _, rows) in enumerate(self._waiting)}
        about = {
            "adapter_of": list(self.adapter_of.items()),
            "present": self.present,
            "waiting": [(first, adapter) for first, adapter, _ in self._waiting],
            "unsolved_rows": self._unsolved_rows,
        }
        content = save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()})
        return {_SUMS: content, _ABOUT: json.dumps(about).encode()}

    def load(self, files: Mapping[str, bytes], device: torch.device) -> None:
        """Inverse of `files`. Raises KeyError, TypeError or ValueError where they are not of such a run."""
        if self.settings is None:
            return
        about = json.loads(files[_ABOUT])
        tensors = {name: value.to(device) for name, value in load_tensors(files[_SUMS]).items()}
        self._discriminant = Discriminant.of(tensors)
        self.adapter_of = {int(concept): int(adapter) for concept, adapter in about["adapter_of"]}
        self.present, self._unsolved_rows = int(about["present"]), int(about["unsolved_rows"])
        self._waiting = [
            (int(first), int(adapter), tensors[f"waiting/{at}"]) for at, (first, adapter) in enumerate(about["waiting"])
        ]
