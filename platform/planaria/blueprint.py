"""Blueprints and edits: everything that fixes the shapes of a model's parameters, and the values that change it.

Legend: D model width, N heads, H head width, T tokens, M MLP width, C outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

from planaria.errors import InputError
from planaria.signals import Fields, Task


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

    @property
    def layers(self) -> int:
        return len(self.heads)

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

    @property
    def parameters(self) -> int:
        """Trainable numbers, counted from the shapes. What a readout solves is not trained."""
        d, m = self.width, self.mlp_width
        if self.image_shape is not None:
            inputs = (self.patch_values + 1) * d + self.tokens * d
        else:
            inputs = 3 * self.numeric * d + self.categorical * self.categories * d
        attention = sum(4 * heads * self.head_width * d + d for heads in self.heads)
        block = 4 * d + 2 * d * m + m + d
        return inputs + d + attention + self.layers * block + 2 * d + (d + 1) * self.outputs

    @property
    def flops_per_sample(self) -> int:
        """Multiply-adds x 2 of the transformer's forward pass, whose last layer answers for the class token alone."""
        d, m, t = self.width, self.mlp_width, self.tokens
        patches = 2 * (t - 1) * self.patch_values * d if self.image_shape is not None else 0
        total = patches + 2 * d * self.outputs
        for layer, heads in enumerate(self.heads):
            queries = 1 if layer == self.layers - 1 else t
            inner = heads * self.head_width
            total += 2 * d * inner * (2 * queries + 2 * t) + 4 * queries * t * inner + 4 * queries * d * m
        return total

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Blueprint:
        """Raises InputError where the text is not a blueprint."""
        try:
            values = json.loads(text)
            values["heads"] = tuple(int(n) for n in values["heads"])
            if values.get("image_shape") is not None:
                values["image_shape"] = tuple(int(n) for n in values["image_shape"])
            blueprint = Blueprint(**values)
            blueprint.check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"blueprint: not a blueprint ({error}); restore the file from a checkpoint") from None
        return blueprint

    def check(self) -> None:
        """Raises ValueError where no model of these shapes can exist."""
        if not self.heads or min(self.heads) < 1:
            raise ValueError(f"heads is {list(self.heads)}; every layer needs at least one head")
        if min(self.width, self.head_width, self.mlp_width, self.outputs) < 1:
            raise ValueError("width, head_width, mlp_width and outputs must be at least 1")
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
    ) -> Blueprint:
        """The blueprint of a model that reads such rows. `readout` is (features, concepts, fading)."""
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
        )


class Edit(Protocol):
    """A value that takes one blueprint to the next."""

    kind: ClassVar[str]

    def apply(self, blueprint: Blueprint) -> Blueprint:
        """The next blueprint. Raises ValueError where the edit does not fit."""

    def describe(self) -> str: ...


@dataclass(frozen=True)
class GrowHeads:
    """Append heads to a layer; the model's outputs stay what they were."""

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
    """Remove the named heads (numbers within the layer) for good."""

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
class Restore:
    """Put back the weights that were kept of a concept, and with them its heads; labels that came since stay known."""

    kind: ClassVar[str] = "restore"
    concept: int
    """The detector's number, or BEFORE_EDIT."""
    heads: tuple[int, ...]
    """Of each layer, as they were kept."""

    def apply(self, blueprint: Blueprint) -> Blueprint:
        if len(self.heads) != blueprint.layers or min(self.heads) < 1:
            raise ValueError(f"cannot restore heads {list(self.heads)} into {blueprint.layers} layers")
        return replace(blueprint, heads=self.heads)

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


EDITS: dict[str, type[GrowHeads | ShrinkHeads | GrowOutputs | Restore | RecycleHead]] = {
    kind.kind: kind for kind in (GrowHeads, ShrinkHeads, GrowOutputs, Restore, RecycleHead)
}


def edit_to_dict(edit: Edit) -> dict[str, Any]:
    return {"kind": edit.kind, **{name: list(v) if isinstance(v, tuple) else v for name, v in vars(edit).items()}}


def edit_from_dict(values: Mapping[str, Any]) -> Edit:
    """Raises InputError where the values are not an edit."""
    rest: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name != "kind"
    }
    try:
        return EDITS[values["kind"]](**rest)
    except (KeyError, TypeError) as error:
        raise InputError(f"edit: {dict(values)} is not an edit ({error}); kinds are {sorted(EDITS)}") from None


def diff(before: Blueprint, after: Blueprint) -> dict[str, tuple[Any, Any]]:
    """What differs: field -> (before, after)."""
    old, new = asdict(before), asdict(after)
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def _check_layer(layer: int, blueprint: Blueprint) -> None:
    if not 0 <= layer < blueprint.layers:
        raise ValueError(f"there is no layer {layer}; layers are 0 to {blueprint.layers - 1}")


def _with_heads(blueprint: Blueprint, layer: int, heads: int) -> Blueprint:
    return replace(blueprint, heads=(*blueprint.heads[:layer], heads, *blueprint.heads[layer + 1 :]))
