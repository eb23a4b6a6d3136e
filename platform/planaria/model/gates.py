"""Gates: which heads and which blocks of its MLP a layer uses, decided by the row, or by the stream as it is now.

Legend: B rows, T tokens, D width, N heads, K blocks of the MLP, G = N + K gates of the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import GateKind, Gates

_TEMPERATURE, _LOW, _HIGH = 2 / 3, -0.1, 1.1
"""Of the hard-concrete distribution, as in its paper: the stretched interval reaches below 0 and above 1."""
_SHIFT = _TEMPERATURE * math.log(-_LOW / _HIGH)
"""Added to a gate's logit it gives the distribution's location, so that sigmoid(logit) is how likely it is above 0."""
OPEN_BIAS: dict[GateKind, float] = {"straight_through": 1.0, "hard_concrete": 4.1}
"""Of a fresh gate, whose weights are zero: it is open to exactly 1."""


@dataclass
class Watch:
    """What a pass of training brings to a layer's gates and what it learns there."""

    noise_BG: Tensor | None = None
    """Uniform in (0, 1), for gates that draw; one row for all where these gates are the stream's."""
    chance_BG: Tensor | None = None
    open_BG: Tensor | None = None
    mean_BD: Tensor | None = None
    """Each row's mean input."""


class Gate(nn.Module):
    """P(open) = sigmoid(W_g h + b_g). Per row, h is the mean of the row's input tokens to the layer, behind the norm;
    per stream it is the running mean of these, so that all rows of a step use the same.

    straight_through: open (1) where the probability is above a half and closed (0) elsewhere, with the probability's
    gradient. Source: Bengio et al. 2013 (arXiv 1308.3432).
    hard_concrete: between 0 and 1, and often exactly one of these; drawn around the logit in passes of training that
    bring noise, the middle of that elsewhere. Source: Louizos et al. 2018 (arXiv 1712.01312).
    What is closed is not computed (see `skipping`), and so has no gradient in that pass.
    """

    mean_D: Tensor

    def __init__(self, gates: Gates, width: int, heads: int) -> None:
        super().__init__()
        self.settings = gates
        self.heads = nn.Parameter(torch.zeros(heads, width))
        self.heads_bias = nn.Parameter(torch.full((heads,), OPEN_BIAS[gates.kind]))
        self.blocks = nn.Parameter(torch.zeros(gates.blocks, width))
        self.blocks_bias = nn.Parameter(torch.full((gates.blocks,), OPEN_BIAS[gates.kind]))
        self.register_buffer("mean_D", torch.zeros(width))
        self.watch: Watch | None = None

    def fresh_heads(self, heads: int) -> dict[str, Tensor]:
        """Rows to append to the parameters for new heads: open to every row."""
        rows = self.heads.new_zeros(heads, self.heads.shape[1])
        return {"heads": rows, "heads_bias": self.heads_bias.new_full((heads,), OPEN_BIAS[self.settings.kind])}

    def forward(self, normed_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """How far each head [B, N] and each block [B, K] is open, in float32: 0 is closed. One row where all rows use
        the same."""
        by_row, watch = self.settings.per == "row", self.watch
        mean_BD = normed_BTD.mean(1) if by_row or watch is not None else None
        weight_GD, bias_G = torch.cat((self.heads, self.blocks)), torch.cat((self.heads_bias, self.blocks_bias))
        logit_BG = F.linear(mean_BD if by_row and mean_BD is not None else self.mean_D[None], weight_GD, bias_G).float()
        if self.settings.kind == "straight_through":
            open_BG = _straight_through(logit_BG)
        else:
            open_BG = _concrete(logit_BG, None if watch is None else watch.noise_BG)
        batch = normed_BTD.shape[0]
        if watch is not None and mean_BD is not None:
            watch.chance_BG = logit_BG.sigmoid().expand(batch, -1)
            watch.open_BG, watch.mean_BD = open_BG.detach().expand(batch, -1), mean_BD.detach()
        open_BN, open_BK = torch.split(open_BG, [len(self.heads), len(self.blocks)], 1)
        return open_BN, open_BK


def _straight_through(logit_BG: Tensor) -> Tensor:
    open_BG = (logit_BG > 0).to(logit_BG.dtype)
    if not logit_BG.requires_grad:
        return open_BG
    chance_BG = logit_BG.sigmoid()
    return open_BG + open_BG * (chance_BG - chance_BG.detach())


def _concrete(logit_BG: Tensor, noise_BG: Tensor | None) -> Tensor:
    location_BG = logit_BG + _SHIFT
    if noise_BG is not None:
        location_BG = (location_BG + noise_BG.logit()) / _TEMPERATURE
    return (location_BG.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)
