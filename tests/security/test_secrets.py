"""Secrets come from the environment, and stand in no folder, record, page, log or message of a run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from tests.security.conftest import Complaint

from planaria.addresses import filled, holds_secret
from planaria.cli import call
from planaria.errors import InputError, RunError
from planaria.job import load_job
from planaria.record.tracking import check_tracking_uri
from planaria.stream.listing import list_files
from planaria.submit import _handed_on

SECRET = "pa55-w0rd/of+ann"
"""With characters that addresses do not hold as they are."""
OTHERS = {
    "AWS_SECRET_ACCESS_KEY": "aws-53cret-key",
    "AWS_SESSION_TOKEN": "aws-53ssion-t0ken",
    "MLFLOW_TRACKING_TOKEN": "mlflow-t0ken",
    "RAY_AUTH_TOKEN": "ray-t0ken-0123456789abcdef0123456789",
}


@pytest.mark.parametrize(
    "setting",
    [
        "record.tracking_uri=http://ann:pa55-w0rd@host",
        "record.tracking_uri=postgresql://ann:pa55-w0rd@db/mlflow",
        "stream.path=s3://AKIA0:pa55-w0rd@bucket/rows",
        "stream.path=s3://bucket/rows?secret_key=pa55-w0rd",
        "storage.folder=s3://bucket/runs?access_key=a&secret_key=pa55-w0rd",
        "policy.controller.from_run=http://ann:pa55-w0rd@host",
        "http://ann:pa55-w0rd@host",
        "record.password=pa55-w0rd",
    ],
)
def test_a_secret_in_a_job_is_refused_and_not_shown(setting: str, job_file: Path, complaint: Complaint) -> None:
    line = complaint("run", str(job_file), setting)
    assert line.startswith("command line: ") and "pa55" not in line


def test_a_secret_in_a_file_is_refused_with_its_place(tmp_path: Path, job_file: Path, complaint: Complaint) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(job_file.read_text().replace("record: {", "record: {tracking_uri: 'http://a:pa55@h', "))
    words = "holds a password or a token, and would be recorded; write ${NAME} in its place, which is taken from the"
    assert complaint("run", str(path)).startswith(f"{path}: record.tracking_uri: {words}")
    path.write_text(f"job: {job_file}\nsettings: {{record.tracking_uri: 'http://a:pa55@h'}}\nsearch: {{}}\n")
    assert complaint("search", str(path)).startswith(f"{path}: settings.record.tracking_uri: {words}")


def test_variables_are_filled_in_only_where_an_address_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", SECRET)
    address = "postgresql://ann:${PASSWORD}@db/mlflow"
    assert not holds_secret(address)
    assert filled(address) == "postgresql://ann:pa55-w0rd%2Fof%2Bann@db/mlflow"
    assert filled("s3://bucket/rows?region=eu") == "s3://bucket/rows?region=eu"


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASSWORD", raising=False)
    with pytest.raises(InputError, match=r"there is no environment variable 'PASSWORD'; set it"):
        check_tracking_uri("http://ann:${PASSWORD}@host")
    with pytest.raises(InputError, match=r"stream.path: .* there is no environment variable 'PASSWORD'; set it"):
        list_files("s3://key:${PASSWORD}@bucket/rows", Path(), (".parquet",))


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_no_message_shows_a_secret(kind: type[Exception]) -> None:
    assert str(kind("s3://key:pa55@b: no; postgresql://a:pa55@h/d")) == "s3://key:***@b: no; postgresql://a:***@h/d"


def test_an_unexpected_error_is_shown_without_its_secrets(
    job_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*given: object, **named: object) -> None:
        raise LookupError("nobody at http://ann:pa55-w0rd@host")

    monkeypatch.setattr("planaria.train.launch.run", run)
    assert call(["run", str(job_file)]) == 1
    shown = capsys.readouterr().err
    assert "unexpected LookupError: nobody at http://ann:***@host" in shown and "pa55" not in shown


def test_a_submitted_job_takes_no_secret_along(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OTHERS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:${PASSWORD}@host")
    assert set(_handed_on()) <= {"MLFLOW_TRACKING_URI", "PLANARIA_DATA", "OMP_NUM_THREADS"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:pa55@host")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI: holds a password or a token"):
        _handed_on()


@pytest.mark.slow
def test_planted_secrets_stand_nowhere_after_a_run(
    job_file: Path,
    tmp_path: Path,
    store: tuple[int, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The store's password is used, its record fails, and the run is then recorded into a store of its own."""
    for name, value in {**OTHERS, "PASSWORD": SECRET}.items():
        monkeypatch.setenv(name, value)
    port, seen = store
    folder = tmp_path / "run"
    uri = f"http://ann:${{PASSWORD}}@127.0.0.1:{port}"
    assert call(["run", str(job_file), f"record.tracking_uri={uri}", "--out", str(folder)]) == 0
    basic = base64.b64encode(f"ann:{SECRET}".encode()).decode()
    assert f"Basic {basic}" in seen, "the password reached the store"
    assert load_job(folder / "job.yaml").record.tracking_uri == uri

    assert call(["run", str(job_file), "--out", str(tmp_path / "recorded")]) == 0
    assert (tmp_path / "recorded" / "mlflow.db").exists()
    shown = capfd.readouterr()
    told = [shown.out.encode(), shown.err.encode(), caplog.text.encode()]
    told += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    forms = [SECRET, "pa55-w0rd%2Fof%2Bann", basic, *OTHERS.values()]
    for form in (form for secret in forms for form in (secret, json.dumps(secret)[1:-1])):
        assert not [text[:80] for text in told if form.encode() in text], form
