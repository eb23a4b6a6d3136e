"""Blueprints and edits: everything that fixes the shapes of a model's parameters, and the values that change it.

Legend: D model width, N heads, H head width, T tokens, M MLP width, C outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, get_args

from planaria.errors import InputError
from planaria.plain_json import load_json
from planaria.signals import Fields, Task

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
"""Of a layer, whose weights may be shared with other layers."""
GateKind = Literal["straight_through", "hard_concrete"]
GateScope = Literal["row", "stream"]


@dataclass(frozen=True)
class Gates:
    """How a model's gates decide which heads and MLP blocks are used."""

    kind: GateKind
    per: GateScope
    blocks: int
    """Of each layer's MLP, equal parts of its hidden units with a gate each."""

    def check(self, mlp_width: int) -> None:
        """Raises ValueError where no model can have them."""
        if self.kind not in get_args(GateKind) or self.per not in get_args(GateScope):
            raise ValueError(
                f"there is no gate '{self.kind}' per '{self.per}'; kinds are {', '.join(get_args(GateKind))}, per is "
                f"{' or '.join(get_args(GateScope))}"
            )
        if self.blocks < 1 or mlp_width % self.blocks:
            raise ValueError(f"mlp_width is {mlp_width}; it cannot be split into {self.blocks} equal blocks")


Activations = Literal["token", "tensor"]


@dataclass(frozen=True)
class Quantisation:
    """To how many bits a model's attention and MLPs round what they multiply."""

    bits: int
    """Of weights; activations have 8."""
    activations: Activations
    """What shares a scale: a token's values, or those of all tokens of all rows."""

    @property
    def level(self) -> int:
        """The largest that a weight may be, in steps of its output channel's scale."""
        return int(2 ** (self.bits - 1) - 1)

    def check(self) -> None:
        """Raises ValueError where no model can have it."""
        if not 4 <= self.bits <= 8 or self.activations not in get_args(Activations):
            raise ValueError(
                f"there is no quantisation to {self.bits} bits with a scale for each '{self.activations}'; bits are 4 "
                f"to 8, activations are {' or '.join(get_args(Activations))}"
            )


@dataclass(frozen=True)
class Blueprint:
    """The parameter configuration of a model. Immutable, hashable, JSON-able."""

    task: Task
    width: int
    head_width: int
    mlp_width: int
    heads: tuple[int, ...]
    """Live heads of each layer, first layer first."""
    outputs: int
    """Classes known so far, or 1 for regression."""
    image_shape: tuple[int, int, int] | None = None
    """channels, height, width; None for a table."""
    patch: int = 7
    numeric: int = 0
    categorical: int = 0
    categories: int = 0
    readout_features: int = 0
    """Random features of the readout beside the transformer; 0 is no readout."""
    readout_concepts: int = 0
    """Concepts that the readout keeps apart."""
    readout_fading: int = 0
    """Regressions of the readout that fade."""
    attention_of: tuple[int, ...] = ()
    """For each layer the layer whose attention weights it uses, the first of its group; () where each has its own."""
    mlp_of: tuple[int, ...] = ()
    """The same of the MLP weights."""
    difference_rank: int = 0
    """Rank of what each layer of a group adds to the shared weights; 0 adds nothing."""
    gates: Gates | None = None
    """Of every layer, if any."""
    mlp_widths: tuple[int, ...] = ()
    """Of each layer; () where all have `mlp_width`, which is else the widest."""
    quantisation: Quantisation | None = None
    """Of every layer; None computes in float32."""
    adapters: int = 0
    """Beside every layer's MLP."""
    adapter_units: int = 0
    """Hidden units of each of these."""

    def __post_init__(self) -> None:
        # one way to say each thing, so that equal models have equal blueprints
        if self.mlp_widths:
            object.__setattr__(self, "mlp_width", max(self.mlp_widths))
        if self.mlp_widths == (self.mlp_width,) * self.layers:
            object.__setattr__(self, "mlp_widths", ())
        for name in ("attention_of", "mlp_of"):
            if getattr(self, name) == tuple(range(self.layers)):
                object.__setattr__(self, name, ())

    @property
    def layers(self) -> int:
        return len(self.heads)

    def mlp_width_of(self, layer: int) -> int:
        """Hidden units of the layer's MLP."""
        return self.mlp_widths[layer] if self.mlp_widths else self.mlp_width

    def owners(self, part: Part) -> tuple[int, ...]:
        """For each layer the layer whose weights of that part it uses."""
        of = self.attention_of if part == "attention" else self.mlp_of
        return of or tuple(range(self.layers))

    def groups(self, part: Part) -> dict[int, tuple[int, ...]]:
        """The layers that use each owner's weights, by owner, in order."""
        owners = self.owners(part)
        return {
            owner: tuple(layer for layer in range(self.layers) if owners[layer] == owner)
            for owner in sorted(set(owners))
        }

    def differs(self, part: Part, layer: int) -> bool:
        """Whether the layer adds a difference of its own to weights that it shares."""
        owners = self.owners(part)
        return self.difference_rank > 0 and owners.count(owners[layer]) > 1

    def gates_of(self, layer: int) -> int:
        """How many: one for each head, one for each MLP block."""
        return 0 if self.gates is None else self.heads[layer] + self.gates.blocks

    @property
    def tokens(self) -> int:
        """Input tokens with the class token: patches, or one for each column."""
        if self.image_shape is None:
            return 1 + self.numeric + self.categorical
        _, height, width = self.image_shape
        return 1 + -(-height // self.patch) * -(-width // self.patch)

    @property
    def patch_values(self) -> int:
        assert self.image_shape is not None
        return self.image_shape[0] * self.patch**2

    @cached_property
    def parameters(self) -> int:
        """Trainable numbers, counted from the shapes. What a readout solves is not trained."""
        d, width_of = self.width, self.mlp_width_of
        if self.image_shape is not None:
            inputs = (self.patch_values + 1) * d + self.tokens * d
        else:
            inputs = 3 * self.numeric * d + self.categorical * self.categories * d
        inner = [heads * self.head_width for heads in self.heads]
        attention = sum(4 * inner[owner] * d + d for owner in self.groups("attention"))
        mlp = sum(2 * d * width_of(owner) + width_of(owner) + d for owner in self.groups("mlp"))
        differences = sum(
            self.difference_rank * (4 * inner[layer] + 3 * d) * self.differs("attention", layer)
            + self.difference_rank * 2 * (d + width_of(layer)) * self.differs("mlp", layer)
            for layer in range(self.layers)
        )
        gates = (d + 1) * sum(self.gates_of(layer) for layer in range(self.layers))
        adapters = self.layers * self.adapters * self.adapter_units * (2 * d + 1)
        rest = self.layers * 4 * d + 2 * d + (d + 1) * self.outputs
        return inputs + d + attention + mlp + differences + gates + adapters + rest

    @property
    def readout_most(self) -> int:
        """A bound on the largest part of a readout, in numbers, and at most 64 times all of it."""
        values = 2 * self.numeric + self.categorical * min(self.categories, 32)  # buckets, see TableFeatures
        inputs = values if self.image_shape is None else math.prod(self.image_shape)
        answers = self.outputs * (2 + self.readout_fading + self.readout_concepts)
        return self.readout_features * max(inputs, answers)

    @property
    def prunable(self) -> int:
        """Parameters that go when heads and hidden units go."""
        nothing = replace(self, heads=(0,) * self.layers, mlp_width=0, mlp_widths=())
        return self.parameters - nothing.parameters

    @cached_property
    def flops_per_sample(self) -> int:
        """Multiply-adds x 2 of the transformer's forward pass, whose last layer answers for the class token alone; with
        gates, of a row to which all are open. Of adapters all are computed; what routes rows is not counted."""
        d, t = self.width, self.tokens
        patches = 2 * (t - 1) * self.patch_values * d if self.image_shape is not None else 0
        total = patches + 2 * d * self.outputs
        for layer, heads in enumerate(self.heads):
            total += heads * self.flops_of_head(layer) + self.flops_of_mlp(layer) + 2 * d * self.gates_of(layer)
            total += 4 * self._queries(layer) * d * self.adapters * self.adapter_units
        return total

    def flops_of_head(self, layer: int) -> int:
        """Of one head of the layer, for one row. A single query needs no key and value of every token, but where what
        is multiplied is rounded (see ElasticAttention)."""
        d, t, h, queries = self.width, self.tokens, self.head_width, self._queries(layer)
        if queries == 1 and self.quantisation is None:
            return 8 * d * h + 4 * t * d
        return 2 * d * h * (2 * queries + 2 * t) + 4 * queries * t * h

    def flops_of_mlp(self, layer: int) -> int:
        """Of the layer's whole MLP, for one row."""
        return 4 * self._queries(layer) * self.width * self.mlp_width_of(layer)

    def _queries(self, layer: int) -> int:
        return 1 if layer == self.layers - 1 else self.tokens

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Blueprint:
        """Raises InputError where the text is not a blueprint."""
        try:
            values = load_json(text)
            for name in ("heads", "attention_of", "mlp_of", "mlp_widths"):
                values[name] = tuple(int(n) for n in values.get(name, ()))
            if values.get("image_shape") is not None:
                values["image_shape"] = tuple(int(n) for n in values["image_shape"])
            if values.get("gates") is not None:
                values["gates"] = Gates(**values["gates"])
            if values.get("quantisation") is not None:
                values["quantisation"] = Quantisation(**values["quantisation"])
            blueprint = Blueprint(**values)
            blueprint.check()
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(f"blueprint: not a blueprint ({error}); restore the file from a checkpoint") from None
        return blueprint

    def check(self) -> None:
        """Raises ValueError where no model of these shapes can exist."""
        if not self.heads or min(self.heads) < 1:
            raise ValueError(f"heads is {list(self.heads)}; every layer needs at least one head")
        if min(self.width, self.head_width, self.mlp_width, self.outputs) < 1:
            raise ValueError("width, head_width, mlp_width and outputs must be at least 1")
        for part in PARTS:
            owners = self.owners(part)
            if len(owners) != self.layers or any(not 0 <= o <= at or owners[o] != o for at, o in enumerate(owners)):
                raise ValueError(f"{part}_of is {list(owners)}; name for each layer the first layer of its group")
        for group in self.groups("attention").values():
            if len({self.heads[layer] for layer in group}) > 1:
                raise ValueError(f"layers {list(group)} share their attention but have {list(self.heads)} heads")
        if self.mlp_widths and (len(self.mlp_widths) != self.layers or min(self.mlp_widths) < 1):
            raise ValueError(f"mlp_widths is {list(self.mlp_widths)}; name for each layer at least one hidden unit")
        for group in self.groups("mlp").values():
            if len({self.mlp_width_of(layer) for layer in group}) > 1:
                raise ValueError(f"layers {list(group)} share their MLP but have {list(self.mlp_widths)} hidden units")
        if self.gates is not None:
            for layer in range(self.layers):
                self.gates.check(self.mlp_width_of(layer))
        if self.quantisation is not None:
            self.quantisation.check()
        if self.difference_rank < 0:
            raise ValueError("difference_rank must not be negative")
        if self.adapters < 0 or (self.adapters > 0) != (self.adapter_units > 0):
            raise ValueError(f"adapters is {self.adapters} of {self.adapter_units} units; give at least 1 of both")
        if self.tokens < 2:
            raise ValueError("the input has no columns; name at least one feature")
        if min(self.readout_features, self.readout_concepts, self.readout_fading) < 0:
            raise ValueError("readout_features, readout_concepts and readout_fading must not be negative")

    @staticmethod
    def for_fields(
        fields: Fields,
        *,
        width: int,
        head_width: int,
        mlp_width: int,
        heads: tuple[int, ...],
        outputs: int,
        patch: int,
        readout: tuple[int, int, int] = (0, 0, 0),
        attention_of: tuple[int, ...] = (),
        mlp_of: tuple[int, ...] = (),
        difference_rank: int = 0,
        gates: Gates | None = None,
        quantisation: Quantisation | None = None,
        adapters: tuple[int, int] = (0, 0),
    ) -> Blueprint:
        """The blueprint of a model that reads such rows. `readout` is (features, concepts, fading), `adapters` is (how
        many, units of each)."""
        return Blueprint(
            task=fields.task,
            width=width,
            head_width=head_width,
            mlp_width=mlp_width,
            heads=heads,
            outputs=1 if fields.task == "regression" else max(1, outputs),
            image_shape=fields.image_shape,
            patch=patch,
            numeric=len(fields.numeric),
            categorical=len(fields.categorical),
            categories=fields.categories if fields.categorical else 0,
            readout_features=readout[0],
            readout_concepts=readout[1],
            readout_fading=readout[2],
            attention_of=attention_of,
            mlp_of=mlp_of,
            difference_rank=difference_rank,
            gates=gates,
            quantisation=quantisation,
            adapters=adapters[0],
            adapter_units=adapters[1],
        )


class Edit(Protocol):
    """A value that takes one blueprint to the next."""

    kind: ClassVar[str]

    def apply(self, blueprint: Blueprint) -> Blueprint:
        """The next blueprint. Raises ValueError where the edit does not fit."""

    def describe(self) -> str: ...


@dataclass(frozen=True)
class GrowHeads:
    """Append heads to a layer, and to those that share its attention; the model's outputs stay what they were."""

    kind: ClassVar[str] = "grow_heads"
    layer: int
    heads: int

    def apply(self, blueprint: Blueprint) -> Blueprint:
        _check_layer(self.layer, blueprint)
        if self.heads < 1:
            raise ValueError(f"cannot grow by {self.heads} heads")
        return _with_heads(blueprint, self.layer, blueprint.heads[self.layer] + self.heads)

    def describe(self) -> str:
        return f"grow layer {self.layer} by {self.heads}"


@dataclass(frozen=True)
class ShrinkHeads:
    """Remove the named heads (numbers within the layer) for good, also from layers that share its attention."""

    kind: ClassVar[str] = "shrink_heads"
    layer: int
    heads: tuple[int, ...]

    def apply(self, blueprint: Blueprint) -> Blueprint:
        _check_layer(self.layer, blueprint)
        live = blueprint.heads[self.layer]
        if not self.heads or len(set(self.heads)) != len(self.heads):
            raise ValueError(f"cannot remove heads {list(self.heads)}; name each once")
        if min(self.heads) < 0 or max(self.heads) >= live:
            raise ValueError(f"cannot remove heads {list(self.heads)} of layer {self.layer}, which has {live}")
        if len(self.heads) >= live:
            raise ValueError(f"layer {self.layer} must keep at least one head")
        return _with_heads(blueprint, self.layer, live - len(self.heads))

    def describe(self) -> str:
        return f"shrink layer {self.layer} by {len(self.heads)}"


@dataclass(frozen=True)
class GrowMlp:
    """Append hidden units to a layer's MLP, and to those that share it; the model's outputs stay what they were."""

    kind: ClassVar[str] = "grow_mlp"
    layer: int
    units: int
    """Where blocks of units have gates: as many for each block."""

    def apply(self, blueprint: Blueprint) -> Blueprint:
        _check_layer(self.layer, blueprint)
        blocks = 1 if blueprint.gates is None else blueprint.gates.blocks
        if self.units < 1 or self.units % blocks:
            raise ValueError(
                f"cannot grow the MLP of layer {self.layer} by {self.units} hidden units in {blocks} blocks"
            )
        return _with_mlp_width(blueprint, self.layer, blueprint.mlp_width_of(self.layer) + self.units)

    def describe(self) -> str:
        return f"grow the MLP of layer {self.layer} by {self.units}"


@dataclass(frozen=True)
class ShrinkMlp:
    """Remove the named hidden units (numbers within the layer) for good, also from layers that share its MLP."""

    kind: ClassVar[str] = "shrink_mlp"
    layer: int
    units: tuple[int, ...]
    """Where blocks of units have gates: as many of each block."""

    def apply(self, blueprint: Blueprint) -> Blueprint:
        _check_layer(self.layer, blueprint)
        live = blueprint.mlp_width_of(self.layer)
        if not self.units or len(set(self.units)) != len(self.units):
            raise ValueError(f"cannot remove hidden units {list(self.units)}; name each once")
        if min(self.units) < 0 or max(self.units) >= live:
            raise ValueError(f"cannot remove hidden units {list(self.units)} of layer {self.layer}, which has {live}")
        if len(self.units) >= live:
            raise ValueError(f"layer {self.layer} must keep at least one hidden unit")
        if blueprint.gates is not None:
            blocks = blueprint.gates.blocks
            gone = [sum(unit * blocks // live == block for unit in self.units) for block in range(blocks)]
            if len(set(gone)) > 1 or gone[0] * blocks >= live:
                raise ValueError(
                    f"cannot remove {gone} hidden units of the blocks of layer {self.layer}; gates need blocks of one "
                    "size, so take as many of each, and not all"
                )
        return _with_mlp_width(blueprint, self.layer, live - len(self.units))

    def describe(self) -> str:
        return f"shrink the MLP of layer {self.layer} by {len(self.units)}"


@dataclass(frozen=True)
class Prune:
    """Remove heads and hidden units of several layers at once, for good."""

    kind: ClassVar[str] = "prune"
    heads: tuple[tuple[int, ...], ...]
    """Of each layer, numbers within it. Where layers share, they are named in one of these."""
    units: tuple[tuple[int, ...], ...]
    """The same of hidden units."""

    @property
    def parts(self) -> list[ShrinkHeads | ShrinkMlp]:
        """What it does, in the order in which it is done: from the input on."""
        found: list[ShrinkHeads | ShrinkMlp] = []
        for layer in range(max(len(self.heads), len(self.units))):
            found += [ShrinkHeads(layer, gone) for gone in self.heads[layer : layer + 1] if gone]
            found += [ShrinkMlp(layer, gone) for gone in self.units[layer : layer + 1] if gone]
        return found

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if not self.parts:
            raise ValueError("there is nothing to prune; name heads or hidden units")
        for part in self.parts:
            blueprint = part.apply(blueprint)
        return blueprint

    def describe(self) -> str:
        return f"prune {sum(map(len, self.heads))} heads and {sum(map(len, self.units))} hidden units"


@dataclass(frozen=True)
class GrowOutputs:
    """More classes, because the stream brought new labels."""

    kind: ClassVar[str] = "grow_outputs"
    outputs: int

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if blueprint.task != "classification" or self.outputs <= blueprint.outputs:
            raise ValueError(f"cannot go from {blueprint.outputs} to {self.outputs} outputs ({blueprint.task})")
        return replace(blueprint, outputs=self.outputs)

    def describe(self) -> str:
        return f"know {self.outputs} labels"


BEFORE_EDIT = -1
"""In place of a concept's number: the state before the newest edit."""


@dataclass(frozen=True)
class Share:
    """Let two groups of layers use one set of weights from now on: what suits both best."""

    kind: ClassVar[str] = "share"
    part: Part
    layers: tuple[int, int]
    """One of each group."""

    def apply(self, blueprint: Blueprint) -> Blueprint:
        owners = _owners(self.part, blueprint)
        if len(self.layers) != 2:
            raise ValueError(f"cannot share between layers {list(self.layers)}; name two")
        for layer in self.layers:
            _check_layer(layer, blueprint)
        first, second = sorted(owners[layer] for layer in self.layers)
        if first == second:
            raise ValueError(f"layers {list(self.layers)} share their {self.part} already")
        if self.part == "attention" and blueprint.heads[first] != blueprint.heads[second]:
            heads = blueprint.heads[first], blueprint.heads[second]
            raise ValueError(f"layers {first} and {second} have {heads[0]} and {heads[1]} heads; make them equal first")
        units = blueprint.mlp_width_of(first), blueprint.mlp_width_of(second)
        if self.part == "mlp" and units[0] != units[1]:
            raise ValueError(
                f"the MLPs of layers {first} and {second} have {units[0]} and {units[1]} hidden units; make them equal "
                "first"
            )
        return _with_owners(blueprint, self.part, [first if owner == second else owner for owner in owners])

    def describe(self) -> str:
        return f"share the {self.part} of layers {self.layers[0]} and {self.layers[1]}"


@dataclass(frozen=True)
class Unshare:
    """Give a layer weights of its own, which begin as those that it shared; the model's outputs stay what they were."""

    kind: ClassVar[str] = "unshare"
    part: Part
    layer: int

    def apply(self, blueprint: Blueprint) -> Blueprint:
        _check_layer(self.layer, blueprint)
        owners = _owners(self.part, blueprint)
        group = [layer for layer, owner in enumerate(owners) if owner == owners[self.layer]]
        if len(group) < 2:
            raise ValueError(f"layer {self.layer} has an {self.part} of its own already")
        rest = [layer for layer in group if layer != self.layer]
        for layer in rest:
            owners[layer] = rest[0]
        owners[self.layer] = self.layer
        return _with_owners(blueprint, self.part, owners)

    def describe(self) -> str:
        return f"give layer {self.layer} an {self.part} of its own"


@dataclass(frozen=True)
class Restore:
    """Put back the weights that were kept of a concept, and with them its heads; labels that came since stay known, and
    what was quantised since stays so."""

    kind: ClassVar[str] = "restore"
    concept: int
    """The detector's number, or BEFORE_EDIT."""
    heads: tuple[int, ...]
    """Of each layer, as they were kept."""
    attention_of: tuple[int, ...] = ()
    """As it was kept."""
    mlp_of: tuple[int, ...] = ()
    """As it was kept."""
    gates: Gates | None = None
    """As they were kept."""
    mlp_widths: tuple[int, ...] = ()
    """Of each layer, as they were kept; () is those that there are."""

    @staticmethod
    def of(concept: int, kept: Blueprint) -> Restore:
        widths = tuple(kept.mlp_width_of(layer) for layer in range(kept.layers))
        return Restore(concept, kept.heads, kept.attention_of, kept.mlp_of, kept.gates, widths)

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if len(self.heads) != blueprint.layers or min(self.heads) < 1:
            raise ValueError(f"cannot restore heads {list(self.heads)} into {blueprint.layers} layers")
        after = replace(
            blueprint,
            heads=self.heads,
            attention_of=self.attention_of,
            mlp_of=self.mlp_of,
            gates=self.gates,
            mlp_widths=self.mlp_widths or blueprint.mlp_widths,
        )
        after.check()
        return after

    def describe(self) -> str:
        return "undo the last edit" if self.concept == BEFORE_EDIT else f"restore concept {self.concept}"


@dataclass(frozen=True)
class RecycleHead:
    """Begin a head anew that its layer does not use: the shapes stay, the head's weights are drawn afresh."""

    kind: ClassVar[str] = "recycle_head"
    layer: int
    head: int

    def apply(self, blueprint: Blueprint) -> Blueprint:
        _check_layer(self.layer, blueprint)
        live = blueprint.heads[self.layer]
        if not 0 <= self.head < live:
            raise ValueError(f"cannot recycle head {self.head} of layer {self.layer}, which has {live}")
        if live < 2:
            raise ValueError(f"cannot recycle the only head of layer {self.layer}")
        return blueprint

    def describe(self) -> str:
        return f"recycle head {self.head} of layer {self.layer}"


@dataclass(frozen=True)
class SetGate:
    """Give every layer gates, which begin open: the model's outputs stay what they were. Or take them away: every head
    and block then counts for every row as much as it did on average."""

    kind: ClassVar[str] = "set_gate"
    gates: Gates | None

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if self.gates is not None and blueprint.gates is not None:
            raise ValueError("the model has gates already; take them away first")
        if self.gates == blueprint.gates:
            raise ValueError("the model has no gates to take away")
        after = replace(blueprint, gates=self.gates)
        after.check()
        return after

    def describe(self) -> str:
        if self.gates is None:
            return "take the gates away"
        return f"give every layer {self.gates.kind} gates per {self.gates.per}"


@dataclass(frozen=True)
class Quantise:
    """Let attention and MLPs compute with weights and activations of few bits from now on, or in float32 again. The
    weights that are learned stay what they were."""

    kind: ClassVar[str] = "quantise"
    quantisation: Quantisation | None

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if self.quantisation == blueprint.quantisation:
            raise ValueError("the model computes so already")
        after = replace(blueprint, quantisation=self.quantisation)
        after.check()
        return after

    def describe(self) -> str:
        if self.quantisation is None:
            return "compute in float32 again"
        return f"round weights to {self.quantisation.bits} bits and activations to 8"


@dataclass(frozen=True)
class AddAdapter:
    """One more adapter beside every layer's MLP. It adds nothing yet, and no row is routed to it before the router
    knows rows of its own: the model's outputs stay what they were."""

    kind: ClassVar[str] = "add_adapter"
    units: int
    """Of each layer. Those of the adapters that there are already, if any."""

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if self.units < 1 or (blueprint.adapters and self.units != blueprint.adapter_units):
            there = f"; the others have {blueprint.adapter_units}" if blueprint.adapters else ""
            raise ValueError(f"cannot add an adapter of {self.units} units{there}")
        return replace(blueprint, adapters=blueprint.adapters + 1, adapter_units=self.units)

    def describe(self) -> str:
        return f"add an adapter of {self.units} units a layer"


EDITS: dict[str, Callable[..., Edit]] = {
    kind.kind: kind
    for kind in (
        GrowHeads,
        ShrinkHeads,
        GrowMlp,
        ShrinkMlp,
        Prune,
        GrowOutputs,
        Restore,
        RecycleHead,
        Share,
        Unshare,
        SetGate,
        Quantise,
        AddAdapter,
    )
}


def edit_to_dict(edit: Edit) -> dict[str, Any]:
    return {"kind": edit.kind, **{name: _plain(value) for name, value in vars(edit).items()}}


def edit_from_dict(values: Mapping[str, Any]) -> Edit:
    """Raises InputError where the values are not an edit."""
    rest: dict[str, Any] = {name: _as_tuple(value) for name, value in values.items() if name != "kind"}
    try:
        if isinstance(rest.get("gates"), Mapping):
            rest["gates"] = Gates(**rest["gates"])
        if isinstance(rest.get("quantisation"), Mapping):
            rest["quantisation"] = Quantisation(**rest["quantisation"])
        return EDITS[values["kind"]](**rest)
    except (KeyError, TypeError) as error:
        raise InputError(f"edit: {dict(values)} is not an edit ({error}); kinds are {sorted(EDITS)}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Gates | Quantisation):
        return asdict(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(one) for one in value) if isinstance(value, list) else value


def diff(before: Blueprint, after: Blueprint) -> dict[str, tuple[Any, Any]]:
    """What differs: field -> (before, after)."""
    old, new = asdict(before), asdict(after)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def _check_layer(layer: int, blueprint: Blueprint) -> None:
    if not 0 <= layer < blueprint.layers:
        raise ValueError(f"there is no layer {layer}; layers are 0 to {blueprint.layers - 1}")


def _with_heads(blueprint: Blueprint, layer: int, heads: int) -> Blueprint:
    """Of the layer, and of all that share its attention."""
    owners = blueprint.owners("attention")
    changed = (heads if owners[at] == owners[layer] else live for at, live in enumerate(blueprint.heads))
    return replace(blueprint, heads=tuple(changed))


def _with_mlp_width(blueprint: Blueprint, layer: int, units: int) -> Blueprint:
    """Of the layer, and of all that share its MLP."""
    owners = blueprint.owners("mlp")
    changed = (units if owners[at] == owners[layer] else blueprint.mlp_width_of(at) for at in range(blueprint.layers))
    return replace(blueprint, mlp_widths=tuple(changed))


def _owners(part: Part, blueprint: Blueprint) -> list[int]:
    if part not in PARTS:
        raise ValueError(f"there is no part '{part}' that could be shared; parts are {', '.join(PARTS)}")
    return list(blueprint.owners(part))


def _with_owners(blueprint: Blueprint, part: Part, owners: Sequence[int]) -> Blueprint:
    of = tuple(owners)
    return replace(blueprint, attention_of=of) if part == "attention" else replace(blueprint, mlp_of=of)
