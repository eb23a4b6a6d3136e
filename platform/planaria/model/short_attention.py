"""Attention over short sequences as one operation, in C++, for compiled passes on a CPU (short_attention.cpp).

torch.compile leaves attention's small batched products to the library, which is a third of a step of a small model.
Legend: B rows, T queries, S keys, N heads, G key-value groups, H head width.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

logger = logging.getLogger(__name__)

MOST_KEYS = 64
HEAD_WIDTHS = (4, 8, 16, 32, 64)
_SOURCE = Path(__file__).with_suffix(".cpp")
_OPTIONS = ("-O3", "-march=native", "-shared", "-fPIC", "-std=c++20", "-Wno-psabi")
_BUILD_TIMEOUT_S = 600
_built = False


def build(compiler: str) -> bool:
    """Compile and load it into this process, once; some seconds. False where this compiler or processor cannot."""
    global _built
    if _built:
        return True
    where = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    with tempfile.TemporaryDirectory() as place:
        library = Path(place) / "short_attention.so"
        command = [compiler, *_OPTIONS, str(_SOURCE), *where, "-ltorch_cpu", "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S)
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("attention is left to torch: %s could not build %s (%s)", compiler, _SOURCE.name, error)
            return False
    torch.library.register_fake("planaria::short_attention", _shapes)
    torch.library.register_fake("planaria::short_attention_gradient", _shapes_of_gradient)
    torch.library.register_autograd("planaria::short_attention", _backward, setup_context=_keep)
    _built = True
    return True


def serves(q_BTNH: Tensor, kv_BSG2H: Tensor) -> bool:
    """Whether a pass that is being compiled may use it for these."""
    return (
        _built
        and torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and q_BTNH.device.type == "cpu"
        and q_BTNH.dtype == kv_BSG2H.dtype
        and q_BTNH.dtype in (torch.float32, torch.bfloat16)
        and kv_BSG2H.shape[1] <= MOST_KEYS
        and q_BTNH.shape[3] in HEAD_WIDTHS
    )


def attend(q_BTNH: Tensor, kv_BSG2H: Tensor) -> Tensor:
    """softmax(q k' / sqrt(H)) v, shape [B, T, N, H]; computed in float32. Only after `build`."""
    mixed_BTNH: Tensor = torch.ops.planaria.short_attention(q_BTNH.float(), kv_BSG2H.float())[0]
    return mixed_BTNH.to(q_BTNH.dtype)


def _shapes(q_BTNH: Tensor, kv_BSG2H: Tensor) -> tuple[Tensor, Tensor]:
    rows, queries, heads, _ = q_BTNH.shape
    return q_BTNH.new_empty(q_BTNH.shape), q_BTNH.new_empty(rows, heads, queries, kv_BSG2H.shape[1])


def _shapes_of_gradient(_: Tensor, q_BTNH: Tensor, kv_BSG2H: Tensor, __: Tensor) -> tuple[Tensor, Tensor]:
    return q_BTNH.new_empty(q_BTNH.shape), kv_BSG2H.new_empty(kv_BSG2H.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad_BTNH: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor] = torch.ops.planaria.short_attention_gradient(grad_BTNH, *ctx.saved_tensors)
    return grads
