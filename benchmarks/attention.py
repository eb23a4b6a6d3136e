"""Attention on this device: explicit products against the fused kernel, and what removing heads saves.

    python -m benchmarks.attention

Forward and backward of `planaria.model.mix` and of the fused kernel, alternated; about two CPU minutes.
It justifies the number of keys up to which `mix` uses explicit products.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from benchmarks.measure import alternate, median_ratio, repeat, write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from planaria.model import ElasticAttention, attention, mix

TOKENS, HEADS = (17, 50, 65, 128, 256), (2, 4, 8)
HEAD_WIDTHS = (8, 32)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENS_IN_ALL = 8_192
ROUNDS = 7
MIN_SECONDS = 0.01
"""Work is repeated within a round until it takes about so long."""


def explicit(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor) -> Tensor:
    """`mix`, whatever the length."""
    with patch.object(attention, "_EXPLICIT_UP_TO_KEYS", 1 << 30):
        return mix(q_BNTH, k_BNSH, v_BNSH)


def there_and_back(
    way: Callable[[Tensor, Tensor, Tensor], Tensor], rows: int, tokens: int, heads: int, width: int, kind: torch.dtype
) -> Callable[[], object]:
    """Forward and backward with the layout that the projections of `ElasticAttention` give."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(rows, tokens, heads, width, generator=generator).to(kind).requires_grad_() for _ in range(3)]
    pull_BNTH = torch.randn(rows, heads, tokens, width, generator=generator).to(kind)

    def once() -> None:
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
        torch.autograd.grad(way(q, k, v), leaves, pull_BNTH)

    return once


def compare(tokens: int, heads: int, width: int, precision: str) -> dict[str, Any]:
    rows = max(4, TOKENS_IN_ALL // tokens)
    works = {
        name: there_and_back(way, rows, tokens, heads, width, PRECISIONS[precision])
        for name, way in (("explicit", explicit), ("fused", F.scaled_dot_product_attention))
    }
    first = alternate(works, 2)
    times = max(1, round(MIN_SECONDS / max(1e-5, first["explicit"][-1])))
    seconds = alternate({name: repeat(work, times) for name, work in works.items()}, ROUNDS)
    return {
        "tokens": tokens,
        "heads": heads,
        "head_width": width,
        "precision": precision,
        "rows": rows,
        "explicit_ms": statistics.median(seconds["explicit"]) / times * 1e3,
        "fused_over_explicit": median_ratio(seconds["fused"], seconds["explicit"]),
    }


def cost_of_heads(tokens: int = 50, width: int = 64, head_width: int = 8, rows: int = 128) -> dict[str, float]:
    """Forward and backward of a whole attention layer with 1 to 8 live heads, relative to 8 of them."""
    x_BTD = torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(0))

    def layer_of(heads: int) -> Callable[[], object]:
        layer = ElasticAttention(width, heads, head_width)
        x = x_BTD.clone().requires_grad_()
        return lambda: torch.autograd.grad(layer(x).square().mean(), [x, *layer.parameters()])

    works = {str(heads): repeat(layer_of(heads), 2) for heads in (8, 4, 2, 1)}
    alternate(works, 1)
    seconds = alternate(works, ROUNDS)
    return {heads: median_ratio(seconds[heads], seconds["8"]) for heads in works}


def main() -> None:
    torch.set_num_threads(1)
    compared = [
        compare(tokens, heads, width, precision)
        for precision in PRECISIONS
        for width in HEAD_WIDTHS
        for tokens in TOKENS
        for heads in HEADS
    ]
    table = Table(title="time of the fused kernel / time of explicit products, forward and backward", min_width=90)
    for column in ("precision", "head width", "tokens", *(f"{heads} heads" for heads in HEADS), "faster"):
        table.add_column(column, justify="right")
    for at in range(0, len(compared), len(HEADS)):
        group = compared[at : at + len(HEADS)]
        ratios = [entry["fused_over_explicit"] for entry in group]
        faster = "explicit" if min(ratios) > 1 else "fused" if max(ratios) < 1 else "either"
        first = group[0]
        cells = [first["precision"], first["head_width"], first["tokens"], *(f"{ratio:.2f}" for ratio in ratios)]
        table.add_row(*map(str, cells), faster)
    console = Console(width=120)
    console.print(table)
    live = cost_of_heads()
    console.print("an attention layer with live heads, time / time with 8:", {n: round(v, 2) for n, v in live.items()})
    console.print(write("attention", {"fused_over_explicit": compared, "cost_of_live_heads": live}))


if __name__ == "__main__":
    main()
