"""Avalanche's learners beside planaria's; they really run where PLANARIA_AVALANCHE_PYTHON names a Python with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planaria.cli import call
from planaria.compare import Contest, avalanche_peers, compare, whole_stream
from planaria.compare.avalanche_peers import LIBRARY, Encoding, export, recipe, start, visits
from planaria.errors import InputError, RunError
from planaria.job import Job, load_job

AVALANCHE = os.environ.get("PLANARIA_AVALANCHE_PYTHON")
OUTCOME = {
    "final_accuracy": 0.75,
    "prequential_accuracy": 0.5,
    "curve": [[20, 0.4], [40, 0.6]],
    "cpu_seconds": 2.0,
    "samples": 300,
    "parameters": 7,
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,200 rows; the context is a, b, a; in b the label is turned round."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLANARIA_AVALANCHE_PYTHON", raising=False)
    random = np.random.default_rng(0)
    x = random.normal(loc=5, scale=3, size=1_200)
    turned = (np.arange(1_200) // 400) % 2 == 1
    columns = {
        "x": pa.array(np.where(random.random(1_200) < 0.02, np.nan, x)),
        "kind": random.choice(["a", "b"], 1_200),
        "y": np.where((x > 5) != turned, "yes", "no"),
        "when": np.where(turned, "b", "a"),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: tiny\n"
        "stream: {source: parquet, path: rows.parquet, context: when, target: y,\n"
        "  features: {numeric: [x], categorical: [kind]}}\n"
        "batch_rows: 32\n"
        "model: {width: 16, layers: 1, head_width: 4, mlp_width: 32}\n"
        "policy: {name: own, learner: {memory: {rows: 200}}}\n"
        "evaluation: {rows_per_context: 50, hold_out_fraction: 0.1}\n"
    )
    return path


def loaded(job: Path, *settings: str) -> Job:
    return load_job(job, ["scale.workers=0", *settings])


def fake(folder: Path, answer: str, status: int = 0, version: str = "0.6.0") -> str:
    """An interpreter that says it has Avalanche, and prints `answer` for every script."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then echo {version}; exit 0; fi\n'
        f"echo \"$3\" > '{folder}/asked.json'\necho noise\necho '{answer}'\necho 'it broke' >&2\nexit {status}\n"
    )
    path.chmod(0o755)
    return str(path)


def test_what_is_not_given_comes_from_the_job(job: Path) -> None:
    own = recipe("der++", loaded(job, "seed=4"))
    assert (own.rate, own.hidden, own.memory_rows, own.batch_rows, own.seed) == (0.03, 512, 200, 32, 4)
    given = recipe("ewc,rate=1e-1,hidden=64,memory_rows=50,batch_rows=8,weight=3", loaded(job))
    assert (given.rate, given.hidden, given.memory_rows, given.batch_rows, given.weight) == (0.1, 64, 50, 8, 3.0)


@pytest.mark.parametrize(
    ("peer", "settings", "words"),
    [
        ("replai", (), r"--peers: avalanche:replai is not known \(did you mean 'replay'\?\); use one of"),
        ("replay,rate", (), "'rate' in 'avalanche:replay,rate' is no change; write key=value"),
        ("replay,rat=1", (), r"--peers: avalanche:replay,rat=1: rat: unknown key \(did you mean 'rate'\?\)"),
        ("replay,rate=0", (), "rate: 0 is not allowed; give a number above 0"),
        ("replay,weight=1", (), "weight means nothing to replay, only to ewc, lwf, si; remove it"),
        ("replay", ("policy.learner.memory.rows=0",), "remembers no rows; add memory_rows=1000"),
        ("replay", ("stream.target=x", "stream.task=regression"), "learns classes, but stream.task is regression"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(
    peer: str, settings: tuple[str, ...], words: str, job: Path
) -> None:
    contest = Contest(job, settings, (), (f"avalanche:{peer}",), (0,), avalanche="/no/such/python")
    with pytest.raises(InputError, match=words):
        contest.peer_jobs()


def test_where_there_is_no_avalanche_it_is_said_what_to_install(job: Path, tmp_path: Path) -> None:
    how = "pip install 'avalanche-lib>=0.6,<0.7'.* give --avalanche peers/bin/python, or set PLANARIA_AVALANCHE_PYTHON"
    contest = Contest(job, (), (), ("avalanche:replay",), (0,), avalanche="/no/such/python")
    with pytest.raises(InputError, match=rf"/no/such/python cannot be started \(No such file or directory\); .*{how}"):
        compare(contest, tmp_path / "out")
    lacking = tmp_path / "lacking"
    lacking.write_text(
        '#!/bin/sh\necho "Traceback" >&2\necho "ModuleNotFoundError: No module named avalanche" >&2\nexit 1'
    )
    lacking.chmod(0o755)
    with pytest.raises(InputError, match=rf"cannot import Avalanche \(ModuleNotFoundError: .*{how}"):
        LIBRARY.interpreter(str(lacking))
    with pytest.raises(InputError, match=r"has Avalanche 0\.3\.1, but only 0\.6\.x is known here"):
        LIBRARY.interpreter(fake(tmp_path, "", version="0.3.1"))
    assert not (tmp_path / "out").exists()


def test_every_visit_of_a_context_is_an_experience(job: Path, tmp_path: Path) -> None:
    export(loaded(job), tmp_path, tmp_path / "stream.npz")
    stream = np.load(tmp_path / "stream.npz")
    assert stream["visit"].tolist() == [0] * 400 + [1] * 400 + [2] * 400
    export(loaded(job, "stream.context=null", "samples=700"), tmp_path, tmp_path / "stream.npz")
    assert np.load(tmp_path / "stream.npz")["visit"].tolist() == [0] * 700


def test_a_gradual_change_begins_one_experience() -> None:
    random = np.random.default_rng(0)
    between = (random.random(2_000) < np.linspace(0, 1, 2_000)).astype(np.int64)
    context_R = np.concatenate([np.zeros(1_000, np.int64), between, np.ones(1_000, np.int64), np.zeros(100, np.int64)])
    visit_R = visits(context_R)
    begun = np.flatnonzero(np.diff(visit_R)) + 1
    assert len(begun) == 2 and 2_500 < begun[0] <= 3_000 and begun[1] == 4_000


def test_the_exported_rows_are_the_streams_own(job: Path, tmp_path: Path) -> None:
    export(loaded(job), tmp_path, tmp_path / "stream.npz")
    stream = np.load(tmp_path / "stream.npz")
    rows = pq.read_table(tmp_path / "rows.parquet").to_pandas()
    assert stream["x"].shape == (1_200, 4) and stream["x"].dtype == np.float32  # x; missing, a and b
    first = rows["x"][:1_000]
    expected = ((rows["x"] - first.mean()) / first.std(ddof=0)).fillna(0)
    assert np.allclose(stream["x"][:, 0], expected, atol=1e-4)
    assert (stream["x"][:, 1:].sum(1) == 1).all()
    assert (
        int(stream["classes"]) == 2 and ((stream["target"] == stream["target"][0]) == (rows["y"] == rows["y"][0])).all()
    )
    assert 60 < stream["held_out"].sum() < 180
    assert int(stream["held_contexts"]) == 2 and len(stream["held_x_0"]) == 50 and len(stream["held_target_1"]) <= 50


def test_a_column_that_widens_after_its_first_rows_is_cut() -> None:
    first = np.array([[1.0, 7.0], [3.0, 7.0]], np.float32)
    encode = Encoding.of({"numeric": first, "categorical": np.array([[0], [1]])})
    later = {"numeric": np.array([[1e9, np.nan]], np.float32), "categorical": np.array([[5]])}
    assert encode(later).tolist() == [[10.0, 0.0, 0.0, 0.0]]


def test_pictures_stay_bytes(tmp_path: Path) -> None:
    raw = {"image": np.arange(2 * 12, dtype=np.uint8).reshape(2, 1, 3, 4)}
    x = Encoding.of(raw)(raw)
    assert x.shape == (2, 12) and x.dtype == np.uint8


def test_a_stream_too_long_for_memory_is_refused(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_stream, "MAX_BYTES", 65 * 4 * 1_000)
    with pytest.raises(InputError, match=r"hold the whole stream in memory, .* add samples=1000 or leave them out"):
        export(loaded(job), tmp_path, tmp_path / "stream.npz")


def test_what_the_learner_says_is_shown_with_the_others(job: Path, tmp_path: Path) -> None:
    python = fake(tmp_path, json.dumps(OUTCOME))
    peers = ("avalanche:replay,hidden=8", "river:last_class")
    results = compare(Contest(job, ("samples=300",), (), peers, (3,), python), tmp_path / "out", processes=1)
    found = results["contestants"][0]
    assert (found["name"], found["score"], found["final"], found["parameters"]) == (peers[0], 0.5, 0.75, 7)
    assert found["samples_per_cpu_second"] == 150
    assert results["runs"][0]["curve"] == [[20, 0.4], [40, 0.6]]
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert asked["learner"] == "replay" and asked["hidden"] == 8 and asked["seed"] == 3 and asked["in_order"] is True


def test_the_command_takes_the_interpreter_from_the_environment(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANARIA_AVALANCHE_PYTHON", fake(tmp_path, json.dumps(OUTCOME)))
    arguments = ["compare", str(job), "samples=300", "--peers", "avalanche:naive", "avalanche:ewc,weight=2"]
    assert call([*arguments, "--seeds", "0", "--processes", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["contestants"]] == ["avalanche:naive", "avalanche:ewc,weight=2"]


def test_a_learner_that_fails_says_why(job: Path, tmp_path: Path) -> None:
    own = recipe("naive", loaded(job))
    with pytest.raises(RunError, match=r"Avalanche's naive failed \(it broke\)"):
        start(fake(tmp_path, "", status=1), tmp_path / "stream.npz", own, 10)
    with pytest.raises(RunError, match="Avalanche's naive said no outcome, but 'nonsense'"):
        start(fake(tmp_path, "nonsense"), tmp_path / "stream.npz", own, 10)


@pytest.mark.slow
@pytest.mark.skipif(AVALANCHE is None, reason="PLANARIA_AVALANCHE_PYTHON names no Python that has Avalanche")
@pytest.mark.parametrize("learner", avalanche_peers.LEARNERS)
def test_avalanches_learners_learn(learner: str, job: Path, tmp_path: Path) -> None:
    assert AVALANCHE is not None
    export(loaded(job), tmp_path, tmp_path / "stream.npz")
    found: dict[str, Any] = start(
        LIBRARY.interpreter(AVALANCHE),
        tmp_path / "stream.npz",
        recipe(f"{learner},rate=0.3,batch_rows=8", loaded(job)),
        100,
    )
    assert found["samples"] == 1_200 and [rows for rows, _ in found["curve"]] == list(range(100, 1_201, 100))
    assert np.isclose(np.mean([score for _, score in found["curve"]]), found["prequential_accuracy"])
    assert found["curve"][3][1] > 0.85  # before the first change
    assert found["parameters"] == (4 + 1) * 512 + (512 + 1) * 2
    assert 0 < found["final_accuracy"] < 1 and found["cpu_seconds"] > 0
