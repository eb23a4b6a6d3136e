"""Optimizers whose state follows a parameter through surgery, and is saved by name without pickle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from planaria.errors import InputError
from planaria.learn.flat_adamw import FlatAdamW
from planaria.policy import Learner


def build_optimizer(model: nn.Module, learner: Learner) -> torch.optim.Optimizer:
    """AdamW (decoupled weight decay on matrices alone) or SGD with momentum 0.9."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": learner.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if learner.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learner.learning_rate, momentum=0.9)
    return FlatAdamW(groups, lr=learner.learning_rate)


def replace_parameter(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float = 1.0
) -> None:
    """Let `new` take the place of `old`: rows `kept` (dimension 0) carry their state along; new rows begin
    without momentum, and with `moment` of the mean second moment of the kept ones.

    `new` holds the kept rows first, then any fresh ones; where nothing is kept, it begins without any state. Raises
    KeyError where `old` is not the optimizer's.
    """
    for group in optimizer.param_groups:
        for at, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][at] = new
                state = optimizer.state.pop(old, {})
                if not len(kept):
                    return
                optimizer.state[new] = {
                    slot: _follow(slot, value, old, new, kept, moment) for slot, value in state.items()
                }
                if not state:
                    del optimizer.state[new]
                return
    raise KeyError("the parameter is not one of the optimizer's")


def replace_with_state(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> Callable[[nn.Parameter, nn.Parameter, Tensor, float], None]:
    """As `replace_parameter`, for parameters that are put back as a whole: they take up the state that `tensors` (made
    by `optimizer_tensors`) holds under the name of the parameter they replace."""

    def follow(old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float) -> None:
        replace_parameter(optimizer, old, new, kept, moment)
        if len(kept):
            return
        for key, value in tensors.items():
            slot, _, name = key.partition("/")
            if name == names[old]:
                optimizer.state[new][slot] = value.to(new.device).clone()

    return follow


def clip_gradients(optimizer: torch.optim.Optimizer, longest: float) -> float:
    """Scale the gradients down where they are longer than that together; returns their length before. What the
    optimizer's next step takes is scaled; whether the parameters' own gradients are is left open."""
    if isinstance(optimizer, FlatAdamW):
        return optimizer.gather(longest)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return float(nn.utils.clip_grad_norm_(parameters, longest, foreach=True))


def reset_moments(optimizer: torch.optim.Optimizer) -> None:
    """Forget momentum and step counts, as after an abrupt shift they point the wrong way."""
    optimizer.state.clear()


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


def _follow(slot: str, value: object, old: nn.Parameter, new: nn.Parameter, kept: Tensor, moment: float) -> object:
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value.clone() if isinstance(value, Tensor) else value
    moved = torch.zeros_like(new, memory_format=torch.preserve_format)
    moved[: len(kept)] = value.index_select(0, kept)
    if slot == "exp_avg_sq" and len(new) > len(kept):
        # Adam's step count is the tensor's: from a second moment of zero, new rows would take several times its steps.
        moved[len(kept) :] = moment * moved[: len(kept)].mean(0)
    return moved
