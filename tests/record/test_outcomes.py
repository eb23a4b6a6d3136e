"""Decisions in hindsight: agreement, regret, and the figures that show them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from planaria.record import Records, write_report
from planaria.record.canvas import NARROW, WIDE
from planaria.record.facts import Row
from planaria.record.outcome_plots import MOST_MARKERS, MOST_STEPS, draw_outcomes, draw_regret, thinned
from planaria.record.outcomes import (
    KINDS,
    Outcome,
    Regret,
    agreement,
    agreement_words,
    deliberation,
    deliberation_words,
    kind_of,
    outcomes,
    regret,
)
from planaria.record.report import read_run


def row_of(value: float | None, realised: float | None = None, best: float | None = None, **values: Any) -> Row:
    """A decision that grew, expecting `value`, where the best candidate was worth `best`."""
    options = [{"name": "grow", "edit": {"kind": "grow_heads"}, "value": value, "predicted": value}]
    options += [{"name": "other", "edit": {"kind": "restore"}, "value": best, "predicted": best}]
    row = {"number": 0, "step": 1, "sample": 100, "trigger": "thrift", "candidates": options, "chosen": "grow"}
    return {**row, "predicted": value, "gain_realised": realised, "revision": 1, "seconds": 1.0, **values}


def markers(svg: str, name: str) -> int:
    """How many markers the group of this name draws."""
    found = re.search(rf'<g id="[a-z-]*{name}">(.*?)</g> </g>', svg)
    return found[1].count("<use ") if found else 0


def text_of(folder: Path) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", write_report(folder).read_text()).split())


@pytest.mark.parametrize(
    ("edit", "treatment", "kind"),
    [
        (None, "keep", "keep"),
        (None, "reset", "treatment"),
        (None, "temper", "treatment"),
        ({"kind": "grow_heads"}, "keep", "grow"),
        ({"kind": "shrink_heads"}, "temper", "shrink"),
        ({"kind": "recycle_head"}, "keep", "recycle"),
        ({"kind": "restore"}, "keep", "restore"),
        ({"kind": "grow_outputs"}, "keep", "edit"),
    ],
)
def test_a_choice_is_told_by_its_edit_and_treatment(edit: dict[str, str] | None, treatment: str, kind: str) -> None:
    option = {"name": "it", "edit": edit, "treatment": treatment, "value": 0.1}
    revision = None if edit is None else 1
    assert kind_of(row_of(0.1, candidates=[option], chosen="it", revision=revision)) == kind


def test_agreement_is_that_of_the_numbers() -> None:
    found = [Outcome(i, "grow", False, 0.1 * i, 0.2 * i) for i in range(3)]
    assert agreement_words(found) == "n = 3, correlation +1.00, mean absolute difference 0.100"
    assert agreement(found[:2]).correlation is None
    constant = [Outcome(i, "keep", False, 0.0, 0.1 * i) for i in range(5)]
    assert "correlation not defined" in agreement_words(constant)
    assert agreement_words([]) == "n = 0"


def test_only_decisions_with_both_gains_count_as_outcomes() -> None:
    nan = float("nan")
    rows = [row_of(0.1, 0.2), row_of(0.1), row_of(nan, 0.1), row_of(0.1, nan), row_of(None, 0.1)]
    assert outcomes(rows) == [Outcome(100, "grow", False, 0.1, 0.2)]


def test_regret_sums_what_was_given_up_and_what_was_not_delivered() -> None:
    rows = [
        row_of(0.1, 0.06, best=0.1, sample=10),
        row_of(0.1, 5.0, best=0.3, sample=20, trigger="abrupt shift"),
        row_of(0.1, 0.2, best=None, sample=30),
        row_of(float("nan"), 0.2, best=0.5, sample=40),
    ]
    found = regret(rows)
    assert dict(found.estimated) == pytest.approx({10: 0.0, 20: 0.2, 30: 0.2})
    assert dict(found.undelivered) == pytest.approx({10: 0.04, 30: -0.06})


def test_decisions_are_told_apart_by_what_they_rested_on() -> None:
    tried = row_of(0.1, seconds=3.0)
    tried["candidates"][0]["loss_recent"] = 0.5
    keep = {"name": "keep", "edit": None, "value": 0.0, "predicted": 0.0}
    alone = row_of(0.0, candidates=[keep], chosen="keep", revision=None, seconds=None)
    found = deliberation([tried, row_of(0.1, seconds=0.02), row_of(0.1, seconds=0.04), alone])
    assert (found.looked, found.trusted, found.neither) == (1, 2, 1)
    words = "1 looked ahead (3.0 s each), 2 trusted the learned value alone (30 ms each), 1 had neither"
    assert deliberation_words(found) == words


def test_every_outcome_has_a_marker_of_its_kind_and_time(example_run_folder: Path) -> None:
    found = outcomes(read_run(example_run_folder).decisions)
    assert len(found) == 8
    for size in (WIDE, NARROW):
        svg = draw_outcomes(found, size)
        for kind in KINDS:
            for after, name in ((False, "between"), (True, "after")):
                expected = sum(o.kind == kind and o.after_shift == after for o in found)
                assert markers(svg, f"outcomes-{kind}-{name}") == expected, (kind, name)
        assert svg.count("diagonal") == 2
        assert "var(--choice-restore)" in svg and "#0101" not in svg


def test_outcomes_of_one_side_alone_have_one_panel() -> None:
    svg = draw_outcomes([Outcome(1, "keep", True, 0.0, 0.0)], WIDE)
    assert "After a shift (1)" in svg and "Between shifts" not in svg


def test_thousands_of_outcomes_are_thinned_without_losing_a_kind() -> None:
    found = [Outcome(i, "keep" if i else "restore", False, 0.001 * i, 0.0) for i in range(5_000)]
    svg = draw_outcomes(found, WIDE)
    assert markers(svg, "outcomes-keep-between") == MOST_MARKERS
    assert markers(svg, "outcomes-restore-between") == 1
    assert thinned(range(5_000), 3) == [1665, 3332, 4999]


def test_a_long_line_of_regret_is_thinned() -> None:
    steps = [(i, 0.1 * i) for i in range(1, 20_000)]
    svg = draw_regret(Regret(steps, []), 20_000, WIDE)
    assert len(svg) < 80 * MOST_STEPS
    assert "regret-estimated" in svg and "regret-undelivered" not in svg


def test_the_captions_give_the_numbers_and_their_limits(example_run_folder: Path) -> None:
    found = outcomes(read_run(example_run_folder).decisions)
    sums = regret(read_run(example_run_folder).decisions)
    text = text_of(example_run_folder)
    between = agreement_words([o for o in found if not o.after_shift])
    assert between.startswith("n = 3") and f"Between shifts: {between}" in text
    assert f"All together: {agreement_words(found)}" in text
    assert "Of 10 decisions on record, 8 have a measured outcome" in text
    assert "those outcomes tell more of the shift than of the edit" in text
    assert f"in all {sums.estimated[-1][1]:+.3f} over 10 decisions" in text
    assert f"in all {sums.undelivered[-1][1]:+.3f} over 3 decisions between shifts" in text
    assert "what another choice would have brought is not known" in text


def test_a_single_decision_without_an_outcome_has_notes_instead_of_plots(tmp_path: Path) -> None:
    records = Records(1_000, 16)
    records.add_decision({**row_of(0.1, observation={}, why="so"), "revision": None})
    records.write(tmp_path)
    text = text_of(tmp_path)
    assert "No decision has a measured outcome yet" in text
    assert "Regret is drawn from two decisions with known values on." in text
    assert "<svg" not in write_report(tmp_path).read_text()


def test_a_run_without_decisions_does_not_speak_of_regret(tmp_path: Path) -> None:
    assert "regret" not in text_of(tmp_path).lower()


@pytest.mark.slow
def test_thousands_of_decisions_still_give_a_small_page(tmp_path: Path) -> None:
    records = Records(1_000, 16, max_events=4_000)
    for number in range(3_000):
        trigger = "thrift" if number % 2 else "abrupt shift"
        at = {"number": number, "sample": 1_000 * number, "trigger": trigger, "observation": {"x": float(number)}}
        records.add_decision({**row_of(0.01 * (number % 7), 0.01 * (number % 5), best=0.1), **at, "why": "so"})
    records.write(tmp_path)
    page = write_report(tmp_path).read_text()
    assert page.count("<article") == 24
    assert "of 3,000 decisions" in page.lower() and "at most 100 are drawn" in page
    assert len(page) < 600_000
