"""MLPs of different widths: hidden units come and go with all that belongs to them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from tests.morph.conftest import fits, pictures, train

from planaria.blueprint import (
    BEFORE_EDIT,
    Blueprint,
    Edit,
    Gates,
    GrowHeads,
    GrowMlp,
    Prune,
    Restore,
    SetGate,
    Share,
    ShrinkHeads,
    ShrinkMlp,
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
from planaria.morph import operate
from planaria.policy import Learner

LAYERS = 3
PLAIN = Blueprint("classification", 16, 4, 8, (2,) * LAYERS, 4, image_shape=(1, 8, 8), patch=4)
ROW, STREAM = Gates("hard_concrete", "row", 2), Gates("straight_through", "stream", 2)
SHARED = {"mlp_of": (0, 0, 2), "difference_rank": 2}


def _trained(
    blueprint: Blueprint, steps: int = 10, optimizer: str = "adamw"
) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    """Some of its gates are closed to some rows, and what layers differ by is not zero."""
    model, generator = build(blueprint), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in range(blueprint.layers):
            block = model.block(layer)
            for module in (block.gate, block.mlp_difference):
                for parameter in () if module is None else module.parameters():
                    parameter.normal_(std=0.5, generator=generator)
    learner = Learner.model_validate({"optimizer": optimizer, "learning_rate": 0.01})
    built = build_optimizer(model, learner)
    train(model, built, steps)
    return model, built


VARIANTS = [{}, SHARED, {"gates": ROW}, {"gates": STREAM, **SHARED}]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_growing_an_mlp_keeps_the_output_and_what_came_learns(variant: dict[str, object], training: bool) -> None:
    model, optimizer = _trained(replace(PLAIN, **variant))  # type: ignore[arg-type]
    model.train(training)
    features, _ = pictures()
    before = model(features)
    after = operate(model, GrowMlp(1, 4), seed=1, follow=OptimizerFollower(optimizer))
    assert [after.mlp_width_of(layer) for layer in range(LAYERS)] == (
        [12, 12, 8] if "mlp_of" in variant else [8, 12, 8]
    )
    torch.testing.assert_close(model(features), before, rtol=1e-6, atol=1e-6)
    fits(model, optimizer)
    grown = model.block(1).mlp.out
    fresh = (grown.weight == 0).all(0)
    assert int(fresh.sum()) == 4
    train(model, optimizer, 3)
    moved = (grown.weight[:, fresh] != 0).any(0)
    assert bool(moved.all() if "gates" not in variant else moved.any())


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_grown_can_be_undone_in_shape_and_function(variant: dict[str, object]) -> None:
    model, optimizer = _trained(replace(PLAIN, **variant))  # type: ignore[arg-type]
    features, _ = pictures()
    before, shape = model(features), model.blueprint
    follow = OptimizerFollower(optimizer)
    operate(model, GrowMlp(0, 2), seed=1, follow=follow)
    fresh = torch.nonzero((model.block(0).mlp.out.weight == 0).all(0)).flatten().tolist()
    assert fresh == ([4, 9] if "gates" in variant else [8, 9]), "one for each block, as its last"
    assert operate(model, ShrinkMlp(0, tuple(fresh)), seed=0, follow=follow, calibration=features) == shape
    torch.testing.assert_close(model(features), before, rtol=1e-4, atol=1e-5)
    fits(model, optimizer)


@pytest.mark.parametrize("name", ["adamw", "adabelief", "meta_sgd", "sgd"])
def test_optimizer_state_follows_its_hidden_units(name: str) -> None:
    model, optimizer = _trained(PLAIN, optimizer=name)
    slot = "momentum_buffer" if name == "sgd" else "exp_avg"
    mlp, follow = model.block(1).mlp, OptimizerFollower(optimizer)
    out, into = (optimizer.state[weight][slot].clone() for weight in (mlp.out.weight, mlp.into.weight))
    operate(model, ShrinkMlp(1, (0, 5)), seed=0, follow=follow)
    operate(model, GrowMlp(1, 1), seed=0, follow=follow)
    kept = [1, 2, 3, 4, 6, 7]
    assert torch.equal(optimizer.state[mlp.out.weight][slot][:, :6], out[:, kept])
    assert torch.equal(optimizer.state[mlp.into.weight][slot][:6], into[kept])
    assert not bool(optimizer.state[mlp.out.weight][slot][:, 6].any())
    fits(model, optimizer)
    train(model, optimizer, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_refitting_loses_less_than_cutting(variant: dict[str, object]) -> None:
    unseen, calibration = pictures(256, seed=100)[0], pictures(256, seed=99)[0]
    changes = []
    for known in (None, calibration):
        model, _ = _trained(replace(PLAIN, **variant), 40)  # type: ignore[arg-type]
        before = model(unseen)
        operate(model, ShrinkMlp(0, (0, 3, 4, 5)), seed=0, calibration=known)
        changes.append(float((model(unseen) - before).detach().square().mean()))
    assert changes[1] < 0.9 * changes[0]


def test_pruning_is_one_edit_of_all_layers_and_leaves_the_rest_as_it_was() -> None:
    model, optimizer = _trained(PLAIN)
    weight = model.block(2).mlp.into.weight.detach().clone()
    after = operate(model, Prune(((0,), (), (1,)), ((), (0, 1, 2), (7,))), seed=0, follow=OptimizerFollower(optimizer))
    assert after.heads == (1, 2, 1) and after.mlp_widths == (8, 5, 7)
    assert torch.equal(model.block(2).mlp.into.weight, weight[:7])
    fits(model, optimizer)


def test_a_restored_state_has_the_widths_that_it_had() -> None:
    model, optimizer = _trained(replace(PLAIN, mlp_widths=(8, 4, 8)))
    features, _ = pictures()
    before, blueprint = model(features), model.blueprint
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {n: v.clone() for n, v in optimizer_tensors(optimizer, model.named_parameters()).items()}
    operate(model, Prune(((0,), (), ()), ((0, 1, 2, 3), (), (5,))), seed=1, follow=OptimizerFollower(optimizer))
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match="hidden units"):
        operate(model, Restore(0, blueprint.heads), seed=0, weights=kept)
    names = {parameter: name for name, parameter in model.named_parameters()}
    restoring = RestoringFollower(optimizer, names, moments)
    operate(model, Restore.of(BEFORE_EDIT, blueprint), seed=0, follow=restoring, weights=kept)
    assert model.blueprint == blueprint and torch.equal(model(features), before)
    fits(model, optimizer)


@pytest.mark.parametrize(
    ("variant", "edit", "why"),
    [
        ({}, ShrinkMlp(0, (8,)), "which has 8"),
        ({}, ShrinkMlp(0, (1, 1)), "name each once"),
        ({}, ShrinkMlp(0, tuple(range(8))), "at least one hidden unit"),
        ({}, ShrinkMlp(3, (0,)), "no layer 3"),
        ({}, GrowMlp(0, 0), "cannot grow"),
        ({}, Prune(((),), ((),)), "nothing to prune"),
        ({}, Prune(((0,), (0, 1)), ()), "at least one head"),
        ({"gates": ROW}, ShrinkMlp(0, (0, 1)), "take as many of each"),
        ({"gates": ROW}, GrowMlp(0, 3), "in 2 blocks"),
        ({"mlp_widths": (8, 6, 8)}, Share("mlp", (0, 1)), "make them equal first"),
        ({"mlp_widths": (8, 6, 8)}, SetGate(Gates("hard_concrete", "row", 4)), "cannot be split into 4"),
    ],
)
def test_an_edit_of_hidden_units_that_does_not_fit_touches_nothing(
    variant: dict[str, object], edit: Edit, why: str
) -> None:
    model, _ = _trained(replace(PLAIN, **variant), steps=1)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=why):
        operate(model, edit, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@st.composite
def edit_sequences(draw: st.DrawFn) -> tuple[Blueprint, list[Edit]]:
    first = blueprint = replace(
        PLAIN,
        gates=draw(st.sampled_from([None, ROW, STREAM])),
        mlp_of=draw(st.sampled_from([(), (0, 0, 2)])),
        difference_rank=draw(st.sampled_from([0, 2])),
    )
    edits = list[Edit]()
    while len(edits) < 25:
        layer = draw(st.integers(0, LAYERS - 1))
        live, heads = blueprint.mlp_width_of(layer), blueprint.heads[layer]
        gone = (0, live // 2)
        edit = draw(
            st.sampled_from(
                [
                    GrowMlp(layer, draw(st.integers(1, 4))),
                    ShrinkMlp(layer, gone),
                    ShrinkMlp(layer, (live - 1,)),
                    Prune(((),) * layer + ((heads - 1,),), ((),) * layer + (gone,)),
                    GrowHeads(layer, 1),
                    ShrinkHeads(layer, (0,)),
                    Share("mlp", (layer, draw(st.integers(0, LAYERS - 1)))),
                    Unshare("mlp", layer),
                    SetGate(draw(st.sampled_from([None, ROW, STREAM]))),
                    Restore.of(0, first),
                ]
            )
        )
        try:
            blueprint = edit.apply(blueprint)
        except ValueError:
            continue
        edits.append(edit)
    return first, edits


@settings(max_examples=15, deadline=None)
@given(edit_sequences(), st.sampled_from(["adamw", "sgd"]))
def test_any_edits_of_hidden_units_keep_shapes_state_and_saving_exact(
    drawn: tuple[Blueprint, list[Edit]], name: str
) -> None:
    first, edits = drawn
    model, optimizer = _trained(first, 1, name)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    for at, edit in enumerate(edits):
        features = pictures(seed=at)[0]
        before, known = model(features), features if at % 2 else None
        operate(model, edit, seed=at, follow=OptimizerFollower(optimizer), weights=kept, calibration=known)
        if isinstance(edit, GrowMlp | GrowHeads | Unshare):
            torch.testing.assert_close(model(features), before, rtol=1e-4, atol=1e-4)
        if at % 6 == 0:
            train(model, optimizer, 1)
    fits(model, optimizer)
    weights, moments = load(save(dict(model.state_dict()))), optimizer_tensors(optimizer, model.named_parameters())
    twin = build(model.blueprint)
    twin.load_state_dict(weights)
    twin_optimizer = build_optimizer(twin, Learner.model_validate({"optimizer": name, "learning_rate": 0.01}))
    load_optimizer_tensors(twin_optimizer, dict(twin.named_parameters()), load(save(moments)))
    train(model, optimizer, 2)
    train(twin, twin_optimizer, 2)
    named = dict(twin.named_parameters())
    assert all(torch.allclose(value, named[name], rtol=1e-4, atol=1e-6) for name, value in model.named_parameters())
