"""How a run looks on a terminal and where there is none."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from planaria.screen import Screen, events, head_map, progress_line, sparkline, summary_table

STATE: dict[str, Any] = {
    "status": "running",
    "step": 100,
    "samples": 12_800,
    "total_samples": 48_000,
    "samples_per_second": 1_234.5,
    "prequential_accuracy": 0.7123,
    "accuracy_recent": 0.8,
    "shifts": 0,
    "edits": 0,
    "revision": 0,
    "heads": [2, 2],
    "parameters": 47_114,
    "message": None,
}
GROWN = {**STATE, "samples": 13_000, "shifts": 1, "edits": 1, "revision": 1, "heads": [3, 2]}


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100, _environ={"TERM": "xterm-256color"}), out


def test_a_pipe_gets_plain_lines_and_every_event_once() -> None:
    where, out = console(terminal=False)
    with Screen(where, "demo", plain_every_s=3_600) as screen:
        for state in (STATE, STATE, GROWN, GROWN):
            screen(state)
    assert out.getvalue().splitlines() == [
        "12,800 of 48,000 samples, 1,234/s, accuracy 0.712 (0.800 of late), 0 shifts, 0 edits, heads 2 2",
        "13,000 samples: shift 1 detected",
        "13,000 samples: heads 2 2 to 3 2 (revision 1)",
    ]


def test_a_terminal_gets_a_panel_with_progress_heads_and_events() -> None:
    where, out = console(terminal=True)
    screen = Screen(where, "demo")
    screen(STATE)
    screen(GROWN)
    where.print(screen._panel(GROWN))
    shown = out.getvalue()
    for part in ("planaria · demo · running", "13,000 of 48,000", "0.712", "layer 0", "shift 1 detected", "revision 1"):
        assert part in shown


def test_a_panel_is_taken_away_when_the_run_ends_by_an_error() -> None:
    where, out = console(terminal=True)
    with pytest.raises(RuntimeError), Screen(where, "demo"):
        raise RuntimeError
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_nothing_happened_between_equal_states() -> None:
    assert events(STATE, STATE) == []


def test_a_message_is_told_when_it_changes() -> None:
    told = {**STATE, "message": "worker 1 was lost"}
    assert events(STATE, told) == ["12,800 samples: worker 1 was lost"]
    assert events(told, told) == []


def test_a_state_with_nothing_in_it_yet_is_still_a_line() -> None:
    assert progress_line({}) == "0 samples, 0/s, accuracy -, 0 shifts, 0 edits, heads -"


def test_a_regression_shows_its_mean_error() -> None:
    state = {**STATE, "prequential_mae": 1.5, "mae_recent": 1.25, "prequential_accuracy": None, "shifts": 1}
    line = "12,800 of 48,000 samples, 1,234/s, mean error 1.500 (1.250 of late), 1 shift, 0 edits, heads 2 2"
    assert progress_line(state) == line


@pytest.mark.parametrize(
    ("values", "rises", "bars"),
    [([], True, ""), ([0.0, 0.5, 1.0], True, "▁▅█"), ([2.0, 4.0], False, "▅█"), ([0.0, 0.0], False, "▁▁")],
)
def test_a_curve_is_drawn_in_one_line(values: list[float], rises: bool, bars: str) -> None:
    assert sparkline(values, rises) == bars


def test_the_head_map_shows_live_heads_and_those_that_went() -> None:
    assert head_map([3, 1], [3, 4]).plain == "layer 0  ■ ■ ■ 3\nlayer 1  ■ □ □ □ 1"


def test_the_summary_leaves_out_what_a_run_does_not_have() -> None:
    where, out = console(terminal=False)
    where.print(summary_table({"status": "done", "samples": 48_000, "prequential_mae": 2.5, "grows": 1, "shrinks": 2}))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines == [
        "status done",
        "samples 48,000",
        "mean error as it went 2.5",
        "edits 1 growth, 2 shrinkings",
    ]


def test_the_summary_shows_heads_parameters_and_time() -> None:
    summary = {
        "heads_first": [2, 2],
        "heads_last": [4, 1],
        "parameters_first": 40_000,
        "parameters_last": 50_000,
        "parameters_mean": 45_000.4,
        "wall_seconds": 61.4,
        "samples_per_second": 800.2,
        "decision_seconds": 4.05,
        "restarts": 1,
    }
    where, out = console(terminal=False)
    where.print(summary_table(summary))
    assert [" ".join(line.split()) for line in out.getvalue().splitlines()] == [
        "heads per layer [2, 2] at first, [4, 1] at last",
        "parameters 40,000 at first, 50,000 at last, 45,000 on average",
        "time 61 s, 800 samples/s, 4.0 s of it deciding",
        "restarts 1",
    ]
