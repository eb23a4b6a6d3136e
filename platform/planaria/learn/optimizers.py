"""Optimizers whose state follows a parameter through surgery, and is saved by name without pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from planaria.errors import InputError
from planaria.learn.flat import FlatOptimizer
from planaria.learn.flat_adabelief import FlatAdaBelief
from planaria.learn.flat_adamw import FlatAdamW
from planaria.learn.meta_sgd import MetaSGD
from planaria.policy import Learner


def build_optimizer(model: nn.Module, learner: Learner) -> torch.optim.Optimizer:
    """The policy's; weight decay is decoupled, but for that of sgd, and on matrices alone."""
    decayed = [p for p in in_order(model) if p.dim() >= 2]
    plain = [p for p in in_order(model) if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": learner.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if learner.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learner.learning_rate, momentum=0.9)
    kinds: dict[str, Callable[..., FlatOptimizer]] = {
        "adamw": FlatAdamW,
        "adabelief": FlatAdaBelief,
        "meta_sgd": MetaSGD,
    }
    return kinds[learner.optimizer](groups, lr=learner.learning_rate)


def in_order(model: nn.Module) -> list[nn.Parameter]:
    """The parameters by name. A model that was operated on has its modules in another order than one that was built as
    it is, and sums over parameters would round differently."""
    return [parameter for _, parameter in sorted(model.named_parameters(), key=lambda named: named[0])]


def put_in_order(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Let the optimizer go through its parameters as one that was built for the model as it is."""
    place = {id(parameter): at for at, parameter in enumerate(in_order(model))}
    for group in optimizer.param_groups:
        group["params"].sort(key=lambda parameter: place[id(parameter)])


class OptimizerFollower:
    """Brings an optimizer's parameters and their state along (see planaria.morph.Follower)."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def replaced(
        self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0, dimension: int = 0
    ) -> None:
        """Rows `kept` of the state come along; new rows begin without momentum, and with `moment` of the mean second
        moment of the kept ones. Rows are slices along `dimension`. Where nothing is kept, `new` begins without any
        state. Raises KeyError where `old` is not the optimizer's."""
        group, at = self._place(old)
        group["params"][at] = new
        state = self.optimizer.state.pop(old, {})
        if len(kept) and state:
            self.optimizer.state[new] = {
                slot: _follow(slot, value, old, new, kept, moment, dimension) for slot, value in state.items()
            }

    def added(self, name: str, new: nn.Parameter, source: nn.Parameter | None) -> None:
        """Into the group of its kind, as `build_optimizer` has them."""
        decayed, plain = self.optimizer.param_groups
        (decayed if new.dim() >= 2 else plain)["params"].append(new)
        state = {} if source is None else self.optimizer.state.get(source, {})
        if state:
            self.optimizer.state[new] = {
                slot: value.clone() if isinstance(value, Tensor) else value for slot, value in state.items()
            }

    def dropped(self, old: nn.Parameter) -> None:
        """Raises KeyError where it is not the optimizer's."""
        group, at = self._place(old)
        del group["params"][at]
        self.optimizer.state.pop(old, None)

    def _place(self, parameter: nn.Parameter) -> tuple[dict[str, Any], int]:
        for group in self.optimizer.param_groups:
            for at, one in enumerate(group["params"]):
                if one is parameter:
                    return group, at
        raise KeyError("the parameter is not one of the optimizer's")


class RestoringFollower(OptimizerFollower):
    """The same for parameters that are put back as a whole: they take up the state that `tensors` (made by
    `optimizer_tensors`) holds under their name."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
    ) -> None:
        """`names` are those of the parameters there are."""
        super().__init__(optimizer)
        self.names, self.tensors = names, tensors

    def replaced(
        self, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0, dimension: int = 0
    ) -> None:
        super().replaced(old, new, kept, moment, dimension)
        if not len(kept):
            self._take_up(new, self.names[old])

    def added(self, name: str, new: nn.Parameter, source: nn.Parameter | None) -> None:
        super().added(name, new, source)
        if source is None:
            self._take_up(new, name)

    def _take_up(self, new: nn.Parameter, name: str) -> None:
        for key, value in self.tensors.items():
            slot, _, of = key.partition("/")
            if of == name:
                self.optimizer.state[new][slot] = value.to(new.device).clone()


def clip_gradients(optimizer: torch.optim.Optimizer, longest: float) -> float:
    """Scale the gradients down where they are longer than that together; returns their length before. What the
    optimizer's next step takes is scaled; whether the parameters' own gradients are is left open."""
    if isinstance(optimizer, FlatOptimizer):
        return optimizer.gather(longest)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return float(nn.utils.clip_grad_norm_(parameters, longest, foreach=True))


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """Forget momentum and step counts, as after an abrupt shift they point the wrong way. Rates that were learned
    stay."""
    lasting = optimizer.lasting if isinstance(optimizer, FlatOptimizer) else ()
    kept = {p: {slot: state[slot] for slot in lasting if slot in state} for p, state in optimizer.state.items()}
    optimizer.state.clear()
    optimizer.state.update({parameter: state for parameter, state in kept.items() if state})


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """All state as {"<slot>/<parameter name>": tensor}, for safetensors."""
    tensors = {}
    for name, parameter in names:
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                # Parameters share a step count, and files hold no tensor twice.
                tensors[f"{slot}/{name}"] = value.detach().cpu().contiguous() if value.dim() else value.cpu().clone()
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Inverse of `optimizer_tensors`. Raises InputError where a tensor fits no parameter."""
    optimizer.state.clear()
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() > 0 and value.shape != parameter.shape):
            raise InputError(f"optimizer state: '{key}' fits no parameter of the model; use an older checkpoint")
        optimizer.state[parameter][slot] = value.to(parameter.device).clone()


def _follow(
    slot: str, value: object, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float, dimension: int
) -> object:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value.clone() if isinstance(value, Tensor) else value
    moved = torch.zeros_like(new, memory_format=torch.preserve_format)
    known, fresh = moved.tensor_split([len(kept)], dimension)
    known.copy_(value.index_select(dimension, kept))
    if slot.startswith("exp_avg_") and fresh.numel():
        # Adam's step count is the tensor's: from a second moment (or variance) of zero, new rows would take several
        # times its steps.
        fresh.copy_(moment * known.mean(dimension, keepdim=True))
    return moved
