"""The model that a blueprint describes: input layer, elastic blocks, output layer.

Legend: B rows, T tokens, D width, C outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from planaria.blueprint import PARTS, Blueprint, Part, Quantisation
from planaria.errors import InputError
from planaria.model.adapters import ROUTE, Adapters, Router
from planaria.model.attention import ElasticAttention
from planaria.model.blocks import Block, Mlp
from planaria.model.differences import Difference
from planaria.model.gates import Gate
from planaria.model.initialise import Initialisation, draw
from planaria.model.inputs import ImageInput, TableInput
from planaria.model.readout import Readout
from planaria.plain_json import read_json


class OutputLayer(nn.Module):
    """Logits, or one number in the target's own units (its running mean and variance are part of the model)."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.regression = blueprint.task == "regression"
        self.weight = nn.Parameter(torch.zeros(blueprint.outputs, blueprint.width))
        self.bias = nn.Parameter(torch.zeros(blueprint.outputs))
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def spread(self) -> Tensor:
        """Running standard deviation of the target; 1 before it is known, and of classes."""
        if not self.regression:
            return self.count.new_ones(())
        variance = self.squares / self.count.clamp(min=1)
        return torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()

    @torch.no_grad()
    def observe(self, target_B: Tensor) -> None:
        """Update the target's running mean and variance (regression only)."""
        if not self.regression or not len(target_B):
            return
        values_B = target_B.to(torch.float64)
        total = self.count + len(values_B)
        delta = values_B.mean() - self.mean
        self.squares += ((values_B - values_B.mean()) ** 2).sum() + delta**2 * self.count * len(values_B) / total
        self.mean += delta * len(values_B) / total
        self.count.copy_(total)

    def forward(self, x_BD: Tensor) -> Tensor:
        return self.in_units(self.standard(x_BD))

    def standard(self, x_BD: Tensor) -> Tensor:
        """Logits, or the standardised target."""
        return F.linear(x_BD, self.weight, self.bias).float()

    def in_units(self, output_BC: Tensor) -> Tensor:
        """A standardised target in the target's own units; logits as they are."""
        if self.regression:
            return output_BC * self.spread.float() + self.mean.float()
        return output_BC


class ElasticTransformer(nn.Module):
    """Pre-norm transformer whose layers each have their own number of heads."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.blueprint = blueprint
        self.input = ImageInput(blueprint) if blueprint.image_shape is not None else TableInput(blueprint)
        self.class_token_D = nn.Parameter(torch.empty(blueprint.width))
        last = blueprint.layers - 1
        self.blocks = nn.ModuleList(
            Block(blueprint.width, answer_first=layer == last) for layer in range(blueprint.layers)
        )
        self.arrange(blueprint)
        self.router: Router | None = None
        if blueprint.adapters:
            self.give_adapters(blueprint)
        self.norm = nn.LayerNorm(blueprint.width)
        self.output = OutputLayer(blueprint)
        self.readout = Readout(blueprint) if blueprint.readout_features else None

    def block(self, layer: int) -> Block:
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    def arrange(self, blueprint: Blueprint) -> None:
        """Let every layer have, or share, fresh parts of the blueprint's shapes, with nothing drawn yet."""
        for layer in range(blueprint.layers):
            block = self.block(layer)
            for part in PARTS:
                owner = blueprint.owners(part)[layer]
                if owner == layer:
                    block.own(part, fresh_part(blueprint, part, layer))
                else:
                    block.borrow(part, getattr(self.block(owner), part))
                setattr(block, f"{part}_difference", fresh_difference(blueprint, part, layer))
            block.gate = fresh_gate(blueprint, layer)

    def quantise(self, quantisation: Quantisation | None) -> None:
        """Compute so from now on."""
        self.blueprint = replace(self.blueprint, quantisation=quantisation)
        for layer in range(self.blueprint.layers):
            self.block(layer).attention.quantisation = self.block(layer).mlp.quantisation = quantisation

    def give_adapters(self, blueprint: Blueprint) -> None:
        """Let every layer have as many as the blueprint says, with nothing drawn yet."""
        for layer in range(blueprint.layers):
            self.block(layer).adapters = Adapters(blueprint.width, blueprint.adapters, blueprint.adapter_units)
        self.router = Router(blueprint)

    def observe(self, features: Mapping[str, Tensor]) -> None:
        """Update running statistics of the inputs with a whole batch (equal on every worker)."""
        self.input.observe(features)

    def hidden(self, features: Mapping[str, Tensor]) -> Tensor:
        """What the output layer reads. Shape [B, D]."""
        x_BTD = self.input(features, self.class_token_D)
        route_BK = None
        if self.router is not None:
            route_BK = features[ROUTE] if ROUTE in features else self.router(features)
        for block in self.blocks:
            x_BTD = block(x_BTD, route_BK)
        hidden_BD: Tensor = self.norm(x_BTD[:, 0])
        return hidden_BD

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, classes], or predictions [B, 1] in the target's own units. float32 in every precision."""
        hidden_BD = self.hidden(features)
        if self.readout is None:
            output_BC: Tensor = self.output(hidden_BD)
            return output_BC
        return self.output.in_units(self.output.standard(hidden_BD) * self.readout.trust_V[-1] + self.readout(features))


def build(blueprint: Blueprint, seed: int = 0, initialisation: Initialisation = "normal") -> ElasticTransformer:
    """A fresh model; equal seeds give equal weights."""
    blueprint.check()
    generator = torch.Generator().manual_seed(seed)
    model = ElasticTransformer(blueprint)
    draw(model, initialisation, generator)
    return model


def fresh_part(blueprint: Blueprint, part: Part, layer: int) -> nn.Module:
    """One of the layer's shapes."""
    if part == "attention":
        sizes = blueprint.width, blueprint.heads[layer], blueprint.head_width
        return ElasticAttention(*sizes, quantisation=blueprint.quantisation)
    return Mlp(blueprint.width, blueprint.mlp_width_of(layer), blueprint.quantisation)


def fresh_gate(blueprint: Blueprint, layer: int) -> Gate | None:
    """One that is open to every row; None where the blueprint has none."""
    if blueprint.gates is None:
        return None
    return Gate(blueprint.gates, blueprint.width, blueprint.heads[layer])


def fresh_difference(blueprint: Blueprint, part: Part, layer: int) -> Difference | None:
    """One of the layer's shapes, which adds nothing yet; None where the layer has none."""
    if not blueprint.differs(part, layer):
        return None
    width, rank = blueprint.width, blueprint.difference_rank
    if part == "mlp":
        units = blueprint.mlp_width_of(layer)
        return Difference({"into": (units, width), "out": (width, units)}, rank)
    by_head = (blueprint.heads[layer], blueprint.head_width, width)
    return Difference({"q": by_head, "kv": (by_head[0], 2, *by_head[1:]), "o": by_head}, rank)


def save_model(model: ElasticTransformer, folder: Path, encoding: Mapping[str, Any]) -> None:
    """Write what serving needs: blueprint.json, model.safetensors and encoding.json (fields, labels, categories)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "blueprint.json").write_text(model.blueprint.to_json())
    (folder / "encoding.json").write_text(json.dumps(encoding))
    save_file(
        {name: t.detach().contiguous().cpu() for name, t in model.state_dict().items()}, folder / "model.safetensors"
    )


def check_weights(blueprint: Blueprint, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError where the weights are too few for such a model, before anything of the model's size is made: a
    blueprint is a few words, whatever it asks for. Whether they fit is for `load_state_dict` to say."""
    held = sum(tensor.numel() for tensor in weights.values())
    if blueprint.parameters > held or blueprint.readout_most > 64 * held:
        raise ValueError(f"a model of {blueprint.parameters:,} parameters and weights of {held:,} numbers")


def load_model(folder: Path) -> tuple[ElasticTransformer, dict[str, Any]]:
    """The model and the encoding that `save_model` wrote. Raises InputError where they do not fit together."""
    try:
        weights = load_file(folder / "model.safetensors")
        blueprint = Blueprint.from_json((folder / "blueprint.json").read_text())
        check_weights(blueprint, weights)
        model = build(blueprint)
        model.load_state_dict(weights)
        encoding = dict(read_json(folder / "encoding.json"))
    except (OSError, RuntimeError, SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: no usable model ({str(error).splitlines()[0]}); export it again") from None
    return model.eval(), encoding


@torch.no_grad()
def predict(model: ElasticTransformer, features: Mapping[str, Tensor]) -> Tensor:
    """Class numbers (int64) or predicted values (float32), one a row."""
    output_BC: Tensor = model(features)
    return output_BC[:, 0] if model.blueprint.task == "regression" else output_BC.argmax(1)
