"""Meta-training as a job: what it is told, what it leaves behind, and that it goes on where it was stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from planaria.control.value import load_value
from planaria.errors import InputError
from planaria.meta.campaign import SUMMARY, VALUE, from_bytes, meta_train, to_bytes, write_whole
from planaria.meta.experience import Experience
from planaria.meta.job import MetaJob, load_meta_job

MadeUp = Callable[..., Experience]
REPOSITORY = Path(__file__).parents[2]
TINY = {
    "families": ["tables"],
    "validation": ["interactions"],
    "streams": 2,
    "rounds": 1,
    "followed": 0.2,
    "outer": {"iterations": 3, "members": 1},
}
GATHERED, KNOWN = "round-0/tables-0.npz", "validation/interactions-500000.npz"


def job(**changes: object) -> MetaJob:
    return MetaJob.model_validate({**TINY, **changes})


def job_file(folder: Path, text: str) -> Path:
    path = folder / "meta.yaml"
    path.write_text(text)
    return path


def test_the_job_that_makes_the_shipped_value_can_be_read() -> None:
    assert load_meta_job(REPOSITORY / "jobs" / "meta_train.yaml").outer.mode == "anil"


@pytest.mark.parametrize("key", ["families", "validation"])
def test_an_unknown_family_is_refused_naming_the_nearest(tmp_path: Path, key: str) -> None:
    path = job_file(tmp_path, f"{key}: [teacher, tabels]")
    with pytest.raises(InputError) as refused:
        load_meta_job(path)
    assert str(refused.value) == f"{path}: {key}: there is no family 'tabels' (did you mean 'tables'?)"


def test_overrides_change_the_job_and_are_named_where_they_are_wrong(tmp_path: Path) -> None:
    path = job_file(tmp_path, "seed: 3")
    read = load_meta_job(path, ["streams=8", "outer.members=2", "families=[tables]"])
    assert (read.seed, read.streams, read.outer.members, read.families) == (3, 8, 2, ("tables",))
    with pytest.raises(InputError, match=r"command line: outer\.membrs: unknown key \(did you mean .*members"):
        load_meta_job(path, ["outer.membrs=2"])
    with pytest.raises(InputError, match="command line: streams: "):
        load_meta_job(path, ["streams=1"])


def test_experience_comes_back_from_its_file(made_up: MadeUp) -> None:
    experience = made_up(30)
    again = from_bytes(to_bytes(experience))
    for field in fields(Experience):
        one, other = getattr(experience, field.name), getattr(again, field.name)
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_is_no_experience(made_up: MadeUp, share: float) -> None:
    content = to_bytes(made_up(30))
    with pytest.raises(ValueError, match="no experience: "):
        from_bytes(content[: int(share * len(content))])


def test_a_file_with_other_features_is_no_experience(made_up: MadeUp) -> None:
    experience = made_up(30)
    older = {field.name: getattr(experience, field.name) for field in fields(Experience)}
    older["before_DKX"] = older["before_DKX"][..., :-1]
    with pytest.raises(ValueError, match=r"experience with \d+ features, not \d+"):
        from_bytes(to_bytes(Experience(**older)))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/deeper: cannot write here \(.*\); choose another folder with --out"):
        meta_train(job(), tmp_path / "file" / "deeper")


def test_a_folder_of_another_meta_training_is_refused(tmp_path: Path) -> None:
    write_whole(tmp_path / "meta_job.yaml", b"name: another")
    with pytest.raises(InputError) as refused:
        meta_train(job(), tmp_path)
    expected = f"{tmp_path}: holds another meta-training (meta_job.yaml differs); choose another folder with --out"
    assert str(refused.value) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["meta_job.yaml"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Of all files but those of the MLflow store."""
    there = (path for path in folder.rglob("*") if path.is_file() and "mlflow" not in str(path.relative_to(folder)))
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in there}


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_meta_training_goes_on_and_a_finished_one_does_nothing_anew(made_up: MadeUp, tmp_path: Path) -> None:
    """It was stopped after all was gathered, and while it learned."""
    from mlflow import MlflowClient

    write_whole(tmp_path / GATHERED, to_bytes(made_up(60)))
    write_whole(tmp_path / KNOWN, to_bytes(made_up(20, seed=9)))
    write_whole(tmp_path / "round-0" / VALUE, b"half of a val")
    told: list[str] = []
    summary = meta_train(job(), tmp_path, tell=told.append)
    assert [line.split(" in ")[0] for line in told] == ["round 0: learned from 60 decisions"]
    assert summary["decisions"] == 60 and summary["regret_keep"] == pytest.approx(0.1, abs=1e-6)
    assert summary["value"] == str(tmp_path / VALUE) and summary["folder"] == str(tmp_path)

    value = load_value(tmp_path / VALUE)
    assert value.about["families"] == ["tables"] and len(value.members) == 1
    written = json.loads((tmp_path / SUMMARY).read_text())
    assert written == value.about["validation"] == {key: summary[key] for key in written}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (one for one in client.search_experiments() if one.name == "planaria-meta")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == pytest.approx(written) and run.data.params["streams"] == "2"
    assert run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {VALUE, SUMMARY, "meta_job.yaml"}

    before = contents(tmp_path)
    assert meta_train(job(), tmp_path, tell=told.append) == summary
    assert contents(tmp_path) == before and len(told) == 1
    assert len(client.search_runs([experiment.experiment_id])) == 1
    with pytest.raises(InputError, match="holds another meta-training"):
        meta_train(job(seed=1), tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_what_was_half_written_is_gathered_again(
    made_up: MadeUp, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_whole(tmp_path / GATHERED, to_bytes(made_up(60)))
    content = to_bytes(made_up(20))
    write_whole(tmp_path / KNOWN, content[: len(content) // 2])
    told: list[str] = []
    with caplog.at_level(logging.WARNING):
        summary = meta_train(job(), tmp_path, tell=told.append)
    assert "gathered again" in caplog.text
    assert len(told) == 2 and told[1].startswith(f"{KNOWN}: ")
    known = from_bytes((tmp_path / KNOWN).read_bytes())
    assert set(known.seed_D.tolist()) <= {500_000, 500_001} and len(known) > 0
    assert 0 <= summary["regret_value"] < 1
