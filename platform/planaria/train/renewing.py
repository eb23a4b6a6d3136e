"""Continual backpropagation in a run: what the hidden units of a step's forward passes did, and which begin anew.

Equal on every worker: what they did is summed with the gradients. Legend: U hidden units of
all MLPs, one after the other, H of one, R rows, Q tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from planaria.blueprint import Blueprint, Edit, Prune, ShrinkMlp
from planaria.learn import build_renewal
from planaria.model import ElasticTransformer
from planaria.morph import renew_unit
from planaria.policy import Learner

_FILE = "renewal.safetensors"


class Renewing:
    """See planaria.learn.learners.continual_backprop."""

    def __init__(self, learner: Learner) -> None:
        self.renewal = build_renewal(learner)

    def length(self, model: ElasticTransformer) -> int:
        """Numbers that a forward pass adds to what the workers sum up."""
        return 0 if self.renewal is None else 2 * sum(_widths(model.blueprint))

    def watching(self, model: ElasticTransformer, into: Tensor, rows: int) -> AbstractContextManager[None]:
        """Add the hidden units' activations in here, and their absolute values, to `into`: sums over the rows of this
        shard, divided by the `rows` of all."""
        return nullcontext() if self.renewal is None else self._watching(model, into, rows)

    @contextmanager
    def _watching(self, model: ElasticTransformer, into: Tensor, rows: int) -> Iterator[None]:
        layers, widths = model.blueprint.groups("mlp"), _widths(model.blueprint)
        activations, magnitudes = (torch.split(part, widths) for part in into.chunk(2))

        def note(at: int, uses: int, inputs: tuple[Any, ...]) -> None:
            hidden_RQH = inputs[0].detach()
            activations[at].add_(hidden_RQH.mean(1).sum(0) / (rows * uses))
            magnitudes[at].add_(hidden_RQH.abs().mean(1).sum(0) / (rows * uses))

        hooks = []
        for at, (layer, group) in enumerate(layers.items()):
            watch = partial(lambda at, uses, _, inputs: note(at, uses, inputs), at, len(group))
            hooks.append(model.block(layer).mlp.hidden.register_forward_pre_hook(watch))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def renew(self, model: ElasticTransformer, optimizer: torch.optim.Optimizer, seen: Tensor, seed: int) -> None:
        """After a step whose workers' sums are `seen`."""
        if self.renewal is None:
            return
        layers = list(model.blueprint.groups("mlp"))
        activation_U, magnitude_U = seen.chunk(2)
        outgoing_U = torch.cat([model.block(layer).mlp.out.weight.abs().sum(0) for layer in layers])
        generator = torch.Generator().manual_seed(seed)
        chosen = self.renewal.choose(activation_U, magnitude_U, outgoing_U, _widths(model.blueprint))
        for at, unit, mean in chosen:
            renew_unit(model, optimizer, layers[at], unit, mean, generator)

    def edited(self, edit: Edit, before: Blueprint) -> None:
        """What is known of hidden units goes with them."""
        if self.renewal is None or not isinstance(edit, ShrinkMlp | Prune):
            return
        owners, layers = before.owners("mlp"), list(before.groups("mlp"))
        for part in edit.parts if isinstance(edit, Prune) else [edit]:
            if isinstance(part, ShrinkMlp):
                self.renewal.removed(layers.index(owners[part.layer]), part.units)

    def files(self) -> dict[str, bytes]:
        """What of it belongs into a checkpoint."""
        return {} if self.renewal is None else {_FILE: save_tensors(self.renewal.tensors())}

    def load(self, files: Mapping[str, bytes], device: torch.device) -> None:
        """Inverse of `files`. Raises KeyError where they are not of such a run."""
        if self.renewal is not None:
            self.renewal.load(load_tensors(files[_FILE]), device)


def _widths(blueprint: Blueprint) -> list[int]:
    """Hidden units of each MLP, in the order of the layers that own them."""
    return [blueprint.mlp_width_of(layer) for layer in blueprint.groups("mlp")]
