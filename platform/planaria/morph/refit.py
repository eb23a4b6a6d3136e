"""Compensation for removed heads and hidden units: refit output weights on recent inputs.

Legend: B rows, T query tokens, N heads, H head width, D model width, M rows x tokens, U hidden units, K = kept heads x
H, or kept hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.model.blocks import Mlp
from planaria.model.differences import Difference
from planaria.model.transformer import ElasticTransformer

RIDGE = 1e-2
"""Of the mean squared activation: the refit is pulled to the old weights by this much."""


@torch.no_grad()
def refit_output_projection(
    model: ElasticTransformer, layer: int, keep: Sequence[int], inputs: Mapping[str, Tensor]
) -> None:
    """Change the kept heads' output weights so that, on `inputs`, the layer's answer stays as close as it can.

    Least squares with a ridge towards the present weights; the removed heads' weights are left alone (they go next).
    The last layer answers for the class token alone, so it is fitted on that alone: fitting it on all tokens hurts.
    Layers that share the attention are fitted together.
    """
    attention = model.block(layer).attention
    uses: list[tuple[Tensor, Tensor]] = []
    attention.kept = uses
    try:
        model.hidden(inputs)
    finally:
        attention.kept = None
    kept = torch.tensor(list(keep), device=attention.o.device)
    gone = torch.tensor([h for h in range(attention.heads) if h not in set(keep)], device=attention.o.device)
    kept_MK = torch.cat([mixed.index_select(2, kept).flatten(2).flatten(0, 1) for mixed, _ in uses]).double()
    lost_MD = torch.cat(
        [
            mixed.index_select(2, gone).flatten(2).flatten(0, 1).double()
            @ o.index_select(0, gone).flatten(0, 1).double()
            for mixed, o in uses
        ]
    )
    change_KD = change_for(kept_MK, lost_MD)
    attention.o[kept] += change_KD.view(len(kept), attention.head_width, -1).to(attention.o.dtype)


@torch.no_grad()
def refit_mlp_output(model: ElasticTransformer, layer: int, gone: Sequence[int], inputs: Mapping[str, Tensor]) -> None:
    """The same for hidden units that go, whose mean contribution goes into the bias. Layers that share the MLP are
    fitted together, each with what it differs by, and behind its gates."""
    mlp = model.block(layer).mlp
    uses: list[tuple[Any, ...]] = []
    handle = mlp.register_forward_pre_hook(lambda _, read: uses.append(read))
    try:
        model.hidden(inputs)
    finally:
        handle.remove()
    lost_at = torch.tensor(sorted(gone), device=mlp.into.bias.device)
    kept_at = torch.tensor([u for u in range(len(mlp.into.bias)) if u not in set(gone)], device=lost_at.device)
    hidden, missing = [], []
    for x_BTD, difference, open_BG in uses:
        out = mlp.out.weight if difference is None else difference.added("out", mlp.out.weight)
        hidden_MU = hidden_units(mlp, x_BTD, difference, open_BG).double()
        hidden.append(hidden_MU.index_select(1, kept_at))
        missing.append(hidden_MU.index_select(1, lost_at) @ out.index_select(1, lost_at).double().t())
    kept_MK, lost_MD = torch.cat(hidden), torch.cat(missing)
    mean_K, mean_D = kept_MK.mean(0), lost_MD.mean(0)
    change_KD = change_for(kept_MK - mean_K, lost_MD - mean_D)
    mlp.out.weight.index_add_(1, kept_at, change_KD.t().to(mlp.out.weight.dtype))
    mlp.out.bias.add_(mean_D - mean_K @ change_KD)


def hidden_units(
    mlp: Mlp, x_BTD: Tensor, difference: Difference | None = None, open_BG: Tensor | None = None
) -> Tensor:
    """What reaches the output weights in such a use of the MLP, without rounding. Shape [M, U]."""
    into = mlp.into.weight if difference is None else difference.added("into", mlp.into.weight)
    hidden_BTU = F.gelu(F.linear(x_BTD, into, mlp.into.bias))
    if open_BG is not None:
        hidden_BTU = hidden_BTU * open_BG.repeat_interleave(len(into) // open_BG.shape[1], 1)[:, None]
    return hidden_BTU.flatten(0, 1)


def change_for(hidden_MK: Tensor, missing_MD: Tensor) -> Tensor:
    """What to add to output weights [K, D] so that hidden values bring what is missing, as nearly as a small change
    can. float64."""
    gram_KK = hidden_MK.t() @ hidden_MK
    ridge = RIDGE * gram_KK.diagonal().mean().clamp(min=1e-12)
    change_KD: Tensor = torch.linalg.solve(
        gram_KK + ridge * torch.eye(len(gram_KK), dtype=gram_KK.dtype, device=gram_KK.device),
        hidden_MK.t() @ missing_MD,
    )
    return change_KD
