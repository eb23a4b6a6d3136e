"""What a model can be exported to: a format is a class with these methods, in a file of its own; HOMES names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from planaria.errors import InputError
from planaria.model import ElasticTransformer

Array = npt.NDArray[Any]
Answer = Callable[[Sequence[Array]], Array]
"""Outputs [B, C] of inputs in the model's order."""


class Format(Protocol):
    suffix: str
    exact: bool
    """Whether its outputs must be the live model's."""

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        """`inputs` are some rows, at least two, to follow the model with. `path` does not exist."""

    def read(self, path: Path) -> Answer:
        """The exported model, on one thread."""


HOMES = {
    "safetensors": "planaria.deploy.weights",
    "torch-export": "planaria.deploy.torch_export",
    "onnx": "planaria.deploy.onnx_file",
    "int8": "planaria.deploy.int8",
}


def format_of(name: str) -> Format:
    """Raises InputError for a name that there is not, and where a package that it needs is missing."""
    if name not in HOMES:
        raise InputError(f"export: --to: there is no format '{name}'; choose from {', '.join(HOMES)}")
    if name in ("onnx", "int8"):
        missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
        if missing:
            raise InputError(f"export: --to {name}: {missing[0]} is not installed; pip install 'planaria[export]'")
    made: Format = import_module(HOMES[name]).FORMAT
    return made


def answer_of(module: Callable[..., torch.Tensor]) -> Answer:
    """Of a torch module that takes plain tensors."""

    @torch.no_grad()
    def answer(inputs: Sequence[Array]) -> Array:
        output: Array = module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs)).numpy()
        return output

    return answer
