"""Policies that change while a run goes on: the edits on the way, and a run that takes them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planaria.blueprint import PARTS, Blueprint, GrowHeads, ShrinkHeads
from planaria.job import Job
from planaria.policy import Policy
from planaria.record.tables import read_rows
from planaria.settings import fields
from planaria.signals import Fields
from planaria.train.folder import RunFolder
from planaria.train.turn import AT_ONCE, BY_EDITS, Turn, next_edit
from planaria.train.worker import Leg, run_here

LAYERS = 4


def policies() -> st.SearchStrategy[Policy]:
    groups = st.sampled_from(["none", "all", "pairs", "cycle", "sandwich", [0, 0, 0, 3]])
    gates = st.sampled_from([None, {"per": "row"}, {"per": "stream"}, {"kind": "straight_through", "mlp_blocks": 4}])
    made = st.builds(
        lambda start, attention, mlp, gate: {
            "heads": {"start": start, "max": 6},
            "sharing": {"attention": attention, "mlp": mlp},
            "gate": gate,
        },
        st.integers(1, 6),
        groups,
        groups,
        gates,
    )
    return made.map(Policy.model_validate)


def begun(policy: Policy) -> Blueprint:
    return Blueprint.for_fields(
        Fields("classification", numeric=("a", "b")),
        width=8,
        head_width=4,
        mlp_width=16,
        heads=(policy.heads.start,) * LAYERS,
        outputs=3,
        patch=1,
        attention_of=policy.sharing.owners("attention", LAYERS),
        mlp_of=policy.sharing.owners("mlp", LAYERS),
        gates=None if policy.gate is None else policy.gate.gates,
    )


def turned(blueprint: Blueprint, before: Policy, after: Policy) -> Blueprint:
    def importance() -> list[list[float]]:
        return [[float((7 * head) % 5) for head in range(count)] for count in blueprint.heads]

    for _ in range(40):
        edit = next_edit(blueprint, before, after, importance)
        if edit is None:
            return blueprint
        blueprint = edit.apply(blueprint)
        blueprint.check()
    raise AssertionError("it comes to no end")


@given(st.lists(policies(), min_size=2, max_size=5))
def test_edits_lead_to_what_the_policy_asks_for_however_often_it_turns(turns: list[Policy]) -> None:
    blueprint = begun(turns[0])
    for before, after in pairwise(turns):
        blueprint = turned(blueprint, before, after)
        for part in PARTS:
            assert blueprint.owners(part) == after.sharing.owners(part, LAYERS)
        assert blueprint.gates == (None if after.gate is None else after.gate.gates)
        if after.heads.start != before.heads.start:
            assert set(blueprint.heads) == {after.heads.start}
        assert next_edit(blueprint, before, after, lambda: [[0.0] * 6] * LAYERS) is None


def test_heads_that_matter_least_go_and_what_did_not_change_is_left_alone() -> None:
    before, after = (Policy.model_validate({"heads": {"start": start, "max": 6}}) for start in (4, 2))
    blueprint = begun(before)
    edit = next_edit(blueprint, before, after, lambda: [[3.0, 1.0, 4.0, 2.0]] * LAYERS)
    assert edit == ShrinkHeads(0, (1, 3))
    grown = GrowHeads(0, 1).apply(blueprint)  # by a controller
    same = Policy.model_validate({"heads": {"start": 4, "max": 6}, "learner": {"learning_rate": 0.1}})
    assert next_edit(grown, before, same, list) is None


def test_all_that_may_change_in_flight_are_settings_of_a_policy() -> None:
    assert {*AT_ONCE, *BY_EDITS} <= {key for key, _ in fields(Policy)}


def job(**policy: Any) -> Job:
    return Job.model_validate(
        {
            "stream": {"source": "bananas", "task": "classification"},
            "model": {"width": 8, "layers": 2, "head_width": 4, "mlp_width": 8},
            "policy": {
                "heads": {"start": 2, "max": 4},
                "controller": {"kind": "none"},
                "learner": {"memory": {"rows": 64}},
                **policy,
            },
            "batch_rows": 32,
            "samples": 480,
            "scale": {"workers": 0},
        }
    )


@pytest.mark.parametrize("kind", ["none", "look_ahead"])
def test_a_run_goes_over_to_other_policies_and_back_and_a_kill_changes_nothing(kind: str, tmp_path: Path) -> None:
    jobs = [
        job(controller={"kind": kind}),
        job(
            controller={"kind": kind},
            heads={"start": 4, "max": 4},
            gate={"warm_up_samples": 0},
            sharing={"attention": "all"},
            budget={"price": 0.5},
        ),
        job(
            controller={"kind": kind},
            heads={"start": 1, "max": 4},
            learner={"replay_ratio": 0.5, "memory": {"rows": 64}},
        ),
    ]
    ends = []
    for name, cuts in (("whole", ()), ("killed", (192,))):
        folder = RunFolder(tmp_path / name)
        folder.make()
        for at, one in enumerate(jobs):
            until = None if at == 2 else 160 * (at + 1)
            turn = Turn(160 * at, jobs[at - 1].policy, f"turn {at}") if at else None
            for stop in (*(cut for cut in cuts if at == 1), until):
                run_here(one, folder, tmp_path, leg=Leg(stop, turn))
        summary = folder.read_json(folder.summary)
        revisions = read_rows(folder.path, "revisions")
        ends.append((summary["prequential_loss"], summary["samples"], [r["edit"] for r in revisions]))
    assert ends[0] == ends[1] and ends[0][1] == 480
    turned_at = {(one["sample"], one["why"]) for one in revisions if one["cause"] == "pbt"}
    assert turned_at == {(160, "turn 1"), (320, "turn 2")}
    assert revisions[-1]["heads"] == [1, 1]
