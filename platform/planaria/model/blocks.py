"""A pre-norm transformer block. Legend: B batch, T tokens, Q query tokens (all, or the class token), D width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from planaria.model.attention import ElasticAttention


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). `answer_first` computes only the first token's answer."""

    def __init__(self, width: int, heads: int, head_width: int, mlp_width: int, *, answer_first: bool = False) -> None:
        super().__init__()
        self.answer_first = answer_first
        self.norm1 = nn.LayerNorm(width)
        self.attention = ElasticAttention(width, heads, head_width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        normed_BTD = self.norm1(x_BTD)
        if self.answer_first:
            x_BQD: Tensor = x_BTD[:, :1] + self.attention(normed_BTD[:, :1], normed_BTD)
        else:
            x_BQD = x_BTD + self.attention(normed_BTD)
        x_BQD = x_BQD + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x_BQD))))
        return x_BQD
