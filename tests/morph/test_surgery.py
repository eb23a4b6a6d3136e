"""Surgery on live models: functions kept, state carried, everything resumable after any sequence of edits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from planaria.blueprint import Blueprint, Edit, GrowHeads, GrowOutputs, ShrinkHeads
from planaria.learn import build_optimizer, load_optimizer_tensors, optimizer_tensors, replace_parameter
from planaria.model import ElasticTransformer, build
from planaria.morph import growth_scores, head_importance, operate, temper
from planaria.policy import Learner

BLUEPRINT = Blueprint("classification", 16, 4, 32, (2, 3), 4, image_shape=(1, 8, 8), patch=4)


def _rows(count: int = 32, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return {"image": image}, (image.float().mean((1, 2, 3)) / 32).long() % 4


def _model_loss(model: torch.nn.Module, features: Mapping[str, Tensor], target: Tensor) -> Tensor:
    return _row_loss(model(features), target)


def _row_loss(output: Tensor, target: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(output, target, reduction="none")


def _train(model: ElasticTransformer, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        features, target = _rows(seed=step)
        optimizer.zero_grad()
        _row_loss(model(features), target).mean().backward()
        optimizer.step()


def _trained(steps: int = 20, learner: Learner | None = None) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    model = build(BLUEPRINT)
    optimizer = build_optimizer(model, learner or Learner(learning_rate=0.01))
    _train(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [0, 1])
def test_growing_a_head_keeps_the_output(layer: int, training: bool) -> None:
    model, optimizer = _trained()
    model.train(training)
    features, _ = _rows()
    before = model(features)
    operate(model, GrowHeads(layer, 2), seed=1, follow=partial(replace_parameter, optimizer))
    assert (model(features) - before).abs().max().item() <= 1e-6
    assert sum(p.numel() for p in model.parameters()) == model.blueprint.parameters


def test_a_grown_head_learns() -> None:
    model, optimizer = _trained()
    operate(model, GrowHeads(0, 1), seed=1, follow=partial(replace_parameter, optimizer))
    _train(model, optimizer, 3)
    assert bool((model.block(0).attention.o[-1] != 0).any())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimizer_state_follows_its_heads_and_new_ones_begin_clean(name: str) -> None:
    model, optimizer = _trained(learner=Learner(optimizer=name, learning_rate=0.01))
    slot = "exp_avg" if name == "adamw" else "momentum_buffer"
    before = optimizer.state[model.block(1).attention.q][slot].clone()
    follow = partial(replace_parameter, optimizer)
    operate(model, ShrinkHeads(1, (1,)), seed=0, follow=follow)
    operate(model, GrowHeads(1, 1), seed=0, follow=follow)
    after = optimizer.state[model.block(1).attention.q][slot]
    assert torch.equal(after[:2], before[[0, 2]])
    assert not bool(after[2].any())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} == held


def test_a_grown_heads_first_steps_are_no_longer_than_others() -> None:
    """Adam counts steps per tensor: with a second moment of zero a fresh row would take ten times its steps."""
    model, optimizer = _trained(400, Learner(learning_rate=0.001))
    operate(model, GrowHeads(0, 1), seed=1, follow=partial(replace_parameter, optimizer))
    before = model.block(0).attention.o.detach().clone()
    _train(model, optimizer, 3)
    moved = (model.block(0).attention.o.detach() - before).flatten(1).abs().mean(1)
    assert 0 < moved[-1] < 3 * moved[:-1].mean()


def test_refitting_loses_less_than_cutting() -> None:
    model, _ = _trained(60)
    features, _ = _rows(256, seed=99)
    unseen, _ = _rows(256, seed=100)
    before = model(unseen)
    weakest = ShrinkHeads(0, (1,))
    cut, refitted = build(BLUEPRINT), build(BLUEPRINT)
    cut.load_state_dict(model.state_dict())
    refitted.load_state_dict(model.state_dict())
    operate(cut, weakest, seed=0)
    operate(refitted, weakest, seed=0, calibration=features)
    assert (refitted(unseen) - before).square().mean().item() < (cut(unseen) - before).square().mean().item()
    assert refitted.blueprint.parameters < BLUEPRINT.parameters


def test_removing_a_head_that_says_nothing_changes_nothing() -> None:
    model, _ = _trained()
    features, _ = _rows()
    before = model(features)
    operate(model, GrowHeads(0, 1), seed=1)
    operate(model, ShrinkHeads(0, (2,)), seed=0, calibration=features)
    torch.testing.assert_close(model(features), before, atol=1e-5, rtol=1e-5)


def test_a_new_class_leaves_the_order_of_the_known_ones() -> None:
    model, optimizer = _trained()
    features, _ = _rows()
    before = model(features)
    operate(model, GrowOutputs(6), seed=0, follow=partial(replace_parameter, optimizer))
    assert torch.equal(model(features)[:, :4], before)
    _train(model, optimizer, 1)


def test_an_edit_that_does_not_fit_touches_nothing() -> None:
    model, optimizer = _trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="at least one head"):
        operate(model, ShrinkHeads(0, (0, 1)), seed=0, follow=partial(replace_parameter, optimizer))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tempering_scales_the_logits() -> None:
    model, _ = _trained()
    features, _ = _rows()
    before = model(features)
    temper(model, 0.3)
    torch.testing.assert_close(model(features), before * 0.3)


def test_importance_sees_the_head_that_matters() -> None:
    model, _ = _trained(60)
    features, target = _rows(128)
    with torch.no_grad():
        model.block(0).attention.o[0].zero_()
    importance = head_importance(model, features, target, _model_loss)
    assert [len(layer) for layer in importance] == [2, 3]
    assert importance[0][0] == 0 < importance[0][1]


def test_growth_scores_leave_the_model_alone() -> None:
    model, _ = _trained()
    features, target = _rows()
    before = model(features)
    scores = growth_scores(model, features, target, _model_loss, seed=5)
    assert len(scores) == 2 and min(scores) > 0
    assert torch.equal(model(features), before)
    assert model.blueprint == BLUEPRINT


@st.composite
def edit_sequences(draw: st.DrawFn) -> list[Edit]:
    blueprint, edits = BLUEPRINT, list[Edit]()
    for _ in range(50):
        layer = draw(st.integers(0, 1))
        live = blueprint.heads[layer]
        kinds = ["grow"] * (live < 6) + ["shrink"] * (live > 1) + ["outputs"] * (blueprint.outputs < 8)
        kind = draw(st.sampled_from(kinds))
        edit: Edit = GrowHeads(layer, draw(st.integers(1, 2)))
        if kind == "shrink":
            count = draw(st.integers(1, live - 1))
            edit = ShrinkHeads(layer, tuple(sorted(draw(st.permutations(range(live)))[:count])))
        elif kind == "outputs":
            edit = GrowOutputs(blueprint.outputs + 1)
        blueprint = edit.apply(blueprint)
        edits.append(edit)
    return edits


@settings(max_examples=15, deadline=None)
@given(edit_sequences(), st.sampled_from(["adamw", "sgd"]))
def test_any_fifty_edits_keep_shapes_state_and_saving_exact(edits: list[Edit], name: str) -> None:
    learner = Learner(optimizer=name, learning_rate=0.01)
    model, optimizer = _trained(2, learner)
    for at, edit in enumerate(edits):
        operate(model, edit, seed=at, follow=partial(replace_parameter, optimizer))
        if at % 10 == 0:
            _train(model, optimizer, 1)
    assert sum(p.numel() for p in model.parameters()) == model.blueprint.parameters
    weights, moments = load(save(dict(model.state_dict()))), optimizer_tensors(optimizer, model.named_parameters())
    twin = build(model.blueprint)
    twin.load_state_dict(weights)
    twin_optimizer = build_optimizer(twin, learner)
    load_optimizer_tensors(twin_optimizer, dict(twin.named_parameters()), load(save(moments)))
    _train(model, optimizer, 2)
    _train(twin, twin_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 3)), min_size=1, max_size=10))
def test_growing_can_be_undone_in_shape_and_function(growths: list[tuple[int, int]]) -> None:
    model, _ = _trained(2)
    features, _ = _rows()
    before = model(features)
    for layer, heads in growths:
        operate(model, GrowHeads(layer, heads), seed=layer)
    for layer, heads in reversed(growths):
        live = model.blueprint.heads[layer]
        operate(model, ShrinkHeads(layer, tuple(range(live - heads, live))), seed=0)
    assert model.blueprint == BLUEPRINT
    torch.testing.assert_close(model(features), before, atol=1e-6, rtol=1e-6)
