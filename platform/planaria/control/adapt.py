"""The one door to learn2learn: fast adaptation with per-parameter rates (Meta-SGD, Li et al. 2017, arXiv 1707.09835).

`import learn2learn` loads vision and reinforcement-learning packages that planaria does not need and that do not
install beside it. Registering a bare package first lets `learn2learn.algorithms` load alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from planaria.errors import InputError


class Learner(Protocol):
    """learn2learn's wrapped module: call it, let it `adapt` to a loss, `clone` it."""

    module: nn.Module

    def __call__(self, *inputs: Any) -> Tensor: ...

    def adapt(self, loss: Tensor) -> None: ...

    def clone(self) -> Learner: ...


def algorithms() -> types.ModuleType:
    """`learn2learn.algorithms` (MAML, MetaSGD, GBML). Raises InputError where learn2learn is not installed."""
    if "learn2learn" not in sys.modules:
        spec = importlib.util.find_spec("learn2learn")
        if spec is None or spec.submodule_search_locations is None:
            raise InputError("learn2learn is not installed; run `make setup`, which builds it for this Python")
        package = types.ModuleType("learn2learn")
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["learn2learn"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("learn2learn.algorithms")


def fast_learner(model: nn.Module, rates: Sequence[Tensor]) -> Learner:
    """A first-order Meta-SGD learner around a copy of the model: one `adapt` moves each parameter by -rate x gradient.

    `rates` has a tensor for every parameter, in the order of `model.parameters()`.
    """
    held = nn.ParameterList([nn.Parameter(rate, requires_grad=False) for rate in rates])
    wrapped = algorithms().MetaSGD(model, lrs=held, first_order=True)
    return cast(Learner, wrapped.clone())


def adapt(learner: Learner, loss: Tensor) -> None:
    """One inner step. learn2learn reads `.grad` of non-leaf tensors, which it has just set: not worth a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        learner.adapt(loss)


def adam_rates(
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    gradients: Sequence[Tensor] | None,
    clip_norm: float,
) -> list[Tensor]:
    """Per-parameter rates with which a plain step goes as far as the optimizer's own next step would.

    AdamW: learning rate / sqrt(second moment + its tensor's mean), so that new elements move as their neighbours do;
    where there are no moments (they were reset), the mean square of the present gradient stands for them.
    SGD: its rate with momentum's gain. The whole is scaled down where `gradients` exceed the clipping norm.
    """
    scale = 1.0
    if gradients is not None:
        norm = torch.stack([g.norm() for g in gradients]).norm()
        scale = float((clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0))
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    rates = []
    for at, parameter in enumerate(parameters):
        group = options[id(parameter)]
        rate = float(group["lr"])
        state = optimizer.state.get(parameter, {})
        if "betas" not in group:
            rates.append(torch.full_like(parameter, scale * rate / (1 - float(group.get("momentum", 0.0)))))
        elif "exp_avg_sq" in state:
            second = state["exp_avg_sq"] / (1 - float(group["betas"][1]) ** float(state["step"]))
            # Adam's momentum damps a rare large gradient tenfold; a plain step must not take it in full.
            rates.append(scale * rate / ((second + second.mean()).sqrt() + 1e-6))
        elif gradients is not None:
            rates.append(
                torch.full_like(parameter, scale * rate / (float(gradients[at].square().mean().sqrt()) + 1e-6))
            )
        else:
            rates.append(torch.full_like(parameter, rate))
    return [rate.detach() for rate in rates]
