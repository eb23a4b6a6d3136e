"""What a program can do with planaria in ten lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import planaria

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table that can be learned."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(1_280, 2))
    label = np.where(x[:, 0] > 0, "up", "down")
    pq.write_table(pa.table({"a": x[:, 0], "b": x[:, 1], "label": label}), "table.parquet")
    return tmp_path


def test_ten_lines_of_python_run_a_stream_and_go_on_with_it(here: Path) -> None:
    job = planaria.Job.model_validate(
        {
            "name": "ten-lines",
            "stream": {
                "source": "parquet",
                "path": "table.parquet",
                "features": {"numeric": ["a", "b"]},
                "target": "label",
            },
            "model": {"width": 16, "layers": 1, "mlp_width": 16},
            "policy": {"learner": {"learning_rate": 0.01}},
            "record": {"register_model": False},
        }
    )
    seen: list[dict[str, object]] = []
    result = planaria.run(job, out="out", workers=0, progress=seen.append)

    assert isinstance(result, planaria.RunResult)
    assert (result.status, result.folder) == ("done", here / "out")
    assert result.summary["samples"] == 1_280
    assert result.summary["prequential_accuracy"] > 0.7
    assert result.report is not None and result.report.read_text().startswith("<!doctype html>")
    assert seen[-1]["samples"] == 1_280, "progress is told to the end"

    again = planaria.resume(result.folder)
    assert again.summary["samples"] == 1_280, "a run that is done stays as it is"
    with pytest.raises(planaria.InputError, match=r"out: holds a run already; choose another folder"):
        planaria.run(job, out="out", workers=0)


def test_a_job_file_is_as_good_as_a_job(here: Path) -> None:
    Path("job.yaml").write_text(
        "stream: {source: parquet, path: table.parquet, features: {numeric: [a, b]}, target: label}\npolicy: balanced\n"
    )
    job = planaria.load_job("job.yaml")
    assert job.policy == planaria.load_policy(REPOSITORY / "policies" / "balanced.yaml")
    assert job.stream.path == str(here / "table.parquet")
    with pytest.raises(planaria.InputError, match=r"nope\.yaml: no such file"):
        planaria.run("nope.yaml", workers=0)


def test_importing_planaria_imports_nothing_slow() -> None:
    program = (
        "import sys, planaria\n"
        "slow = [n for n in ('torch', 'ray', 'mlflow', 'pyarrow', 'pandas', 'pydantic') if n in sys.modules]\n"
        "assert not slow, slow\n"
        "assert set(planaria.__all__) <= set(dir(planaria))\n"
        "planaria.Job\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": str(REPOSITORY / "platform")})


def test_every_public_name_is_there_and_no_other() -> None:
    for name in planaria.__all__:
        assert getattr(planaria, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'planaria' has no attribute 'runn'"):
        planaria.runn  # noqa: B018
