"""Elastic attention alone. B batch, T tokens, D width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.model import ElasticAttention, mix

B, T, D = 3, 7, 16


def _input(seed: int = 0) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed))


def test_it_equals_torchs_multi_head_attention() -> None:
    ours = ElasticAttention(D, 4, 4, projection_bias=True)
    torch.nn.init.normal_(ours.q_bias)
    torch.nn.init.normal_(ours.kv_bias)
    theirs = torch.nn.MultiheadAttention(D, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.q.flatten(0, 1), *ours.kv.transpose(0, 1).flatten(1, 2))))
        theirs.in_proj_bias.copy_(torch.cat((ours.q_bias.flatten(), *ours.kv_bias.transpose(0, 1).flatten(1))))
        theirs.out_proj.weight.copy_(ours.o.flatten(0, 1).t())
        theirs.out_proj.bias.copy_(ours.o_bias)
    x = _input()
    padding = torch.zeros(B, T, dtype=torch.bool)
    padding[0, 5:] = True
    expected, _ = theirs(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(ours(x, padding_BS=padding), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_every_way_of_mixing_gives_the_fused_kernels_answer(dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(B, 2, T, 8, generator=generator).to(dtype) for _ in range(3))
    mask = torch.ones(T, T, dtype=torch.bool).tril() if masked else None
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(mix(q, k, v, mask), expected, atol=tolerance, rtol=tolerance)


def test_a_causal_query_does_not_see_what_comes_after_it() -> None:
    attention, x = ElasticAttention(D, 2, 4), _input()
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = attention(x, causal=True), attention(changed, causal=True)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_rotary_attention_depends_on_distances_alone() -> None:
    attention, x = ElasticAttention(D, 2, 8, rotary=True), _input()
    here = attention(x)
    there = attention(x, positions_T=torch.arange(T) + 50, context_positions_S=torch.arange(T) + 50)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(here, attention(x, positions_T=torch.arange(T) * 3, context_positions_S=torch.arange(T)))


def test_grouped_queries_share_their_keys_and_values() -> None:
    grouped = ElasticAttention(D, 4, 4, queries_per_key=2)
    plain = ElasticAttention(D, 4, 4)
    with torch.no_grad():
        plain.q.copy_(grouped.q)
        plain.o.copy_(grouped.o)
        plain.kv.copy_(grouped.kv.repeat_interleave(2, 0))
    torch.testing.assert_close(grouped(_input()), plain(_input()))
    assert grouped.kv.numel() == plain.kv.numel() // 2


@pytest.mark.parametrize("keys", [5, 40])
def test_one_query_reads_without_keys_and_values_what_many_read_with_them(keys: int) -> None:
    """Also its gradients."""
    x = torch.randn(B, keys, D, generator=torch.Generator().manual_seed(2))
    whole, single = ElasticAttention(D, 3, 4), ElasticAttention(D, 3, 4)
    single.load_state_dict(whole.state_dict())
    many, one = x.clone().requires_grad_(), x.clone().requires_grad_()
    answers = whole(many)[:, :1], single(one[:, :1], one)
    torch.testing.assert_close(*answers)
    for answer in answers:
        answer.square().sum().backward()
    torch.testing.assert_close(one.grad, many.grad, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(single.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_one_query_reads_in_float32_on_a_cpu_whose_products_are_bfloat16() -> None:
    attention, x = ElasticAttention(D, 3, 4, output_bias=False), _input()
    with torch.no_grad():
        attention.o.copy_(torch.eye(12, D).view_as(attention.o))  # what was read is what comes out, rounded once
        exact = attention(x[:, :1], x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = attention(x[:, :1], x)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())


def test_cross_attention_reads_a_context_of_another_width() -> None:
    attention = ElasticAttention(D, 2, 4, context_width=5)
    context = torch.randn(B, 9, 5, requires_grad=True)
    out = attention(_input(), context)
    assert out.shape == (B, T, D)
    out.sum().backward()
    assert context.grad is not None and bool((context.grad != 0).any())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"heads": 3, "queries_per_key": 2}, "use a multiple"), ({"heads": 2, "rotary": True}, "even head width")],
)
def test_impossible_heads_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ElasticAttention(D, head_width=3, **arguments)
