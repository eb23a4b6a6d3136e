"""What is missed least: measured, and chosen within limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.morph.conftest import pictures, row_loss

from planaria.blueprint import PARTS, Blueprint, Gates, Part, Prune
from planaria.model import build
from planaria.morph.pruning import Saliency, least_missed, magnitudes, sensitivities, smallest_weights

PLAIN = Blueprint("classification", 16, 4, 8, (2, 3, 2), 4, image_shape=(1, 8, 8), patch=4)


def test_magnitude_is_beside_the_others_of_the_layer() -> None:
    model = build(PLAIN)
    with torch.no_grad():
        for parameter in model.block(0).mlp.parameters():
            parameter.mul_(100)
        for weight in (model.block(1).attention.q, model.block(1).attention.kv, model.block(1).attention.o):
            weight[2] *= 0.1
    found = magnitudes(model)
    assert set(found) == {(part, layer) for part in PARTS for layer in range(3)}
    assert sum(found["mlp", 0]) / 8 == pytest.approx(1) == pytest.approx(sum(found["mlp", 1]) / 8)
    assert min(found["attention", 1]) == found["attention", 1][2] < 0.2


def test_sensitivity_sees_what_the_loss_does_not_need_and_leaves_the_model_alone() -> None:
    model = build(replace(PLAIN, attention_of=(0, 1, 0), mlp_of=(0, 0, 2)))
    with torch.no_grad():
        model.output.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.block(0).attention.o[1] = 0
        model.block(2).mlp.out.weight[:, 3] = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sensitivities(model, [pictures(seed=0), pictures(seed=1)], row_loss)
    assert set(found) == {("attention", 0), ("attention", 1), ("mlp", 0), ("mlp", 2)}
    assert found["attention", 0][1] == found["mlp", 2][3] == 0
    assert min(found["attention", 0][0], *found["attention", 1], *found["mlp", 0]) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_prunable_is_what_heads_and_hidden_units_have() -> None:
    assert PLAIN.prunable == 7 * 4 * 4 * 16 + 3 * 8 * (2 * 16 + 1)
    shared = replace(PLAIN, mlp_of=(0, 0, 0), difference_rank=2)
    assert PLAIN.prunable - shared.prunable == 2 * 8 * 33 - 3 * 2 * 2 * 8


def test_the_least_go_first_and_no_layer_loses_all() -> None:
    scores = {
        (part, layer): [1.0] * (8 if part == "mlp" else PLAIN.heads[layer]) for part in PARTS for layer in range(3)
    }
    scores["mlp", 1] = [0.1 * unit for unit in range(8)]
    scores["attention", 1] = [5.0, 0.01, 0.02]
    left = PLAIN.prunable - 2 * 256 - 3 * 33 - 1
    assert least_missed(PLAIN, scores, left, 1) == Prune(((), (1, 2), ()), ((), (0, 1, 2), ()))
    assert least_missed(PLAIN, scores, left, 2) != least_missed(PLAIN, scores, left, 1), "layers may keep more"
    everything = least_missed(PLAIN, scores, 0, 1)
    assert everything is not None and everything.apply(PLAIN).heads == (1, 1, 1)
    assert everything.apply(PLAIN).mlp_width == 1 and 7 not in everything.units[1]
    assert least_missed(PLAIN, scores, PLAIN.prunable - 16, 1) is None, "a hidden unit would be too much"
    assert least_missed(PLAIN, scores, PLAIN.prunable - 17, 1) == Prune(((), (), ()), ((), (0,), ()))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Blueprint, Saliency, int, int]:
    widths = draw(st.lists(st.sampled_from([2, 4, 8]), min_size=3, max_size=3))
    mlp_of = draw(st.sampled_from([(), (0, 0, 2)]))
    heads = tuple(draw(st.lists(st.integers(1, 4), min_size=3, max_size=3)))
    blueprint = replace(
        PLAIN,
        heads=(heads[0], heads[1], heads[0]),
        attention_of=draw(st.sampled_from([(), (0, 1, 0)])),
        mlp_of=mlp_of,
        mlp_widths=(widths[0], widths[0] if mlp_of else widths[1], widths[2]),
        difference_rank=draw(st.sampled_from([0, 2])),
        gates=draw(st.sampled_from([None, Gates("hard_concrete", "row", 2)])),
    )
    score = st.floats(0, 1)
    saliency: dict[tuple[Part, int], list[float]] = {}
    for part in PARTS:
        for layer in blueprint.groups(part):
            size = blueprint.heads[layer] if part == "attention" else blueprint.mlp_width_of(layer)
            saliency[part, layer] = draw(st.lists(score, min_size=size, max_size=size))
    return blueprint, saliency, draw(st.integers(0, blueprint.prunable)), draw(st.integers(1, 2))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_what_is_chosen_fits_every_model_and_goes_as_far_as_it_may(case: tuple[Blueprint, Saliency, int, int]) -> None:
    blueprint, saliency, left, least_heads = case
    edit = least_missed(blueprint, saliency, left, least_heads)
    after = blueprint if edit is None else edit.apply(blueprint)
    after.check()
    largest = max(4 * 4 * (16 + 2) + 3 * 16 + 4 * 4 * 2 * 3, 2 * 33 + 3 * 2 * 2 * 2)
    assert after.prunable >= left - largest / 2 or after == blueprint
    assert all(now >= min(least_heads, was) for now, was in zip(after.heads, blueprint.heads, strict=True))
    again = least_missed(after, {k: [0.5] * _size(after, *k) for k in saliency}, left, least_heads)
    assert again is None, "nothing more could have gone"


def _size(blueprint: Blueprint, part: Part, layer: int) -> int:
    return blueprint.heads[layer] if part == "attention" else blueprint.mlp_width_of(layer)


def test_the_smallest_weights_of_all_layers_go_one_by_one() -> None:
    model = build(replace(PLAIN, mlp_of=(0, 0, 2)))
    with torch.no_grad():
        model.block(2).mlp.into.weight.mul_(1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks = smallest_weights(model, 0.25)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    total = sum(mask.numel() for mask in masks.values())
    assert total == 7 * 4 * 4 * 16 + 2 * 2 * 8 * 16, "of heads and MLPs, shared ones once, and no bias"
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.25 * total)
    assert not bool(masks["blocks.2.mlp.into.weight"].any())
    largest_gone = max(float(before[n].abs()[m == 0].max()) for n, m in masks.items() if bool((m == 0).any()))
    assert largest_gone <= min(float(before[n].abs()[m == 1].min()) for n, m in masks.items() if bool(m.any()))
