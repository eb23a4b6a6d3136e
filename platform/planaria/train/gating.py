"""Gates in a run: what opens them at random, what holds them to the budget, and how far they were open.

Equal on every worker: noise is a function of seed, step and row, and what the rows opened is summed with the gradients.
Legend: B rows, D width, L layers, G gates of all layers, layer by layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from planaria.active import Floats, gate_sizes
from planaria.blueprint import Blueprint
from planaria.model import ElasticTransformer
from planaria.model.gates import Gate, Watch
from planaria.policy import Policy

_FILE = "gates.json"
_KEPT = 0.9
"""Of the share that rows used until now, at every step."""
_PATIENCE_ROWS = 20_000
"""A gap to the budget that lasts so many rows pulls twice as much."""
_MEAN_KEPT = 0.99
"""Of the running mean of a layer's inputs, at every step."""


Numbers = npt.NDArray[np.int64]


class Gating:
    """The budget loss is price x the share of the gated parameters that a row is likely to use. The price follows the
    gap between what rows used and what they are to use, and its sum over time: it is linear in the rows, so that
    shards of a step add up to the step, and the gap closes whatever accuracy is worth."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.settings, self.seed = policy.gate, seed
        self.share, self.lasting = 1.0, 0.0
        """Of the gated parameters, used lately; and the gap to the budget, summed over rows."""
        self.opened: Sequence[float] = ()
        """Of the newest step's rows, the share that each gate was open to."""
        self._watches: list[Watch] = []

    def length(self, model: ElasticTransformer) -> int:
        """Numbers that a forward pass adds to what the workers sum up: rows that each gate was open to, and each
        layer's mean input."""
        blueprint = model.blueprint
        return 0 if blueprint.gates is None else _count(blueprint) + blueprint.layers * blueprint.width

    def watching(
        self, model: ElasticTransformer, step: int, own: Sequence[tuple[Numbers, slice]]
    ) -> AbstractContextManager[None]:
        """Let gates that draw do so in here, and keep what they say. `own` says, of each kind of rows (fresh,
        replayed, judged), their numbers and which of them are the pass's: a row's noise follows from its number, not
        from who computes it."""
        return nullcontext() if model.blueprint.gates is None else self._watching(model, step, own)

    @contextmanager
    def _watching(self, model: ElasticTransformer, step: int, own: Sequence[tuple[Numbers, slice]]) -> Iterator[None]:
        gates, generator = _gates(model), np.random.default_rng((self.seed, step, 4))
        self._watches = [Watch(_noise(gate, generator, own)) for gate in gates]
        for gate, watch in zip(gates, self._watches, strict=True):
            gate.watch = watch
        try:
            yield
        finally:
            for gate in gates:
                gate.watch = None

    def cost(
        self, model: ElasticTransformer, into: Tensor, charged_B: npt.NDArray[np.bool_], rows: int, row: int
    ) -> Tensor:
        """Of the pass's fresh rows, the first ones, beside their objective: the sum over those that are charged. Adds
        to `into` what the gates did for all of them, divided by the `rows` of all. `row` is the step's first."""
        watches, self._watches = self._watches, []
        fresh, seen = len(charged_B), [(w.chance_BG, w.open_BG, w.mean_BD) for w in watches]
        chance_BG = torch.cat([chance[:fresh] for chance, _, _ in seen if chance is not None], 1)
        open_BG = torch.cat([how_far[:fresh] for _, how_far, _ in seen if how_far is not None], 1)
        mean_BLD = torch.cat([mean[:fresh] for _, _, mean in seen if mean is not None], 1)
        into += torch.cat(((open_BG != 0).float().sum(0), mean_BLD.float().sum(0))) / rows
        weight_G = torch.from_numpy(_weights(model.blueprint).astype(np.float32)).to(into.device)
        charged = torch.from_numpy(charged_B).to(into.device)
        return self.price(row) * ((chance_BG @ weight_G) * charged).sum()

    def price(self, row: int) -> float:
        """Nats that using all of a model costs a row more than using none."""
        if self.settings is None or row < self.settings.warm_up_samples:
            return 0.0
        return self.settings.weight * (self.share - self.settings.active_fraction + self.lasting / _PATIENCE_ROWS)

    @torch.no_grad()
    def stepped(self, model: ElasticTransformer, seen: Tensor, rows: int, row: int) -> None:
        """After a step of so many rows, whose workers' sums are `seen`. `row` is the step's first."""
        if not seen.numel():
            self.opened = ()
            return
        blueprint = model.blueprint
        opened, means = torch.split(seen, [_count(blueprint), blueprint.layers * blueprint.width])
        self.opened = opened.cpu().tolist()
        for gate, mean_D in zip(_gates(model), means.view(blueprint.layers, -1), strict=True):
            gate.mean_D.lerp_(mean_D, 1 - _MEAN_KEPT)
        self.share = _KEPT * self.share + (1 - _KEPT) * float(np.dot(_weights(blueprint), self.opened))
        if self.settings is not None and row >= self.settings.warm_up_samples:
            self.lasting += rows * (self.share - self.settings.active_fraction)

    def files(self) -> dict[str, bytes]:
        """What of it belongs into a checkpoint."""
        return {_FILE: json.dumps({"share": self.share, "lasting": self.lasting}).encode()}

    def load(self, files: Mapping[str, bytes]) -> None:
        """Inverse of `files`. Raises KeyError, TypeError or ValueError where they are not of such a run."""
        about = json.loads(files[_FILE])
        self.share, self.lasting = float(about["share"]), float(about["lasting"])


def _gates(model: ElasticTransformer) -> list[Gate]:
    blocks = (model.block(layer) for layer in range(model.blueprint.layers))
    return [block.gate for block in blocks if block.gate is not None]


def _count(blueprint: Blueprint) -> int:
    return sum(blueprint.gates_of(layer) for layer in range(blueprint.layers))


def _weights(blueprint: Blueprint) -> Floats:
    """What of all gated parameters is behind each gate. Shape [G]."""
    sizes_G: Floats = np.concatenate(gate_sizes(blueprint))
    return sizes_G / float(sizes_G.sum())


def _noise(gate: Gate, generator: np.random.Generator, own: Sequence[tuple[Numbers, slice]]) -> Tensor | None:
    if gate.settings.kind == "straight_through":
        return None
    size = len(gate.heads) + len(gate.blocks)
    kinds = own if gate.settings.per == "row" else ((np.zeros(1, np.int64), slice(None)),)
    drawn = []
    for numbers, these in kinds:
        place = np.argsort(np.argsort(numbers, kind="stable"), kind="stable")
        drawn.append(generator.uniform(1e-6, 1 - 1e-6, (len(numbers), size))[place[these]])
    return torch.from_numpy(np.concatenate(drawn).astype(np.float32)).to(gate.heads.device)
