from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planaria.blueprint import (
    Blueprint,
    Edit,
    GrowHeads,
    GrowMlp,
    GrowOutputs,
    Prune,
    Quantisation,
    Restore,
    ShrinkHeads,
    ShrinkMlp,
    diff,
    edit_from_dict,
    edit_to_dict,
)
from planaria.errors import InputError
from planaria.model import build

IMAGE = Blueprint("classification", 16, 4, 32, (2, 3), 10, image_shape=(1, 28, 28), patch=7)
TABLE = Blueprint("regression", 16, 4, 32, (1, 2), 1, numeric=3, categorical=2, categories=8)


@st.composite
def blueprints(draw: st.DrawFn) -> Blueprint:
    heads = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    widths = tuple(draw(st.lists(st.integers(1, 9), min_size=len(heads), max_size=len(heads))))
    sizes: dict[str, Any] = {
        "width": draw(st.sampled_from([4, 8, 12])),
        "head_width": draw(st.sampled_from([2, 4])),
        "mlp_width": 8,
        "mlp_widths": draw(st.sampled_from([(), widths])),
    }
    if draw(st.booleans()):
        side = draw(st.integers(4, 9))
        shape = (draw(st.integers(1, 3)), side, side + 1)
        return Blueprint(
            "classification", heads=heads, outputs=draw(st.integers(1, 5)), image_shape=shape, patch=4, **sizes
        )
    return Blueprint(
        "regression", heads=heads, outputs=1, numeric=draw(st.integers(1, 3)), categorical=1, categories=4, **sizes
    )


@given(blueprints())
def test_parameters_are_those_of_the_model_that_it_describes(blueprint: Blueprint) -> None:
    assert blueprint.parameters == sum(p.numel() for p in build(blueprint).parameters())


@given(blueprints())
def test_json_gives_the_same_blueprint_back(blueprint: Blueprint) -> None:
    again = Blueprint.from_json(blueprint.to_json())
    assert again == blueprint
    assert hash(again) == hash(blueprint)


def test_a_blueprint_that_was_written_when_all_layers_had_one_mlp_width_still_loads() -> None:
    earlier = json.loads(IMAGE.to_json())
    del earlier["mlp_widths"]
    assert Blueprint.from_json(json.dumps(earlier)) == IMAGE


def test_equal_models_have_equal_blueprints_however_their_widths_are_said() -> None:
    assert replace(IMAGE, mlp_widths=(32, 32)) == IMAGE
    narrow = replace(IMAGE, mlp_widths=(16, 8))
    assert narrow.mlp_width == 16 and narrow == replace(IMAGE, mlp_width=16, mlp_widths=(16, 8))
    assert Restore.of(0, IMAGE).apply(narrow) == IMAGE
    assert Restore.of(0, narrow).apply(IMAGE) == narrow


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mlp_widths": (4,)}, "name for each layer"),
        ({"mlp_widths": (4, 0)}, "at least one hidden unit"),
        ({"mlp_widths": (4, 8), "mlp_of": (0, 0)}, "share their MLP"),
    ],
)
def test_widths_that_no_model_can_have_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(IMAGE, **changes).check()


def test_fewer_hidden_units_cost_fewer_parameters_and_flops() -> None:
    after = ShrinkMlp(0, (0, 31)).apply(IMAGE)
    assert IMAGE.parameters - after.parameters == 2 * (2 * 16 + 1)
    assert IMAGE.flops_per_sample - after.flops_per_sample == 2 * 4 * IMAGE.tokens * 16


@pytest.mark.parametrize("text", ["", "[]", '{"width": 3}', IMAGE.to_json().replace("[2, 3]", "[0, 3]")])
def test_what_is_no_blueprint_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="restore the file from a checkpoint") as caught:
        Blueprint.from_json(text)
    assert "\n" not in str(caught.value)


def test_more_heads_cost_more_flops_and_the_last_layer_costs_least() -> None:
    first = GrowHeads(0, 1).apply(IMAGE).flops_per_sample - IMAGE.flops_per_sample
    last = GrowHeads(1, 1).apply(IMAGE).flops_per_sample - IMAGE.flops_per_sample
    assert first > last == 2 * IMAGE.width * (4 * IMAGE.head_width + 2 * IMAGE.tokens)
    rounded = replace(IMAGE, quantisation=Quantisation(8, "token"))
    assert rounded.flops_of_head(1) > IMAGE.flops_of_head(1), "keys and values of every token"


@pytest.mark.parametrize(
    "edit",
    [
        GrowHeads(1, 2),
        ShrinkHeads(1, (0, 2)),
        GrowOutputs(12),
        GrowMlp(0, 3),
        ShrinkMlp(1, (0, 31)),
        Prune(((), (0, 2)), ((1,), ())),
        Restore.of(3, replace(IMAGE, mlp_widths=(16, 8))),
    ],
    ids=lambda edit: str(edit.kind),
)
def test_an_edit_survives_being_written_as_json(edit: Edit) -> None:
    assert edit_from_dict(json.loads(json.dumps(edit_to_dict(edit)))) == edit
    assert edit.apply(IMAGE) != IMAGE


def test_an_unknown_edit_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(InputError, match="grow_heads"):
        edit_from_dict({"kind": "explode"})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (GrowHeads(2, 1), "there is no layer 2"),
        (GrowHeads(0, 0), "cannot grow by 0"),
        (ShrinkHeads(0, (0, 1)), "must keep at least one head"),
        (ShrinkHeads(0, (2,)), "which has 2"),
        (ShrinkHeads(0, (1, 1)), "name each once"),
        (GrowOutputs(10), "cannot go from 10 to 10"),
    ],
)
def test_an_edit_that_does_not_fit_says_why(edit: GrowHeads | ShrinkHeads | GrowOutputs, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        edit.apply(IMAGE)


def test_diff_names_what_changed_and_nothing_else() -> None:
    assert diff(IMAGE, GrowHeads(0, 2).apply(IMAGE)) == {"heads": ((2, 3), (4, 3))}
    assert diff(TABLE, TABLE) == {}
