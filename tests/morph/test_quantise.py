"""Edits of a quantised model: they go on as in float32, but for what rounding moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.morph.conftest import fits, pictures, row_loss, train
from torch import Tensor

from planaria.blueprint import (
    Blueprint,
    Edit,
    Gates,
    GrowHeads,
    GrowMlp,
    GrowOutputs,
    Quantisation,
    Quantise,
    RecycleHead,
    Restore,
    SetGate,
    Share,
    ShrinkHeads,
    ShrinkMlp,
    Unshare,
    edit_from_dict,
    edit_to_dict,
)
from planaria.learn import OptimizerFollower, build_optimizer
from planaria.model import ElasticTransformer, build
from planaria.morph import growth_scores, head_importance, operate
from planaria.policy import Learner

LAYERS = 3
EIGHT, FOUR = Quantisation(8, "token"), Quantisation(4, "tensor")
PLAIN = Blueprint("classification", 16, 4, 24, (2,) * LAYERS, 4, image_shape=(1, 8, 8), patch=4)


def _trained(blueprint: Blueprint, steps: int = 10) -> tuple[ElasticTransformer, torch.optim.Optimizer]:
    model = build(blueprint)
    optimizer = build_optimizer(model, Learner(learning_rate=0.01))
    train(model, optimizer, steps)
    return model, optimizer


def _rounding(model: ElasticTransformer, features: dict[str, Tensor]) -> float:
    """The largest difference of an output from the same weights' in float32."""
    quantisation, rounded = model.blueprint.quantisation, model(features)
    model.quantise(None)
    whole = model(features)
    model.quantise(quantisation)
    return float((rounded - whole).detach().abs().max())


def test_quantising_keeps_weights_and_moments_and_can_be_undone() -> None:
    model, optimizer = _trained(PLAIN)
    features, kept = pictures()[0], {name: t.clone() for name, t in model.state_dict().items()}
    moments = {p: optimizer.state[p]["exp_avg"].clone() for p in model.parameters()}
    before = model(features)
    operate(model, Quantise(EIGHT), seed=0, follow=OptimizerFollower(optimizer))
    assert model.blueprint == replace(PLAIN, quantisation=EIGHT)
    assert 0 < (model(features) - before).abs().max().item() < 0.1
    fits(model, optimizer)
    operate(model, Quantise(None), seed=0, follow=OptimizerFollower(optimizer))
    assert torch.equal(model(features), before) and model.blueprint == PLAIN
    assert all(torch.equal(kept[name], t) for name, t in model.state_dict().items())
    assert all(torch.equal(moments[p], optimizer.state[p]["exp_avg"]) for p in model.parameters())


@pytest.mark.parametrize(
    "edit", [GrowHeads(1, 2), GrowMlp(0, 8), GrowOutputs(6), Unshare("attention", 2), SetGate(None)]
)
def test_what_keeps_the_outputs_in_float32_moves_a_quantised_model_s_by_no_more_than_rounding_does(edit: Edit) -> None:
    gates = Gates("hard_concrete", "row", 2) if isinstance(edit, SetGate) else None
    shape = replace(PLAIN, attention_of=(0, 1, 1), quantisation=EIGHT, gates=gates)
    model, optimizer = _trained(shape)
    features, _ = pictures()
    before, moved = model(features), _rounding(model, features)
    operate(model, edit, seed=1, follow=OptimizerFollower(optimizer))
    assert (model(features)[:, :4] - before).abs().max().item() <= 2 * moved
    fits(model, optimizer)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (None, None, "computes so already"),
        (EIGHT, EIGHT, "computes so already"),
        (None, Quantisation(2, "token"), "bits are 4 to 8"),
    ],
)
def test_a_quantisation_that_does_not_fit_says_why(
    before: Quantisation | None, after: Quantisation | None, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        operate(build(replace(PLAIN, quantisation=before)), Quantise(after), seed=0)


@pytest.mark.parametrize("edit", [Quantise(EIGHT), Quantise(None)])
def test_the_edit_survives_being_written_as_json(edit: Quantise) -> None:
    assert edit_from_dict(edit_to_dict(edit)) == edit


def test_what_was_kept_in_float32_comes_back_into_a_quantised_model_that_stays_one() -> None:
    model, optimizer = _trained(replace(PLAIN, attention_of=(0, 0, 2)))
    kept, blueprint = {name: t.clone() for name, t in model.state_dict().items()}, model.blueprint
    operate(model, Unshare("attention", 1), seed=0, follow=OptimizerFollower(optimizer))
    operate(model, Quantise(FOUR), seed=0, follow=OptimizerFollower(optimizer))
    operate(model, Restore.of(3, blueprint), seed=0, follow=OptimizerFollower(optimizer), weights=kept)
    assert model.blueprint == replace(blueprint, quantisation=FOUR)
    assert _rounding(model, pictures()[0]) > 0
    fits(model, optimizer)


def test_importance_and_growth_are_measured_under_rounding() -> None:
    model, _ = _trained(replace(PLAIN, quantisation=EIGHT))
    features, target = pictures()
    importance = head_importance(model, features, target, row_loss)
    assert [len(layer) for layer in importance] == [2] * LAYERS and min(map(min, importance)) > 0
    assert min(growth_scores(model, features, target, row_loss, seed=0)) > 0


@settings(max_examples=15)
@given(st.data())
def test_any_sequence_of_edits_leaves_a_model_that_fits_its_blueprint_and_learns(data: st.DataObject) -> None:
    model, optimizer = _trained(replace(PLAIN, quantisation=data.draw(st.sampled_from([None, EIGHT, FOUR]))), 3)
    features, _ = pictures()
    layer = st.integers(0, LAYERS - 1)
    choices = [
        st.builds(GrowHeads, layer, st.integers(1, 2)),
        st.builds(lambda at: ShrinkHeads(at, (0,)), layer),
        st.builds(lambda at: RecycleHead(at, 0), layer),
        st.builds(GrowMlp, layer, st.just(2)),
        st.builds(lambda at: ShrinkMlp(at, (0, 1)), layer),
        st.builds(lambda part, a, b: Share(part, (a, b)), st.sampled_from(["attention", "mlp"]), layer, layer),
        st.builds(Unshare, st.sampled_from(["attention", "mlp"]), layer),
        st.builds(Quantise, st.sampled_from([None, EIGHT, FOUR])),
        st.builds(SetGate, st.sampled_from([None, Gates("straight_through", "row", 2)])),
    ]
    for edit in data.draw(st.lists(st.one_of(choices), min_size=1, max_size=6)):
        try:
            edit.apply(model.blueprint)
        except ValueError:
            continue
        operate(model, edit, seed=1, follow=OptimizerFollower(optimizer), calibration=features)
        fits(model, optimizer)
        parts = [part for at in range(LAYERS) for part in (model.block(at).attention, model.block(at).mlp)]
        assert {part.quantisation for part in parts} == {model.blueprint.quantisation}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, 2)
    assert any(not torch.equal(before[name], p) for name, p in model.named_parameters() if "attention" in name)
