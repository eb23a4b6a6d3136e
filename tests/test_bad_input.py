"""Bad input gets one line that says where, what and what to do; the status says whether anything was started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import planaria
from planaria.cli import call

ROWS = 1_600
MIB = 1 << 20


def table(rows: int = ROWS, first: int = 0) -> dict[str, Any]:
    """Rows that can be learned."""
    draws = np.random.default_rng(first)
    x, y = draws.normal(size=(2, rows))
    return {"x": x, "y": y, "kind": draws.choice(["a", "b"], rows), "label": np.where(x + y > 0, "up", "down")}


def write(path: Path, columns: dict[str, Any], group: int = 400) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> Path:
    """A working directory with data/rows.parquet, and a job for all files of data/ that needs no Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    write(Path("data/rows.parquet"), table())
    Path("job.yaml").write_text(
        "name: small\n"
        "stream: {source: parquet, path: data, features: {numeric: [x, y], categorical: [kind]}, target: label}\n"
        "model: {width: 8, layers: 1, mlp_width: 8}\n"
        "batch_rows: 32\n"
        "policy: {controller: {kind: none}, learner: {memory: {rows: 100}}}\n"
        "scale: {workers: 0}\n"
        "storage: {checkpoint_every_s: 0.1}\n"
        f"record: {{register_model: false, tracking_uri: '{store}'}}\n"
    )
    return tmp_path


Complaint = Callable[..., str]


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Run a command that is to fail; the one line it says on stderr."""

    def complain(*arguments: str, status: int) -> str:
        assert call(list(arguments)) == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return complain


@pytest.fixture
def refused(complaint: Complaint, here: Path) -> Complaint:
    """Run the job with changes that cannot be meant: status 2, and nothing is left behind."""

    def refuse(*settings: str) -> str:
        before = sorted(here.rglob("*"))
        line = complaint("run", "job.yaml", "--out", "run", *settings, status=2)
        assert sorted(here.rglob("*")) == before
        return line

    return refuse


def replace_in(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


# -- refused before anything starts


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["stream.path=dat/rows.parquet"],
            "dat/rows.parquet is not there; give a file, folder or glob",
        ),
        (
            ["stream.path=data/row.parquet"],
            "data/row.parquet is not there (did you mean 'rows.parquet'?); give a file, folder or glob",
        ),
        (
            ["stream.target=lable"],
            "rows.parquet: has no column 'lable' (did you mean 'label'?); it has x, y, kind, label",
        ),
        (
            ["stream.features.numeric=[x, kind]", "stream.features.categorical=[]"],
            "rows.parquet: column 'kind' holds text, but features.numeric needs numbers; convert it or",
        ),
        (
            ["stream.task=regression"],
            "rows.parquet: target 'label' holds text, but regression needs numbers; use task: classification",
        ),
        (["sed=1"], "command line: sed: unknown key (did you mean 'seed'?)"),
        (["policy.heads.maxx=3"], "command line: policy.heads.maxx: unknown key (did you mean 'max'?)"),
        (
            ["policy.heads.min=4", "policy.heads.max=2"],
            "command line: policy.heads: max is 2 but min is 4; raise max or lower min",
        ),
        (["batch_rows=0"], "command line: batch_rows: 0 is not allowed; give a whole number of at least 1"),
        (
            ["scale.workers=2000", "batch_rows=2000"],
            f"scale: 2000 workers need 2000 CPUs but there are {os.cpu_count()}; lower scale.workers or scale.",
        ),
        (
            ["scale.workers=64"],
            "batch_rows is 32 but scale needs 64 parts of a batch; raise batch_rows or lower scale.workers or",
        ),
        (
            ["record.tracking_uri=ftp://here"],
            "record.tracking_uri: ftp://here is no store that MLflow can write to; give sqlite:///PATH or http://HOST:PORT",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant_is_refused(refused: Complaint, settings: list[str], words: str) -> None:
    assert words in refused(*settings)


def test_an_empty_stream_is_refused(refused: Complaint) -> None:
    write(Path("data/rows.parquet"), table(0))
    assert refused().endswith("/data holds no rows; give files with at least one")


def test_a_single_class_is_refused(refused: Complaint) -> None:
    write(Path("data/rows.parquet"), {**table(50), "label": ["same"] * 50})
    words = (
        "stream.target: 'label' is 'same' in all 50 rows; a classifier needs at least two labels, name another column"
    )
    assert refused() == words


def test_a_truncated_file_is_refused(refused: Complaint) -> None:
    path = Path("data/rows.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert "rows.parquet: cannot be read as Parquet" in (line := refused())
    assert line.endswith("it may be truncated or damaged: write it again or remove it")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"label": [1, 0] * 25},
            "2.parquet: column 'label' holds whole numbers, but the files before it hold text; write it with one type",
        ),
        ({"x": ["a", "b"] * 25}, "2.parquet: column 'x' holds text, but features.numeric needs numbers"),
        ({"y": None}, "2.parquet: has no column 'y'"),
    ],
    ids=["label type", "feature type", "missing column"],
)
def test_a_schema_that_changes_midway_is_refused(refused: Complaint, changes: dict[str, Any], words: str) -> None:
    columns = {**table(50), **changes}
    Path("data/rows.parquet").rename("data/1.parquet")
    write(Path("data/2.parquet"), {name: values for name, values in columns.items() if values is not None})
    assert words in refused()


def test_unknown_keys_are_named_with_their_file_and_the_nearest_right_key(refused: Complaint) -> None:
    replace_in("job.yaml", "model: {", "modle: {")
    assert refused() == "job.yaml: modle: unknown key (did you mean 'model'?)"
    replace_in("job.yaml", "modle: {", "model: {")
    Path("own.yaml").write_text("heads: {min: 1, max: 2, cooldown_sample: 5}\n")
    line = refused("policy=own.yaml")
    assert line == "own.yaml: heads.cooldown_sample: unknown key (did you mean 'cooldown_samples'?)"
    Path("own.yaml").write_text("heads: {start: 4, min: 4, max: 2}\n")
    assert refused("policy=own.yaml") == "own.yaml: heads: max is 2 but min is 4; raise max or lower min"


def test_a_folder_that_cannot_be_written_is_refused(here: Path, complaint: Complaint) -> None:
    Path("file").write_text("")
    line = complaint("run", "job.yaml", "--out", "file/run", status=2)
    assert line.startswith(f"{here}/file/run: cannot write here (Not a directory); choose another folder with --out")
    if os.geteuid() != 0:  # root may write everywhere
        Path("locked").mkdir(mode=0o500)
        assert "cannot write here (Permission denied)" in complaint("run", "job.yaml", "--out", "locked/run", status=2)


def test_a_folder_that_holds_a_run_is_refused(here: Path, complaint: Complaint) -> None:
    Path("run").mkdir()
    Path("run/job.yaml").write_text("name: other\n")
    line = complaint("run", "job.yaml", "--out", "run", status=2)
    assert line == f"{here}/run: holds a run already; choose another folder, or `planaria resume {here}/run`"
    assert Path("run/job.yaml").read_text() == "name: other\n"


def test_a_store_that_is_down_is_refused(refused: Complaint) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert refused(f"record.tracking_uri=http://127.0.0.1:{port}") == (
        f"record.tracking_uri: http://127.0.0.1:{port} cannot be reached ([Errno 111] Connection refused); start the "
        "store, correct record.tracking_uri, or leave it out to record into the run's folder"
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_refused(refused: Complaint, address: str) -> None:
    line = refused("--workers", "1", "--address", address)
    assert line == f"ray: nothing answers at {address} (Connection refused); start the cluster or correct --address"


# -- handled, and counted


def test_missing_and_infinite_numbers_are_handled_and_counted(here: Path) -> None:
    columns = table(400)
    columns["x"][::10], columns["x"][1::100], columns["y"][::40] = np.nan, np.inf, -np.inf
    columns["kind"] = pa.array(columns["kind"], mask=np.arange(400) % 50 == 0)
    write(Path("data/rows.parquet"), columns)
    result = planaria.run("job.yaml", out="run")
    assert result.summary["flaws"] == {"missing": 40 + 8, "infinite": 4 + 10, "unseen": 2, "overflow": 0}
    assert 0 < result.summary["prequential_loss"] < 5


# -- a run that had started: status 1, and what was done so far is kept


def test_numbers_beyond_all_bounds_end_the_run_and_name_the_rows(here: Path, complaint: Complaint) -> None:
    columns = {**table(), "label": table()["x"]}
    columns["label"][1_000] = 3e38
    write(Path("data/rows.parquet"), columns)
    line = complaint("run", "job.yaml", "--out", "run", "stream.task=regression", status=1)
    assert line.startswith(
        "step 31: the loss is not finite; lower policy.learner.learning_rate, or look for extreme values"
    )
    assert line.endswith(f"in rows 992 to 1023 (kept in {here}/run)")


def test_a_missing_label_midway_ends_the_run_which_goes_on_once_it_is_mended(
    here: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = table()["label"].astype(object)
    label[1_000] = None
    write(Path("data/rows.parquet"), {**table(), "label": label})
    line = complaint("run", "job.yaml", "--out", "run", status=1)
    words = "rows.parquet: row 1001: 'label' is missing; drop the row or fill it"
    assert line == f"{here}/data/{words} (kept in {here}/run)"
    summary = planaria_summary()
    assert (summary["status"], summary["samples"]) == ("failed", 992)
    assert words in summary["reason"]
    assert Path("run/report.html").exists()

    write(Path("data/rows.parquet"), table())
    monkeypatch.chdir("/")
    done = planaria.resume(here / "run")
    assert (done.status, done.summary["samples"]) == ("done", ROWS)
    assert done.summary["rows_lost"] == done.summary["rows_repeated"] == 0
    assert "reason" not in done.summary


def planaria_summary() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("run/summary.json").read_text())
    return content


def test_a_file_damaged_within_ends_the_run_with_what_was_done(here: Path, complaint: Complaint) -> None:
    path = write(Path("data/rows.parquet"), table(24_000), group=17_000)
    data = bytearray(path.read_bytes())
    page = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[page : page + 2_000] = b"\xff" * 2_000
    path.write_bytes(data)
    line = complaint("run", "job.yaml", "--out", "run", "batch_rows=400", status=1)
    assert "rows.parquet: from row " in line and "it may be truncated or damaged" in line
    assert line.endswith(f"(kept in {here}/run)")
    assert planaria_summary()["samples"] == 16_000


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        (
            "label",
            [1, 0],
            "column 'label' holds whole numbers, but the files before it hold text; write it with one type",
        ),
        ("x", ["a", "b"], "column 'x' holds text, but features.numeric needs numbers"),
    ],
)
def test_a_file_of_another_schema_that_arrives_ends_a_waiting_run(
    here: Path, complaint: Complaint, column: str, values: list[Any], words: str
) -> None:
    def arrive() -> None:
        until = time.monotonic() + 60
        while not Path("run/live.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        write(here / "next.parquet", {**table(50), column: values * 25}).rename(here / "data/z.parquet")

    writer = threading.Thread(target=arrive)
    writer.start()
    try:
        line = complaint("run", "job.yaml", "--out", "run", "stream.follow=true", "stream.follow_poll_s=0.05", status=1)
    finally:
        writer.join()
    assert f"z.parquet: {words}" in line and line.endswith(f"(kept in {here}/run)")
    summary = planaria_summary()
    assert summary["status"] == "failed"
    assert ROWS - 1_024 <= summary["samples"] <= ROWS, "it looks no further ahead"


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many bytes."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small disk can only be mounted by root")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_without_room_is_refused(here: Path, complaint: Complaint, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(MIB // 2)
    line = complaint("run", "job.yaml", "--out", str(disk / "run"), status=2)
    assert line.startswith(f"{disk}/run: cannot write here (No space left on device); choose another folder with --out")
    assert line.endswith("or free some space")
    assert list(disk.iterdir()) == []


def test_a_disk_that_cannot_be_written_is_refused(
    here: Path, complaint: Complaint, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(MIB)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    line = complaint("run", "job.yaml", "--out", str(disk / "run"), status=2)
    assert line.startswith(f"{disk}/run: cannot write here (Read-only file system); choose another folder with --out")


def test_a_disk_that_fills_up_ends_the_run_which_goes_on_once_there_is_room(
    here: Path, complaint: Complaint, small_disk: Callable[[int], Path]
) -> None:
    write(here / "data/rows.parquet", table(16_000))
    disk = small_disk(24 * MIB)
    filler = disk / "filler"

    def fill() -> None:
        until = time.monotonic() + 120
        while not (disk / "run/starts.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.02)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4_096)

    thread = threading.Thread(target=fill)
    thread.start()
    impatient = ("storage.checkpoint_every_s=0.2", "storage.patience_s=0.5")
    line = complaint("run", "job.yaml", "--out", str(disk / "run"), *impatient, status=1)
    thread.join()
    assert line.startswith(f"{disk}/run") and "No space left on device" in line
    assert "free some space" in line and f"planaria resume {disk}/run" in line.replace("`", "")
    assert line.endswith(f"(kept in {disk}/run)")

    filler.unlink()
    result = planaria.resume(disk / "run")
    assert (result.status, result.summary["samples"]) == ("done", 16_000)
    assert result.summary["rows_lost"] == result.summary["rows_repeated"] == 0


# -- checkpoints


def test_a_broken_checkpoint_falls_back_to_the_one_before_and_says_so(
    here: Path, caplog: pytest.LogCaptureFixture, complaint: Complaint
) -> None:
    write(Path("data/rows.parquet"), {**table(), "label": [*table()["label"][:-1], None]})
    complaint("run", "job.yaml", "--out", "run", status=1)
    write(Path("data/rows.parquet"), table())
    newest, before, *_ = sorted(Path("run/checkpoints").iterdir(), reverse=True)
    model = newest / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    result = planaria.resume("run")
    assert (result.status, result.summary["samples"]) == ("done", ROWS)
    assert result.summary["rows_lost"] == result.summary["rows_repeated"] == 0
    assert (
        f"checkpoints/{newest.name}: broken checkpoint ('model.safetensors' is damaged); using the one before"
        in caplog.text
    )
    last_start = Path("run/starts.jsonl").read_text().splitlines()[-1]
    assert f"{newest.name} is damaged; went on from {before.name}" in last_start


def test_a_run_without_a_usable_checkpoint_is_refused(here: Path, complaint: Complaint) -> None:
    write(Path("data/rows.parquet"), {**table(), "label": [*table()["label"][:-1], None]})
    complaint("run", "job.yaml", "--out", "run", status=1)
    for state in Path("run/checkpoints").glob("*/state.json"):
        state.write_text("{}")
    line = complaint("resume", "run", status=2)
    assert line == (
        f"{here}/run/checkpoints: no usable checkpoint (all of them are damaged); start the job again in a new folder"
    )


# -- a store that dies while the run goes on


def test_a_store_that_dies_is_told_once_and_gets_its_records_when_it_is_back(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (here / "stores").mkdir()
    uri = f"sqlite:///{here}/stores/mlflow.db"

    def die(state: dict[str, Any]) -> None:
        if (here / "stores").is_dir():
            shutil.rmtree(here / "stores", ignore_errors=True)
            (here / "stores").write_text("a file where the store's folder was")

    job = planaria.load_job("job.yaml", [f"record.tracking_uri={uri}"])
    result = planaria.run(job, out="run", progress=die)
    assert (result.status, result.summary["samples"]) == ("done", ROWS)
    told = [record.getMessage() for record in caplog.records if "MLflow" in record.getMessage()]
    assert len(told) == 1 and f"records are kept in {here}/run and sent when it is back" in told[0]
