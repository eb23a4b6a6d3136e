"""A run that somebody else may have made, and bounds on what reading it may take."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from planaria.cli import call
from planaria.job import Job, dump_job, load_job
from planaria.train.folder import RunFolder
from planaria.train.worker import run_here

REPOSITORY = Path(__file__).parents[2]
MOST_BYTES = 700 << 20
"""That a test may take beyond what the process has: less than any of the bombs."""

Complaint = Callable[..., str]


@pytest.fixture(autouse=True)
def _bounded_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """A bomb that goes off shows itself as a MemoryError."""
    if request.node.get_closest_marker("slow"):  # others' processes, which reserve more than they use
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile content would make if it were run."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "what was loaded has run code"


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Complaint:
    """Run a command that is to fail; the one line it says on stderr."""

    def complain(*arguments: str, status: int = 2) -> str:
        assert call(list(arguments)) == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return complain


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draws = np.random.default_rng(0)
    x, y = draws.normal(size=(2, 800))
    path = tmp_path_factory.mktemp("data") / "rows.parquet"
    pq.write_table(
        pa.table({"x": x, "y": y, "kind": draws.choice(["a", "b"], 800), "label": np.where(x + y > 0, "up", "down")}),
        path,
    )
    return path


@pytest.fixture(scope="session")
def job_file(table: Path) -> Path:
    path = table.with_name("job.yaml")
    path.write_text(
        "name: small\n"
        f"stream: {{source: parquet, path: {table}, target: label,\n"
        "  features: {numeric: [x, y], categorical: [kind]}}\n"
        "model: {width: 8, layers: 1, mlp_width: 8}\n"
        "batch_rows: 32\n"
        "policy: {controller: {kind: none}, learner: {memory: {rows: 100}}}\n"
        "scale: {workers: 0}\n"
        "storage: {keep_checkpoints: 1}\n"
        "record: {register_model: false}\n"
    )
    return path


@pytest.fixture(scope="session")
def job(job_file: Path) -> Job:
    return load_job(job_file)


@pytest.fixture(scope="session")
def _made(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = RunFolder(tmp_path_factory.mktemp("made"))
    run_here(job, folder, folder.path)
    folder.write_text(folder.job, dump_job(job))
    folder.write_json(folder.summary, {**folder.read_json(folder.summary), "status": "stopped"})
    return folder.path


@pytest.fixture
def run_folder(_made: Path, tmp_path: Path) -> RunFolder:
    """Of a run that has been stopped."""
    return RunFolder(Path(shutil.copytree(_made, tmp_path / "run")))


@pytest.fixture
def store() -> Iterator[tuple[int, list[str]]]:
    """A server that is up, and takes no record; its port, and who knocked by which right."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization") or "")
            self.send_response(200 if self.path == "/health" else 500)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *values: object) -> None: ...

    server = HTTPServer(("", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, seen
    server.shutdown()
    server.server_close()


def environment_of(home: Path, **changes: str) -> dict[str, str]:
    """Of a user with a home of their own, and nothing set for Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(REPOSITORY / "platform"), **changes}


def checkpoint_of(folder: RunFolder) -> Path:
    (only,) = folder.checkpoints.iterdir()
    return only


def put(checkpoint: Path, part: str, content: bytes) -> None:
    """Put a part in the place of another, and let the manifest agree: whoever made it can do that."""
    (checkpoint / part).write_bytes(content)
    about = json.loads((checkpoint / "manifest.json").read_text())
    about["files"][part] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(about))
