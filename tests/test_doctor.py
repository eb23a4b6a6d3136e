"""What the doctor finds, and what it says to do about it."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from planaria import doctor
from planaria.cli import call
from planaria.doctor import Finding


def found(check: object) -> list[tuple[str, str, str]]:
    """level, about, what to do."""
    assert callable(check)
    return [(finding.level, finding.about, finding.to_do) for finding in check()]


def test_this_machine_can_run_planaria(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {check["about"] for check in report["checks"]} >= {
        "Python", "packages", "learn2learn", "devices", "CPUs", "memory", "Ray", "store", "disk", "data"
    }  # fmt: skip


def test_a_failure_gives_exit_status_1_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([Finding("fail", "disk", "is full", "free some space")]),))
    assert call(["doctor"]) == 1
    assert capsys.readouterr().out == "fail disk         is full; free some space\n"


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_that_breaks() -> Iterator[Finding]:
        raise OSError("no\nsuch thing")

    monkeypatch.setattr(doctor, "CHECKS", (check_that_breaks, doctor.check_python))
    broken, python = doctor.examine()
    assert broken == Finding("fail", "that breaks", "could not be checked: OSError: no such thing")
    assert python.level == "ok"


def test_a_package_that_is_missing_or_of_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=1", "pyarrow<1", "no-such-package>=2", 'also-missing; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    (finding,) = doctor.check_packages()
    version = metadata.version("pyarrow")
    assert finding.what == f"pyarrow is {version}, not <1; no-such-package is not installed"
    assert finding.to_do == "run `make setup`, or pip install -r requirements.lock"
    assert finding.level == "fail"


def test_learn2learn_that_does_not_load_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("learn2learn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "learn2learn.algorithms", None)
    assert found(doctor.check_learn2learn) == [
        ("fail", "learn2learn", "run `make setup`, which builds it for this Python")
    ]


def test_a_long_folder_for_rays_sockets_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    assert found(doctor.check_ray) == [("fail", "Ray", "set RAY_TMPDIR to a short path")]


def test_an_address_where_nothing_answers_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert found(doctor.check_ray_addresses) == [
        ("fail", "RAY_ADDRESS", "every run would fail to join: unset RAY_ADDRESS, or start that cluster")
    ]


def test_an_address_that_answers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        first = next(iter(doctor.check_ray_addresses()))
    assert (first.level, first.about) == ("ok", "RAY_ADDRESS")


def test_the_mark_of_a_cluster_that_is_gone_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:1\n")
    assert ("warn", "Ray address", f"rm {tmp_path / 'ray_current_cluster'}") in found(doctor.check_ray_addresses)


def test_authentication_that_was_turned_off_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ((level, about, to_do),) = found(doctor.check_authentication)
    assert (level, about) == ("warn", "RAY_AUTH_MODE")
    assert to_do == "whoever reaches a cluster's ports can run code on it: unset it, or set it to token"


def test_data_that_was_not_fetched_is_a_warning_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PLANARIA_DATA", str(tmp_path))
    to_do = "while there is a network: planaria fetch fashion_mnist weather"
    assert found(doctor.check_data) == [("warn", "data", to_do)]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_folder_that_cannot_hold_the_store_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir("/proc")
    assert found(doctor.check_store) == [("fail", "store", "run from a folder of your own, or give --out")]
    assert found(doctor.check_disk) == [("fail", "disk", "free some space, or give --out")]


def test_the_password_of_a_tracking_server_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    assert not any("secret" in finding.what for finding in doctor.check_store())
