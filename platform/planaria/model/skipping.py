"""Attention and MLPs of which each row uses a part: what is closed to a row is not computed for it.

Heads (or blocks of hidden units) that are closed to all rows cost nothing. Where the others are open to some of the
rows, pairs of a row and a gate that is open to it take the place of rows and gates. Gathering them costs time of its
own: where few are left out, or the batch is small, all rows of the others are computed, and what is closed is
multiplied by zero, which has the same outputs and gradients (docs/techniques.md has the times).

Legend: B rows, T tokens, D width, G gates (N heads or K blocks), F numbers of a projection, P pairs, gate by gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_GATHERED_UP_TO, _GATHERED_FROM_TOKENS = 0.65, 512
"""Share of pairs that are open, and tokens of a batch: beyond the one, or below the other, gathering costs more than it
saves (measured on a CPU at widths of 64 and 128)."""


@dataclass(frozen=True)
class Openings:
    """To which rows each gate is open."""

    counts: tuple[int, ...]
    """Rows, of each gate."""
    batch: int
    tokens: int
    """Of all rows."""
    open_BG: Tensor
    """How far each gate is open to each row; one row where that is the same for all."""

    @staticmethod
    def of(open_BG: Tensor, x_BTD: Tensor) -> Openings:
        counts = (open_BG != 0).sum(0).tolist()
        if len(open_BG) == 1:
            counts = [len(x_BTD) * count for count in counts]
        return Openings(tuple(counts), len(x_BTD), x_BTD.shape[0] * x_BTD.shape[1], open_BG)

    @property
    def live(self) -> list[int]:
        """Gates that are open to any row."""
        return [gate for gate, count in enumerate(self.counts) if count]

    @property
    def gathers(self) -> bool:
        """Whether rows are gathered for each live gate."""
        share = sum(self.counts) / (self.batch * len(self.live))
        return share <= _GATHERED_UP_TO and self.tokens >= _GATHERED_FROM_TOKENS

    def live_only(self, of_gates: Tensor) -> Tensor:
        """The live gates' rows of it."""
        return of_gates if all(self.counts) else of_gates[self.live]

    @property
    def weight_BG(self) -> Tensor | None:
        """How far the live gates are open to each row; None where that is 1."""
        return _unless_ones(self.open_BG if all(self.counts) else self.open_BG[:, self.live])

    def pairs(self) -> Pairs:
        open_GB = self.open_BG.t()
        gate_P, row_P = (open_GB != 0).nonzero().unbind(1)
        return Pairs(self.counts, self.batch, row_P, _unless_ones(open_GB[gate_P, row_P]))


@dataclass(frozen=True)
class Pairs:
    """Of a gate and a row that it is open to."""

    counts: tuple[int, ...]
    batch: int
    row_P: Tensor
    weight_P: Tensor | None
    """How far the gate is open; None where that is 1."""

    def gathered(self, x_BTD: Tensor) -> Tensor:
        """Shape [P, T, D]."""
        return x_BTD.index_select(0, self.row_P)

    def each(self, x_PTD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | None = None) -> Tensor:
        """Each gate's own linear map of its pairs. Shape [P, T, F]."""
        parts = torch.split(x_PTD, list(self.counts))
        live = [gate for gate, count in enumerate(self.counts) if count]
        return torch.cat([F.linear(parts[g], weights[g], None if biases is None else biases[g]) for g in live])

    def weighed(self, x_PTF: Tensor) -> Tensor:
        return x_PTF if self.weight_P is None else x_PTF * self.weight_P[:, None, None].to(x_PTF.dtype)

    def put_back(self, x_PTD: Tensor, bias_D: Tensor | None) -> Tensor:
        """The sum over each row's pairs, and the bias. Shape [B, T, D]."""
        shape = (self.batch, *x_PTD.shape[1:])
        into_BTD = x_PTD.new_zeros(shape) if bias_D is None else bias_D.to(x_PTD.dtype).expand(shape).clone()
        return into_BTD.index_add_(0, self.row_P, x_PTD)


def _unless_ones(open_: Tensor) -> Tensor | None:
    return open_ if open_.requires_grad or not bool((open_ == 1).all()) else None


def mlp_where_open(
    x_BTD: Tensor, into_MD: Tensor, into_bias_M: Tensor, out_DM: Tensor, out_bias_D: Tensor, open_BK: Tensor
) -> Tensor:
    """A GELU MLP whose hidden units come in K equal blocks, each open to some of the rows."""
    openings, blocks = Openings.of(open_BK, x_BTD), open_BK.shape[1]
    live = openings.live
    if not live:
        return out_bias_D.expand(x_BTD.shape)
    into, bias, out = into_MD.chunk(blocks), into_bias_M.chunk(blocks), out_DM.chunk(blocks, 1)
    if openings.gathers:
        pairs = openings.pairs()
        hidden_PTM = F.gelu(pairs.each(pairs.gathered(x_BTD), into, bias))
        return pairs.put_back(pairs.weighed(pairs.each(hidden_PTM, out)), out_bias_D)
    hidden_BTM = F.gelu(F.linear(x_BTD, _joined(into, live, 0), _joined(bias, live, 0)))
    out_DM, weight_BK = _joined(out, live, 1), openings.weight_BG
    if weight_BK is not None and len(weight_BK) == 1:
        out_DM = out_DM * weight_BK.repeat_interleave(len(bias[0]), 1).to(out_DM.dtype)
    elif weight_BK is not None:
        hidden_BTM = hidden_BTM * weight_BK.repeat_interleave(len(bias[0]), 1)[:, None].to(hidden_BTM.dtype)
    return F.linear(hidden_BTM, out_DM, out_bias_D)


def _joined(blocks: Sequence[Tensor], live: Sequence[int], dimension: int) -> Tensor:
    return blocks[live[0]] if len(live) == 1 else torch.cat([blocks[block] for block in live], dimension)
