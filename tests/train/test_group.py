"""Workers as separate processes over gloo, without Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from planaria.train.group import Alone, own_shards, tree_sum


def make_shards() -> list[Tensor]:
    """Vectors of very different sizes, so that the order of a sum shows in its bits (as in group_member.py)."""
    return [torch.randn(1_000, generator=torch.Generator().manual_seed(s)) * 10.0**s for s in range(4)]


@pytest.mark.parametrize("size", [2, 4])
def test_any_power_of_two_of_workers_sums_shards_to_equal_bits(size: int, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("group_member.py"))
    members = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    answers = [json.loads(member.communicate(timeout=120)[0].splitlines()[-1]) for member in members]
    expected = Alone().sum(tree_sum(make_shards())).tolist()
    for rank, (total, shared, spread, gathered) in enumerate(answers):
        assert total == expected
        assert shared == "from 0"
        assert spread == [[at, at**2] for at in range(5)]
        assert gathered == (list(range(size)) if rank == 0 else [])


@pytest.mark.parametrize(("size", "shards"), [(1, 4), (2, 4), (3, 4), (4, 4), (2, 5)])
def test_every_shard_is_computed_once(size: int, shards: int) -> None:
    assert [s for rank in range(size) for s in own_shards(rank, size, shards)] == list(range(shards))


@pytest.mark.parametrize("count", range(1, 9))
def test_a_tree_sum_is_a_sum(count: int) -> None:
    parts = [torch.tensor([float(2**at)]) for at in range(count)]
    assert tree_sum(parts).item() == 2**count - 1
