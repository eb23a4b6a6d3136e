"""The page of a campaign: it says what was asked and what came of it, at any time, and needs nothing else."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from planaria.cli import call
from planaria.errors import InputError
from planaria.job import load_job
from planaria.record.canvas import CSS_VARIABLES
from planaria.search import load_campaign, search
from planaria.search.history import read_history
from planaria.search.record import CampaignRecord
from planaria.search.report import write_campaign_report
from planaria.search.space import JOURNAL
from planaria.train.folder import RunFolder

Make = Callable[..., Path]
VOID = {"meta"}


class Page(HTMLParser):
    """Text, in all and of the cells of the table of trials, and whether every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.rows, self.blocks = "", [], [], []  # type: tuple[str, list[str], list[list[str]], list[str]]
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "pre":
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"{tag} closes {self.open[-3:]}"
        self.open.pop()
        if tag == "table" and self.rows[0][0] == "trial":
            self.trials = self.rows

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self.open):
            return
        self.text += f" {data}"
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "pre" in self.open:
            self.blocks[-1] += data


def page_of(folder: Path) -> Page:
    return Page(write_campaign_report(folder).read_text())


def test_the_page_says_what_was_asked_and_what_came_of_it(made_up: Make) -> None:
    page = page_of(made_up())
    for fact in (
        "test stopped",
        "prequential accuracy, as high as it can be (of every row before it was learned from)",
        "parameters mean, as low as it can be",
        "tree-structured Parzen estimators (tpe)",
        "Seeds 3, 4: each trial lives through the stream with each; what counts is the mean",
        "policy.learner.learning_rate numbers from 0.0001 to 0.01, by ratio 0.001",
        "policy.sharing.difference_rank one of 0, 2 policy.sharing.attention is all 0",
        "trials that ended 8 of 12 1 failed, 1 cut off",
        "best prequential accuracy 0.66",
        "Share of the variance",
        "by the clock 3 min 20 s",
        "of a trial that is done 34 s 38 s at most",
        "--resume",
    ):
        assert fact in page.text, fact


def test_the_table_marks_the_front_the_job_itself_and_says_why_trials_failed(made_up: Make) -> None:
    made_up_folder = made_up()
    head, *rows = page_of(made_up_folder).trials
    assert head[:4] == ["trial", "outcome", "prequential accuracy", "parameters mean"] and len(rows) == 10
    marked = [int(row[0].split()[1]) for row in rows if row[0].startswith("★")]
    assert marked[0] == 2 and marked[-1] == 8, "the smallest, and the most accurate"
    assert marked == [trial["number"] for trial in read_history(made_up_folder).best][::-1]
    assert rows[0][1] == "done, the job as it is"
    assert rows[4][1] == "failed: model: <b>too large</b>; lower width" and rows[4][2] == ""
    assert rows[9][1] == "cut off" and rows[9][4] != "", "its settings are the study's"


def test_each_of_the_best_has_its_policy_and_a_command_that_runs_with_it(
    made_up: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = {"samples": 160, "stream.target": None, "policy.heads.start": 3}
    folder = made_up(
        settings=changed, search={"policy.learner.beta": {"between": [0, 1]}, "model.layers": {"integers": [1, 3]}}
    )
    (folder / "best").mkdir()
    (folder / "best/trial-0099.yaml").write_text("name: of an earlier front\n")
    page = page_of(folder)
    best = read_history(folder).best
    commands = [block for block in page.blocks if block.startswith("planaria run ")]
    assert len(commands) == len(best) and [path.name for path in sorted((folder / "best").iterdir())] == [
        f"trial-{number:04d}.yaml" for number in sorted(trial["number"] for trial in best)
    ]
    monkeypatch.chdir("/")
    for trial, command in zip(best, commands, strict=True):
        _, _, job, *overrides = shlex.split(command)
        loaded = load_job(job, overrides)
        assert (loaded.samples, loaded.policy.heads.start, loaded.model.layers) == (
            160,
            3,
            trial["settings"]["model.layers"],
        )
        assert loaded.policy.learner.beta == trial["settings"]["policy.learner.beta"]
        assert (folder / f"best/trial-{trial['number']:04d}.yaml").read_text() in page.blocks


def test_a_campaign_that_goes_on_and_one_that_was_killed_are_told_apart(made_up: Make) -> None:
    folder = made_up("running")
    with RunFolder(folder).held("driver"):
        page = page_of(folder)
        assert "test running" in page.text and "under way" in page.text and "--resume" not in page.text
    page = page_of(folder)
    assert "test cut off" in page.text and "--resume" in page.text and "under way" not in page.text


def test_a_failed_campaign_says_why_first(made_up: Make) -> None:
    folder = made_up("failed")
    (folder / "summary.json").write_text(json.dumps({"status": "failed", "reason": "RayError: no nodes"}))
    text = page_of(folder).text
    assert text.index("Why it ended: RayError: no nodes") < text.index("Objective")


def test_a_campaign_without_trials_or_whose_job_is_gone_still_gives_a_page(written: Make, made_up: Make) -> None:
    folder = made_up(None)
    (folder.parent / "job.yaml").unlink()
    assert "the job is no longer there" in page_of(folder).text
    (folder / JOURNAL).unlink()
    for path in folder.glob("trials/*/trial.json"):
        path.unlink()
    text = page_of(folder).text
    assert "No trial has been begun yet" in text and "Too few trials" in text


def test_looking_at_a_campaign_changes_nothing_of_it(made_up: Make) -> None:
    folder = made_up("running")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    page_of(folder)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "objectives", [{"prequential_accuracy": "max"}, {"parameters_mean": "min", "cpu_seconds": "min"}]
)
def test_other_objectives_are_drawn_too(made_up: Make, objectives: dict[str, str]) -> None:
    folder = made_up(objectives={"prequential_accuracy": "max"})
    campaign = json.dumps(objectives)
    path = folder / "campaign.yaml"
    path.write_text(re.sub(r"objectives:\n  prequential_accuracy: max", f"objectives: {campaign}", path.read_text()))
    (folder / JOURNAL).unlink()
    html = write_campaign_report(folder).read_text()
    assert html.count("<svg") == 4
    assert ("the best so far" in html) == (len(objectives) == 1)


def test_the_page_needs_nothing_from_elsewhere_and_lets_no_text_become_markup(made_up: Make) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x> $\\frac{1}{$ {{ 7*7 }} font: 3px"
    folder = made_up(name="attack", search={"stream.target": {"one_of": [attack, "$x_"]}})
    html = write_campaign_report(folder).read_text()
    Page(html)
    assert html.count("<script>") == 1 and "<img" not in html
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", html))
    assert addresses == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, never fetched
    assert not re.search(r"<link|@import|src=[\"']|url\((?!#)", html)
    assert not any(colour in html for colour in CSS_VARIABLES)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "the figures do not share ids"


def test_the_command_reports_campaigns_and_names_both_kinds_where_a_folder_is_neither(
    made_up: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made_up()
    assert call(["report", str(folder)]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder / "report.html"
    assert call(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (folder / "report.html").read_text()
    capsys.readouterr()
    (tmp_path / "neither").mkdir()
    assert call(["report", str(tmp_path / "neither")]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/neither: is neither a run's folder (job.yaml is missing) nor a campaign's (campaign.yaml is "
        "missing); give one of these\n"
    )


def test_a_folder_that_holds_no_campaign_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no campaign's folder"):
        write_campaign_report(tmp_path)


def test_a_campaign_that_fails_leaves_its_reason_and_its_page(
    written: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> bool:
        raise OSError("the cluster\nis gone")

    monkeypatch.setattr("planaria.search.run._run_trials", fail)
    monkeypatch.setattr(CampaignRecord, "finish", lambda *given: None)
    with pytest.raises(OSError, match="is gone"):
        search(load_campaign(written()), tmp_path / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["status"] == "failed"
    assert "Why it ended: OSError: the cluster is gone" in Page((tmp_path / "out/report.html").read_text()).text
