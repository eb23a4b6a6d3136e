"""Layers that share weights: what an edit of one means for all, and how sharing comes and goes."""

from __future__ import annotations

import copy
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
    GrowHeads,
    GrowOutputs,
    Part,
    RecycleHead,
    Restore,
    Share,
    ShrinkHeads,
    Unshare,
)
from planaria.learn import (
    OptimizerFollower,
    RestoringFollower,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from planaria.model import ElasticTransformer, build
from planaria.morph import growth_scores, head_importance, operate
from planaria.policy import Learner

LAYERS = 4
ALONE = Blueprint("classification", 16, 4, 24, (2,) * LAYERS, 4, image_shape=(1, 8, 8), patch=4)
PAIRS = replace(ALONE, attention_of=(0, 0, 2, 2), mlp_of=(0, 0, 2, 2))
PARTS: tuple[Part, ...] = ("attention", "mlp")


def _trained(blueprint: Blueprint, steps: int = 10) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    model = build(blueprint)
    optimizer = build_optimizer(model, Learner(learning_rate=0.01))
    train(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize("rank", [0, 2])
def test_shared_weights_are_counted_saved_and_learned_once(rank: int) -> None:
    model, optimizer = _trained(replace(PAIRS, difference_rank=rank))
    fits(model, optimizer)
    assert model.block(1).attention is model.block(0).attention and model.block(3).mlp is model.block(2).mlp
    assert not any(name.startswith(("blocks.1.attention.", "blocks.1.mlp.")) for name in model.state_dict())
    differences = {name for name in model.state_dict() if "difference" in name}
    assert len(differences) == (LAYERS * 2 * (3 + 2) if rank else 0)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layer", [0, 1])
def test_weights_of_its_own_keep_the_outputs_and_their_moments(part: Part, layer: int, rank: int) -> None:
    model, optimizer = _trained(replace(PAIRS, difference_rank=rank))
    features, _ = pictures()
    before = model(features)
    weight = model.block(layer).attention.q if part == "attention" else model.block(layer).mlp.into.weight
    moments = optimizer.state[weight]["exp_avg"].clone()
    operate(model, Unshare(part, layer), seed=0, follow=OptimizerFollower(optimizer))
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    fits(model, optimizer)
    for of in (0, 1):
        own = model.block(of).attention.q if part == "attention" else model.block(of).mlp.into.weight
        assert torch.equal(optimizer.state[own]["exp_avg"], moments)
    train(model, optimizer, 2)
    assert not torch.equal(model.block(0).mlp.into.weight, model.block(1).mlp.into.weight) or part == "attention"


@pytest.mark.parametrize("part", PARTS)
def test_what_was_copied_is_shared_again_without_a_change(part: Part) -> None:
    model, optimizer = _trained(PAIRS)
    features, _ = pictures()
    follow = OptimizerFollower(optimizer)
    before = model(features)
    operate(model, Unshare(part, 1), seed=0, follow=follow)
    _shuffle(model, part, 1)
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    operate(model, Share(part, (0, 1)), seed=0, follow=follow)
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    assert model.blueprint == PAIRS
    fits(model, optimizer)


def _shuffle(model: ElasticTransformer, part: Part, layer: int) -> None:
    """Another order of heads or hidden units, which means the same."""
    attention, mlp = model.block(layer).attention, model.block(layer).mlp
    with torch.no_grad():
        if part == "attention":
            for weight in (attention.q, attention.kv, attention.o):
                weight.copy_(weight.flip(0))
        else:
            mlp.into.weight.copy_(mlp.into.weight.flip(0))
            mlp.into.bias.copy_(mlp.into.bias.flip(0))
            mlp.out.weight.copy_(mlp.out.weight.flip(1))


@pytest.mark.parametrize("part", PARTS)
def test_the_more_rank_the_less_sharing_changes(part: Part) -> None:
    changes = []
    for rank in (0, 4, 16):
        model, optimizer = _trained(replace(ALONE, difference_rank=rank), steps=30)
        features, _ = pictures()
        before = model(features).detach()
        with torch.no_grad():  # biases have no difference
            for layer in (0, 2):
                for bias in (model.block(layer).mlp.into.bias, model.block(layer).mlp.out.bias):
                    bias.zero_()
                bias_o = model.block(layer).attention.o_bias
                assert bias_o is not None
                bias_o.zero_()
        before = model(features).detach()
        operate(model, Share(part, (0, 2)), seed=0, follow=OptimizerFollower(optimizer))
        changes.append(float((model(features).detach() - before).abs().max()))
        fits(model, optimizer)
        train(model, optimizer, 1)
    assert changes[0] > changes[1] > changes[2]
    assert changes[2] < 1e-4, "full rank"


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("part", PARTS)
def test_sharing_changes_less_where_it_is_fitted_to_recent_inputs(part: Part, rank: int) -> None:
    before, _ = _trained(replace(ALONE, difference_rank=rank), steps=60)
    change = []
    for calibration in (None, pictures(256, seed=500)[0]):
        model = copy.deepcopy(before)
        operate(model, Share(part, (1, 2)), seed=0, calibration=calibration)
        assert all(attention.kept is None for attention in (model.block(at).attention for at in range(LAYERS)))
        fresh = pictures(256, seed=900)[0]
        change.append((model(fresh) - before(fresh)).square().mean().item())
    assert change[1] < 0.8 * change[0]


def test_heads_of_shared_attention_come_and_go_in_all_its_layers() -> None:
    model, optimizer = _trained(replace(PAIRS, difference_rank=2))
    follow = OptimizerFollower(optimizer)
    features, target = pictures()
    before = model(features)
    operate(model, GrowHeads(1, 2), seed=0, follow=follow)
    torch.testing.assert_close(model(features), before, rtol=1e-6, atol=1e-6)
    assert model.blueprint.heads == (4, 4, 2, 2)
    fits(model, optimizer)
    operate(model, RecycleHead(0, 2), seed=0, follow=follow, calibration=features)
    torch.testing.assert_close(model(features), before, rtol=1e-5, atol=1e-5)
    importance = head_importance(model, features, target, row_loss)
    assert importance[0] == importance[1] and [len(layer) for layer in importance] == [4, 4, 2, 2]
    scores = growth_scores(model, features, target, row_loss, seed=0)
    assert scores[0] == scores[1] != scores[2] == scores[3]
    operate(model, ShrinkHeads(1, (2, 3)), seed=0, follow=follow, calibration=features)
    torch.testing.assert_close(model(features), before, rtol=1e-4, atol=1e-4)
    fits(model, optimizer)


def test_refitting_shared_heads_loses_less_than_cutting_them() -> None:
    calibration, unseen = pictures(256, seed=99)[0], pictures(256, seed=100)[0]
    lost = []
    for known in (None, calibration):
        model, _ = _trained(replace(PAIRS, heads=(3,) * LAYERS), steps=60)
        before = model(unseen).detach()
        operate(model, ShrinkHeads(0, (1,)), seed=0, calibration=known)
        lost.append(float((model(unseen).detach() - before).square().mean()))
    assert lost[1] < lost[0]


def test_a_restored_state_shares_as_it_did() -> None:
    model, optimizer = _trained(replace(PAIRS, difference_rank=2))
    features, _ = pictures()
    before = model(features)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {n: v.clone() for n, v in optimizer_tensors(optimizer, model.named_parameters()).items()}
    blueprint, follow = model.blueprint, OptimizerFollower(optimizer)
    for edit in (Unshare("mlp", 0), Share("attention", (1, 2)), GrowHeads(3, 1), GrowOutputs(5)):
        operate(model, edit, seed=1, follow=follow)
    train(model, optimizer, 2)
    names = {parameter: name for name, parameter in model.named_parameters()}
    restoring = RestoringFollower(optimizer, names, moments)
    operate(model, Restore.of(BEFORE_EDIT, blueprint), seed=0, follow=restoring, weights=kept)
    assert model.blueprint == replace(blueprint, outputs=5)
    assert torch.equal(model(features)[:, :4], before)
    fits(model, optimizer)
    for name, parameter in model.named_parameters():
        if not name.startswith("output."):
            assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[f"exp_avg/{name}"])


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Share("mlp", (0, 1)), "share their mlp already"),
        (Share("attention", (0, 4)), "no layer 4"),
        (Unshare("attention", 2), "of its own already"),
        (Restore(0, (2, 3, 2, 2), attention_of=(0, 0, 2, 2)), "share their attention but have"),
        (Share("norm", (0, 2)), "no part 'norm'"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_touches_nothing(edit: Edit, why: str) -> None:
    model, _ = _trained(replace(PAIRS, attention_of=(0, 0, 2, 3)), steps=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=why):
        operate(model, edit, seed=0, weights=before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@st.composite
def edit_sequences(draw: st.DrawFn) -> tuple[Blueprint, list[Edit]]:
    first = blueprint = replace(draw(st.sampled_from([ALONE, PAIRS])), difference_rank=draw(st.sampled_from([0, 1, 3])))
    edits = list[Edit]()
    while len(edits) < 25:
        layer, part = draw(st.integers(0, LAYERS - 1)), draw(st.sampled_from(PARTS))
        edit = draw(
            st.sampled_from(
                [
                    GrowHeads(layer, 1),
                    ShrinkHeads(layer, (blueprint.heads[layer] - 1,)),
                    RecycleHead(layer, 0),
                    Share(part, (layer, draw(st.integers(0, LAYERS - 1)))),
                    Unshare(part, layer),
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


@settings(max_examples=12, deadline=None)
@given(edit_sequences())
def test_any_edits_keep_shapes_state_and_saving_exact(drawn: tuple[Blueprint, list[Edit]]) -> None:
    first, edits = drawn
    model, optimizer = _trained(first, 1)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for at, edit in enumerate(edits):
        operate(model, edit, seed=at, follow=OptimizerFollower(optimizer), weights=kept)
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
