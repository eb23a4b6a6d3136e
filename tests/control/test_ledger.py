from __future__ import annotations

import pytest

from planaria.control.ledger import Ledger
from planaria.errors import InputError


def test_progress_that_comes_without_an_edit_is_not_credited_to_edits() -> None:
    ledger = Ledger()
    for _ in range(20):
        ledger.add("thrift", "keep", 0.0, 0.05)
        ledger.add("thrift", "grow_heads", 0.0, 0.05)
        ledger.add("thrift", "shrink_heads", 0.0, 0.01)
    bias = ledger.bias("thrift")
    assert bias["grow_heads"] == pytest.approx(0.0)
    assert bias["shrink_heads"] == pytest.approx(-0.04 * 20 / 24)


def test_nothing_is_claimed_without_something_to_hold_it_against() -> None:
    ledger = Ledger()
    ledger.add("thrift", "grow_heads", 0.0, 0.5)
    assert ledger.bias("thrift") == {}
    ledger.add("abrupt shift", "keep", 0.0, 0.5)
    assert ledger.bias("thrift") == {}, "outcomes are kept apart by trigger"


def test_a_ledger_survives_being_saved() -> None:
    ledger = Ledger()
    ledger.add("thrift", "keep", 0.0, 0.05)
    ledger.add("thrift", "grow_heads", 0.01, 0.02)
    assert Ledger.from_state(ledger.state()) == ledger
    with pytest.raises(InputError, match="ledger is not usable"):
        Ledger.from_state({"thrift/keep": "many"})
