from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from planaria.errors import RunError
from planaria.train.checkpoint import CheckpointStore

PARTS = {"state.json": b"{}", "model.safetensors": b"\0" * 100}


def _store(folder: Path, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(str(folder / "checkpoints"), keep)


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.save(7, PARTS)
    assert list(store.whole()) == [("step-000000000007", PARTS)]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for step in (1, 9, 10, 100):
        store.save(step, PARTS)
    assert store.steps() == [100, 10]


def test_a_run_that_went_back_behind_a_broken_one_keeps_the_one_it_came_from(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for step in (1, 9):
        store.save(step, PARTS)
    (tmp_path / "checkpoints" / "step-000000000009" / "state.json").unlink()
    store.save(5, PARTS)
    assert store.steps() == [5, 1], "step 9 belongs to a future that did not come"


def test_saving_a_step_again_leaves_the_earlier_one_whole_until_the_new_one_is(tmp_path: Path) -> None:
    store = _store(tmp_path, keep=1)
    store.save(3, PARTS)
    later = {**PARTS, "state.json": b'{"later": true}'}
    (tmp_path / "checkpoints" / "step-000000000003-2").mkdir()  # of a process that was killed
    assert list(store.whole()) == [("step-000000000003", PARTS)]
    store.save(3, later)
    assert list(store.whole()) == [("step-000000000003-3", later)]
    assert store.names() == ["step-000000000003-3"]


def test_there_is_nothing_to_restore_at_first(tmp_path: Path) -> None:
    assert list(_store(tmp_path).whole()) == []


@pytest.mark.parametrize(
    "harm", ["truncate", "flip", "lose a file", "lose the manifest", "empty manifest", "wrong format"]
)
def test_a_broken_newest_falls_back_to_the_one_before_and_says_so(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = _store(tmp_path)
    store.save(1, PARTS)
    store.save(2, PARTS)
    newest = tmp_path / "checkpoints" / "step-000000000002"
    model, manifest = newest / "model.safetensors", newest / "manifest.json"
    if harm == "truncate":
        model.write_bytes(model.read_bytes()[:50])
    elif harm == "flip":
        model.write_bytes(b"\1" + model.read_bytes()[1:])
    elif harm == "lose a file":
        model.unlink()
    elif harm == "lose the manifest":
        manifest.unlink()
    elif harm == "empty manifest":
        manifest.write_text("")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    with caplog.at_level(logging.WARNING):
        assert next(store.whole()) == ("step-000000000001", PARTS)
    assert "step-000000000002: broken checkpoint" in caplog.text


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.save(1, PARTS)
    manifest = tmp_path / "checkpoints" / "step-000000000001" / "manifest.json"
    about = json.loads(manifest.read_text())
    about["files"]["../../secret"] = {"size": 1, "sha256": ""}
    manifest.write_text(json.dumps(about))
    assert list(store.whole()) == []


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"cannot write a checkpoint.*planaria resume"):
        _store(tmp_path).save(1, PARTS)
