from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from planaria.errors import InputError
from planaria.learn import ReplayMemory
from planaria.policy import Memory
from planaria.signals import Task


def _fill(memory: ReplayMemory, targets: npt.NDArray[Any], batch: int = 50, first: int = 0) -> None:
    for low in range(first, len(targets), batch):
        target = targets[low : low + batch]
        chosen = memory.choose(low, target, np.ones(len(target), bool))
        if chosen:
            at, slots = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
            features = {"numeric": (low + at)[:, None].astype(np.float32)}
            memory.store(slots, features, target[at], np.tile(target[at][:, None], 2).astype(np.float32))


def _memory(kind: str = "reservoir", rows: int = 200, task: Task = "classification") -> ReplayMemory:
    return ReplayMemory(Memory.model_validate({"kind": kind, "rows": rows}), task, seed=5)


def test_a_reservoir_holds_a_uniform_sample_of_the_stream() -> None:
    memory = _memory(rows=1_000)
    _fill(memory, np.zeros(20_000, np.int64))
    rows = memory.columns["numeric"][:, 0]
    assert len(np.unique(rows)) == 1_000
    share, _ = np.histogram(rows, bins=10, range=(0, 20_000))
    assert share.min() > 60 and share.max() < 140


def test_class_balance_keeps_rare_classes() -> None:
    targets = np.random.default_rng(0).choice(4, 10_000, p=[0.9, 0.07, 0.02, 0.01])
    memory = _memory("class_balanced", rows=200)
    _fill(memory, targets)
    assert np.bincount(memory.target).tolist() == [50, 50, 50, 50]


def test_a_stored_row_keeps_its_own_target_and_output() -> None:
    targets = np.random.default_rng(1).integers(0, 5, 3_000)
    memory = _memory("class_balanced", rows=97)
    _fill(memory, targets)
    rows = memory.columns["numeric"][:, 0].astype(int)
    assert np.array_equal(targets[rows], memory.target)
    assert np.array_equal(memory.remembered[:, 0], memory.target.astype(np.float32))


def test_rows_that_are_not_offered_are_never_kept() -> None:
    memory = _memory(rows=10)
    assert memory.choose(0, np.zeros(4, np.int64), np.zeros(4, bool)) == []
    assert len(memory) == 0


def test_draws_depend_on_the_step_alone_and_do_not_repeat_rows() -> None:
    memory = _memory(rows=100)
    _fill(memory, np.zeros(100, np.int64))
    assert np.array_equal(memory.draw(50, step=7), memory.draw(50, step=7))
    assert not np.array_equal(memory.draw(50, step=7), memory.draw(50, step=8))
    assert len(np.unique(memory.draw(100, step=1))) == 100
    assert len(_memory().draw(50, step=0)) == 0


def test_classes_that_came_later_are_unknown_to_earlier_rows() -> None:
    memory = _memory(rows=10)
    _fill(memory, np.zeros(10, np.int64))
    outputs = memory.remembered_outputs(np.arange(10), outputs=4)
    assert np.isnan(outputs[:, 2:]).all() and not np.isnan(outputs[:, :2]).any()


@pytest.mark.parametrize("kind", ["reservoir", "class_balanced"])
def test_a_memory_read_back_from_arrow_goes_on_as_the_original(kind: str) -> None:
    targets = np.random.default_rng(2).integers(0, 5, 4_000)
    whole, first, second = _memory(kind), _memory(kind), _memory(kind)
    _fill(whole, targets)
    _fill(first, targets[:2_000])
    second.load_arrow(first.to_arrow())
    _fill(second, targets, first=2_000)
    assert np.array_equal(second.columns["numeric"], whole.columns["numeric"])
    assert np.array_equal(second.draw(60, 3), whole.draw(60, 3))


def test_a_foreign_table_is_refused_in_one_line() -> None:
    big, small = _memory(rows=100), _memory(rows=10)
    _fill(big, np.zeros(100, np.int64))
    with pytest.raises(InputError, match="do not fit into 10"):
        small.load_arrow(big.to_arrow())
    with pytest.raises(InputError, match="not a usable replay memory"):
        small.load_arrow(big.to_arrow().replace_schema_metadata({"planaria": "[]"}))


def test_regression_targets_are_kept_as_they_are() -> None:
    memory = _memory("class_balanced", task="regression")
    _fill(memory, np.linspace(0, 1, 100, dtype=np.float32))
    assert np.allclose(np.sort(memory.target[:100]), np.linspace(0, 1, 100))
