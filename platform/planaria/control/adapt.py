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
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from planaria.errors import InputError

_LEAST_SECOND_MOMENT = 0.01
"""Of the mean over all tensors: no tensor's own second moment counts for less."""


class Learner(Protocol):
    """learn2learn's Meta-SGD wrapper: a module and a rate for each of its parameters."""

    module: nn.Module
    lrs: nn.ParameterList


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


def adapt(learner: Learner, loss: Tensor, clip_norm: float, share: float = 1.0) -> None:
    """One inner step of `share` of the rates, its gradient clipped as the training loop clips its own."""
    parameters = list(learner.module.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    length = float(nn.utils.get_total_norm(filled, foreach=True))
    scale = share * min(1.0, clip_norm / max(length, 1e-12))
    with warnings.catch_warnings():
        # learn2learn reads `.grad` of tensors that are no leaves, where it has just put the gradient.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        update = algorithms().meta_sgd.meta_sgd_update
        learner.module = update(learner.module, learner.lrs, list(torch._foreach_mul(filled, scale)))


def adapted_to(module: nn.Module, rates: Sequence[Tensor], input_SX: Tensor, target_S: Tensor, steps: int) -> nn.Module:
    """A copy of a module after some Meta-SGD steps of its first output towards the targets. Differentiable with respect
    to all of it, so that an outer loop can learn inputs, first weights and rates (for a last layer alone, that is ANIL:
    Raghu et al. 2020, arXiv 1909.09157; for a whole network, MAML: Finn et al. 2017, arXiv 1703.03400).
    """
    learner = algorithms().MetaSGD(module, lrs=nn.ParameterList(rates), first_order=False).clone()
    for _ in range(steps):
        loss = nn.functional.huber_loss(learner(input_SX)[:, 0], target_S)
        learner.adapt(loss)
    adapted: nn.Module = learner.module
    return adapted


def adam_rates(
    parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor] | None
) -> list[Tensor]:
    """Per-parameter rates with which a plain step goes as far as the optimizer's own next step would.

    AdamW: learning rate / sqrt(second moment + its tensor's mean), so that new elements move as their neighbours do;
    where variances are kept instead of second moments, they and the squared mean make these. Where there are no moments
    (they were reset), the mean square of `gradients` stands for them. SGD: its rate, with momentum's gain. Learned
    rates: as they are.
    """
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    seconds: list[Tensor | None] = []
    for at, parameter in enumerate(parameters):
        group, state = options[id(parameter)], optimizer.state.get(parameter, {})
        if "betas" not in group:
            seconds.append(None)
        elif "exp_avg" in state:
            seconds.append(_second_moment(group["betas"], state))
        else:
            square = gradients[at].square().mean() if gradients is not None else parameter.new_ones(())
            seconds.append(square.expand_as(parameter))
    known = [second.mean() for second in seconds if second is not None]
    # A tensor that has had next to no gradient would otherwise move without bounds at its first one.
    floor = _LEAST_SECOND_MOMENT * torch.stack(known).mean() if known else torch.zeros(())
    rates = []
    for parameter, second in zip(parameters, seconds, strict=True):
        group = options[id(parameter)]
        if "meta_rate" in group:
            gain = optimizer.state.get(parameter, {}).get("log_gain", torch.zeros_like(parameter))
            rates.append((float(group["lr"]) * gain.exp()).detach())
        elif second is None:
            rates.append(torch.full_like(parameter, float(group["lr"]) / (1 - float(group["momentum"]))))
        else:
            # Adam's momentum damps a rare large gradient tenfold; a plain step must not take it in full.
            spread = (second + second.mean().clamp(min=floor)).sqrt()
            rates.append((float(group["lr"]) / (spread + 1e-6)).detach().clone())
    return rates


def _second_moment(betas: tuple[float, float], state: Mapping[str, Tensor]) -> Tensor:
    """Of a parameter's gradient, without the bias of its first steps."""
    step = float(state["step"])
    known = 1 - betas[1] ** step
    if "exp_avg_sq" in state:
        return torch.div(state["exp_avg_sq"], known)
    return torch.div(state["exp_avg_var"], known).add(state["exp_avg"].div(1 - betas[0] ** step).square())
