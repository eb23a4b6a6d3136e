"""Compiled passes: the same run, faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from planaria.blueprint import Blueprint, Quantisation
from planaria.errors import InputError
from planaria.job import Job
from planaria.model import short_attention
from planaria.stream import open_stream
from planaria.train.compiling import Compiling
from planaria.train.group import Alone
from planaria.train.lifelong import Lifelong


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,600 rows; a third label appears halfway, which is an edit."""
    x = np.random.default_rng(0).normal(size=(1_600, 4)).astype(np.float32)
    label = np.where(x[:, 0] * x[:, 1] > 0, "yes", "no").astype(object)
    label[800::10] = "maybe"
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    pq.write_table(pa.table({**{f"x{at}": x[:, at] for at in range(4)}, "y": label}), path)
    return path


def _run(table: Path, shards: int = 1, **model: Any) -> Lifelong:
    values: dict[str, Any] = {
        "stream": {
            "source": "parquet",
            "path": str(table),
            "features": {"numeric": ["x0", "x1", "x2", "x3"]},
            "target": "y",
        },
        "batch_rows": 16,
        "model": {"width": 8, "layers": 1, "head_width": 4, "mlp_width": 16, **model},
        "policy": {"controller": {"kind": "none"}, "learner": {"memory": {"rows": 64}, "readout": {"features": 16}}},
        "scale": {"workers": 0, "shards": shards},
    }
    job = Job.model_validate(values)
    stream = open_stream(job.stream, seed=job.seed, base=Path.cwd(), hold_out_fraction=job.evaluation.hold_out_fraction)
    return Lifelong(job, stream, Alone(), torch.device("cpu"))


def _live(run: Lifelong, until_row: int) -> Lifelong:
    while run.row < until_row and run.take_step() is not None:
        pass
    return run


def test_a_quantised_blueprint_is_not_compiled() -> None:
    compiling = Compiling(lambda: None, 0, torch.device("cpu"))
    quantisation = Quantisation(8, "token")
    quantised = Blueprint("classification", 8, 4, 16, (1,), 2, numeric=4, quantisation=quantisation)
    assert compiling.chosen(quantised, 1_000, full=True) is compiling.function


def _weights(run: Lifelong) -> dict[str, torch.Tensor]:
    return dict(run.model.state_dict())


def test_no_compiler_is_said_before_the_run_begins(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"there is no C\+\+ compiler \(no-such-compiler\)"):
        _run(table, compile_after_rows=0)
    _run(table)  # asks for none


def test_what_is_compiled_is_a_full_step_of_a_blueprint_that_stands(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    made_with: list[str] = []

    def compiled(function: Any, **settings: Any) -> Any:
        made.append(settings)
        return lambda *arguments: function(*arguments)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(short_attention, "build", lambda compiler: made_with.append(compiler))
    run = _run(table)
    run.begin()
    narrow, compiling = run.blueprint, Compiling(max, 100, torch.device("cpu"))
    assert compiling.chosen(narrow, 99, True) is max
    assert compiling.chosen(narrow, 100, False) is max
    chosen = compiling.chosen(narrow, 100, True)
    assert chosen is not max and chosen(3, 4) == 4 and made_with == ["g++"]
    assert compiling.chosen(narrow, 500, True) is chosen and len(made) == 1
    _live(run, 1_200)
    assert run.blueprint != narrow, "a label came"
    assert compiling.chosen(run.blueprint, 100, True) is not chosen and len(made) == 2


def test_shards_are_compiled_for_one_number_of_rows(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def compiled(function: Any, **settings: Any) -> Any:
        def noted(model: Any, features: dict[str, torch.Tensor], *others: torch.Tensor) -> Any:
            sizes.append(len(features["numeric"]))
            return function(model, features, *others)

        return noted

    monkeypatch.setattr(torch, "compile", compiled)
    run = _run(table, shards=4, compile_after_rows=0)
    run.begin()
    _live(run, 800)
    assert set(sizes) == {(16 + 16 + 4) // 4} and len(sizes) > 0.9 * 4 * run.step


@pytest.mark.slow
def test_a_compiled_run_cut_and_resumed_is_bit_identical_and_close_to_the_plain_one(table: Path) -> None:
    whole = _run(table, compile_after_rows=200)
    whole.begin()
    cut = _run(table, compile_after_rows=200)
    cut.begin()
    resumed = _run(table, compile_after_rows=200)
    resumed.load_state(_live(cut, 480).state())  # compiled since row 200; the next edit is at row 800
    plain = _run(table)
    plain.begin()
    end = 1_600
    results = [_weights(_live(run, end)) for run in (whole, resumed, plain)]
    assert whole.row == end and whole.account.totals.revisions == 2
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
    assert any(not torch.equal(value, results[2][name]) for name, value in results[0].items()), "something was compiled"
    assert whole.account.totals.loss == pytest.approx(plain.account.totals.loss, rel=1e-2)


@pytest.mark.slow
def test_compiled_runs_of_other_models_in_one_process_do_not_take_each_others_passes(table: Path) -> None:
    """Step by step in turn, as one after the other."""

    def runs() -> list[Lifelong]:
        both = [_run(table, compile_after_rows=32), _run(table, compile_after_rows=32, width=16)]
        for run in both:
            run.begin()
        return both

    in_turn, alone = runs(), runs()
    for until in range(64, 321, 64):
        for run in in_turn:
            _live(run, until)
    for run, other in zip(alone, in_turn, strict=True):
        _live(run, 320)
        for name, value in _weights(run).items():
            assert torch.equal(value, _weights(other)[name]), name


def test_first_steps_and_those_after_a_shift_are_small(table: Path) -> None:
    """The share of the rows so far, at least 4, until whole steps; no row is lost or repeated."""
    run = _run(table)
    run.job = run.job.model_copy(update={"batch_fraction": 0.03})
    run.begin()
    sizes, before = [], 0
    while run.row < 1_000:
        run.take_step()
        sizes.append(run.row - before)
        before = run.row
    assert sizes[:33] == [4] * 33 and sizes[-1] == 16 and sizes == sorted(sizes)
    assert run.account.totals.row_number_sum == run.row * (run.row - 1) // 2
    run.present_since, after = run.row, []
    while run.row < 1_584:
        run.take_step()
        after.append(run.row - before)
        before = run.row
    assert after[0] == 8 and after[-1] == 16 and after == sorted(after), "half as large after a shift"
    resumed = _run(table)
    resumed.job = run.job
    resumed.load_state(run.state())
    run.take_step()
    resumed.take_step()
    assert resumed.row == run.row
