"""What the learned value sees: always finite, always in the same order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planaria.control.features import EDIT_KINDS, GROUPS, LEAST_LOSS, NAMES, features, rows_of, scale_of
from planaria.control.judge import Situation
from planaria.control.look_ahead import Trial
from planaria.signals import Candidate

KEEP = Candidate("keep", None, "keep", (3,), 100)
GROW = Candidate(
    "grow",
    {"kind": "grow_heads", "layer": 0, "heads": 1},
    "reset",
    (4,),
    120,
    facts={"doublings": 0.415, "share_of_layer": 1 / 3, "growth": 1.5, "importance": 0.2, "fit": -0.3},
)
CALM = dict.fromkeys(NAMES, 0.5)


def at(row: np.ndarray, name: str) -> float:
    return float(row[NAMES.index(name)])


def trial(recent: float, memory: float | None = None, rows: int = 4) -> Trial:
    remembered = [] if memory is None else [memory] * rows
    return Trial(np.full(rows, recent, np.float32), np.array(remembered, np.float32))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, -1.0, -7.0, 0.0])
def test_features_are_finite_whatever_is_observed(value: float) -> None:
    hostile = Candidate("grow", GROW.edit, "keep", (4,), 120, facts=dict.fromkeys(GROW.facts, value))
    trials = {0: trial(1.0, 1.0), 1: trial(value, value)}
    rows_KX = rows_of(dict.fromkeys(NAMES, value), [KEEP, hostile], 1.0, trials)
    assert rows_KX.shape == (2, len(NAMES)) and np.isfinite(rows_KX).all()


def test_features_lie_in_the_order_of_their_names() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for name in ("error_fast", "heads_fraction", "importance_lowest", "remembers"):
        row = rows_of({name: 0.25}, [KEEP], 1.0, {})[0]
        assert at(row, name) == 0.25
    keep, grow = rows_of(CALM, [KEEP, GROW], 1.0, {})
    assert at(grow, "option_grow_heads") == at(grow, "option_reset") == 1
    assert at(grow, "option_shrink_heads") == at(grow, "option_temper") == 0
    assert at(grow, "option_doublings") == 0.415 and at(grow, "option_growth") == math.log1p(1.5)
    assert not any(at(keep, f"option_{kind}") for kind in EDIT_KINDS)


def test_an_observation_that_is_missing_counts_as_zero() -> None:
    assert np.array_equal(rows_of({}, [KEEP], 1.0, {}), rows_of(dict.fromkeys(NAMES, 0.0), [KEEP], 1.0, {}))


def test_groups_name_known_features_and_none_twice() -> None:
    grouped = [name for group in GROUPS.values() for name in group]
    assert set(grouped) <= set(NAMES)
    assert len(grouped) == len(set(grouped))


def test_what_was_not_looked_ahead_on_shows_zeros() -> None:
    rows_KX = rows_of(CALM, [KEEP, GROW, GROW], 2.0, {0: trial(1.0, 0.5), 2: trial(0.8, 0.7)})
    assert [at(row, "looked") for row in rows_KX] == [1, 0, 1]
    assert at(rows_KX[1], "gain_recent") == at(rows_KX[1], "gain_memory") == 0
    assert at(rows_KX[2], "gain_recent") == pytest.approx(math.log1p(0.1))
    assert at(rows_KX[2], "gain_memory") == pytest.approx(-math.log1p(0.1))
    assert at(rows_KX[2], "gain_recent_error") == pytest.approx(0, abs=1e-6)


def test_without_remembered_rows_the_gain_on_them_is_zero() -> None:
    rows_KX = rows_of(CALM, [KEEP, GROW], 1.0, {0: trial(1.0), 1: trial(0.5)})
    assert at(rows_KX[1], "gain_memory") == 0


def test_gains_are_relative_to_the_loss_but_not_to_next_to_nothing() -> None:
    assert scale_of(2.0) == 2.0
    assert scale_of(0.001) == LEAST_LOSS
    trials = {0: trial(1.0), 1: trial(0.8)}
    small, large = (features(Situation(0, 0, "thrift", loss, CALM, (KEEP, GROW), 2), trials)[1] for loss in (1.0, 4.0))
    assert math.expm1(at(small, "gain_recent")) == pytest.approx(4 * math.expm1(at(large, "gain_recent")))


def test_the_age_of_a_shift_stops_to_count_where_nothing_was_learned_of_older_ones() -> None:
    old, ancient = (rows_of({"shift_age": age, "edit_age": age}, [KEEP], 1.0, {}) for age in (25.0, 1e6))
    young = rows_of({"shift_age": 5.0, "edit_age": 5.0}, [KEEP], 1.0, {})
    assert np.array_equal(old, ancient) and not np.array_equal(old, young)
