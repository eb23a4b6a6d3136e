"""Edits of a model with adapters: one more changes nothing, optimizer state follows, and all other edits go on."""

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
    AddAdapter,
    Blueprint,
    Edit,
    Gates,
    GrowHeads,
    GrowMlp,
    GrowOutputs,
    Restore,
    SetGate,
    Share,
    ShrinkHeads,
    ShrinkMlp,
    Unshare,
    edit_from_dict,
    edit_to_dict,
)
from planaria.control.library import Snapshot
from planaria.learn import (
    OptimizerFollower,
    RestoringFollower,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from planaria.model import ROUTE, ElasticTransformer, build
from planaria.model.adapters import Adapters, Router
from planaria.morph import operate
from planaria.policy import Learner

LAYERS = 3
PLAIN = Blueprint("classification", 16, 4, 24, (2,) * LAYERS, 4, image_shape=(1, 8, 8), patch=4)
TWO = replace(PLAIN, adapters=2, adapter_units=3)


def _router(model: ElasticTransformer) -> Router:
    assert model.router is not None
    return model.router


def _adapters(model: ElasticTransformer, layer: int) -> Adapters:
    adapters = model.block(layer).adapters
    assert adapters is not None
    return adapters


def _trained(
    blueprint: Blueprint, steps: int = 10, optimizer: str = "adamw"
) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    """With a router that sends rows to all adapters."""
    model = build(blueprint)
    if blueprint.adapters:
        router = _router(model)
        router.features.fit(pictures(64)[0], 0)
        router.weight_FK.normal_(generator=torch.Generator().manual_seed(0))
        router.known_K.fill_(1)
    built = build_optimizer(model, Learner(learning_rate=0.01, optimizer=optimizer))  # type: ignore[arg-type]
    train(model, built, steps)
    return model, built


@pytest.mark.parametrize("blueprint", [PLAIN, TWO, replace(TWO, adapters=1), replace(TWO, mlp_of=(0, 0, 2))])
@pytest.mark.parametrize("training", [True, False])
def test_one_more_adapter_keeps_the_outputs(blueprint: Blueprint, training: bool) -> None:
    model, optimizer = _trained(blueprint)
    model.train(training)
    before = model(pictures()[0])
    operate(model, AddAdapter(3), seed=1, follow=OptimizerFollower(optimizer))
    assert (model(pictures()[0]) - before).abs().max().item() <= 1e-6
    assert model.blueprint.adapters == blueprint.adapters + 1
    assert [one.shape[1] for one in (_router(model).weight_FK, _router(model).known_K[None])] == [
        model.blueprint.adapters
    ] * 2
    fits(model, optimizer)


def test_a_row_that_is_told_to_use_a_fresh_adapter_has_the_base_alone_until_it_learns() -> None:
    model, optimizer = _trained(TWO)
    operate(model, AddAdapter(3), seed=1, follow=OptimizerFollower(optimizer))
    features, target = pictures()
    told = {**features, ROUTE: torch.eye(3)[2].expand(32, 3)}
    base = {**features, ROUTE: torch.zeros(32, 3)}
    assert (model(told) - model(base)).abs().max().item() <= 1e-6
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(told), target).backward()
    gradient = _adapters(model, 0).out_UD.grad
    assert gradient is not None and bool(gradient[6:].any()) and not bool(gradient[:6].any())
    optimizer.step()
    assert bool((_adapters(model, 0).out_UD[6:] != 0).any())


@pytest.mark.parametrize("name", ["adamw", "adabelief", "meta_sgd", "sgd"])
def test_optimizer_state_of_adapters_stays_and_new_units_begin_clean(name: str) -> None:
    model, optimizer = _trained(TWO, optimizer=name)
    adapters = _adapters(model, 1)
    slots = {slot: value.clone() for slot, value in optimizer.state[adapters.into_UD].items() if value.dim()}
    operate(model, AddAdapter(3), seed=0, follow=OptimizerFollower(optimizer))
    after = optimizer.state[_adapters(model, 1).into_UD]
    assert slots
    for slot, value in slots.items():
        assert torch.equal(after[slot][:6], value), slot
    for slot in ("exp_avg", "momentum_buffer"):
        assert slot not in slots or not bool(after[slot][6:].any())
    fits(model, optimizer)


def test_a_restored_state_keeps_the_adapters_that_came_since() -> None:
    model, optimizer = _trained(TWO)
    kept = Snapshot.of(model, model.blueprint, [[0]] * LAYERS, 0)
    assert not any(name.startswith("router.") for name in kept.weights)
    before = model(pictures()[0])
    operate(model, AddAdapter(3), seed=0, follow=OptimizerFollower(optimizer))
    _router(model).known_K.fill_(1)
    train(model, optimizer, 5)
    newest = _adapters(model, 0).into_UD[6:].detach().clone()
    operate(
        model,
        Restore.of(0, kept.blueprint),
        seed=0,
        follow=OptimizerFollower(optimizer),
        weights=kept.weights,
    )
    assert model.blueprint.adapters == 3 and torch.equal(_adapters(model, 0).into_UD[6:], newest)
    two = _router(model).route(_router(model).describe(pictures()[0]))
    _router(model).known_K[2] = 0
    assert two.shape == (32, 3) and (model(pictures()[0]) - before).abs().max().item() <= 1e-6
    fits(model, optimizer)


@pytest.mark.parametrize("came", [0, 1])
def test_the_state_before_an_edit_comes_back_with_its_moments(came: int) -> None:
    model, optimizer = _trained(TWO)
    names = lambda: {parameter: name for name, parameter in model.named_parameters()}  # noqa: E731
    kept = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("router.")}
    moments = {n: v.clone() for n, v in optimizer_tensors(optimizer, model.named_parameters()).items()}
    before = model.blueprint
    for _ in range(came):
        operate(model, AddAdapter(3), seed=0, follow=OptimizerFollower(optimizer))
    operate(model, GrowHeads(1, 1), seed=0, follow=OptimizerFollower(optimizer))
    train(model, optimizer, 2)
    follow = RestoringFollower(optimizer, names(), moments)
    operate(model, Restore.of(BEFORE_EDIT, before), seed=0, follow=follow, weights=kept)
    after = optimizer.state[_adapters(model, 0).into_UD]["exp_avg"]
    assert torch.equal(after[:6], moments["exp_avg/blocks.0.adapters.into_UD"])
    assert after.shape == (6 + 3 * came, 16)
    fits(model, optimizer)
    train(model, optimizer, 2)


def test_what_was_kept_without_adapters_leaves_them_as_they_are() -> None:
    model, optimizer = _trained(PLAIN)
    kept = Snapshot.of(model, model.blueprint, [[0]] * LAYERS, 0)
    operate(model, AddAdapter(3), seed=0, follow=OptimizerFollower(optimizer))
    train(model, optimizer, 2)
    adapter = _adapters(model, 0).out_UD
    edit = Restore.of(0, kept.blueprint)
    operate(model, edit, seed=0, follow=OptimizerFollower(optimizer), weights=kept.weights)
    assert _adapters(model, 0).out_UD is adapter and optimizer.state[adapter]
    fits(model, optimizer)


@pytest.mark.parametrize(
    ("blueprint", "units", "why"), [(PLAIN, 0, "cannot add an adapter of 0 units"), (TWO, 4, "the others have 3")]
)
def test_an_adapter_that_does_not_fit_touches_nothing(blueprint: Blueprint, units: int, why: str) -> None:
    model, _ = _trained(blueprint, steps=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=why):
        operate(model, AddAdapter(units), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adapters_are_counted_in_parameters_and_in_what_a_row_costs() -> None:
    more = AddAdapter(3).apply(TWO)
    assert more.parameters - TWO.parameters == LAYERS * 3 * (2 * 16 + 1)
    assert more.flops_per_sample - TWO.flops_per_sample == 4 * 16 * 3 * (2 * TWO.tokens + 1)
    assert edit_from_dict(edit_to_dict(AddAdapter(3))) == AddAdapter(3)
    assert Blueprint.from_json(PLAIN.to_json().replace('"adapter_units": 0, "adapters": 0, ', "")) == PLAIN


@st.composite
def edit_sequences(draw: st.DrawFn) -> tuple[Blueprint, list[Edit]]:
    gates = Gates("straight_through", "row", 2)
    first = blueprint = replace(
        PLAIN,
        adapters=(adapters := draw(st.sampled_from([0, 1, 2]))),
        adapter_units=3 if adapters else 0,
        gates=draw(st.sampled_from([None, gates])),
        mlp_of=draw(st.sampled_from([(), (0, 0, 2)])),
        difference_rank=draw(st.sampled_from([0, 2])),
    )
    edits = list[Edit]()
    while len(edits) < 20:
        layer, part = draw(st.integers(0, LAYERS - 1)), draw(st.sampled_from(["attention", "mlp"]))
        edit = draw(
            st.sampled_from(
                [
                    AddAdapter(3),
                    GrowHeads(layer, 1),
                    ShrinkHeads(layer, (blueprint.heads[layer] - 1,)),
                    GrowMlp(layer, 2),
                    ShrinkMlp(layer, (0, blueprint.mlp_width_of(layer) - 1)),
                    Share(part, (layer, draw(st.integers(0, LAYERS - 1)))),  # type: ignore[arg-type]
                    Unshare(part, layer),  # type: ignore[arg-type]
                    SetGate(draw(st.sampled_from([None, gates]))),
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
@given(edit_sequences(), st.sampled_from(["adamw", "sgd"]))
def test_any_edits_with_adapters_keep_shapes_state_and_saving_exact(
    drawn: tuple[Blueprint, list[Edit]], name: str
) -> None:
    first, edits = drawn
    model, optimizer = _trained(first, 1, name)
    kept = Snapshot.of(model, first, [[0]] * LAYERS, 0).weights
    for at, edit in enumerate(edits):
        features = pictures(seed=at)[0]
        before, known = model(features), features if at % 2 else None
        operate(model, edit, seed=at, follow=OptimizerFollower(optimizer), weights=kept, calibration=known)
        if isinstance(edit, AddAdapter):
            torch.testing.assert_close(model(features), before, rtol=1e-4, atol=1e-4)
            _router(model).known_K.fill_(1)
        if at % 6 == 0:
            train(model, optimizer, 1)
    fits(model, optimizer)
    weights, moments = load(save(dict(model.state_dict()))), optimizer_tensors(optimizer, model.named_parameters())
    twin = build(model.blueprint)
    twin.load_state_dict(weights)
    twin_optimizer = build_optimizer(twin, Learner(learning_rate=0.01, optimizer=name))  # type: ignore[arg-type]
    load_optimizer_tensors(twin_optimizer, dict(twin.named_parameters()), load(save(moments)))
    train(model, optimizer, 2)
    train(twin, twin_optimizer, 2)
    named = dict(twin.named_parameters())
    assert all(torch.allclose(value, named[name], rtol=1e-4, atol=1e-6) for name, value in model.named_parameters())
