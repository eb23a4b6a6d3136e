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
    """
    attention = model.block(layer).attention
    attention.keep_mixed = True
    try:
        model.hidden(inputs)
        mixed_BTNH = attention.mixed_BTNH
    finally:
        attention.keep_mixed, attention.mixed_BTNH = False, None
    assert mixed_BTNH is not None
    kept = torch.tensor(list(keep), device=attention.o.device)
    gone = torch.tensor([h for h in range(attention.heads) if h not in set(keep)], device=attention.o.device)
    kept_MK = mixed_BTNH.index_select(2, kept).flatten(2).flatten(0, 1).double()
    gone_MG = mixed_BTNH.index_select(2, gone).flatten(2).flatten(0, 1).double()
    lost_MD = gone_MG @ attention.o.index_select(0, gone).flatten(0, 1).double()
    gram_KK = kept_MK.t() @ kept_MK
    ridge = RIDGE * gram_KK.diagonal().mean().clamp(min=1e-12)
    change_KD = torch.linalg.solve(
        gram_KK + ridge * torch.eye(len(gram_KK), dtype=gram_KK.dtype, device=gram_KK.device), kept_MK.t() @ lost_MD
    )
    attention.o[kept] += change_KD.view(len(kept), attention.head_width, -1).to(attention.o.dtype)
