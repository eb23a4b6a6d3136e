"""Attention over short sequences in C++, against the plain products. B rows, T queries, S keys, N heads, G groups."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

from planaria.model import ElasticAttention, short_attention

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def _plain(q_BTNH: Tensor, kv_BSG2H: Tensor) -> Tensor:
    shared = q_BTNH.shape[2] // kv_BSG2H.shape[2]
    k_BSNH, v_BSNH = (one.repeat_interleave(shared, 2) for one in kv_BSG2H.unbind(3))
    scores_BNTS = torch.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH) / q_BTNH.shape[3] ** 0.5
    return torch.einsum("bnts,bsnh->btnh", scores_BNTS.softmax(-1), v_BSNH)


@needs_compiler
@pytest.mark.parametrize(
    "sizes",
    [(3, 17, 17, 8, 8, 8), (2, 1, 17, 4, 4, 16), (2, 6, 50, 4, 2, 4), (1, 5, 64, 2, 1, 32), (2, 3, 16, 1, 1, 64)],
)
def test_it_gives_the_plain_products_answer_and_gradient(sizes: tuple[int, ...]) -> None:
    assert short_attention.build("g++")
    rows, queries, keys, heads, groups, width = sizes
    generator = torch.Generator().manual_seed(0)
    q = (3 * torch.randn(rows, queries, heads, width, generator=generator)).requires_grad_()
    kv = torch.randn(rows, keys, groups, 2, width, generator=generator).requires_grad_()
    above = torch.randn(rows, queries, heads, width, generator=generator)
    found, expected = short_attention.attend(q, kv), _plain(q, kv)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(found, (q, kv), above), torch.autograd.grad(expected, (q, kv), above), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_bfloat16_is_computed_in_float32() -> None:
    assert short_attention.build("g++")
    generator = torch.Generator().manual_seed(0)
    q, kv = torch.randn(2, 17, 4, 8, generator=generator), torch.randn(2, 17, 4, 2, 8, generator=generator)
    rounded = q.bfloat16().requires_grad_(), kv.bfloat16().requires_grad_()
    found = short_attention.attend(*rounded)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, _plain(*(one.float() for one in rounded)).bfloat16())
    assert all(grad.dtype == torch.bfloat16 for grad in torch.autograd.grad(found.float().sum(), rounded))


@needs_compiler
def test_scores_far_apart_give_no_nan() -> None:
    assert short_attention.build("g++")
    q, kv = torch.full((1, 2, 1, 4), 200.0), torch.randn(1, 5, 1, 2, 4, generator=torch.Generator().manual_seed(1))
    kv[:, 0] = -200.0
    kv[:, 1, :, 0] = 200.0
    torch.testing.assert_close(short_attention.attend(q, kv), _plain(q, kv))


def test_a_pass_that_is_not_compiled_does_without() -> None:
    attention = ElasticAttention(16, 2, 8)
    q, kv = torch.zeros(1, 3, 2, 8), torch.zeros(1, 3, 2, 2, 8)
    assert not short_attention.serves(q, kv)
    assert attention(torch.zeros(1, 3, 16)).shape == (1, 3, 16)


def test_a_compiler_that_fails_leaves_it_to_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(short_attention, "_built", False)
    assert not short_attention.build("false")
    assert "attention is left to torch: false could not build short_attention.cpp" in caplog.text
