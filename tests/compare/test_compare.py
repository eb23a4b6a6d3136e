"""One stream through several policies and peers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planaria.cli import call
from planaria.compare import Contest, compare
from planaria.compare.outcome import Curve
from planaria.errors import InputError

STILL = "balanced,controller.kind=none"


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,200 rows, one number that tells the label, one category, gaps."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    x = random.normal(size=1_200)
    label = np.where(x + 0.2 * random.normal(size=1_200) > 0, "yes", "no")
    kind = random.choice(["a", "b"], 1_200)
    rows = pa.table({"x": pa.array(np.where(random.random(1_200) < 0.02, np.nan, x)), "kind": kind, "y": label})
    pq.write_table(rows, tmp_path / "rows.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: tiny\n"
        "stream: {source: parquet, path: rows.parquet, features: {numeric: [x], categorical: [kind]}, target: y}\n"
        "batch_rows: 32\n"
        "model: {width: 16, layers: 1, head_width: 4, mlp_width: 32}\n"
        "policy: {name: own}\n"
    )
    return path


def contest(job: Path, **changes: Any) -> Contest:
    return Contest(
        **{"job": job, "settings": (), "policies": (STILL,), "peers": ("river:last_class",), "seeds": (0, 1), **changes}
    )


def test_all_learn_the_same_stream_and_are_shown_side_by_side(job: Path, tmp_path: Path) -> None:
    told: list[str] = []
    peers = ("river:logistic_regression", "river:last_class")

    results = compare(contest(job, peers=peers), tmp_path / "out", processes=1, tell=told.append)

    assert len(told) == 6
    found = {one["name"]: one for one in results["contestants"]}
    assert list(found) == [STILL, *peers]
    assert found["river:logistic_regression"]["score"] > 0.8
    assert found[STILL]["score"] > 0.7 and found[STILL]["final"] > 0.8
    assert abs(found["river:last_class"]["score"] - 0.5) < 0.1 and found["river:last_class"]["final"] is None
    assert all(run["samples"] == 1_200 and len(run["curve"]) > 10 for run in results["runs"])
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == results
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peers": ("river:arff",)}, r"--peers: river:arff is not known for a classification \(did you mean 'arf'\?\)"),
        (
            {"peers": ("river:arf,rate=1",)},
            "--peers: rate in 'river:arf,rate=1' is for logistic_regression; leave it out",
        ),
        ({"peers": ("river:srp,trees=1",)}, "trees"),
        ({"peers": ("moa:arf",)}, "--peers: 'moa:arf' is not known; give river:arf"),
        ({"policies": ("balanced,loss",)}, "--policies: 'loss' in 'balanced,loss' is no change"),
        ({"policies": ("nope",)}, "nope"),
        ({"policies": (), "peers": ()}, "nobody to compare"),
        ({"settings": ("stream.follow=true",)}, "stream.follow: a stream without an end"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(
    changes: dict[str, Any], words: str, job: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        compare(contest(job, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rivers_learners_are_refused_on_pictures(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: pictures\nstream: {source: fashion_mnist}\npolicy: {name: own}\n")
    with pytest.raises(InputError, match="learns tables, but the stream holds pictures"):
        contest(path, policies=()).peer_jobs()


def test_the_command_prints_one_json_object(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", str(job), "samples=300", "--peers", "river:last_class", "--seeds", "0", "--out", "found"]
    assert call([*arguments, "--processes", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in found["contestants"]] == ["river:last_class"]
    assert (tmp_path / "found" / "compare.png").exists()


def test_a_regression_with_words_is_learned_by_the_forest_too(job: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    x, kind = random.normal(size=600), random.choice(["a", "b"], 600)
    pq.write_table(pa.table({"x": x, "kind": kind, "y": 3 * x}), tmp_path / "rows.parquet")
    found = compare(
        contest(job, settings=("stream.task=regression",), policies=(), peers=("river:arf",)), tmp_path / "out"
    )
    assert found["score"] == "mean absolute error" and found["contestants"][0]["score"] < 1.5


def test_a_curve_has_a_point_for_every_interval() -> None:
    curve = Curve(2)
    for score in (1.0, 0.0, 1.0, 1.0, 0.0):
        curve.add(score)
    assert curve.points == [(2, 0.5), (4, 1.0)] and curve.rows == 5 and curve.total == 3.0
