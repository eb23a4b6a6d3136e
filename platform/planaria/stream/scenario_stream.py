"""A stream of contexts over a pool of rows. Every row is a pure function of the seed and its number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from planaria.errors import InputError, RunError, nearest
from planaria.job import Change, Scenario
from planaria.signals import Features, Fields
from planaria.stream.chance import key, shuffled, uniform
from planaria.stream.draw import Draw
from planaria.stream.pool import ClassIndex, Pool, Pools
from planaria.stream.ready_made import changes_of, places_in_groups
from planaria.stream.rows import DecodedRows, Index
from planaria.stream.schedule import Schedule
from planaria.stream.transform import Transform, make_transform
from planaria.stream.vocabulary import UNRESOLVED, in_order

Integers = npt.NDArray[np.int64]
AVAILABLE_ROWS = 1 << 20
"""How far available() looks ahead."""
PLAN_ROWS = 2_048
"""Where rows come from is worked out for so many at once, which costs little more than for one step's."""


@dataclass(frozen=True)
class Context:
    """One distribution. Classes are the pool's."""

    train: Draw
    test: Draw
    blur: float
    others: Draw | None
    """Rows of the classes that this context does not have."""
    new_class: Integers | None
    """What each class becomes, where labels are permuted, or only their places in their groups count."""
    transform: Transform


class ScenarioStream:
    """See planaria.signals.Stream."""

    def __init__(self, pools: Pools, scenario: Scenario, seed: int) -> None:
        self.pools = pools
        self._pool, self._test_pool = pools.train, pools.test
        self.fields: Fields = self._pool.fields
        self.counts = pools.counts
        """Of all rows that the scenario draws from: see FileStream.counts."""
        changes = changes_of(scenario, self._pool.labels)
        places = places_in_groups(scenario, self._pool.labels)
        self._labels = self._pool.labels if places is None else list(range(int(places.max()) + 1))
        """Of the targets: the pool's labels, or the places that they take within their groups."""
        self._schedule = Schedule(changes, scenario.repeat, key(seed, "transition"))
        self._blur_key = key(seed, "blur")
        self._number_of_class = np.full(max(1, len(self._labels)), UNRESOLVED, np.int64)
        self._class_of_number: list[int] = []
        self._furthest = 0
        self._contexts = _contexts(changes, self._schedule.names, pools, places, seed)
        self._plan = lru_cache(maxsize=2)(self._plan_of)

    @property
    def labels(self) -> list[str | int]:
        return [self._labels[class_] for class_ in self._class_of_number]

    @property
    def contexts(self) -> list[str]:
        """Names of all contexts, by number."""
        return list(self._schedule.names)

    @property
    def total_rows(self) -> int:
        return self._schedule.rows

    def available(self, start: int) -> int:
        """How many rows from `start` on there are, counted up to AVAILABLE_ROWS."""
        return max(0, min(AVAILABLE_ROWS, self.total_rows - start))

    def read(self, start: int, count: int) -> DecodedRows:
        stop = max(start, min(start + count, self.total_rows))
        rows = np.arange(start, stop, dtype=np.int64)
        # At least one, also for no rows: at the very end of the stream it is an empty one.
        last = max(stop - 1, start) // PLAN_ROWS
        blocks = [self._plan(number) for number in range(start // PLAN_ROWS, last + 1)]
        within = slice(start % PLAN_ROWS, start % PLAN_ROWS + len(rows))
        if len(blocks) == 1:
            contexts, origin, target = (part[within] for part in blocks[0])
        else:
            contexts, origin, target = (np.concatenate(parts)[within] for parts in zip(*blocks, strict=True))
        self._furthest = max(self._furthest, start + len(rows))
        if self._pool.labels:
            target = self._numbered(target)

        def decode(index: Index) -> Features:
            return self._features(self._pool, contexts[index], origin[index], rows[index])

        return DecodedRows(start, target, contexts, np.zeros(len(rows), np.bool_), decode)

    def _plan_of(self, number: int) -> tuple[Integers, Integers, npt.NDArray[Any]]:
        """Of a block of rows: their contexts, their row numbers in the pool, and their classes or values."""
        first = number * PLAN_ROWS
        rows = np.arange(first, max(first, min(first + PLAN_ROWS, self.total_rows)), dtype=np.int64)
        contexts = self._schedule.contexts(rows)
        origin = np.empty(len(rows), np.int64)
        target = np.empty(len(rows), self._pool.target.dtype)
        for context_number in np.unique(contexts):
            context, mine = self._contexts[context_number], np.flatnonzero(contexts == context_number)
            origin[mine] = self._draw(context, rows[mine])
            target[mine] = self._targets(context, self._pool, origin[mine])
        return contexts, origin, target

    def held_out(self, context: int, count: int) -> DecodedRows:
        """Test rows of the context's classes, as its transform makes them; the same ones for every call.

        Rows of labels that the stream has not shown yet are left out: no class number is theirs.
        """
        chosen = self._contexts[context]
        places = np.arange(min(count, chosen.test.rows), dtype=np.int64)
        origin = chosen.test.at(places) if len(places) else places
        target = self._targets(chosen, self._test_pool, origin)
        if self._test_pool.labels:
            numbers = self._number_of_class[target]
            known = numbers != UNRESOLVED
            places, origin, target = places[known], origin[known], numbers[known]
        contexts = np.full(len(places), context, np.int64)

        def decode(index: Index) -> Features:
            # Numbers below zero, so that no row of the stream has the same noise.
            return self._features(self._test_pool, contexts[index], origin[index], -1 - places[index])

        return DecodedRows(0, target, contexts, np.ones(len(places), np.bool_), decode)

    def change_before(self, row: int) -> int | None:
        return self._schedule.change_before(row)

    def state(self) -> dict[str, Any]:
        return {"row": self._furthest, "labels": self.labels}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._furthest = int(state["row"])
        gone = [label for label in state["labels"] if label not in self._labels]
        if gone:
            raise RunError(f"label {gone[0]!r} of the checkpoint is not in the data any more; start a new run")
        self._class_of_number = [self._labels.index(label) for label in state["labels"]]
        self._number_of_class[:] = UNRESOLVED
        self._number_of_class[self._class_of_number] = np.arange(len(self._class_of_number))

    def _draw(self, context: Context, rows: Integers) -> Integers:
        """Row numbers of the pool."""
        if context.others is None:
            return context.train.at(rows)
        blurred = uniform(self._blur_key, rows) < context.blur
        origin = np.empty(len(rows), np.int64)
        for draw, mine in ((context.train, np.flatnonzero(~blurred)), (context.others, np.flatnonzero(blurred))):
            origin[mine] = draw.at(rows[mine])
        return origin

    def _targets(self, context: Context, pool: Pool, origin: Integers) -> npt.NDArray[Any]:
        """Classes of the pool, or values."""
        target = pool.target[origin]
        return np.asarray(target if context.new_class is None else context.new_class[target])

    def _numbered(self, classes: npt.NDArray[Any]) -> Integers:
        """Class numbers in order of first appearance."""
        numbers: Integers = self._number_of_class[classes]
        new = numbers == UNRESOLVED
        if not new.any():
            return numbers
        for class_ in in_order(classes[new]):
            self._number_of_class[class_] = len(self._class_of_number)
            self._class_of_number.append(int(class_))
        return np.asarray(self._number_of_class[classes], np.int64)

    def _features(self, pool: Pool, contexts: Integers, origin: Integers, rows: Integers) -> Features:
        if len(contexts) and (contexts == contexts[0]).all():
            return self._contexts[int(contexts[0])].transform(pool.take(origin), rows)
        features, present = pool.take(origin), np.unique(contexts)
        for number in present:
            mine = np.flatnonzero(contexts == number)
            part = {name: values[mine] for name, values in features.items()}
            for name, values in self._contexts[number].transform(part, rows[mine]).items():
                features[name][mine] = values
        return features


def _contexts(
    changes: list[Change], names: list[str], pools: Pools, places: Integers | None, seed: int
) -> list[Context]:
    """The contexts by number; `places` is what every class becomes, if anything. Raises InputError for what the rows
    cannot give."""
    train, test = ClassIndex(pools.train), ClassIndex(pools.test)
    of_name = {change.name: change for change in changes}
    classes = {name: _classes(of_name[name], pools.train) for name in names}
    everything = np.unique(np.concatenate(list(classes.values())))
    if pools.train.labels and len(everything) < 2:
        raise InputError("stream.scenario: only one label is ever drawn; a classifier needs at least two")
    contexts = []
    for name in names:
        change, own = of_name[name], classes[name]
        weights = _weights(change, own, pools.train)
        draw = Draw(train, own, weights, key(seed, "draw", *own.tolist(), *([name] if weights is not None else [])))
        if not draw.rows:
            raise InputError(f"stream.scenario: context '{name}' has no rows to draw; give it other classes or weights")
        contexts.append(
            Context(
                train=draw,
                test=Draw(test, own, None, key(seed, "test", name)),
                blur=change.blur,
                others=_others(change, own, everything, pools.train, train, seed),
                new_class=_new_class(change, own, pools.train, seed) if places is None else places,
                transform=make_transform(change, pools.train.fields, pools.train.spread, seed),
            )
        )
    return contexts


def _classes(change: Change, pool: Pool) -> Integers:
    """The pool's classes that a context draws from; [0] stands for all rows of a regression."""
    if change.classes is None:
        return np.arange(max(1, len(pool.labels)), dtype=np.int64)
    return np.array([_class_of(label, change, "classes", pool) for label in change.classes], np.int64)


def _weights(change: Change, own: Integers, pool: Pool) -> npt.NDArray[np.float64] | None:
    if change.class_weights is None:
        return None
    weights = np.ones(max(1, len(pool.labels)))
    for label, weight in change.class_weights.items():
        weights[_class_of(label, change, "class_weights", pool)] = weight
    return weights[own]


def _class_of(label: str | int, change: Change, setting: str, pool: Pool) -> int:
    """The class of a label; YAML's 1 and "1" both find either."""
    known = [str(known) for known in pool.labels]
    if not known:
        raise InputError(
            f"stream.scenario: context '{change.name}' has {setting}, but a regression has no classes; remove it"
        )
    if str(label) not in known:
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        raise InputError(
            f"stream.scenario: context '{change.name}' has label '{label}' in {setting}, which no row has"
            f"{nearest(str(label), known)}; there are {shown}"
        )
    return known.index(str(label))


def _others(
    change: Change, own: Integers, everything: Integers, pool: Pool, index: ClassIndex, seed: int
) -> Draw | None:
    if change.blur == 0:
        return None
    others = np.setdiff1d(everything, own)
    others = others[index.sizes[others] > 0]
    weights = _weights(change, others, pool)
    if weights is not None and (weights == 1).all():
        weights = None
    if not others.size or (weights is not None and not weights.any()):
        raise InputError(
            f"stream.scenario: context '{change.name}' has blur, but no other context has other classes; "
            f"give contexts different classes or remove blur"
        )
    return Draw(index, others, weights, key(seed, "draw", *others.tolist()))


def _new_class(change: Change, own: Integers, pool: Pool, seed: int) -> Integers | None:
    """A permutation of the context's classes among themselves that is not the identity."""
    if change.transform != "permute_labels":
        return None
    if len(own) < 2:
        raise InputError(
            f"stream.scenario: context '{change.name}' has transform permute_labels, which needs at least two classes"
        )
    new_class, attempt, classes = np.arange(len(pool.labels), dtype=np.int64), 0, np.sort(own)
    while (new_class[classes] == classes).all():
        new_class[classes] = classes[shuffled(key(seed, "labels", change.variant, attempt), len(classes))]
        attempt += 1
    return new_class
