"""Settings that must be in place before Ray, torch, MLflow or matplotlib are imported by any test."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on small tensors are slower than one
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
os.environ.setdefault("RAY_worker_niceness", "0")  # its 15 starves workers beside anything else that is busy
os.environ.pop("RAY_ADDRESS", None)  # a test must never join somebody's cluster

settings.register_profile("planaria", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("planaria")


def script(path: Path) -> ModuleType:
    """A file of Python that belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class S3:
    """A real S3 server on this machine (moto's), whose content outlives a stop."""

    def __init__(self) -> None:
        self._port, self._server = 0, None
        self.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "a-key-of-no-account",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-no-account",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What a process needs to use it."""

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()

    def bucket(self, name: str) -> str:
        """Made where it is not there; its URI."""
        from pyarrow.fs import FileSystem

        FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")[0].create_dir(name)
        return f"s3://{name}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    pytest.importorskip("moto", reason="moto[s3] is not installed: it is in requirements.lock")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
