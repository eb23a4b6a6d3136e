from __future__ import annotations

import json
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


def _memory(
    kind: str = "reservoir", rows: int = 200, task: Task = "classification", hold_back: bool = False
) -> ReplayMemory:
    return ReplayMemory(Memory.model_validate({"kind": kind, "rows": rows}), task, 5, hold_back)


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


def test_a_ring_holds_the_newest_rows_of_each_class() -> None:
    targets = np.random.default_rng(1).integers(0, 4, 5_000)
    memory = _memory("ring", rows=80)
    _fill(memory, targets)
    for label in range(4):
        newest = np.flatnonzero(targets == label)[-20:]
        assert sorted(memory.columns["numeric"][memory.target == label, 0].tolist()) == newest.tolist()


def test_what_is_lost_least_on_goes_first() -> None:
    memory = _memory("loss_aware", rows=100)
    targets = np.zeros(2_000, np.int64)
    _fill(memory, targets[:100])
    hard = memory.columns["numeric"][:, 0] % 2 == 0
    memory.loss[:100] = np.where(hard, 2.0, 0.1)
    _fill(memory, targets[:150], first=100)
    kept = memory.columns["numeric"][memory.columns["numeric"][:, 0] < 100, 0]
    assert (kept % 2 == 0).sum() >= 48 and len(kept) < 80, "a row of the highest loss goes by a small chance"


def test_a_class_that_was_once_a_largest_stays_full() -> None:
    """Else classes that are one short of the largest would take every row of theirs, and forget their past."""
    memory = _memory("class_balanced", rows=70)  # 9 classes: 7 or 8 slots each
    targets = np.random.default_rng(2).integers(0, 9, 40_000)
    _fill(memory, targets)
    early = (memory.columns["numeric"][:, 0] < 20_000).mean()
    assert 0.3 < early < 0.7
    assert np.bincount(memory.target).min() >= 7


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


def test_rows_held_back_are_never_replayed() -> None:
    memory = _memory(rows=100, hold_back=True)
    _fill(memory, np.zeros(300, np.int64))
    held = memory.held(1_000, step=0)
    replayed = np.concatenate([memory.draw(40, step) for step in range(100)])
    assert len(held) == 12 and not np.intersect1d(held, replayed).size
    assert np.array_equal(np.union1d(held, replayed), np.arange(100)), "and all the others are"
    assert len(memory.held(5, step=1)) == 5 and np.isin(memory.held(5, step=1), held).all()
    assert not _memory().held(5, step=1).size


def _of_two_concepts(hold_back: bool = True) -> ReplayMemory:
    """Rows 0 to 299 are of concept 0, rows 300 to 599 of concept 1."""
    memory = _memory(rows=200, hold_back=hold_back)
    for concept in (0, 1):
        for low in range(300 * concept, 300 * concept + 300, 50):
            chosen = memory.choose(low, np.zeros(50, np.int64), np.ones(50, bool))
            at, slots = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
            features = {"numeric": (low + at)[:, None].astype(np.float32)}
            memory.store(
                slots, features, np.zeros(len(at), np.int64), np.zeros((len(at), 2), np.float32), low + at, concept
            )
    return memory


def test_rows_know_their_concept_and_their_place_in_the_stream() -> None:
    memory = _of_two_concepts()
    assert np.array_equal(memory.arrival, memory.columns["numeric"][:, 0].astype(np.int64))
    assert np.array_equal(memory.concept, memory.arrival // 300)


def test_rows_of_excluded_concepts_are_neither_drawn_nor_held() -> None:
    memory = _of_two_concepts()
    memory.excluded = frozenset({0})
    drawn = np.concatenate([memory.draw(20, step) for step in range(200)])
    held = memory.held(1_000, step=0)
    assert (memory.concept[drawn] == 1).all() and (memory.concept[held] == 1).all() and len(held)
    assert not np.intersect1d(drawn, held).size
    allowed = np.setdiff1d(np.flatnonzero(memory.concept == 1), held)
    assert np.array_equal(np.unique(drawn), allowed), "and all the others are"
    memory.excluded = frozenset({0, 1})
    assert not len(memory.draw(20, 0)) and not len(memory.held(20, 0))


@pytest.mark.parametrize("hold_back", [True, False])
@pytest.mark.parametrize("rows", [20, 150, 500])
def test_excluding_what_is_not_there_changes_no_draw(hold_back: bool, rows: int) -> None:
    memory, again = _of_two_concepts(hold_back), _of_two_concepts(hold_back)
    again.excluded = frozenset({7})
    assert np.array_equal(memory.draw(rows, 3), again.draw(rows, 3))
    assert np.array_equal(memory.held(rows, 3), again.held(rows, 3))


def test_rows_are_tagged_anew_when_it_is_known_where_they_belong() -> None:
    memory = _of_two_concepts()
    memory.tag_since(450, None)
    assert np.array_equal(memory.concept == -1, memory.arrival >= 450)
    memory.tag_since(450, 5)
    assert np.array_equal(memory.concept == 5, memory.arrival >= 450)


def test_concepts_survive_being_saved_and_older_tables_load_as_concept_0() -> None:
    memory, again, old = _of_two_concepts(), _memory(rows=200), _memory(rows=200)
    again.load_arrow(memory.to_arrow())
    assert np.array_equal(again.concept, memory.concept) and np.array_equal(again.arrival, memory.arrival)
    table = memory.to_arrow()
    about = json.loads(table.schema.metadata[b"planaria"])
    for name in ("concept", "arrival"):
        del about["columns"][name]
    older = table.drop_columns(["concept", "arrival"]).replace_schema_metadata({"planaria": json.dumps(about)})
    old.load_arrow(older)
    assert not old.concept.any() and np.array_equal(old.target, memory.target)
