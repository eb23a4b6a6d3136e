"""The report: it says what happened, for every kind of folder, and lets no text of a user's become code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from planaria.errors import InputError
from planaria.record import Records, write_report
from planaria.record.canvas import CSS_VARIABLES, NARROW, WIDE
from planaria.record.plots import Band, context_bands, draw_run, head_segments
from planaria.record.report import read_run, render
from planaria.record.tables import shift_row
from planaria.signals import TOLD, Shift

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Text, and whether every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.tags = "", [], set()  # type: tuple[str, list[str], set[str]]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"{tag} closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += f" {data}"


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder).read_text())
    assert page.open == []
    page.text = " ".join(page.text.split())
    return page


def test_the_page_tells_of_a_readout_beside_the_model(example_run_folder: Path) -> None:
    run = read_run(example_run_folder)
    newest = {**run.revisions[-1], "blueprint": {"readout_features": 512}}
    with_one = replace(run, revisions=[*run.revisions[:-1], newest])
    said = "Beside it answers a readout of 512 random features"
    assert said in render(with_one) and said not in render(run)


def test_the_page_says_what_happened_and_why(example_run_folder: Path) -> None:
    text = page_of(example_run_folder).text
    for fact in (
        "fashion_shift done",
        "7 shifts were detected (4 abrupt, 1 gradual, 2 recurring): 7 true changes found",
        "typically 350 samples after they began, no false alarm",
        "edited 7 times (3 grew, 2 shrank, 2 other): heads per layer went from 2+2 to 2+3",
        "it was right on 76.2%; at the end it is right on 81.2% over all contexts seen",
        "page hinkley reached 24.5, its alarm is at 20",
        "The stream returned to concept 1",
        "✓ grow layer 1 by 1 2+3",
        "2 decisions that kept the model as it was",
        "10 in 24 s 12.8% of the wall time; 7 looked ahead (2.4 s each)",
        "3 trusted the learned value alone (40 ms each)",
        "decisions that looked ahead 7 2.4 s each, mean",
        "decisions on the learned value alone 3 40 ms each, mean",
        "↶ restore concept 1 → revision 4",
        "↻ recycle a head of layer 1 → revision 6",
        "No edit beats keeping by 1 standard error",
        "74.0%, 9.0 points forgotten",
        "rows lost 0",
        "energy 2.5k J estimated: the workers' CPU time x 10 W a core",
        "12.8% of the wall time",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ):
        assert fact in text, fact


def test_predicted_and_realised_gain_stand_side_by_side(filled: Records, example_run_folder: Path) -> None:
    row = next(row for row in filled.rows("decisions") if row["gain_realised"] is not None)
    expected = f"predicted {row['predicted']:+.3f} , realised {row['gain_realised']:+.3f}"
    assert expected in page_of(example_run_folder).text


def test_what_gates_let_rows_use_is_told(example_run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gated"
    shutil.copytree(example_run_folder, folder)
    summary = json.loads((folder / "summary.json").read_text())
    for share, shown in ((1.0, False), (0.6, True)):
        used = {"parameters_active_mean": 21_000.0, "active_fraction_mean": share}
        (folder / "summary.json").write_text(json.dumps({**summary, **used}))
        line = "parameters a row used, mean 21k 60% of what is behind gates"
        assert (line in page_of(folder).text) is shown


def test_no_text_of_the_users_becomes_markup(make_run: Callable[..., Path]) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{1}{$ {{ 7*7 }}"
    folder = make_run(name=attack, status="failed", reason=attack)
    records = Records(1_000, 16)
    records.load_state(records.state())
    records.add_interval({"step": 8, "samples": 1_000, "accuracy": 0.5, "heads": [1]})
    records.open_revision({"number": 0, "step": 0, "sample": 0, "cause": attack, "why": attack, "heads": [1]})
    shift = {"step": 1, "sample": 500, "detector": attack, "kind": "abrupt", "statistic": 2, "threshold": 1}
    records.add_shift({**shift, "onset_sample": 400})
    option = {"name": attack, "heads": [1], "treatment": attack, "value": 0.1, "standard_error": 0.1, "edit": None}
    decision = {"number": 0, "step": 2, "sample": 600, "trigger": attack, "observation": {attack: 1.0}, "why": attack}
    records.add_decision({**decision, "candidates": [option], "chosen": attack, "seconds": 1, "predicted": 0.1})
    records.write(folder)
    html = write_report(folder).read_text()
    assert html.count("<script>") == 1  # our own, which sorts the table
    assert "<img" not in html and "alert(1)</script>" not in html
    assert html.count("&lt;img src=x onerror=alert(2)&gt;") > 5
    assert "{{ 7*7 }}" in html and "img" not in Page(html).tags


def test_passwords_in_the_job_are_masked(example_run_folder: Path) -> None:
    html = write_report(example_run_folder).read_text()
    assert "hunter2" not in html
    assert "postgresql://user:***@db/mlflow" in html


def test_the_page_needs_nothing_from_elsewhere(example_run_folder: Path) -> None:
    html = write_report(example_run_folder).read_text()
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert addresses == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, never fetched
    assert not re.search(r"<link|@import|src=|url\((?!#)", html)
    assert len(html) < 400_000


def test_a_run_that_goes_on_is_shown_so_far(make_run: Callable[..., Path]) -> None:
    text = page_of(make_run(status="running", until=40_000)).text
    assert "fashion_shift running" in text
    assert "In 40,000 samples 3 shifts were detected" in text
    assert "The run goes on, or was cut off" in text
    assert "final accuracy" not in text
    assert "lives" in text  # the newest revision


def test_a_failed_run_says_why_first(make_run: Callable[..., Path]) -> None:
    text = page_of(make_run(status="failed", until=30_000, reason="the disk is full; free some space")).text
    assert text.index("Why it ended: the disk is full; free some space") < text.index("In 30,000 samples")


def test_a_regression_shows_errors_instead_of_accuracies(make_run: Callable[..., Path]) -> None:
    text = page_of(make_run(regression=True)).text
    assert "prequential MAE 1.43" in text and "prequential RMSE 1.9" in text
    assert "it was off by 1.43 on average" in text
    assert "accuracy" not in text.lower()


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "nothing to show" in page.text and "not started" in page.text
    assert "svg" not in page.tags


def test_a_run_without_known_contexts_claims_nothing_about_true_changes(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    records = Records(1_000, 16)
    records.add_interval({"step": 8, "samples": 1_000, "accuracy": 0.5, "heads": [1], "wall_seconds": 2.0})
    shift = {"step": 1, "sample": 500, "detector": "adwin", "kind": "abrupt", "statistic": 2, "threshold": 1}
    records.add_shift({**shift, "onset_sample": 400})
    records.write(folder)
    (folder / "summary.json").unlink()
    text = page_of(folder).text
    assert "1 shift was detected (1 abrupt)." in text
    assert "false" not in text and "true c" not in text


def test_an_alarm_without_a_change_is_called_false_or_repeated(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    records = Records(1_000, 16)
    records.add_interval({"step": 8, "samples": 1_000, "accuracy": 0.5, "heads": [1], "context": 0})
    shift = {"step": 1, "sample": 500, "detector": "adwin", "kind": "abrupt", "statistic": 2, "threshold": 1}
    records.add_shift({**shift, "onset_sample": 400})
    records.write(folder)
    (folder / "summary.json").unlink()
    assert "0 true changes found, 1 false or repeated alarm." in page_of(folder).text


def test_a_shift_that_was_told_is_not_called_detected(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    records = Records(1_000, 16)
    records.add_interval({"step": 8, "samples": 1_000, "accuracy": 0.5, "heads": [1], "context": 0})
    shift = Shift(1, 500, TOLD, "recurring", 1.0, 0.0, 500, concept=3)
    records.add_shift(shift_row(shift, 0))
    records.write(folder)
    (folder / "summary.json").unlink()
    text = page_of(folder).text
    assert "1 shift was told by the stream (1 recurring)." in text
    assert "The stream told that sample 500 is the first of another context. The stream returned to concept 3." in text
    assert "detected" not in text and "alarm" not in text and "unknown to the learner" not in text


@pytest.mark.slow
def test_a_very_long_run_still_gives_a_small_page(tmp_path: Path) -> None:
    records = Records(1_000, 4_000)
    option = {"name": "keep", "heads": [2] * 24, "value": 0.0, "treatment": "keep", "edit": None}
    for number in range(1_000):
        at = {"step": 8 * number, "sample": 1_000 * number}
        records.open_revision({"number": number, **at, "heads": [1 + number % 5] * 24, "parameters": 10})
        shift = {"detector": "mmd", "kind": "gradual", "statistic": 2, "threshold": 1, "onset_sample": 0}
        records.add_shift({**at, **shift})
        chosen = {"trigger": "thrift", "chosen": "keep", "candidates": [option] * 30, "observation": {}}
        records.add_decision({"number": number, **at, **chosen, "revision": number})
        samples = 1_000 * (number + 1)
        steps = {"step": 8 * number, "samples": samples, "accuracy": 0.5, "heads": [1 + number % 5] * 24}
        records.add_interval({**steps, "parameters": 10, "flops_per_sample": 10})
    records.write(tmp_path)
    page = write_report(tmp_path).read_text()
    assert len(page) < 12_000_000
    assert page.count("<article") == 24


def test_a_folder_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder; give the folder of a run"):
        write_report(tmp_path / "nothing")


def test_a_broken_summary_is_an_input_error(example_run_folder: Path) -> None:
    (example_run_folder / "summary.json").write_text('{"samples": ')
    with pytest.raises(InputError, match=r"summary\.json: cannot be read .*; resume the run"):
        write_report(example_run_folder)


def test_the_figure_follows_the_pages_colours(filled: Records) -> None:
    steps, shifts, revisions = filled.rows("steps"), filled.rows("shifts"), filled.rows("revisions")
    figures = [draw_run(steps, shifts, revisions, regression=False, size=size) for size in (WIDE, NARROW)]
    for svg in figures:
        assert not any(colour in svg for colour in CSS_VARIABLES)
        assert {"var(--abrupt)", "var(--gradual)", "var(--recurring)", "var(--band-0)"} <= set(
            re.findall(r"var[^)]+\)", svg)
        )
        assert "samples seen" in svg and "Prequential accuracy (% right)" in svg
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in figures]
    assert not ids[0] & ids[1]


def test_context_bands_follow_the_contexts_and_end_where_they_are_unknown() -> None:
    contexts = [0, 0, 1, None, 1, 0]
    steps = [{"samples": 10 * (i + 1), "context": context} for i, context in enumerate(contexts)]
    assert context_bands(steps) == [Band(0, 20, 0), Band(20, 30, 1), Band(40, 50, 1), Band(50, 60, 0)]


def test_head_segments_come_from_the_steps_where_there_are_no_revisions() -> None:
    steps = [{"samples": s, "heads": heads} for s, heads in ((10, [1]), (20, [1]), (30, [2]), (40, [2]))]
    assert head_segments(steps, []) == [(0, 20, [1]), (20, 40, [2])]
    revisions = [{"sample": 0, "heads": [1]}, {"sample": 17, "heads": [1]}, {"sample": 24, "heads": [2]}]
    assert head_segments(steps, revisions) == [(0, 24, [1]), (24, 40, [2])]


def test_the_page_shows_where_the_run_is_in_mlflow(example_run_folder: Path) -> None:
    marks = {"tracking_uri": "http://store:5000", "run_id": "abc123"}
    (example_run_folder / "mlflow.json").write_text(json.dumps(marks))
    assert "nested run of MLflow run abc123 at http://store:5000" in page_of(example_run_folder).text
