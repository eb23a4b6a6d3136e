"""Campaigns: what may be searched, what is drawn, what is best, and that nothing is lost or repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileOpenLock

from planaria.errors import InputError
from planaria.own_folder import check_no_links
from planaria.plain_yaml import dump_yaml
from planaria.ranges import Range
from planaria.record.tracking import connect, embedded_uri
from planaria.search import Campaign, load_campaign, search
from planaria.search.campaign import check, dump_campaign, given, job_of
from planaria.search.outcome import front
from planaria.search.places import folder_of, lives_in, read_trials
from planaria.search.policies import policy_text
from planaria.search.run import load_rows, trials_at_once
from planaria.search.searcher import StudySearcher
from planaria.search.space import JOURNAL, draw, open_study
from planaria.search.trial import Around, live_trial
from planaria.train.folder import RunFolder

SHIPPED = sorted((Path(__file__).parents[2] / "jobs").glob("search_*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_what_is_shipped_can_be_searched(path: Path, tmp_path: Path) -> None:
    campaign = load_campaign(path)
    check(campaign)
    study = open_study(campaign, tmp_path)
    first = draw(study.ask(), campaign.search)
    job = check(campaign)
    assert all(campaign.search[key].holds(given(job, key)) for key in first), "the first trial is the job as it is"
    for _ in range(8):
        job_of(campaign, draw(study.ask(), campaign.search), seed=1)


@pytest.fixture
def campaign(written: Callable[..., Path]) -> Campaign:
    return load_campaign(written())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search": {"policy.learner.rate": {"between": [0, 1]}}}, "search.policy.learner.rate: a job has no such"),
        ({"search": {"seed": {"between": [2, 1]}}}, "give the lower one first"),
        ({"search": {"seed": {"between": [0, 1], "log": True}}}, "above 0"),
        ({"search": {"seed": {"between": [0, 1], "one_of": [1, 2]}}}, "exactly one of"),
        ({"search": {"seed": {"one_of": [1]}}}, "at least two values"),
        ({"search": {"seed": {"one_of": [1, 2], "when": {"samples": [1]}}}}, "not searched before it"),
        ({"objectives": {"accuracy": "max"}}, "there is no 'accuracy'"),
        ({"objectives": {}}, "objectives is empty"),
        ({"settings": {"batch_rows": -1}}, "batch_rows: -1 is not allowed"),
        ({"search": {}}, "search: is missing, and the policy has no such block"),
        ({"search": {"samples": {"between": [1, 2]}}}, "by integers instead of between"),
        ({"search": {"policy.learner.learning_rate": {"between": "x"}}}, "between: 'x' is not allowed"),
        ({"streams": [{"stream.source": "nothing"}], "objectives": {"heads": "min"}}, "there is no 'heads'"),
        ({"teach": True}, "policy.controller.kind is none, which learns nothing; remove teach"),
        ({"workers_per_trial": 2, "gpus_per_trial": 0.5}, "each of which takes a whole GPU; set it to 0 or 1"),
    ],
)
def test_what_cannot_be_searched_is_told_in_one_line(
    change: dict[str, Any], said: str, written: Callable[..., Path]
) -> None:
    with pytest.raises(InputError) as error:
        check(load_campaign(written(**change)))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_campaign_without_ranges_takes_those_of_its_policy(written: Callable[..., Path], tmp_path: Path) -> None:
    of_policy = {
        "sharing.attention": {"one_of": ["none", "all"]},
        "sharing.difference_rank": {"one_of": [0, 2], "when": {"sharing.attention": ["all"]}},
    }
    (tmp_path / "own.yaml").write_text(dump_yaml({"controller": {"kind": "none"}, "search": of_policy}))
    campaign = load_campaign(written(search={}, settings={"policy": "own.yaml"}))
    assert list(campaign.search) == ["policy.sharing.attention", "policy.sharing.difference_rank"]
    assert campaign.search["policy.sharing.difference_rank"].when == {"policy.sharing.attention": ("all",)}
    folder = tmp_path / "written.yaml"
    folder.write_text(dump_campaign(campaign))
    (tmp_path / "own.yaml").unlink()
    assert load_campaign(folder) == campaign, "what was searched is written down"


def test_a_policy_is_run_whatever_its_search_block_says_and_best_policies_have_none(
    written: Callable[..., Path], tmp_path: Path
) -> None:
    ranges = {"learner.learning_rate": {"between": [0.001, 0.1]}}
    (tmp_path / "own.yaml").write_text(dump_yaml({"controller": {"kind": "none"}, "search": ranges}))
    campaign = load_campaign(written(search={}, settings={"policy": "own.yaml"}, seeds=[3]))
    around = Around(campaign, tmp_path / "out", tmp_path)
    settings = {"policy.learner.learning_rate": 0.05}
    live_trial(around, 0, settings, lambda progress: None)
    (trial,) = read_trials(around.folder)
    text = policy_text(campaign, trial)
    assert text is not None and "search:" not in text and "learning_rate: 0.05" in text


def test_a_trial_lives_through_every_stream_with_every_seed(written: Callable[..., Path], tmp_path: Path) -> None:
    streams = [{"samples": 96}, {"stream.source": "bananas", "samples": 160}]
    campaign = load_campaign(written(streams=streams))
    around = Around(campaign, tmp_path / "out", tmp_path)
    metrics = live_trial(around, 0, {}, lambda progress: None)
    lives = [RunFolder(path) for path in lives_in(folder_of(around.folder, 0))]
    assert [life.path.name for life in lives] == [f"stream-{s}-seed-{seed}" for s in (0, 1) for seed in (3, 4)]
    summaries = [life.read_json(life.summary) for life in lives]
    assert [summary["samples"] for summary in summaries] == [96, 96, 160, 160]
    accuracies = [summary["prequential_accuracy"] for summary in summaries]
    assert metrics["prequential_accuracy"] == pytest.approx(sum(accuracies) / 4)
    assert metrics["wall_seconds"] > 0 and metrics["energy_joules"] > 0 and metrics["forgetting"] is not None


def test_the_first_trial_is_the_job_as_it_is_and_conditions_hold(campaign: Campaign, tmp_path: Path) -> None:
    study = open_study(campaign, tmp_path)
    drawn = [draw(study.ask(), campaign.search) for _ in range(30)]
    assert drawn[0] == {"policy.learner.learning_rate": 0.001, "policy.sharing.attention": "none"}
    for settings in drawn:
        assert ("policy.sharing.difference_rank" in settings) == (settings["policy.sharing.attention"] == "all")
        assert 0.0001 <= float(str(settings["policy.learner.learning_rate"])) <= 0.01
        job_of(campaign, settings, seed=1)
    assert {settings["policy.sharing.attention"] for settings in drawn} == {"none", "all"}


def test_equal_seeds_draw_equally(campaign: Campaign, tmp_path: Path) -> None:
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study = open_study(campaign, tmp_path / name)
        drawn.append([draw(study.ask(), campaign.search) for _ in range(6)])
    assert drawn[0] == drawn[1]


def test_a_range_knows_what_it_holds() -> None:
    assert Range(integers=(1, 3)).holds(3) and not Range(integers=(1, 3)).holds(2.0)
    assert Range(between=(0, 1)).holds(1) and not Range(between=(0, 1)).holds(True)
    assert Range(one_of=(None, "x")).holds(None)


def test_the_front_holds_those_that_nothing_beats() -> None:
    values = [(0.9, 10), (0.8, 5), (0.8, 6), (0.7, 5), (0.95, 20), (0.9, 10)]
    trials = [{"number": at, "metrics": {"a": a, "p": p}} for at, (a, p) in enumerate(values)]
    assert [trial["number"] for trial in front(trials, {"a": "max", "p": "min"})] == [4, 0, 1]


def test_cut_off_trials_are_handed_out_first_and_finished_ones_never(campaign: Campaign, tmp_path: Path) -> None:
    searcher = StudySearcher(open_study(campaign, tmp_path), campaign)
    handed = [searcher.suggest(name) for name in "abc"]
    assert [one["number"] for one in handed if one] == [0, 1, 2]
    searcher.on_trial_complete("b", {"finished": True, "prequential_accuracy": 0.5, "parameters_mean": 7.0})
    searcher.on_trial_complete("c", None, error=True)
    again = StudySearcher(open_study(campaign, tmp_path), campaign)
    assert again.suggest("d") == handed[0], "the same settings under the same number"
    last = again.suggest("e")
    assert last is not None and last["number"] == 3
    assert again.suggest("f") == StudySearcher.FINISHED
    states = [trial.state.name for trial in open_study(campaign, tmp_path).trials]
    assert states == ["RUNNING", "COMPLETE", "FAIL", "RUNNING"]


def test_a_trial_that_was_cut_off_before_all_of_it_was_drawn_keeps_what_was(campaign: Campaign, tmp_path: Path) -> None:
    study = open_study(campaign, tmp_path)
    for _ in range(2):
        study.ask()  # nothing is drawn of the first; of the second one setting
    second = optuna.trial.Trial(study, study.trials[1]._trial_id)
    key, values = next((key, values) for key, values in campaign.search.items() if values.between is not None)
    assert values.between is not None
    drawn = second.suggest_float(key, *values.between, log=values.log)
    searcher = StudySearcher(open_study(campaign, tmp_path), campaign)
    found = [searcher.suggest(name) for name in ("a", "b")]
    assert [one and one["number"] for one in found] == [0, 1]
    assert all(one is not None and key in one["settings"] for one in found)
    assert found[1] is not None and found[1]["settings"][key] == drawn


def test_a_trial_that_was_cut_off_goes_on_and_a_done_one_is_not_repeated(campaign: Campaign, tmp_path: Path) -> None:
    class CutError(Exception):
        pass

    told: list[int] = []

    def cut(progress: Any) -> None:
        told.append(progress["samples"])
        if progress["samples"] >= 320 + 160:
            raise CutError

    with pytest.raises(CutError):
        live_trial(Around(campaign, tmp_path, tmp_path), 0, {}, cut)
    first = told.copy()
    metrics = live_trial(Around(campaign, tmp_path, tmp_path), 0, {}, lambda progress: told.append(progress["samples"]))
    assert min(told[len(first) :]) > 320, "the first seed was done"
    whole = live_trial(Around(campaign, tmp_path, tmp_path), 1, {}, lambda progress: None)
    same = [name for name in whole if name not in ("cpu_seconds", "energy_joules", "wall_seconds")]
    assert {name: metrics[name] for name in same} == {name: whole[name] for name in same}


def test_a_lock_that_a_killed_campaign_left_is_no_link_and_is_taken_over(campaign: Campaign, tmp_path: Path) -> None:
    open_study(campaign, tmp_path)
    lock = JournalFileOpenLock(str(tmp_path / JOURNAL))
    assert lock.acquire()  # and is killed
    check_no_links(tmp_path)
    assert open_study(campaign, tmp_path).ask().number == 0


def test_a_trial_that_cannot_be_says_why(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        live_trial(
            Around(campaign, tmp_path, tmp_path), 2, {"policy.sharing.difference_rank": 2}, lambda progress: None
        )
    (trial,) = read_trials(tmp_path)
    assert trial["status"] == "failed" and "no layers share" in trial["reason"]


def test_rows_are_read_once_for_all_trials_unless_they_are_too_many(
    written: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    store = {"object_store_memory": float(1 << 30)}
    bananas, again = {"stream.source": "bananas"}, {"stream.source": "bananas", "samples": 96}
    campaign = load_campaign(written(streams=[bananas, again]))
    (rows,) = load_rows(campaign, store)[:1]
    assert len(load_rows(campaign, store)) == len(campaign.seeds), "once for each seed, as seeds may make rows"
    assert rows.is_of(job_of(campaign, {}, 3, again).stream, 3)
    assert load_rows(load_campaign(written(workers_per_trial=1)), store) == []
    assert not caplog.records
    assert load_rows(load_campaign(written(share_bytes=1_000)), store) == []
    assert "bananas: its rows take more than 1,000 bytes" in caplog.text


@pytest.mark.parametrize(
    ("change", "resources", "at_once"),
    [
        ({}, {"CPU": 2}, 2),
        ({"cpus_per_trial": 0.5}, {"CPU": 2}, 4),
        ({"cpus_per_trial": 0.5, "at_once": 3}, {"CPU": 2}, 3),
        ({"gpus_per_trial": 0.25}, {"CPU": 16, "GPU": 1}, 4),
        ({"workers_per_trial": 2, "gpus_per_trial": 1}, {"CPU": 16, "GPU": 8}, 4),
        ({"gpus_per_trial": 0.5}, {"CPU": 2}, "gpus_per_trial: a trial needs 0.5 but the cluster has 0"),
        ({"workers_per_trial": 4}, {"CPU": 2}, "cpus_per_trial: a trial needs 4 but the cluster has 2"),
    ],
)
def test_as_many_trials_run_at_a_time_as_fit(
    change: dict[str, Any], resources: dict[str, float], at_once: int | str, written: Callable[..., Path]
) -> None:
    campaign = load_campaign(written(**change))
    if isinstance(at_once, int):
        assert trials_at_once(campaign, resources) == at_once
        return
    with pytest.raises(InputError) as error:
        trials_at_once(campaign, resources)
    assert at_once in str(error.value)


def test_a_trial_that_is_taught_waits_for_those_that_teach_it(written: Callable[..., Path], tmp_path: Path) -> None:
    campaign = load_campaign(written(teach=True, settings={"policy.controller.kind": "learned"}))
    searcher = StudySearcher(open_study(campaign, tmp_path), campaign, behind=2)
    assert [handed["number"] for handed in map(searcher.suggest, "ab") if handed] == [0, 1]
    assert searcher.suggest("c") is None, "trial 2 is taught by trial 0, which goes on"
    searcher.on_trial_complete("b", {"finished": True, "prequential_accuracy": 0.5, "parameters_mean": 7.0})
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a", None, error=True)
    handed = searcher.suggest("c")
    assert handed is not None and handed["number"] == 2


@pytest.mark.slow
def test_a_campaign_survives_a_kill_and_failing_trials_and_is_recorded(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    """On a real local Ray. Rank 2 without sharing is impossible, so that some trials fail."""
    ranges = {
        **load_campaign(written()).model_dump(exclude_defaults=True, mode="json")["search"],
        "policy.sharing.difference_rank": {"one_of": [0, 2]},
    }
    path = written(search=ranges, trials=5, seeds=[3], at_once=2)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "planaria.cli", "search", str(path), "--out", str(out)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 240
    while not read_trials(out) and time.monotonic() < until:
        assert process.poll() is None, "it goes on until it is killed"
        time.sleep(0.2)
    os.killpg(process.pid, 9)
    process.wait()
    ended_at = {trial["number"]: folder_of(out, trial["number"]) / "trial.json" for trial in read_trials(out)}
    before = {number: path.stat().st_mtime_ns for number, path in ended_at.items()}
    assert before
    summary = search(load_campaign(path), out, resume=True)
    assert summary["status"] == "done" and summary["done"] + len(summary["failed"]) == 5
    assert all("no layers share" in failed["reason"] for failed in summary["failed"])
    for number, ended in before.items():
        assert (folder_of(out, number) / "trial.json").stat().st_mtime_ns == ended, "it was not repeated"
    assert {trial["number"] for trial in summary["best"]} <= {trial["number"] for trial in read_trials(out)}
    job = json.loads((out / "mlflow.json").read_text())
    client = connect(embedded_uri(out))
    (experiment,) = [e for e in client.search_experiments() if e.name == "planaria-search"]
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    trials = [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == job["run_id"]]
    assert len(trials) == 5 and (out / "front.png").exists() and (out / "parallel.png").exists()
    sent = {file.path for file in client.list_artifacts(job["run_id"])}
    assert {"report.html", "summary.json", "front.png"} <= sent and (out / "report.html").exists()
    seeds_sent = [
        run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") in {t.info.run_id for t in trials}
    ]
    assert len(seeds_sent) == summary["done"]
    policy = summary["best"][0]["policy"]
    one = ["run", "job.yaml", f"policy={policy}", "scale.workers=0", "--out", "one"]
    subprocess.run([sys.executable, "-m", "planaria.cli", *one], cwd=tmp_path, check=True, capture_output=True)
    with pytest.raises(InputError, match="holds a campaign already"):
        search(load_campaign(path), out)
    with pytest.raises(InputError, match="only trials and at_once may change"):
        search(load_campaign(path, ["seed=9"]), out, resume=True)
