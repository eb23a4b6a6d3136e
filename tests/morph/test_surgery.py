"""Surgery on live models: functions kept, state carried, everything resumable after any sequence of edits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from planaria.blueprint import BEFORE_EDIT, Blueprint, Edit, GrowHeads, GrowOutputs, RecycleHead, Restore, ShrinkHeads
from planaria.learn import (
    OptimizerFollower,
    RestoringFollower,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from planaria.model import ElasticTransformer, build
from planaria.morph import growth_scores, head_importance, operate, temper
from planaria.morph.surgery import FRESH_HEAD_MOMENT
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
    operate(model, GrowHeads(layer, 2), seed=1, follow=OptimizerFollower(optimizer))
    assert (model(features) - before).abs().max().item() <= 1e-6
    assert sum(p.numel() for p in model.parameters()) == model.blueprint.parameters


def test_a_grown_head_learns() -> None:
    model, optimizer = _trained()
    operate(model, GrowHeads(0, 1), seed=1, follow=OptimizerFollower(optimizer))
    _train(model, optimizer, 3)
    assert bool((model.block(0).attention.o[-1] != 0).any())


@pytest.mark.parametrize("name", ["adamw", "adabelief", "meta_sgd", "sgd"])
def test_optimizer_state_follows_its_heads_and_new_ones_begin_clean(name: str) -> None:
    model, optimizer = _trained(learner=Learner(optimizer=name, learning_rate=0.01))
    slot = "momentum_buffer" if name == "sgd" else "exp_avg"
    before = optimizer.state[model.block(1).attention.q][slot].clone()
    follow = OptimizerFollower(optimizer)
    operate(model, ShrinkHeads(1, (1,)), seed=0, follow=follow)
    operate(model, GrowHeads(1, 1), seed=0, follow=follow)
    after = optimizer.state[model.block(1).attention.q][slot]
    assert torch.equal(after[:2], before[[0, 2]])
    assert not bool(after[2].any())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} == held


def test_a_grown_head_moves_at_once_and_not_without_bounds() -> None:
    """Its gradients are small while its outputs are: under the others' second moments it would hardly move."""
    model, optimizer = _trained(400, Learner(learning_rate=0.001))
    operate(model, GrowHeads(0, 1), seed=1, follow=OptimizerFollower(optimizer))
    before = model.block(0).attention.o.detach().clone()
    _train(model, optimizer, 3)
    moved = (model.block(0).attention.o.detach() - before).flatten(1).abs().mean(1)
    assert moved[:-1].mean() < moved[-1] < 3 * 10 * 0.001


def test_new_classes_begin_with_the_second_moments_of_known_ones() -> None:
    model, optimizer = _trained()
    before = optimizer.state[model.output.weight]["exp_avg_sq"].mean(0)
    operate(model, GrowOutputs(6), seed=0, follow=OptimizerFollower(optimizer))
    torch.testing.assert_close(optimizer.state[model.output.weight]["exp_avg_sq"][-1], before)


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
    operate(model, GrowOutputs(6), seed=0, follow=OptimizerFollower(optimizer))
    assert torch.equal(model(features)[:, :4], before)
    _train(model, optimizer, 1)


def test_an_edit_that_does_not_fit_touches_nothing() -> None:
    model, optimizer = _trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="at least one head"):
        operate(model, ShrinkHeads(0, (0, 1)), seed=0, follow=OptimizerFollower(optimizer))
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


def build_with(weights: dict[str, Tensor]) -> ElasticTransformer:
    model = build(BLUEPRINT)
    model.load_state_dict(weights)
    return model


def _kept(model: ElasticTransformer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_a_restored_model_answers_bit_for_bit_as_it_did_and_begins_without_moments() -> None:
    model, optimizer = _trained()
    follow = OptimizerFollower(optimizer)
    features, _ = _rows()
    before, kept = model(features), _kept(model)
    operate(model, GrowHeads(0, 2), seed=1, follow=follow)
    operate(model, ShrinkHeads(1, (0,)), seed=1, follow=follow)
    _train(model, optimizer, 5)
    assert operate(model, Restore(4, (2, 3)), seed=0, follow=follow, weights=kept) == BLUEPRINT
    assert torch.equal(model(features), before)
    assert not optimizer.state
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    _train(model, optimizer, 1)
    assert not torch.equal(model.output.bias, kept["output.bias"]), "and learning on leaves what was kept alone"
    assert torch.equal(build_with(kept)(features), before)


def test_labels_that_came_later_have_no_weights_after_a_restore() -> None:
    model, optimizer = _trained()
    follow = OptimizerFollower(optimizer)
    features, _ = _rows()
    before, kept = model(features), _kept(model)
    operate(model, GrowOutputs(6), seed=0, follow=follow)
    _train(model, optimizer, 5)
    after = operate(model, Restore(0, (2, 3)), seed=0, follow=follow, weights=kept)
    assert after.outputs == 6
    assert torch.equal(model(features)[:, :4], before)
    assert not bool(model.output.weight[4:].any()) and bool((model.output.bias[4:] == kept["output.bias"].min()).all())
    _train(model, optimizer, 1)


def test_a_restored_table_model_reads_numbers_as_it_did() -> None:
    blueprint = Blueprint("regression", 16, 4, 32, (2,), 1, numeric=3)
    model, values = build(blueprint), torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    model.observe({"numeric": values})
    model.output.observe(values[:, 0])
    before, kept = model({"numeric": values}), _kept(model)
    model.observe({"numeric": 10 * values + 5})
    model.output.observe(values[:, 1] * 7)
    operate(model, Restore(0, (2,)), seed=0, weights=kept)
    assert torch.equal(model({"numeric": values}), before)


def test_what_was_kept_before_an_edit_comes_back_with_its_moments() -> None:
    model, optimizer = _trained()
    twin, twin_optimizer = _trained()
    kept, moments = _kept(model), optimizer_tensors(optimizer, model.named_parameters())
    moments = {name: value.clone() for name, value in moments.items()}
    operate(model, GrowHeads(1, 1), seed=3, follow=OptimizerFollower(optimizer))
    _train(model, optimizer, 4)
    names = {parameter: name for name, parameter in model.named_parameters()}
    follow = RestoringFollower(optimizer, names, moments)
    operate(model, Restore(BEFORE_EDIT, (2, 3)), seed=0, follow=follow, weights=kept)
    _train(model, optimizer, 3)
    _train(twin, twin_optimizer, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("edit", [Restore(0, (2, 2)), Restore(0, (2,)), RecycleHead(1, 3), RecycleHead(5, 0)])
def test_a_restore_or_recycling_that_does_not_fit_touches_nothing(edit: Edit) -> None:
    model, _ = _trained()
    before = _kept(model)
    with pytest.raises(ValueError, match=r"cannot|not|no layer"):
        operate(model, edit, seed=0, weights=before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("calibrated", [True, False])
def test_recycling_a_dead_head_keeps_the_function(calibrated: bool) -> None:
    model, _ = _trained()
    features, _ = _rows()
    with torch.no_grad():
        model.block(1).attention.o[1].zero_()
    before, query = model(features), model.block(1).attention.q.detach().clone()
    after = operate(model, RecycleHead(1, 1), seed=4, calibration=features if calibrated else None)
    assert after == BLUEPRINT
    torch.testing.assert_close(model(features), before, atol=1e-5, rtol=1e-5)
    recycled = model.block(1).attention.q.detach()
    assert torch.equal(recycled[:2], query[[0, 2]]) and not torch.equal(recycled[2], query[1])
    assert not bool(model.block(1).attention.o[2].any())


def test_a_recycled_heads_optimizer_rows_begin_as_a_fresh_heads() -> None:
    model, optimizer = _trained()
    before = {k: v.clone() for k, v in optimizer.state[model.block(1).attention.q].items()}
    operate(model, RecycleHead(1, 0), seed=4, follow=OptimizerFollower(optimizer))
    after = optimizer.state[model.block(1).attention.q]
    assert torch.equal(after["exp_avg"][:2], before["exp_avg"][1:]) and not bool(after["exp_avg"][2].any())
    assert torch.equal(after["exp_avg_sq"][2], FRESH_HEAD_MOMENT * before["exp_avg_sq"][1:].mean(0))
    _train(model, optimizer, 2)
    assert bool(model.block(1).attention.o[2].any()), "and it learns"


def test_the_only_head_of_a_layer_is_not_recycled() -> None:
    with pytest.raises(ValueError, match="only head"):
        RecycleHead(0, 0).apply(Blueprint("classification", 16, 4, 32, (1, 3), 4, image_shape=(1, 8, 8), patch=4))


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
        operate(model, edit, seed=at, follow=OptimizerFollower(optimizer))
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
