from __future__ import annotations

import numpy as np
import pytest

from planaria.learn import ReplayMemory, Share
from planaria.policy import Memory


def _own(workers: int, shards: int) -> list[range]:
    return [range(rank * shards // workers, (rank + 1) * shards // workers) for rank in range(workers)]


@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 8), (5, 5)])
@pytest.mark.parametrize("slots", [0, 1, 17, 100])
def test_every_slot_is_held_by_one_worker_in_a_place_of_its_own(workers: int, shards: int, slots: int) -> None:
    every, held = np.arange(slots), []
    for own in _own(workers, shards):
        share = Share(shards, own)
        mine = share.slots(slots)
        assert np.array_equal(share.places(mine), np.arange(len(mine))), "in order and without gaps"
        assert len(mine) <= share.capacity(slots) <= len(own) * (slots // shards + 1)
        assert np.array_equal(every[share.holds(every)], mine)
        held.append(mine)
    assert np.array_equal(np.sort(np.concatenate(held)), every)


def _filled(share: Share | None = None, rows: int = 700) -> ReplayMemory:
    memory = ReplayMemory(Memory(rows=100), "classification", 5, hold_back=True, share=share)
    targets = np.random.default_rng(0).integers(0, 5, rows)
    for low in range(0, rows, 50):
        target = targets[low : low + 50]
        chosen = memory.choose(low, target, np.ones(50, bool))
        at, slots = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
        pictures = np.repeat((low + at)[:, None] % 251, 6, 1).astype(np.uint8).reshape(-1, 1, 2, 3)
        output = np.tile((low + at)[:, None], 2).astype(np.float32)
        memory.store(slots, {"image": pictures[memory.share.holds(slots)]}, target[at], output, low + at)
    return memory


def test_shares_hold_together_what_a_whole_memory_holds() -> None:
    whole, shares = _filled(), [_filled(Share(3, own)) for own in _own(2, 3)]
    for one in shares:
        assert np.array_equal(one.target, whole.target) and np.array_equal(one.arrival, whole.arrival)
        mine = one.share.slots(100)
        assert np.array_equal(one.select(mine)["image"], whole.select(mine)["image"])
        assert np.array_equal(one.remembered_outputs(mine, 3), whole.remembered_outputs(mine, 3), equal_nan=True)
    assert shares[0].to_arrow([one.held_here() for one in shares]).equals(whole.to_arrow())


def test_pictures_stay_bytes_and_a_workers_part_is_its_shards() -> None:
    whole, shares = _filled(), [_filled(Share(2, own)) for own in _own(2, 2)]
    assert whole.columns["image"].dtype == np.uint8
    assert whole.held_bytes == 100 * (6 + 2 * 4)
    assert [one.held_bytes for one in shares] == [whole.held_bytes // 2] * 2


@pytest.mark.parametrize(("workers", "shards"), [(1, 1), (2, 2), (3, 4)])
def test_a_table_is_taken_by_any_number_of_workers(workers: int, shards: int) -> None:
    table = _filled(rows=300).to_arrow()
    shares = []
    for own in _own(workers, shards):
        shares.append(_filled(Share(shards, own), rows=50))
        shares[-1].load_arrow(table)
    assert shares[0].to_arrow([one.held_here() for one in shares]).equals(table)
    assert np.array_equal(shares[0].draw(40, 3), _filled(rows=300).draw(40, 3))


def test_slots_in_the_order_of_their_shards_keep_their_order_within() -> None:
    slots = np.array([5, 2, 8, 3, 2])
    assert Share(2, range(1)).by_shard(slots).tolist() == [2, 8, 2, 5, 3]
    assert Share().by_shard(slots) is slots
