"""Elastic attention: multi-head attention in which every layer has its own number of heads.

Heads are stored head-major, so that growing is `cat` and shrinking is `index_select` on dimension 0, and the cost
follows the heads that are live. It stands alone: it knows nothing of blocks, blueprints or training.

Legend: B batch, T query tokens, S key tokens, D width, E context width, N heads, G key-value groups, H head width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planaria.blueprint import Quantisation
from planaria.model import short_attention
from planaria.model.differences import Difference
from planaria.model.rounding import product, rounded_input, rounded_weight
from planaria.model.skipping import Openings, Pairs

# Above this many keys the T x S weights cost more to keep than the fused kernel costs to call (float32, CPU).
_EXPLICIT_UP_TO_KEYS = 64
# Numbers that a processor's widest registers hold.
_VECTOR = 16


class ElasticAttention(nn.Module):
    """Multi-head, grouped-query or cross attention with a changeable number of heads.

    `queries_per_key` heads share one key and value head (1 is plain multi-head attention); heads then come and go in
    multiples of it. `rotary` turns queries and keys by their position (even head widths only).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        context_width: int | None = None,
        queries_per_key: int = 1,
        projection_bias: bool = False,
        output_bias: bool = True,
        rotary: bool = False,
        quantisation: Quantisation | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or heads % queries_per_key:
            raise ValueError(f"{heads} heads cannot be shared {queries_per_key} to a key; use a multiple")
        if rotary and head_width % 2:
            raise ValueError(f"rotary positions need an even head width, not {head_width}")
        self.width, self.head_width, self.queries_per_key, self.rotary = width, head_width, queries_per_key, rotary
        self.context_width = context_width or width
        self.quantisation = quantisation
        """How weights and what they are multiplied by are rounded, if they are."""
        groups = heads // queries_per_key
        self.q = nn.Parameter(torch.empty(heads, head_width, width))
        self.kv = nn.Parameter(torch.empty(groups, 2, head_width, self.context_width))
        self.o = nn.Parameter(torch.empty(heads, head_width, width))
        self.q_bias = nn.Parameter(torch.zeros(heads, head_width)) if projection_bias else None
        self.kv_bias = nn.Parameter(torch.zeros(groups, 2, head_width)) if projection_bias else None
        self.o_bias = nn.Parameter(torch.zeros(width)) if output_bias else None
        self.absorbs = True
        """Whether a single query does without keys and values. Not where products with weights are rounded: there it
        is keys and values that are."""
        self.head_scale_BN: Tensor | None = None
        """Multiplies each head's output while importance is measured; None otherwise."""
        self.kept: list[tuple[Tensor, Tensor]] | None = None
        """Where it is a list, every pass adds its heads' outputs [B, T, N, H] and its output weights [N, H, D] (for
        refitting them); None otherwise."""
        self.reset_parameters()

    @property
    def heads(self) -> int:
        return self.q.shape[0]

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.q, std=1 / math.sqrt(self.width), generator=generator)
        nn.init.normal_(self.kv, std=1 / math.sqrt(self.context_width), generator=generator)
        nn.init.normal_(self.o, std=1 / math.sqrt(self.heads * self.head_width), generator=generator)

    def fresh_heads(self, heads: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Rows to append to each parameter for `heads` new heads: random queries, keys and values, zero outputs."""
        if heads % self.queries_per_key:
            raise ValueError(f"this layer grows in multiples of {self.queries_per_key} heads, not by {heads}")
        groups = heads // self.queries_per_key
        shape_q = (heads, self.head_width, self.width)
        shape_kv = (groups, 2, self.head_width, self.context_width)
        rows = {
            "q": torch.randn(shape_q, generator=generator) / math.sqrt(self.width),
            "kv": torch.randn(shape_kv, generator=generator) / math.sqrt(self.context_width),
            "o": torch.zeros(shape_q),
        }
        if self.q_bias is not None:
            rows["q_bias"] = torch.zeros(heads, self.head_width)
            rows["kv_bias"] = torch.zeros(groups, 2, self.head_width)
        return {name: row.to(self.q) for name, row in rows.items()}

    def forward(
        self,
        x_BTD: Tensor,
        context_BSE: Tensor | None = None,
        *,
        padding_BS: Tensor | None = None,
        causal: bool = False,
        positions_T: Tensor | None = None,
        context_positions_S: Tensor | None = None,
        difference: Difference | None = None,
        open_BN: Tensor | None = None,
    ) -> Tensor:
        """Attend from x to the context (to x itself where there is none).

        `difference` is what is added to the weights `q`, `kv` and `o` in this pass. `open_BN` multiplies each head's
        output for each row (it may have one row for all); plain attention does not compute a head where that is 0.
        `padding_BS` is True where a key must be ignored; `causal` hides keys behind the query's own position; the
        positions (0, 1, 2, ... unless given) serve both the causal mask and the rotary turn.
        """
        context_BSE = x_BTD if context_BSE is None else context_BSE
        q: Tensor = self.q
        kv: Tensor = self.kv
        o: Tensor = self.o
        if difference is not None:
            q, kv, o = difference.added("q", q), difference.added("kv", kv), difference.added("o", o)
        q_bias: Tensor | None = self.q_bias
        kv_bias: Tensor | None = self.kv_bias
        plain = not (self.rotary or causal) and padding_BS is None
        own_keys = plain and self.queries_per_key == 1
        absorbs = self.absorbs and self.quantisation is None and kv_bias is None
        one_query = own_keys and absorbs and x_BTD.shape[1] == 1
        whole = self.kept is not None or self.head_scale_BN is not None or self.quantisation is not None
        if open_BN is not None and own_keys and not whole:
            openings = Openings.of(open_BN, context_BSE)
            if not openings.live:
                return _constant(x_BTD, self.o_bias)
            if openings.gathers and not one_query:
                return self._of_pairs(x_BTD, context_BSE, q, kv, o, openings.pairs())
            q, kv, o, open_BN = *map(openings.live_only, (q, kv, o)), openings.weight_BG
            q_bias = None if q_bias is None else openings.live_only(q_bias)
            kv_bias = None if kv_bias is None else openings.live_only(kv_bias)
            if open_BN is not None and len(open_BN) == 1:
                o, open_BN = o * open_BN[0, :, None, None].to(o.dtype), None
        if self.quantisation is not None:
            own = context_BSE is x_BTD
            x_BTD = rounded_input(x_BTD, self.quantisation)
            context_BSE = x_BTD if own else rounded_input(context_BSE, self.quantisation)
            q = rounded_weight(q.flatten(0, 1), self.quantisation).view_as(q)
            kv = rounded_weight(kv.flatten(0, 2), self.quantisation).view_as(kv)
        if one_query:
            with _small_products(context_BSE.device.type):
                mixed_BTNH = self._of_one_query(x_BTD[:, 0].to(q), context_BSE.to(kv), q, q_bias, kv)
        else:
            q_BTNH, kv_BSG2H = self._project(x_BTD, context_BSE, (q, q_bias), (kv, kv_bias))
            if plain and short_attention.serves(q_BTNH, kv_BSG2H):
                mixed_BTNH = short_attention.attend(q_BTNH, kv_BSG2H)
            else:
                k_BNSH, v_BNSH = self._keys_and_values(kv_BSG2H)
                at = (positions_T, context_positions_S)
                mixed_BNTH = self._mixed(q_BTNH.transpose(1, 2), k_BNSH, v_BNSH, padding_BS, causal, *at)
                mixed_BTNH = mixed_BNTH.transpose(1, 2)
        if open_BN is not None:
            mixed_BTNH = mixed_BTNH * open_BN[:, None, :, None].to(mixed_BTNH.dtype)
        if self.kept is not None:
            self.kept.append((mixed_BTNH.detach(), o.detach()))
        if self.head_scale_BN is not None:
            mixed_BTNH = mixed_BTNH * self.head_scale_BN[:, None, :, None]
        return product(mixed_BTNH.flatten(2), o.flatten(0, 1).t(), self.o_bias, self.quantisation)

    def _of_one_query(self, x_BD: Tensor, context_BSE: Tensor, q: Tensor, q_bias: Tensor | None, kv: Tensor) -> Tensor:
        """What the heads read for one query, without a key and a value for every token: what multiplies the keys'
        tokens multiplies the query instead, and what multiplies the values' tokens multiplies their weighted sum.
        Shape [B, 1, N, H].

        Source: the absorbed weights of multi-head latent attention (DeepSeek-V2, 2024, arXiv 2405.04434).
        """
        k_NHE, v_NHE = kv.unbind(1)
        q_BF = F.linear(x_BD, q.flatten(0, 1), None if q_bias is None else q_bias.flatten())
        q_NBH = (q_BF * self.head_width**-0.5).view(-1, len(q), self.head_width).transpose(0, 1)
        asked_BNE = torch.matmul(q_NBH, k_NHE).transpose(0, 1)
        if context_BSE.shape[1] < _VECTOR:  # over the last dimension, softmax goes through so few keys one by one
            weights_BNS = torch.matmul(context_BSE, asked_BNE.transpose(1, 2)).softmax(1).transpose(1, 2)
        else:
            weights_BNS = torch.matmul(asked_BNE, context_BSE.transpose(1, 2)).softmax(2)
        read_BNE = torch.matmul(weights_BNS, context_BSE)
        mixed_NBH = torch.matmul(read_BNE.transpose(0, 1), v_NHE.transpose(1, 2))
        return mixed_NBH.transpose(0, 1)[:, None]

    def _of_pairs(self, x_BTD: Tensor, context_BSE: Tensor, q: Tensor, kv: Tensor, o: Tensor, pairs: Pairs) -> Tensor:
        """Pairs of a head and a row that it is open to take the place of rows and heads."""
        q_bias, kv_bias = self.q_bias, None if self.kv_bias is None else self.kv_bias.flatten(1)
        x_PTD = pairs.gathered(x_BTD)
        if x_BTD is context_BSE:
            bias = None if q_bias is None or kv_bias is None else torch.cat((q_bias, kv_bias), 1).unbind()
            qkv = pairs.each(x_PTD, torch.cat((q, kv.flatten(1, 2)), 1).unbind(), bias)
            q_PTH, k_PSH, v_PSH = qkv.chunk(3, 2)
        else:
            q_PTH = pairs.each(x_PTD, q.unbind(), None if q_bias is None else q_bias.unbind())
            bias = None if kv_bias is None else kv_bias.unbind()
            k_PSH, v_PSH = pairs.each(pairs.gathered(context_BSE), kv.flatten(1, 2).unbind(), bias).chunk(2, 2)
        mixed_PTH = pairs.weighed(mix(q_PTH[:, None], k_PSH[:, None], v_PSH[:, None])[:, 0])
        return pairs.put_back(pairs.each(mixed_PTH, o.transpose(1, 2).unbind()), self.o_bias)

    def _project(
        self,
        x_BTD: Tensor,
        context_BSE: Tensor,
        query: tuple[Tensor, Tensor | None],
        key_value: tuple[Tensor, Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """With those weights and biases, which may be of some heads only."""
        (q, q_bias), (kv, kv_bias), batch = query, key_value, x_BTD.shape[0]
        q_BTF = F.linear(x_BTD, q.flatten(0, 1), None if q_bias is None else q_bias.flatten())
        kv_BSF = F.linear(context_BSE, kv.flatten(0, 2), None if kv_bias is None else kv_bias.flatten())
        q_BTNH = q_BTF.view(batch, -1, len(q), self.head_width)
        return q_BTNH, kv_BSF.view(batch, -1, len(kv), 2, self.head_width)

    def _keys_and_values(self, kv_BSG2H: Tensor) -> tuple[Tensor, Tensor]:
        """For each head, shape [B, N, S, H]."""
        k, v = kv_BSG2H.unbind(3)
        if self.queries_per_key > 1:
            k, v = k.repeat_interleave(self.queries_per_key, 2), v.repeat_interleave(self.queries_per_key, 2)
        return k.transpose(1, 2), v.transpose(1, 2)

    def _mixed(
        self,
        q_BNTH: Tensor,
        k_BNSH: Tensor,
        v_BNSH: Tensor,
        padding_BS: Tensor | None,
        causal: bool,
        positions_T: Tensor | None,
        context_positions_S: Tensor | None,
    ) -> Tensor:
        """What the heads read, with positions and masks."""
        mask = None
        if self.rotary or causal:
            device = q_BNTH.device
            at_T = torch.arange(q_BNTH.shape[2], device=device) if positions_T is None else positions_T
            keys = k_BNSH.shape[2]
            at_S = torch.arange(keys, device=device) if context_positions_S is None else context_positions_S
            if self.rotary:
                q_BNTH, k_BNSH = _turn(q_BNTH, at_T), _turn(k_BNSH, at_S)
            if causal:
                mask = at_T[:, None] >= at_S[None, :]
        if padding_BS is not None:
            visible = ~padding_BS[:, None, None, :]
            mask = visible if mask is None else mask & visible
        return mix(q_BNTH, k_BNSH, v_BNSH, mask)


def _small_products(device: str) -> AbstractContextManager[Any]:
    """On a CPU, small batched products are faster in float32, also where the job's precision is bfloat16."""
    if device == "cpu" and torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return nullcontext()


def _constant(x_BTD: Tensor, bias_D: Tensor | None) -> Tensor:
    """What attention without a live head answers."""
    return torch.zeros_like(x_BTD) if bias_D is None else bias_D.expand(x_BTD.shape)


def mix(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(H)) v, by whichever way is fastest for the device, precision and length.

    `mask` is True where a key may be seen, and broadcasts to [B, N, T, S].
    On CPU the fused kernel's backward is several times slower than plain products in bfloat16, and no faster for
    short sequences in float32 (`benchmarks/attention.py` measures both).
    """
    short = k_BNSH.shape[2] <= _EXPLICIT_UP_TO_KEYS
    if q_BNTH.device.type == "cpu" and (short or q_BNTH.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
        weights = (q_BNTH * (q_BNTH.shape[-1] ** -0.5)) @ k_BNSH.transpose(-2, -1)
        if mask is not None:
            weights = weights.masked_fill(~mask, -torch.inf)
        return torch.matmul(weights.softmax(-1).to(v_BNSH.dtype), v_BNSH)
    return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask)


def _turn(x_BNTH: Tensor, positions_T: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves convention."""
    half = x_BNTH.shape[-1] // 2
    rate = 10_000 ** (-torch.arange(half, device=x_BNTH.device, dtype=torch.float32) / half)
    angle_TF = positions_T.to(torch.float32)[:, None] * rate
    cos, sin = angle_TF.cos().to(x_BNTH.dtype), angle_TF.sin().to(x_BNTH.dtype)
    low, high = x_BNTH[..., :half], x_BNTH[..., half:]
    return torch.cat((low * cos - high * sin, low * sin + high * cos), -1)
