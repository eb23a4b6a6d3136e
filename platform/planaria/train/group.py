"""The workers of a run, as few operations: sums in a fixed order, small objects, work spread over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from planaria.errors import InputError

T = TypeVar("T")

_EXACT_UP_TO_WORKERS = 8
"""Up to here partial sums are gathered and added in a fixed order; beyond it, the backend's own all-reduce is used."""


class Group(Protocol):
    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, vector: Tensor) -> Tensor:
        """Sum over the workers; equal bits on all of them."""

    def share(self, value: T) -> T:
        """Rank 0's value, on every worker."""

    def spread(self, count: int, work: Callable[[int], T]) -> list[T]:
        """[work(0), ..., work(count - 1)], each done by one worker and known to all."""

    def gather(self, value: T) -> list[T]:
        """Every worker's value, by rank, on rank 0; nothing elsewhere."""


class Alone:
    """One process, no communication."""

    rank, size = 0, 1

    def sum(self, vector: Tensor) -> Tensor:
        return vector

    def share(self, value: T) -> T:
        return value

    def spread(self, count: int, work: Callable[[int], T]) -> list[T]:
        return [work(at) for at in range(count)]

    def gather(self, value: T) -> list[T]:
        return [value]


class TorchGroup:
    """The default process group of torch.distributed (gloo or NCCL)."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, vector: Tensor) -> Tensor:
        exact = self.size & (self.size - 1) == 0 and self.size <= _EXACT_UP_TO_WORKERS
        if self.size <= 2 or not exact:
            dist.all_reduce(vector)
            return vector
        parts = [torch.empty_like(vector) for _ in range(self.size)]
        dist.all_gather(parts, vector)
        return tree_sum(parts)

    def share(self, value: T) -> T:
        box = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def spread(self, count: int, work: Callable[[int], T]) -> list[T]:
        mine = {at: work(at) for at in range(self.rank, count, self.size)}
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, mine)
        done = {at: value for box in boxes for at, value in box.items()}
        return [done[at] for at in range(count)]

    def gather(self, value: T) -> list[T]:
        boxes: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, boxes, dst=0)
        return boxes or []


def agree(group: Group, problem: str | None) -> None:
    """Raises InputError on every worker where any of them has a problem: none is left waiting for the others."""
    found = [one for one in group.spread(group.size, lambda at: problem) if one is not None]
    if found:
        raise InputError(found[0])


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """Add pairwise: ((0 + 1) + (2 + 3)) + ... So a worker's partial sum over an aligned block is a node of the tree,
    and 1, 2, 4, ... workers get equal bits."""
    level = list(parts)
    while len(level) > 1:
        pairs = [level[at] + level[at + 1] for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return level[0]


def own_shards(rank: int, size: int, shards: int) -> range:
    """The block of shards that a worker computes."""
    return range(rank * shards // size, (rank + 1) * shards // size)
