"""What a fresh model's weights are."""

from __future__ import annotations

import torch

from planaria.blueprint import Blueprint
from planaria.model import build

BLUEPRINT = Blueprint("classification", 16, 4, 32, (4, 2), 3, image_shape=(1, 8, 8), patch=4)


def test_orthogonal_weights_are_orthogonal_and_those_that_write_are_scaled_by_depth() -> None:
    model = build(BLUEPRINT, seed=1, initialisation="orthogonal")
    for layer, heads in enumerate(BLUEPRINT.heads):
        block = model.block(layer)
        attention = block.attention
        inner = heads * 4
        for weight in (attention.q.view(inner, 16), *(half.reshape(inner, 16) for half in attention.kv.unbind(1))):
            torch.testing.assert_close(weight @ weight.t(), torch.eye(inner), atol=1e-5, rtol=0)
        into, out = block.mlp.into.weight, block.mlp.out.weight
        torch.testing.assert_close(into.t() @ into, 2 * torch.eye(16), atol=1e-5, rtol=0)
        torch.testing.assert_close(out @ out.t(), torch.eye(16) / 4, atol=1e-5, rtol=0)
        written = attention.o.view(inner, 16)
        expected = torch.eye(inner) * (16 / inner) / 4
        torch.testing.assert_close(written @ written.t(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.input.embed.weight.norm(dim=1), torch.ones(16))


def test_the_default_is_what_it_was_and_seeds_count() -> None:
    assert torch.equal(build(BLUEPRINT, 3).block(0).attention.q, build(BLUEPRINT, 3, "normal").block(0).attention.q)
    first, second = (build(BLUEPRINT, seed, "orthogonal").block(0).attention.q for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, build(BLUEPRINT, 1, "orthogonal").block(0).attention.q)
