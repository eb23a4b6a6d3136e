"""A checkpoint or a run's folder from others runs no code, reaches nothing outside it, and takes bounded memory."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.security.conftest import Complaint, checkpoint_of, put
from tests.security.hostile import BOMB, arrow_stream, in_place_of_anything, pickled, wrong_offsets

from planaria.deploy.source import read_source
from planaria.errors import InputError
from planaria.job import Job
from planaria.plain_arrow import load_arrow
from planaria.train.checkpoint import CheckpointStore
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

PARTS = (
    "state.json",
    "model.safetensors",
    "optimizer.safetensors",
    "memory.arrow",
    "records.arrow",
    "library.safetensors",
    "gates.json",
    "held_out-0.arrow",
)


def refusal(job: Job, folder: RunFolder) -> str:
    """Why the run cannot go on, in one line."""
    with pytest.raises(InputError) as caught:
        run_here(job, folder, folder.path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_nothing_in_place_of_a_part_is_run_or_unpacked(
    part: str, job: Job, run_folder: RunFolder, canary: Path
) -> None:
    assert set(PARTS) == {path.name for path in checkpoint_of(run_folder).iterdir()} - {"manifest.json"}
    for name, content in in_place_of_anything(canary):
        put(checkpoint_of(run_folder), part, content)
        line = refusal(job, run_folder)
        assert "no usable checkpoint" in line, name
        assert not canary.exists(), name


def test_a_checkpoint_with_a_pickle_is_refused_by_the_command(
    run_folder: RunFolder, canary: Path, complaint: Complaint
) -> None:
    put(checkpoint_of(run_folder), "model.safetensors", pickled(canary))
    line = complaint("export", str(run_folder.path), "--to", "safetensors")
    assert line.startswith("checkpoint: its parts do not fit this job (Error while deserializing")


def test_parts_with_random_damage_are_refused_or_read(run_folder: RunFolder) -> None:
    """Of those that are read nothing is expected but that they are plain data."""
    draws = random.Random(0)
    checkpoint = checkpoint_of(run_folder)
    whole = {part: (checkpoint / part).read_bytes() for part in PARTS}
    refused = 0
    for number in range(48):
        part = PARTS[number % len(PARTS)]
        content = bytearray(whole[part])
        for _ in range(draws.choice((1, 4))):
            content[draws.randrange(min(len(content), draws.choice((200, 2_000, 1 << 20))))] = draws.randrange(256)
        put(checkpoint, part, bytes(content))
        try:
            read_source(run_folder.path)
        except InputError:
            refused += 1
        put(checkpoint, part, whole[part])
    assert 12 < refused < 48


@pytest.mark.parametrize(
    "change",
    [
        {"heads": [1_000_000_000]},
        {"width": 1 << 40},
        {"mlp_width": 1 << 40, "mlp_widths": []},
        {"readout_features": 1 << 40, "readout_concepts": 1},
        {"outputs": 1 << 40},
        {"image_shape": [1, 1 << 30, 1 << 30]},
        {"adapters": 1 << 20, "adapter_units": 1 << 20},
        {"heads": [float("inf")]},
    ],
    ids=str,
)
def test_a_blueprint_that_asks_for_terabytes_is_refused(
    change: dict[str, object], job: Job, run_folder: RunFolder
) -> None:
    checkpoint = checkpoint_of(run_folder)
    about = json.loads((checkpoint / "state.json").read_text())
    blueprint = {**json.loads(about["account"]["blueprint"]), **change}
    about["account"]["blueprint"] = json.dumps(blueprint)
    put(checkpoint, "state.json", json.dumps(about).encode())
    assert "no usable checkpoint" in refusal(job, run_folder)


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "..", "a/b", ".hidden"])
def test_a_part_cannot_lie_outside(name: str, job: Job, run_folder: RunFolder) -> None:
    manifest = checkpoint_of(run_folder) / "manifest.json"
    about = json.loads(manifest.read_text())
    about["files"][name] = {"size": 1, "sha256": "0" * 64}
    manifest.write_text(json.dumps(about))
    assert "is damaged" in refusal(job, run_folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["/dev/zero", "pipe"])
def test_a_part_without_an_end_is_not_read(what: str, tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), 1)
    store.save(1, {"a": b"1"})
    part = tmp_path / "step-000000000001" / "a"
    part.unlink()
    if what == "pipe":
        os.mkfifo(part)
    else:
        part.symlink_to(what)
    assert list(store.whole()) == []


@pytest.mark.parametrize(
    "place",
    ["checkpoints/step-000000000001", "model", ".summary.json.partial", "starts.jsonl", "models/.partial", "ray"],
)
@pytest.mark.parametrize("command", ["resume", "report", "export"])
def test_a_link_out_of_a_runs_folder_is_refused_and_nothing_is_written_there(
    command: str, place: str, run_folder: RunFolder, tmp_path: Path, complaint: Complaint
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    link = run_folder.path / place
    link.parent.mkdir(exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(outside / "precious" if "." in place else outside)
    arguments = ("--to", "safetensors") if command == "export" else ()
    line = complaint(command, str(run_folder.path), *arguments)
    assert line == f"{link}: is a link, a pipe or a device, which planaria never makes; remove it"
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"precious": "kept"}


def test_arrow_tables_are_counted_before_they_are_unpacked() -> None:
    assert len(BOMB) < 50_000
    with pytest.raises(ValueError, match=r"unpacks to 1,073,741,824 bytes of 134,217,728 rows"):
        load_arrow(BOMB, 1 << 20, 1 << 30)
    table = pa.table({"a": np.arange(1_000), "b": [[1.0, 2.0]] * 1_000, "c": ["x"] * 1_000})
    assert load_arrow(arrow_stream(table), 1 << 20, 1_000).equals(table)


def test_arrow_offsets_that_lie_outside_their_buffer_are_refused() -> None:
    with pytest.raises(ValueError, match="In chunk 0: Invalid"):
        load_arrow(wrong_offsets(), 1 << 31, 10)
