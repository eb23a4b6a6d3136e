"""A pre-norm transformer block. Legend: B batch, T tokens, Q query tokens (all, or the class token), D width."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import Quantisation
from planaria.model.adapters import Adapters
from planaria.model.attention import ElasticAttention
from planaria.model.differences import Difference
from planaria.model.gates import Gate
from planaria.model.rounding import product
from planaria.model.skipping import mlp_where_open


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, mlp_width: int, quantisation: Quantisation | None = None) -> None:
        super().__init__()
        self.quantisation = quantisation
        """How weights and what they are multiplied by are rounded, if they are."""
        self.into = nn.Linear(width, mlp_width)
        self.out = nn.Linear(mlp_width, width)
        self.hidden = nn.Identity()
        """What watches the hidden units hooks in here."""

    def forward(self, x_BQD: Tensor, difference: Difference | None = None, open_BK: Tensor | None = None) -> Tensor:
        """`difference` is what is added to the weights `into` and `out` in this pass; `open_BK` is how far each of K
        blocks of hidden units is open to each row."""
        into, out = self.into.weight, self.out.weight
        if difference is not None:
            into, out = difference.added("into", into), difference.added("out", out)
        if open_BK is not None and self.quantisation is None:
            return mlp_where_open(x_BQD, into, self.into.bias, out, self.out.bias, open_BK)
        hidden_BQM = self.hidden(F.gelu(product(x_BQD, into, self.into.bias, self.quantisation)))
        if open_BK is not None:
            hidden_BQM = hidden_BQM * open_BK.repeat_interleave(len(into) // open_BK.shape[1], 1)[:, None]
        return product(hidden_BQM, out, self.out.bias, self.quantisation)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), and what adapters add to that. `answer_first` computes only the
    first token's answer.

    Attention and MLP are the block's own, or lent by another (`borrow`): a lent one is used, but is no part of this
    block's parameters and state.
    """

    attention: ElasticAttention
    mlp: Mlp
    attention_difference: Difference | None
    mlp_difference: Difference | None
    gate: Gate | None
    adapters: Adapters | None

    def __init__(self, width: int, *, answer_first: bool = False) -> None:
        super().__init__()
        self.answer_first = answer_first
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attention_difference = self.mlp_difference = self.gate = self.adapters = None

    def borrow(self, part: str, module: nn.Module) -> None:
        """Use a module that another block owns."""
        self._modules.pop(part, None)
        object.__setattr__(self, part, module)

    def own(self, part: str, module: nn.Module) -> None:
        """Have the module as a part of its own."""
        self.__dict__.pop(part, None)
        setattr(self, part, module)

    def forward(self, x_BTD: Tensor, route_BK: Tensor | None = None) -> Tensor:
        """`route_BK` is how much each row uses of each adapter, where there are any."""
        normed_BTD = self.norm1(x_BTD)
        open_BN, open_BK = (None, None) if self.gate is None else self.gate(normed_BTD)
        difference = self.attention_difference
        if self.answer_first:
            attended_BQD = self.attention(normed_BTD[:, :1], normed_BTD, difference=difference, open_BN=open_BN)
            x_BQD: Tensor = x_BTD[:, :1] + attended_BQD
        else:
            x_BQD = x_BTD + self.attention(normed_BTD, difference=difference, open_BN=open_BN)
        normed_BQD = self.norm2(x_BQD)
        if self.adapters is not None and route_BK is not None:
            x_BQD = x_BQD + self.adapters(normed_BQD, route_BK)
        x_BQD = x_BQD + self.mlp(normed_BQD, self.mlp_difference, open_BK)
        return x_BQD
