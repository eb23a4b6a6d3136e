"""Edits of a model with gates: growing keeps the function, gates follow their heads and blocks, and come and go."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from tests.morph.conftest import fits, pictures, row_loss, train

from planaria.blueprint import (
    BEFORE_EDIT,
    Blueprint,
    Edit,
    Gates,
    GrowHeads,
    GrowOutputs,
    RecycleHead,
    Restore,
    SetGate,
    Share,
    ShrinkHeads,
    Unshare,
    edit_from_dict,
    edit_to_dict,
)
from planaria.learn import (
    OptimizerFollower,
    RestoringFollower,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from planaria.model import ElasticTransformer, build
from planaria.model.gates import Gate
from planaria.morph import growth_scores, head_importance, openings, operate
from planaria.policy import Learner

LAYERS = 3
ROW, STREAM = Gates("hard_concrete", "row", 2), Gates("straight_through", "stream", 2)
PLAIN = Blueprint("classification", 16, 4, 24, (2,) * LAYERS, 4, image_shape=(1, 8, 8), patch=4)


def _gate(model: ElasticTransformer, layer: int) -> Gate:
    gate = model.block(layer).gate
    assert gate is not None
    return gate


def _trained(blueprint: Blueprint, steps: int = 10) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    """Some gates of which are closed to some rows."""
    model, generator = build(blueprint), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in range(LAYERS if blueprint.gates else 0):
            for parameter in _gate(model, layer).parameters():
                parameter.normal_(generator=generator)
            _gate(model, layer).mean_D.normal_(generator=generator)
    optimizer = build_optimizer(model, Learner(learning_rate=0.01))
    train(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gates", [ROW, STREAM])
@pytest.mark.parametrize("layer", [0, 2])
def test_growing_a_head_keeps_the_output_with_gates_on(layer: int, gates: Gates, training: bool) -> None:
    model, optimizer = _trained(replace(PLAIN, gates=gates))
    model.train(training)
    features, _ = pictures()
    before = model(features)
    operate(model, GrowHeads(layer, 2), seed=1, follow=OptimizerFollower(optimizer))
    assert (model(features) - before).abs().max().item() <= 1e-6
    assert bool((openings(model, features)[layer][:, 2:4] == 1).all()), "and every row tries the new heads"
    fits(model, optimizer)
    train(model, optimizer, 3)
    assert bool((model.block(layer).attention.o[-1] != 0).any()), "and they learn"


@pytest.mark.parametrize("gates", [ROW, STREAM])
def test_gates_and_their_moments_go_where_their_heads_go(gates: Gates) -> None:
    model, optimizer = _trained(replace(PLAIN, heads=(3,) * LAYERS, gates=gates))
    gate, features = _gate(model, 1), pictures()[0]
    weights, moments = gate.heads.detach().clone(), optimizer.state[gate.heads]["exp_avg"].clone()
    operate(model, ShrinkHeads(1, (1,)), seed=0, follow=OptimizerFollower(optimizer), calibration=features)
    assert torch.equal(gate.heads, weights[[0, 2]])
    assert torch.equal(optimizer.state[gate.heads]["exp_avg"], moments[[0, 2]])
    operate(model, RecycleHead(1, 0), seed=0, follow=OptimizerFollower(optimizer), calibration=features)
    assert torch.equal(gate.heads[0], weights[2]) and not bool(gate.heads[1].any())
    fits(model, optimizer)


def test_a_head_that_is_closed_to_all_rows_goes_without_a_change() -> None:
    model, _ = _trained(replace(PLAIN, gates=ROW))
    features, target = pictures()
    with torch.no_grad():
        _gate(model, 1).heads.zero_()
        _gate(model, 1).heads_bias.copy_(torch.tensor([-20.0, 5.0]))
    before = model(features)
    importance = head_importance(model, features, target, row_loss)
    assert importance[1][0] == 0 < importance[1][1]
    assert min(growth_scores(model, features, target, row_loss, seed=0)) > 0
    operate(model, ShrinkHeads(1, (0,)), seed=0)
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gates", [ROW, STREAM])
def test_gates_come_without_a_change_and_learn(gates: Gates) -> None:
    model, optimizer = _trained(PLAIN)
    features, _ = pictures()
    before = model(features)
    edit = SetGate(gates)
    assert edit_from_dict(edit_to_dict(edit)) == edit
    operate(model, edit, seed=0, follow=OptimizerFollower(optimizer))
    assert torch.equal(model(features), before)
    fits(model, optimizer)
    with torch.no_grad():
        _gate(model, 0).heads_bias.fill_(2.0)  # where its gradient is not zero
    train(model, optimizer, 2)
    assert bool(_gate(model, 0).heads_bias.ne(2.0).any())


def test_gates_that_go_leave_their_averages() -> None:
    unseen, calibration = pictures(256, seed=100)[0], pictures(256, seed=99)[0]
    changes = []
    for known in (None, calibration):
        model, optimizer = _trained(replace(PLAIN, gates=ROW, attention_of=(0, 0, 2), difference_rank=2))
        before = model(unseen)
        operate(model, SetGate(None), seed=0, follow=OptimizerFollower(optimizer), calibration=known)
        changes.append(float((model(unseen) - before).detach().square().mean()))
        fits(model, optimizer)
    assert changes[1] < changes[0]


def test_settled_gates_go_without_a_change() -> None:
    model, optimizer = _trained(replace(PLAIN, gates=STREAM))
    features, _ = pictures()
    assert any(bool((layer == 0).any()) for layer in openings(model, features))
    before = model(features)
    operate(model, SetGate(None), seed=0, follow=OptimizerFollower(optimizer), calibration=features)
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gates", [ROW, STREAM])
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_layers_share_and_part_with_gates_on(part: str, gates: Gates) -> None:
    """What was copied and put in another order, gates with it, is shared again without a change."""
    of = {f"{part}_of": (0, 0, 2)}
    model, optimizer = _trained(replace(PLAIN, gates=gates, **of))
    features, _ = pictures()
    before = model(features)
    follow = OptimizerFollower(optimizer)
    operate(model, Unshare(part, 1), seed=0, follow=follow)  # type: ignore[arg-type]
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    _turn_round(model, part, 1)
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    operate(model, Share(part, (0, 1)), seed=0, follow=follow)  # type: ignore[arg-type]
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    fits(model, optimizer)


def _turn_round(model: ElasticTransformer, part: str, layer: int) -> None:
    """The last head or hidden unit first: blocks of units stay together."""
    attention, mlp, gate = model.block(layer).attention, model.block(layer).mlp, _gate(model, layer)
    rows = [attention.q, attention.kv, attention.o, gate.heads, gate.heads_bias]
    if part == "mlp":
        rows = [mlp.into.weight, mlp.into.bias, gate.blocks, gate.blocks_bias]
    with torch.no_grad():
        for parameter in rows:
            parameter.copy_(parameter.flip(0))
        if part == "mlp":
            mlp.out.weight.copy_(mlp.out.weight.flip(1))


@pytest.mark.parametrize("gates", [None, STREAM])
def test_a_restored_state_has_the_gates_that_it_had(gates: Gates | None) -> None:
    model, optimizer = _trained(replace(PLAIN, gates=gates))
    features, _ = pictures()
    before, blueprint = model(features), model.blueprint
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {n: v.clone() for n, v in optimizer_tensors(optimizer, model.named_parameters()).items()}
    follow = OptimizerFollower(optimizer)
    edits = [SetGate(ROW)] if gates is None else [GrowHeads(0, 1), SetGate(None), SetGate(ROW)]
    for edit in edits:
        operate(model, edit, seed=1, follow=follow)
    train(model, optimizer, 2)
    names = {parameter: name for name, parameter in model.named_parameters()}
    restoring = RestoringFollower(optimizer, names, moments)
    operate(model, Restore.of(BEFORE_EDIT, blueprint), seed=0, follow=restoring, weights=kept)
    assert model.blueprint == blueprint and torch.equal(model(features), before)
    fits(model, optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[f"exp_avg/{name}"])


@pytest.mark.parametrize(
    ("gates", "edit", "why"),
    [
        (None, SetGate(None), "no gates to take away"),
        (ROW, SetGate(STREAM), "has gates already"),
        (None, SetGate(Gates("hard_concrete", "row", 5)), "cannot be split into 5"),
    ],
)
def test_gates_that_do_not_fit_touch_nothing(gates: Gates | None, edit: Edit, why: str) -> None:
    model, _ = _trained(replace(PLAIN, gates=gates), steps=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=why):
        operate(model, edit, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@st.composite
def edit_sequences(draw: st.DrawFn) -> tuple[Blueprint, list[Edit]]:
    first = blueprint = replace(
        PLAIN,
        gates=draw(st.sampled_from([None, ROW, STREAM])),
        attention_of=draw(st.sampled_from([(), (0, 0, 2)])),
        difference_rank=draw(st.sampled_from([0, 2])),
    )
    edits = list[Edit]()
    while len(edits) < 25:
        layer, part = draw(st.integers(0, LAYERS - 1)), draw(st.sampled_from(["attention", "mlp"]))
        edit = draw(
            st.sampled_from(
                [
                    GrowHeads(layer, 1),
                    ShrinkHeads(layer, (blueprint.heads[layer] - 1,)),
                    RecycleHead(layer, 0),
                    Share(part, (layer, draw(st.integers(0, LAYERS - 1)))),  # type: ignore[arg-type]
                    Unshare(part, layer),  # type: ignore[arg-type]
                    SetGate(draw(st.sampled_from([None, ROW, STREAM]))),
                    Restore.of(0, first),
                ]
            )
        )
        try:
            blueprint = edit.apply(blueprint)
        except ValueError:
            edit = GrowOutputs(blueprint.outputs + 1)
            blueprint = edit.apply(blueprint)
        edits.append(edit)
    return first, edits


@settings(max_examples=15, deadline=None)
@given(edit_sequences())
def test_any_edits_with_gates_keep_shapes_state_and_saving_exact(drawn: tuple[Blueprint, list[Edit]]) -> None:
    first, edits = drawn
    model, optimizer = _trained(first, 1)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for at, edit in enumerate(edits):
        features = pictures(seed=at)[0]
        before, known = model(features), features if at % 2 else None
        operate(model, edit, seed=at, follow=OptimizerFollower(optimizer), weights=kept, calibration=known)
        if isinstance(edit, GrowHeads | Unshare):
            torch.testing.assert_close(model(features), before, rtol=1e-4, atol=1e-4)
        if at % 6 == 0:
            train(model, optimizer, 1)
    fits(model, optimizer)
    weights, moments = load(save(dict(model.state_dict()))), optimizer_tensors(optimizer, model.named_parameters())
    twin = build(model.blueprint)
    twin.load_state_dict(weights)
    twin_optimizer = build_optimizer(twin, Learner(learning_rate=0.01))
    load_optimizer_tensors(twin_optimizer, dict(twin.named_parameters()), load(save(moments)))
    train(model, optimizer, 2)
    train(twin, twin_optimizer, 2)
    named = dict(twin.named_parameters())
    assert all(torch.allclose(value, named[name], rtol=1e-4, atol=1e-6) for name, value in model.named_parameters())
