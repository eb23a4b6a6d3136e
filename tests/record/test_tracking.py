"""A tracking URI that cannot work is refused before anything starts, in one line."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from planaria.errors import InputError
from planaria.record import check_tracking_uri


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def answering() -> Iterator[tuple[str, type[BaseHTTPRequestHandler]]]:
    class Handler(BaseHTTPRequestHandler):
        code = 200

        def do_GET(self) -> None:
            self.send_response(self.code)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_closed_port_is_refused_with_what_to_do(closed_port: int) -> None:
    with pytest.raises(InputError) as error:
        check_tracking_uri(f"http://ann:pa55@127.0.0.1:{closed_port}")
    line = str(error.value)
    assert line.startswith(f"record.tracking_uri: http://ann:***@127.0.0.1:{closed_port} cannot be reached (")
    assert "start the store, correct record.tracking_uri, or leave it out" in line
    assert "\n" not in line and "pa55" not in line


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        began = time.monotonic()
        with pytest.raises(InputError, match="timed out"):
            check_tracking_uri(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("code", [200, 401, 404])
def test_a_server_that_answers_is_accepted(answering: tuple[str, type[BaseHTTPRequestHandler]], code: int) -> None:
    uri, handler = answering
    handler.code = code  # type: ignore[attr-defined]
    check_tracking_uri(uri)


def test_a_server_that_is_broken_is_refused(answering: tuple[str, type[BaseHTTPRequestHandler]]) -> None:
    uri, handler = answering
    handler.code = 503  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="it answers 503"):
        check_tracking_uri(uri)


def test_a_sqlite_file_that_can_be_made_is_accepted(tmp_path: Path) -> None:
    check_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_sqlite_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*; make it, or correct the path"):
        check_tracking_uri(f"sqlite:///{tmp_path}/none/mlflow.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is a text, and not a database at all " * 50)
    with pytest.raises(InputError, match="is not a usable SQLite file"):
        check_tracking_uri(f"sqlite:///{tmp_path}/notes.txt")


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "ftp://host/x"])
def test_what_mlflow_cannot_write_to_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"is no store that MLflow can write to; give sqlite:///PATH or http"):
        check_tracking_uri(uri)


def test_a_database_that_is_down_or_lacks_its_driver_is_refused(closed_port: int) -> None:
    with pytest.raises(InputError, match=r"cannot be reached|driver is not installed") as error:
        check_tracking_uri(f"postgresql://u:pa55@127.0.0.1:{closed_port}/db")
    assert "pa55" not in str(error.value)
