"""Recall: when kept states are scored, and when one is restored at once."""

from __future__ import annotations

import numpy as np
import pytest

from planaria.blueprint import Blueprint
from planaria.control.look_ahead import Trial
from planaria.control.recall import RecallWatch, finalists, library_fit, recalled, scored, within
from planaria.signals import Candidate

LIVE = Blueprint("classification", 16, 4, 32, (2, 3), 10, image_shape=(1, 8, 8), patch=4)
SMALL = Blueprint("classification", 16, 4, 32, (1, 3), 8, image_shape=(1, 8, 8), patch=4)
NOISE = np.random.default_rng(0).normal(size=128)


def price(blueprint: Blueprint) -> float:
    return 0.01 * sum(blueprint.heads)


def candidates() -> list[Candidate]:
    return within({7: LIVE, 3: SMALL}, LIVE, lambda candidate: True, price)


def trial(loss: float, noise: float = 0.0) -> Trial:
    return Trial((loss + noise * NOISE).astype(np.float32), np.zeros(0, np.float32))


def compared(*losses: tuple[float, float]) -> list[Candidate]:
    return scored(candidates(), [trial(*loss) for loss in losses])


def test_every_entry_is_offered_with_its_heads_and_its_price() -> None:
    keep, small, large = candidates()
    assert keep.edit is None and keep.heads == (2, 3)
    kept = {
        "kind": "restore",
        "concept": 3,
        "heads": [1, 3],
        "attention_of": [],
        "mlp_of": [],
        "gates": None,
        "mlp_widths": [32, 32],
    }
    assert small.edit == kept and small.heads == (1, 3)
    assert small.price < keep.price == large.price
    assert small.treatment == "reset", "the moments of another time point nowhere"


def test_entries_outside_the_limits_are_not_offered() -> None:
    assert len(within({7: LIVE, 3: SMALL}, LIVE, lambda candidate: sum(candidate.heads) < 5, price)) == 2


def test_value_is_the_paired_gain_and_the_price_of_the_heads_that_are_saved() -> None:
    keep, small, large = compared((2.0, 1.0), (1.5, 1.0), (1.9, 0.0))
    assert (keep.value, keep.standard_error) == (0, 0)
    assert small.value == pytest.approx(0.5 + 0.01) and small.standard_error == pytest.approx(0, abs=1e-6)
    assert large.standard_error == pytest.approx(NOISE.reshape(8, 16).mean(1).std(ddof=1) / 8**0.5, rel=1e-4)


def test_neighbouring_rows_that_are_alike_do_not_count_as_so_many() -> None:
    one_rain = np.repeat(NOISE[:8], 16).astype(np.float32)
    alike, apart = one_rain, np.random.default_rng(1).permutation(one_rain)
    keep = Trial(np.zeros(128, np.float32), np.zeros(0, np.float32))
    errors = [
        scored(candidates()[:2], [keep, Trial(gain_R, np.zeros(0, np.float32))])[1].standard_error
        for gain_R in (alike, apart)
    ]
    assert errors[0] > 2 * errors[1]


def test_without_any_row_nothing_is_better() -> None:
    """As where all of the newest rows are held out."""
    nothing = Trial(np.zeros(0, np.float32), np.zeros(0, np.float32))
    found = scored(candidates(), [nothing] * 3)
    assert recalled(found) is None and not finalists(found)


def test_what_was_learned_since_counts_where_it_does_not_contradict() -> None:
    """A model of old that knows the present rows better, but not what came in between, is not put back."""
    recent, nan = np.ones(128, np.float32), np.nan
    live = Trial(2 * recent, np.array([1, 1, 1, 1], np.float32))
    forgetful = Trial(recent, np.array([1, 1, 4, 4], np.float32))
    contradicted = Trial(recent, np.array([1, 1, nan, nan], np.float32))
    found = scored(candidates(), [live, forgetful, contradicted], memory_weight=1.0)
    assert found[1].value == pytest.approx(1 - 1.5 + 0.01) and found[1].loss_memory == 2.5
    assert found[2].value == pytest.approx(1.0) and found[2].loss_memory == 1.0
    assert recalled(found[:2]) is None and recalled(found) is found[2]
    assert recalled(scored(candidates(), [live, forgetful, contradicted])) is not None, "where memory does not count"


@pytest.mark.parametrize(
    ("live", "entry", "restored"),
    [
        ((2.0, 0.0), (1.0, 0.0), True),
        ((2.0, 0.0), (1.85, 0.0), False),  # less than a tenth of the live model's loss
        ((2.0, 0.0), (1.5, 4.0), False),  # not by two standard errors
        ((2.0, 0.0), (2.5, 0.0), False),
    ],
)
def test_only_an_entry_that_is_clearly_better_is_restored(
    live: tuple[float, float], entry: tuple[float, float], restored: bool
) -> None:
    found = recalled(compared(live, (9.0, 0.0), entry))
    assert (found is not None) == restored
    assert found is None or (found.edit is not None and found.edit["concept"] == 7)


def test_library_fit_tells_how_much_better_the_best_entry_is() -> None:
    assert library_fit(compared((2.0, 0.0), (3.0, 0.0), (1.0, 0.0))) == pytest.approx(-0.5)
    assert library_fit(compared((2.0, 0.0), (3.0, 0.0), (4.0, 0.0))) == pytest.approx(0.5)
    assert library_fit(scored(candidates()[:1], [trial(2.0)])) == 0


def test_entries_are_scored_from_the_alarm_on_and_once_more_at_the_shift() -> None:
    watch = RecallWatch()
    watch.alarmed(1_000)
    assert not watch.due(1_127, 128) and watch.due(1_128, 128)
    assert watch.rows(1_128, 128) == 128
    watch.done(1_128, restored=False)
    watch.alarmed(1_000)
    assert not watch.due(1_255, 128) and watch.due(1_256, 128), "the onset may have been guessed too early"
    assert watch.rows(1_256, 128) == 128, "always the newest rows"
    watch.done(1_256, restored=False)
    assert not watch.shifted(1_000)
    watch.alarmed(None)
    assert watch.due(1_200, 128) and watch.rows(1_300, 128) == 256
    watch.done(1_300, restored=False)
    assert not watch.due(2_000, 128)


def test_an_entry_must_be_better_by_four_standard_errors() -> None:
    by_three = compared((2.0, 0.0), (9.0, 0.0), (1.4, 2.1))
    assert 2 < 0.6 / by_three[2].standard_error < 4
    assert recalled(by_three) is None
    assert recalled(compared((2.0, 0.0), (9.0, 0.0), (1.4, 0.7))) is not None


def test_on_few_rows_those_that_seem_better_are_picked_best_first() -> None:
    keep, small, large = compared((2.0, 0.0), (1.5, 0.5), (1.0, 0.5))
    assert finalists([keep, small, large]) == [large, small]
    assert finalists(compared((2.0, 0.0), (1.9, 0.0), (1.4, 0.5)))[0].loss_recent == pytest.approx(1.4, abs=0.1)
    assert not finalists(compared((2.0, 0.0), (1.9, 0.0), (3.0, 0.0)))


def test_a_shift_whose_alarm_led_to_a_restore_is_dealt_with() -> None:
    watch = RecallWatch()
    watch.alarmed(1_000)
    watch.done(1_128, restored=True)
    watch.alarmed(1_000)
    assert not watch.due(1_400, 128)
    assert watch.shifted(1_000)
    watch.alarmed(None)
    assert not watch.due(5_000, 128)


def test_an_alarm_that_is_withdrawn_leaves_nothing_behind() -> None:
    watch = RecallWatch()
    watch.alarmed(1_000)
    watch.done(1_128, restored=True)
    watch.alarmed(None)
    watch.alarmed(3_000)
    watch.alarmed(None)
    assert not watch.due(9_000, 128)
    assert not watch.shifted(5_000), "that shift is another one"
    assert RecallWatch(**watch.state()) == watch
