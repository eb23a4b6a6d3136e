"""A hidden unit that is begun anew."""

from __future__ import annotations

import torch

from planaria.blueprint import Blueprint
from planaria.model import build
from planaria.morph import renew_unit

BLUEPRINT = Blueprint(
    task="classification", width=8, head_width=4, mlp_width=6, heads=(1, 1), outputs=3, numeric=3, categories=0
)


def test_a_renewed_unit_leaves_the_output_as_it_was_where_it_had_always_said_the_same() -> None:
    model = build(BLUEPRINT, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.no_grad():
        model.output.weight.normal_(generator=torch.Generator().manual_seed(2))
        model.block(0).mlp.into.weight[4] = 0
        model.block(0).mlp.into.bias[4] = 2.0
    features = {"numeric": torch.randn(16, 3, generator=torch.Generator().manual_seed(3))}
    before = model(features)
    activation = float(torch.nn.functional.gelu(torch.tensor(2.0)))

    renew_unit(model, optimizer, 0, 4, activation, torch.Generator().manual_seed(4))

    torch.testing.assert_close(model(features), before)
    assert model.block(0).mlp.into.weight[4].abs().sum() > 0
    assert model.block(0).mlp.out.weight[:, 4].abs().sum() == 0


def test_its_optimizer_state_begins_as_a_fresh_heads_does() -> None:
    model = build(BLUEPRINT, seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()

    renew_unit(model, optimizer, 1, 2, 0.0, torch.Generator().manual_seed(4))

    for parameter, dimension in ((model.block(1).mlp.into.weight, 0), (model.block(1).mlp.out.weight, 1)):
        state = optimizer.state[parameter]
        assert state["exp_avg"].select(dimension, 2).abs().sum() == 0
        assert state["exp_avg"].select(dimension, 3).abs().sum() > 0
        torch.testing.assert_close(state["exp_avg_sq"].select(dimension, 2), state["exp_avg_sq"].select(dimension, 3))
