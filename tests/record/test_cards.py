"""Decision cards: every candidate with what was known of it before and after looking ahead, in any state of the row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from planaria.record.cards import Card, Observed, Option, cards
from planaria.record.facts import Row, Run
from planaria.record.report import read_run, render


def option(name: str, **known: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(("value", "standard_error", "predicted", "predicted_error", "loss_recent", "loss_memory"))
    edit = None if name == "keep" else {"kind": "grow_heads"}
    return {"name": name, "edit": edit, "treatment": "keep", "heads": [2, 2], "parameters": 10, **unknown, **known}


def decision(candidates: list[dict[str, Any]], chosen: str, **values: Any) -> Row:
    row = {"number": 0, "step": 1, "sample": 100, "trigger": "thrift", "observation": {}, "why": "so", "seconds": 1.0}
    return {
        **row,
        "predicted": None,
        "gain_realised": None,
        "revision": 1,
        "candidates": candidates,
        "chosen": chosen,
    } | (values)


def run_of(*decisions: Row) -> Run:
    return Run("run", "running", {}, steps=[], revisions=[], shifts=[], decisions=decisions)


def card_of(row: Row) -> Card:
    return cards(run_of(row), edits=row["revision"] is not None)[0][0]


def options_of(card: Card) -> dict[str, list[Option]]:
    return {title: list(options) for title, options in card.groups}


def test_learned_and_final_value_stand_side_by_side_where_it_was_looked_ahead() -> None:
    tried = option("grow", value=0.04, standard_error=0.01, predicted=0.02, predicted_error=0.03, loss_recent=0.5)
    guessed = option("shrink", value=-0.01, standard_error=0.02, predicted=-0.01, predicted_error=0.02)
    groups = options_of(card_of(decision([tried, guessed], "grow", predicted=0.04)))
    (grow,), (shrink,) = groups["looked ahead"], groups["not looked ahead"]
    assert grow.final is not None and grow.final.words == "+0.040 ± 0.010"
    assert grow.learned is not None and grow.learned.words == "+0.020 ± 0.030"
    assert grow.chosen and not shrink.chosen
    assert shrink.final is None
    assert shrink.learned is not None and shrink.learned.words == "−0.010 ± 0.020"
    assert shrink.learned.at < card_of(decision([tried, guessed], "grow")).zero < grow.learned.at < grow.final.at


def test_rows_from_before_values_were_learned_count_as_looked_ahead() -> None:
    old = {"name": "grow", "edit": None, "heads": [2], "value": 0.03, "standard_error": 0.01}
    unscored = {"name": "shrink", "edit": None, "heads": [1], "value": None}
    groups = options_of(card_of(decision([old, unscored], "grow", predicted=0.03)))
    assert groups["looked ahead"][0].learned is None and groups["looked ahead"][0].final is not None
    assert groups["not looked ahead"][0].learned is None


@pytest.mark.parametrize("count", [0, 1, 9, 30])
def test_any_number_of_candidates_fits_and_the_chosen_one_is_always_shown(count: int) -> None:
    options = [
        option(f"grow {i} " + "x" * 200, value=-0.01 * i, standard_error=0.5, loss_recent=1.0) for i in range(count)
    ]
    chosen = options[-1]["name"] if options else "grow"
    card = card_of(decision(options, chosen, predicted=-0.01 * (count - 1)))
    shown = [option for _, options in card.groups for option in options]
    assert len(shown) == min(count, 9) and card.left_out == max(0, count - 9)
    assert sum(option.chosen for option in shown) == min(1, count)
    places = [(e.left, e.at, e.left + e.width) for o in shown for e in (o.learned, o.final) if e is not None]
    assert all(0 <= place <= 100.01 for found in places for place in found)


def test_nothing_known_is_shown_as_such() -> None:
    row = decision([option("grow"), option("keep")], "grow", predicted=math.nan, seconds=math.nan)
    page = render(run_of(row))
    assert page.count("nothing known") == 2 and "neither looked ahead nor learned" in page
    assert "predicted <strong>not known</strong>, realised <strong>not measured</strong>" in page
    assert "took <strong>not known</strong>" in page


def test_a_very_uncertain_candidate_does_not_press_the_others_together() -> None:
    sure = option("grow", value=0.04, standard_error=0.01, loss_recent=0.5)
    vague = option("shrink", predicted=-0.04, predicted_error=50.0)
    card = card_of(decision([sure, vague], "grow", predicted=0.04))
    (grow,), (shrink,) = (options for _, options in card.groups)
    assert grow.final is not None and shrink.learned is not None
    assert grow.final.at - shrink.learned.at > 30
    assert shrink.learned.cut and not grow.final.cut


def test_the_observations_furthest_from_usual_are_shown() -> None:
    rows = [
        decision([option("keep")], "keep", number=i, observation={"steady": 1.0, "jumpy": float(i == 7), "void": None})
        for i in range(8)
    ]
    newest = cards(run_of(*rows), edits=True)[0][-1]
    assert newest.observed[0] == Observed("jumpy", "1", "0")
    assert cards(run_of(rows[0]), edits=True)[0][0].observed[0].usual == ""


def test_the_page_marks_those_that_were_not_looked_ahead(example_run_folder: Path) -> None:
    run = read_run(example_run_folder)
    page = render(run)
    options = [option for row in run.decisions for option in row["candidates"]]
    tried = sum(option["loss_recent"] is not None for option in options)
    assert 0 < tried < len(options)
    drawn = page[page.index("<h2>Decisions") :]
    drawn = drawn[drawn.index("<article") :]
    assert drawn.count('class="lane final"') == tried
    assert drawn.count('class="lane learned"') == len(options)
    assert drawn.count("✓ ") == len(run.decisions)
    assert drawn.count("trusted the learned value alone") == 3
    assert drawn.count("looked ahead on 4 of ") == 7
