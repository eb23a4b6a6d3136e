"""Jobs, policies, campaigns, models, tables and pages from others: data, or one line that says why not."""

from __future__ import annotations

import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.security.conftest import Complaint
from tests.security.hostile import BOMB, DEEP, arrow_stream, in_place_of_anything, numpy_file, pickled, wrong_offsets

from planaria.control.value import load_value
from planaria.errors import InputError, RunError
from planaria.job import StreamSettings
from planaria.meta.campaign import from_bytes
from planaria.model import load_model, save_model
from planaria.model.transformer import ElasticTransformer
from planaria.plain_yaml import load_yaml
from planaria.record.report import read_run, write_report
from planaria.record.tables import read_rows
from planaria.search.places import read_trials
from planaria.stream import open_stream
from planaria.train.folder import RunFolder
from planaria.train.launch import _new_folder

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

# -- YAML


TAG = "name: !!python/object/apply:os.mknod [RAN]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TAG, "the tag !!python/object/apply:os.mknod is not allowed"),
        ("name: !!python/name:os.system", "the tag !!python/name:os.system is not allowed"),
        ("name: !<tag:yaml.org,2002:python/module:antigravity> ''", "is not allowed"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\nname: !object/apply:os.mknod [RAN]", "is not allowed"),
        (LAUGHS, "'*' repeats a value by its anchor, which is not supported"),
        ("name: " + "[" * 1_500, "is nested too deeply"),
        ("seed: " + "9" * 20_000, "a number has at most 100 characters"),
        ("seed: 1" + ":59" * 10_000, "a number has at most 100 characters"),
        ("seed: 0x" + "f" * 20_000, "a number has at most 100 characters"),
        ("seed: !!int ''", "cannot be read"),
        ("seed: !!bool maybe", "cannot be read"),
        ("seed: !!timestamp soon", "cannot be read"),
        ("seed: 1e999", "seed"),
        ("seed: .nan", "seed"),
        ("#" * 250_001, "is larger than 250,000 bytes"),
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_hides_code_or_size_is_refused(
    text: str, words: str, tmp_path: Path, canary: Path, complaint: Complaint
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text.replace("RAN", str(canary)))
    assert words in complaint("run", str(path))


@pytest.mark.parametrize("command", ["search", "meta-train", "compare", "submit"])
def test_no_other_command_reads_tags(command: str, tmp_path: Path, canary: Path, complaint: Complaint) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(TAG.replace("RAN", str(canary)))
    arguments = ["--address", "http://127.0.0.1:1"] if command == "submit" else []
    assert "is not allowed" in complaint(command, str(path), *arguments)


def test_a_policy_file_reads_no_tags(tmp_path: Path, canary: Path, complaint: Complaint) -> None:
    (tmp_path / "own.yaml").write_text(TAG.replace("RAN", str(canary)))
    (tmp_path / "job.yaml").write_text("policy: own.yaml\n")
    assert "own.yaml: line 1, column 7: the tag" in complaint("run", str(tmp_path / "job.yaml"))


@pytest.mark.parametrize("name", ["../up", "/absolute", "a/b", "..", ".hidden", "a\\b", "", "a\0b", "x" * 101])
def test_a_name_cannot_lead_out_of_the_folder(name: str, tmp_path: Path, job_file: Path, complaint: Complaint) -> None:
    path = tmp_path / "file.yaml"
    for command, rest in (
        ("run", job_file.read_text().partition("\n")[2]),
        ("search", f"job: {job_file}"),
        ("meta-train", ""),
    ):
        path.write_text(f"name: {json.dumps(name)}\n{rest}\n")
        line = complaint(command, str(path))
        assert "name: " in line and "cannot name a folder" in line


def test_a_runs_folder_lies_in_the_storage_folder(job: object) -> None:
    assert _new_folder(job).parent == Path("runs")  # type: ignore[arg-type]


def test_a_policy_that_is_another_file_is_told_from_one(tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "job.yaml").write_text("policy: ../../../../../../../../dev/zero\n")
    assert "there is no policy" in complaint("run", str(tmp_path / "job.yaml"))
    (tmp_path / "campaign.yaml").write_text("job: /dev/zero\nsearch: {seed: {one_of: [1, 2]}}\n")
    assert "is larger than 250,000 bytes" in complaint("search", str(tmp_path / "campaign.yaml"))


def test_quoted_text_is_still_text() -> None:
    assert load_yaml("a: '12:30:00'\nb: 'x'", "here") == {"a": "12:30:00", "b": "x"}


# -- models and learned values


@pytest.mark.parametrize("part", ["model.safetensors", "blueprint.json", "encoding.json"])
def test_nothing_in_place_of_a_models_file_is_run(part: str, run_folder: RunFolder, canary: Path) -> None:
    for name, content in in_place_of_anything(canary):
        if part == "encoding.json" and content.startswith(b"{"):
            continue  # plain data, which `load` looks at
        (run_folder.served / part).write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_model(run_folder.served)
        assert len(str(caught.value).splitlines()) == 1, name
        assert not canary.exists(), name


def test_a_model_of_terabytes_is_refused_before_it_is_made(run_folder: RunFolder) -> None:
    path = run_folder.served / "blueprint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "heads": [1 << 40]}))
    with pytest.raises(InputError, match=r"a model of [\d,]+ parameters and weights of [\d,]+ numbers"):
        load_model(run_folder.served)


def test_a_model_is_saved_without_pickle(run_folder: RunFolder, tmp_path: Path) -> None:
    model, encoding = load_model(run_folder.served)
    assert isinstance(model, ElasticTransformer)
    save_model(model, tmp_path / "again", encoding)
    for path in (tmp_path / "again").iterdir():
        assert path.suffix in (".json", ".safetensors")
        assert not path.read_bytes().startswith(b"\x80")


def test_nothing_in_place_of_a_learned_value_is_run(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "value.safetensors"
    for _, content in in_place_of_anything(canary):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no usable learned value"):
            load_value(path)


def test_experience_is_no_pickle_and_no_bomb(canary: Path) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, before_DKX=np.array([{}], dtype=object))
    for content in (numpy_file(canary), pickled(canary), packed.getvalue(), BOMB):
        with pytest.raises(ValueError):
            from_bytes(content)


# -- what a page is made from


@pytest.mark.parametrize("name", ["summary.json", "mlflow.json"])
def test_a_page_is_not_made_from_what_no_run_writes(name: str, run_folder: RunFolder, canary: Path) -> None:
    for content in (DEEP, b"[]", pickled(canary), b'{"samples": ' + b"9" * 10_000 + b"}"):
        (run_folder.path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            write_report(run_folder.path)


def test_a_page_does_not_unfold_a_jobs_aliases(run_folder: RunFolder) -> None:
    run_folder.job.write_text(f"{LAUGHS}name: *i\n")
    assert read_run(run_folder.path).name == "run"


def test_a_table_that_unpacks_to_gigabytes_is_refused(run_folder: RunFolder) -> None:
    rows = read_rows(run_folder.path, "steps")
    path = run_folder.path / "steps.parquet"
    schema = pq.read_schema(path)
    many = pa.table({"step": np.zeros(1 << 24, np.int64)})
    pq.write_table(many, path)
    with pytest.raises(InputError, match=r"steps.parquet: cannot be read \(it unpacks to [\d,]+ bytes of 16,777,216 "):
        read_rows(run_folder.path, "steps")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    assert read_rows(run_folder.path, "steps") == rows


def test_text_that_repeats_is_counted_as_often_as_it_is_there(run_folder: RunFolder) -> None:
    path = run_folder.path / "revisions.parquet"
    why = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), ["x" * 1_000_000])
    pq.write_table(pa.table({"why": why}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"it unpacks to 10,0\d\d,\d{3},\d{3} bytes of 10,000 rows"):
        read_rows(run_folder.path, "revisions")


def test_a_trials_end_is_plain_data(tmp_path: Path, canary: Path) -> None:
    place = tmp_path / "trials" / "0003"
    place.mkdir(parents=True)
    for content in (DEEP, pickled(canary), b"[]", b'{"number": 4, "settings": {}, "status": "done", "metrics": {}}'):
        (place / "trial.json").write_bytes(content)
        with pytest.raises(InputError, match="is not how a trial ends"):
            read_trials(tmp_path)


# -- streams


def settings(path: Path, source: str, **features: object) -> StreamSettings:
    return StreamSettings.model_validate(
        {"source": source, "path": str(path), "features": features, "target": "target"}
    )


def refused(stream: StreamSettings) -> str:
    with pytest.raises((InputError, RunError)) as caught:
        rows = open_stream(stream, seed=0, base=Path.cwd(), hold_out_fraction=0.0).read(0, 32)
        rows.select(slice(None))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_line_of_csv_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    block = gzip.compress(b"a" * (1 << 22))
    path.write_bytes(gzip.compress(b"x,target\n1,") + 256 * block)  # 1 GiB in all
    assert path.stat().st_size < 2 << 20
    assert "cannot be read as CSV" in refused(settings(path, "csv", numeric=["x"]))


@pytest.mark.parametrize("source", ["parquet", "arrow", "csv"])
def test_files_of_another_kind_are_refused(source: str, tmp_path: Path, canary: Path) -> None:
    path = tmp_path / f"rows.{source}"
    for content in (pickled(canary), numpy_file(canary), DEEP, arrow_stream(pa.table({"a": [1]}))):
        path.write_bytes(content)
        assert str(path) in refused(settings(path, source, numeric=["x"]))


@pytest.mark.parametrize("as_file", [False, True])
def test_an_arrow_file_whose_text_lies_outside_its_buffer_is_refused(as_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    path.write_bytes(wrong_offsets(as_file))
    stream = {"source": "arrow", "path": str(path), "features": {"numeric": ["x"]}, "target": "target"}
    assert "cannot be read as Arrow IPC" in refused(StreamSettings.model_validate(stream))


def picture_stream(tmp_path: Path, content: bytes) -> StreamSettings:
    path = tmp_path / "pictures.parquet"
    pq.write_table(pa.table({"picture": [content] * 4, "target": ["a", "b"] * 2}), path)
    return settings(path, "parquet", image={"column": "picture", "shape": [2, 2]})


def test_a_picture_in_postscript_is_not_handed_to_a_program(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {canary}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n"
    assert "are neither a raw picture nor a PNG or JPEG" in refused(picture_stream(tmp_path, page))


def test_a_picture_of_gigapixels_is_not_unpacked(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(file, "PNG")
    line = refused(picture_stream(tmp_path, file.getvalue()))
    assert "image is 8000x8000, but features.image.shape says 2x2" in line or "neither a raw picture" in line


def test_memory_that_cannot_be_had_is_one_line(
    job_file: Path, complaint: Complaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*given: object, **named: object) -> None:
        np.zeros(1 << 50)

    monkeypatch.setattr("planaria.train.launch.run", run)
    line = complaint("run", str(job_file), status=1)
    assert line.startswith("memory: there is not enough (Unable to allocate") and line.endswith(
        "lower what the job asks for"
    )
