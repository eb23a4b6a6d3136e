"""Compensation for removed heads: refit the output projection on recent inputs.

Legend: B rows, T query tokens, N heads, H head width, D model width, K = kept heads x H.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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
