"""What trials teach: each outcome once, of those that are far enough behind, and the same whenever it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planaria.control.full_look_ahead import FullLookAhead
from planaria.control.ledger import Ledger
from planaria.control.pooling import learned_since, pooled
from planaria.policy import Controller
from planaria.search.places import folder_of, write_result
from planaria.search.teaching import taught


def learned(*returns: float) -> dict[str, Any]:
    return {"features": [[value, 1.0] for value in returns], "returns": list(returns), "open": [], "borrowed": []}


def trial(folder: Path, number: int, state: dict[str, Any], inherited: dict[str, Any], status: str = "done") -> None:
    life = folder_of(folder, number) / "seed-0"
    life.mkdir(parents=True)
    (life / "controller.json").write_text(json.dumps(state))
    (life / "controller_from.json").write_text(json.dumps(inherited))
    write_result(folder_of(folder, number), number, {}, {"status": status})


def test_an_outcome_is_taught_once_although_those_taught_keep_it(tmp_path: Path) -> None:
    trial(tmp_path, 0, learned(1.0, 2.0), {})
    trial(tmp_path, 1, learned(1.0, 2.0, 3.0), learned(1.0, 2.0))
    trial(tmp_path, 2, learned(9.0), {}, status="failed")
    trial(tmp_path, 3, learned(4.0), {})
    for number in range(4, 7):
        folder_of(tmp_path, number).mkdir()
    assert taught(tmp_path, 4, behind=1, kind="learned") == learned(1.0, 2.0, 3.0, 4.0)
    assert taught(tmp_path, 5, behind=3, kind="learned") == learned(1.0, 2.0, 3.0), "trial 3 is too near"
    trial(tmp_path, 7, learned(8.0), {})
    assert taught(tmp_path, 4, behind=0, kind="learned") == learned(1.0, 2.0, 3.0, 4.0), "what it began with stays"


def test_the_first_trials_are_taught_nothing(tmp_path: Path) -> None:
    folder_of(tmp_path, 0).mkdir(parents=True)
    assert taught(tmp_path, 0, behind=1, kind="learned") is None


def test_of_a_list_that_dropped_its_oldest_what_was_inherited_is_still_found() -> None:
    inherited = learned(1.0, 2.0, 3.0)
    assert learned_since(learned(2.0, 3.0, 4.0, 5.0), inherited)["returns"] == [4.0, 5.0]
    assert learned_since(learned(4.0, 5.0), inherited)["returns"] == [4.0, 5.0]
    assert learned_since(learned(1.0, 2.0, 3.0), inherited)["returns"] == []


def test_pooled_ledgers_are_one_ledger_of_all_outcomes() -> None:
    outcomes = [[("thrift", "grow", 0.1, 0.3), ("thrift", "keep", 0.0, 0.2)], [("thrift", "grow", 0.2, -0.1)]]
    ledgers, together = [Ledger(), Ledger()], Ledger()
    for ledger, own in zip(ledgers, outcomes, strict=True):
        for outcome in own:
            ledger.add(*outcome)
            together.add(*outcome)
    state = pooled([learned(1.0), *({"ledger": ledger.state()} for ledger in ledgers)], "look_ahead")
    assert state is not None
    judge = FullLookAhead(Controller(kind="look_ahead"))
    judge.inherit(json.loads(json.dumps(state)))
    for key, tally in together.state().items():
        assert judge.ledger.state()[key] == pytest.approx(tally)
    since = learned_since(state, {"ledger": ledgers[0].state()})
    assert since["ledger"]["thrift/grow"] == pytest.approx([1, 0.2, -0.1]) and since["ledger"]["thrift/keep"][0] == 0


def test_nothing_is_pooled_where_nothing_was_learned() -> None:
    assert pooled([], "learned") is None and pooled([learned()], "learned") is None
    assert pooled([{"ledger": {}}], "look_ahead") is None and pooled([learned(1.0)], "look_ahead") is None
    assert pooled([learned(1.0)], "none") is None
