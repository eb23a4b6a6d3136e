"""The forward and backward pass of a blueprint that stands still, compiled (torch.compile, its C++ wrapper on a CPU).

Whether a step is compiled depends on what every worker knows, so that runs stay reproducible: a run that was resumed
compiles the same steps as one that never stopped.
"""

from __future__ import annotations

import os
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch

from planaria.blueprint import Blueprint
from planaria.errors import InputError
from planaria.model import short_attention


class Compiling:
    """Of one function of the model, made anew for every blueprint that lives long enough."""

    def __init__(self, function: Callable[..., Any], after_rows: int | None, device: torch.device) -> None:
        """Raises InputError where the machine cannot compile."""
        self._compiler = os.environ.get("CXX", "g++") if device.type == "cpu" else None
        if after_rows is not None and self._compiler is not None and shutil.which(self._compiler) is None:
            raise InputError(
                f"model.compile_after_rows: there is no C++ compiler ({self._compiler}); install g++, or remove it"
            )
        self.function, self.after_rows = function, after_rows
        # torch's own guards, which look at every parameter before each call, are a twentieth of a small step. What
        # they would notice is what `chosen` is told: equal blueprints and full steps have equal shapes.
        self._options: dict[str, str | int | bool | Callable[..., Any]] = {
            "cpp_wrapper": device.type == "cpu",
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        }
        self._compiled: tuple[Blueprint, Callable[..., Any]] | None = None

    def chosen(self, blueprint: Blueprint, rows_lived: int, full: bool) -> Callable[..., Any]:
        """The function, compiled where the blueprint has lived for `after_rows` and the step is `full`: another number
        of rows would have to be compiled for itself. A quantised blueprint never is: that brought nothing (0.99 times
        the CPU seconds of a step, width 32)."""
        if self.after_rows is None or rows_lived < self.after_rows or not full or blueprint.quantisation is not None:
            return self.function
        if self._compiled is None or self._compiled[0] != blueprint:
            if self._compiler is not None:
                short_attention.build(self._compiler)
            torch._dynamo.reset()  # what was compiled for earlier blueprints is not needed any more
            # As without compiling, what is computed backwards has the precision that it had forwards.
            torch._functorch.config.backward_pass_autocast = "off"
            compiled = torch.compile(_copied(self.function), dynamic=False, fullgraph=True, options=self._options)
            self._compiled = blueprint, compiled
        return self._compiled[1]


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    """With code of its own: torch keeps what it compiled by the code, and another run of this process may compile the
    same function for another model."""
    if not isinstance(function, types.FunctionType):
        return function
    return types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
