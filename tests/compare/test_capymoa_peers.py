"""CapyMOA's learners beside planaria's; they really run where PLANARIA_CAPYMOA_PYTHON names a Python with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planaria.cli import call
from planaria.compare import Contest, compare, whole_stream
from planaria.compare.capymoa_peers import LEARNERS, LIBRARY, SCRIPT, export
from planaria.errors import InputError, RunError
from planaria.job import Job, load_job

CAPYMOA = os.environ.get("PLANARIA_CAPYMOA_PYTHON")
OUTCOME = {
    "final_accuracy": 0.75,
    "prequential_accuracy": 0.5,
    "curve": [[20, 0.4], [40, 0.6]],
    "cpu_seconds": 2.0,
    "samples": 300,
    "parameters": None,
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """2,000 rows, a number with gaps and a word; the label tells both, but not the number alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLANARIA_CAPYMOA_PYTHON", raising=False)
    random = np.random.default_rng(0)
    x, kind = random.normal(size=2_000), random.choice(["a", "b", "c"], 2_000)
    columns = {
        "x": pa.array(np.where(random.random(2_000) < 0.02, np.nan, x)),
        "kind": kind,
        "y": np.where((x > 0) != (kind == "b"), "yes", "no"),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: tiny\n"
        "stream: {source: parquet, path: rows.parquet, target: y, features: {numeric: [x], categorical: [kind]}}\n"
        "policy: {name: own}\n"
        "evaluation: {rows_per_context: 100, hold_out_fraction: 0.1}\n"
    )
    return path


def loaded(job: Path, *settings: str) -> Job:
    return load_job(job, ["scale.workers=0", *settings])


def fake(folder: Path, answer: str, probe: str = "echo 0.15.1") -> str:
    """An interpreter that is probed thus, and prints `answer` for every script."""
    path = folder / "python"
    path.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then {probe}; exit; fi\necho \"$3\" > '{folder}/asked.json'\necho '{answer}'\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("peer", "settings", "words"),
    [
        (
            "arff",
            (),
            r"--peers: capymoa:arff is not known \(did you mean 'arf'\?\); use one of capymoa:arf, capymoa:srp",
        ),
        ("arf,models", (), "'models' in 'capymoa:arf,models' is no change; write key=value"),
        ("arf,model=5", (), r"capymoa:arf,model=5: model: unknown key \(did you mean 'models'\?\)"),
        ("srp,models=0", (), "models: 0 is not allowed; give a whole number of at least 1"),
        (
            "arf",
            ("stream.target=x", "stream.task=regression"),
            "capymoa:arf learns classes, but stream.task is regress",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_started(
    peer: str, settings: tuple[str, ...], words: str, job: Path
) -> None:
    contest = Contest(job, settings, (), (f"capymoa:{peer}",), (0,), capymoa="/no/such/python")
    with pytest.raises(InputError, match=words):
        contest.peer_jobs()


def test_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: pictures\nstream: {source: fashion_mnist}\npolicy: {name: own}\n")
    with pytest.raises(InputError, match="capymoa:srp learns tables, but the stream holds pictures; leave it out"):
        Contest(path, (), (), ("capymoa:srp",), (0,)).peer_jobs()


def test_where_there_is_no_capymoa_it_is_said_what_to_install(job: Path, tmp_path: Path) -> None:
    how = "pip install 'capymoa>=0.15,<0.16'.* give --capymoa peers-capymoa/bin/python, or set PLANARIA_CAPYMOA_PYTHON"
    with pytest.raises(InputError, match=rf"--capymoa: /no/such/python cannot be started \(No such file .*\); .*{how}"):
        compare(Contest(job, (), (), ("capymoa:arf",), (0,), capymoa="/no/such/python"), tmp_path / "out")
    lacking = fake(tmp_path, "", "echo 'PackageNotFoundError: capymoa' >&2; exit 1")
    with pytest.raises(InputError, match=rf"cannot import CapyMOA \(PackageNotFoundError: capymoa\); .*{how}"):
        LIBRARY.interpreter(lacking)
    with pytest.raises(InputError, match=r"has CapyMOA 0\.9\.0, but only 0\.15\.x is known here"):
        LIBRARY.interpreter(fake(tmp_path, "", "echo 0.9.0"))
    assert not (tmp_path / "out").exists()


def test_where_there_is_no_java_it_is_said_what_to_install(tmp_path: Path) -> None:
    lacking = fake(tmp_path, "", "echo 0.15.1; echo 'CapymoaImportError: Java not found.' >&2; exit 1")
    words = r"cannot import CapyMOA \(CapymoaImportError: Java not found\.\); install Java 17 or newer .* set JAVA_HOME"
    with pytest.raises(InputError, match=words):
        LIBRARY.interpreter(lacking)


def test_the_exported_rows_are_the_streams_own(job: Path, tmp_path: Path) -> None:
    export(loaded(job), tmp_path, tmp_path / "stream.npz")
    stream, rows = np.load(tmp_path / "stream.npz"), pq.read_table(tmp_path / "rows.parquet").to_pandas()
    assert stream["x"].shape == (2_000, 2) and np.isnan(stream["x"][:, 0]).sum() == rows["x"].isna().sum() > 0
    assert np.allclose(stream["x"][:, 0], rows["x"], equal_nan=True)
    assert stream["values"].tolist() == [0, 3]
    place = dict(zip(rows["kind"], stream["x"][:, 1], strict=True))
    assert set(place.values()) == {0, 1, 2} and (rows["kind"].map(place) == stream["x"][:, 1]).all()
    assert int(stream["classes"]) == 2 and set(stream["target"].tolist()) == {0, 1}
    assert 100 < stream["held_out"].sum() < 300
    assert int(stream["held_contexts"]) == 1 and stream["held_x_0"].shape == (100, 2)


def test_a_stream_too_long_for_memory_is_refused(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_stream, "MAX_BYTES", 2 * 8 * 1_000)
    with pytest.raises(InputError, match=r"CapyMOA's learners hold the whole stream in memory, .* add samples=1000 or"):
        export(loaded(job), tmp_path, tmp_path / "stream.npz")


def test_what_the_learner_says_is_shown_with_the_others(job: Path, tmp_path: Path) -> None:
    peers = ("capymoa:srp,models=3", "capymoa:arf", "river:last_class")
    contest = Contest(job, ("samples=300",), (), peers, (7,), capymoa=fake(tmp_path, json.dumps(OUTCOME)))
    results = compare(contest, tmp_path / "out", processes=1)
    found = results["contestants"][0]
    assert (found["name"], found["score"], found["final"], found["parameters"]) == (peers[0], 0.5, 0.75, None)
    assert found["samples_per_cpu_second"] == 150 and results["runs"][0]["curve"] == [[20, 0.4], [40, 0.6]]
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked == {"learner": "arf", "models": 10, "seed": 7, "interval": 5}


def test_the_command_takes_the_interpreter_from_the_environment(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANARIA_CAPYMOA_PYTHON", fake(tmp_path, json.dumps(OUTCOME)))
    arguments = ["compare", str(job), "samples=300", "--peers", "capymoa:arf", "--seeds", "0", "--processes", "1"]
    assert call([*arguments, "--json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["contestants"]] == ["capymoa:arf"]


def test_a_learner_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="CapyMOA's arf said no outcome, but 'nonsense'"):
        LIBRARY.start(fake(tmp_path, "nonsense"), SCRIPT, tmp_path / "stream.npz", {"learner": "arf"})


@pytest.mark.slow
@pytest.mark.skipif(CAPYMOA is None, reason="PLANARIA_CAPYMOA_PYTHON names no Python that has CapyMOA")
@pytest.mark.parametrize("learner", LEARNERS)
def test_capymoas_learners_learn_and_a_seed_gives_the_same_again(learner: str, job: Path, tmp_path: Path) -> None:
    assert CAPYMOA is not None
    export(loaded(job), tmp_path, tmp_path / "stream.npz")
    settings = {"learner": learner, "models": 10, "seed": 1, "interval": 500}
    python = LIBRARY.interpreter(CAPYMOA)
    found = LIBRARY.start(python, SCRIPT, tmp_path / "stream.npz", settings)
    assert found["samples"] == 2_000 and [rows for rows, _ in found["curve"]] == [500, 1_000, 1_500, 2_000]
    assert np.isclose(np.mean([score for _, score in found["curve"]]), found["prequential_accuracy"])
    assert found["curve"][3][1] > 0.9 and found["final_accuracy"] > 0.9 and found["cpu_seconds"] > 0
    again = LIBRARY.start(python, SCRIPT, tmp_path / "stream.npz", settings)
    assert {**again, "cpu_seconds": 0} == {**found, "cpu_seconds": 0}


@pytest.mark.slow
@pytest.mark.skipif(CAPYMOA is None, reason="PLANARIA_CAPYMOA_PYTHON names no Python that has CapyMOA")
def test_rows_that_are_held_out_are_not_learned(job: Path, tmp_path: Path) -> None:
    assert CAPYMOA is not None
    export(loaded(job), tmp_path, tmp_path / "whole.npz")
    stream = dict(np.load(tmp_path / "whole.npz"))
    outcomes = []
    for target in (stream["target"], np.where(stream["held_out"], 1 - stream["target"], stream["target"])):
        np.savez(tmp_path / "stream.npz", **{**stream, "target": target})
        settings = {"learner": "arf", "models": 3, "seed": 0, "interval": 2_000}
        outcomes.append(LIBRARY.start(CAPYMOA, SCRIPT, tmp_path / "stream.npz", settings))
    assert outcomes[0]["final_accuracy"] == outcomes[1]["final_accuracy"]
    assert outcomes[0]["prequential_accuracy"] > outcomes[1]["prequential_accuracy"] + 0.05
