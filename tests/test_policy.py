"""The policies that are shipped, and loading one of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from planaria.errors import InputError
from planaria.policy import Heads, Policy, load_policy

POLICIES = Path(__file__).parent.parent / "policies"


def test_every_shipped_policy_loads_under_its_own_name() -> None:
    files = sorted(POLICIES.glob("*.yaml"))
    assert {"accurate", "balanced", "thrifty"} <= {path.stem for path in files}
    for path in files:
        assert load_policy(path).name == path.stem


def test_the_default_policy_is_balanced() -> None:
    assert load_policy(POLICIES / "balanced.yaml") == Policy()


def test_thrifty_spends_less_than_balanced_and_accurate_more() -> None:
    thrifty, balanced, accurate = (
        load_policy(POLICIES / f"{name}.yaml") for name in ("thrifty", "balanced", "accurate")
    )
    assert thrifty.budget.price > balanced.budget.price > accurate.budget.price
    assert thrifty.heads.max < balanced.heads.max < accurate.heads.max
    assert thrifty.learner.replay_ratio <= balanced.learner.replay_ratio <= accurate.learner.replay_ratio


def test_a_mistake_in_a_policy_says_where_what_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("heads: {max: 2, min: 4}\n")
    with pytest.raises(InputError, match=r"^p\.yaml: heads: max is 2 but min is 4; raise max or lower min$"):
        load_policy("p.yaml")


def test_a_run_starts_within_the_limits_where_nobody_says_with_how_many_heads() -> None:
    assert [Heads(max=high).start for high in (1, 5, 8, 20)] == [1, 5, 8, 8]
    assert Heads(min=9, max=9).start == 9
    with pytest.raises(ValueError, match="start is 6, outside min 1 to max 5"):
        Heads(start=6, max=5)
