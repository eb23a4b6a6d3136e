"""Gates: what they close is not computed, and what they open is computed as ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from planaria.blueprint import Blueprint, Gates
from planaria.model import ElasticTransformer, build, skipping
from planaria.model.gates import Gate, Watch

PLAIN = Blueprint("classification", 16, 4, 32, (3, 2), 4, image_shape=(1, 8, 8), patch=2)
KINDS = [
    Gates("straight_through", "row", 2),
    Gates("straight_through", "stream", 1),
    Gates("hard_concrete", "row", 2),
    Gates("hard_concrete", "stream", 4),
]


def _rows(count: int = 64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)}


def _gates(model: ElasticTransformer) -> list[Gate]:
    gates = [model.block(layer).gate for layer in range(model.blueprint.layers)]
    return [gate for gate in gates if gate is not None]


def _model(gates: Gates | None, *, closed: float = 0.0, seed: int = 0) -> ElasticTransformer:
    """`closed` is about the share of pairs of a gate and a row that are closed, or of gates; 0 is a fresh model."""
    model, generator = build(replace(PLAIN, gates=gates)), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.output.weight.normal_(generator=generator)
        for gate in _gates(model) if closed else []:
            gate.heads.normal_(generator=generator)
            gate.blocks.normal_(generator=generator)
            gate.mean_D.normal_(generator=generator)
            shift = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(closed))
            for bias in (gate.heads_bias, gate.blocks_bias):
                bias.fill_(-float(shift))
    return model


def _computed_all(model: ElasticTransformer) -> ElasticTransformer:
    """A twin that computes every head and multiplies."""
    twin = build(model.blueprint)
    twin.load_state_dict(model.state_dict())
    for layer, heads in enumerate(model.blueprint.heads):
        twin.block(layer).attention.head_scale_BN = torch.ones(1, heads)
    return twin


@pytest.mark.parametrize("gates", KINDS)
def test_a_fresh_models_gates_change_nothing_and_are_counted(gates: Gates) -> None:
    model, plain = _model(gates), _model(None)
    assert torch.equal(model(_rows()), plain(_rows()))
    assert sum(p.numel() for p in model.parameters()) == model.blueprint.parameters
    own = sum((n + gates.blocks) * 17 for n in PLAIN.heads)
    assert model.blueprint.parameters - PLAIN.parameters == own
    assert Blueprint.from_json(model.blueprint.to_json()) == model.blueprint


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("closed", [0.2, 0.6])
@pytest.mark.parametrize("gates", KINDS)
def test_skipping_has_the_outputs_and_gradients_of_multiplying(gates: Gates, closed: float, rows: int) -> None:
    model = _model(gates, closed=closed)
    twin = _computed_all(model)
    answers = [one(_rows(rows)) for one in (model, twin)]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)
    for answer in answers:
        answer.square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        ours_grad, grad = (torch.zeros_like(p) if p.grad is None else p.grad for p in (ours, theirs))
        torch.testing.assert_close(ours_grad, grad, rtol=1e-3, atol=1e-3, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model(_rows(rows)), answers[0].detach(), rtol=1e-4, atol=1e-4)


def _multiplications(monkeypatch: pytest.MonkeyPatch, model: ElasticTransformer, rows: int) -> int:
    """Of all linear maps of one pass."""
    counted = 0
    linear = F.linear

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal counted
        counted += x.numel() * weight.shape[0]
        return linear(x, weight, bias)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "linear", counting)
        model(_rows(rows))
    return counted


@pytest.mark.parametrize("gates", KINDS)
def test_closed_heads_and_blocks_are_not_computed(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(gates)
    for_all = _multiplications(monkeypatch, model, 64)
    for gate in _gates(model):
        with torch.no_grad():
            gate.heads_bias[1:] = -20
            gate.blocks_bias.fill_(-20)
    small = build(replace(PLAIN, heads=(1, 1)))
    assert _multiplications(monkeypatch, model, 64) < _multiplications(monkeypatch, small, 64) < for_all


def test_a_row_pays_for_the_heads_that_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    few, most = (
        _multiplications(monkeypatch, _model(Gates("hard_concrete", "row", 1), closed=closed), 64)
        for closed in (0.95, 0.6)
    )
    assert few < most < _multiplications(monkeypatch, _model(Gates("hard_concrete", "row", 1)), 64)


@pytest.mark.parametrize("gates", KINDS)
def test_the_loss_and_the_chance_of_being_open_reach_the_gates_weights(gates: Gates) -> None:
    model = _model(gates, closed=0.3)
    watches = [Watch() for _ in _gates(model)]
    for gate, watch in zip(_gates(model), watches, strict=True):
        gate.watch = watch
    model(_rows()).square().mean().backward()
    assert any(bool(gate.heads.grad is not None and gate.heads.grad.any()) for gate in _gates(model))
    assert any(bool(gate.blocks.grad is not None and gate.blocks.grad.any()) for gate in _gates(model))
    model.zero_grad()
    model(_rows())
    chance_BG = watches[0].chance_BG
    assert chance_BG is not None and chance_BG.shape == (64, 3 + gates.blocks)
    chance_BG.mean().backward()
    heads = _gates(model)[0].heads.grad
    assert heads is not None and bool((heads.abs().sum(1) > 0).all()), "also of closed ones"


def test_drawn_gates_are_as_often_open_as_they_say() -> None:
    """Source of what is tested: equation 12 of arXiv 1712.01312."""
    gate = Gate(Gates("hard_concrete", "row", 1), 4, 1)
    with torch.no_grad():
        gate.heads_bias.fill_(-0.4)
    noise_BG = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    gate.watch = Watch(noise_BG)
    open_BN, _ = gate(torch.zeros(20_000, 3, 4))
    assert float((open_BN != 0).float().mean()) == pytest.approx(float(torch.tensor(-0.4).sigmoid()), abs=0.01)
    assert bool((open_BN == 1).any()) and bool(((open_BN > 0) & (open_BN < 1)).any())


@pytest.mark.parametrize(
    ("gates", "why"),
    [
        (Gates("hard_concrete", "row", 3), "cannot be split into 3 equal blocks"),
        (Gates("hard_concrete", "row", 0), "cannot be split into 0 equal blocks"),
        (Gates("soft", "row", 1), "there is no gate 'soft'"),  # type: ignore[arg-type]
    ],
)
def test_gates_that_cannot_be_are_refused(gates: Gates, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        build(replace(PLAIN, gates=gates))


def test_few_left_out_or_few_rows_are_not_gathered() -> None:
    def gathers(open_: Tensor, tokens: int) -> bool:
        return skipping.Openings.of(open_, torch.zeros(len(open_), tokens, 2)).gathers

    half: Any = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(32, 1)
    assert gathers(half, 8) and not gathers(half, 7)
    assert not gathers(torch.tensor([[1.0, 0.0]]).repeat(64, 1), 8), "one is open to all, the other to none"
