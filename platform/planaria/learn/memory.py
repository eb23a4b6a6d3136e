"""Replay memory: a bounded set of rows kept for rehearsal, held in Arrow-compatible columns.

What is small and decides is equal on every worker: targets, concepts, arrivals, losses, and who has which slot.
Features and remembered outputs lie with the workers whose share they are (planaria.learn.share).

Kinds: `reservoir` (Vitter 1985), `class_balanced` (CBRS: Chrysakis & Moens 2020), `ring` (the newest rows of each
class: Lopez-Paz & Ranzato 2017, arXiv 1706.08840), `loss_aware` (after LARS: Buzzega et al. 2021, arXiv 2010.05595).

Which rows are admitted and which are replayed depends on (seed, row or step number) alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planaria.errors import InputError
from planaria.learn.share import Share
from planaria.plain_json import load_json
from planaria.policy import Memory
from planaria.signals import Features, Task

_PURPOSES = range(4)
_HELD_EVERY = 8
"""One slot in so many is held back from replay, where rows are held back at all."""
_LEAST_GAP = 1e-3
"""loss_aware: nats by which even the row with the highest loss counts as below it."""
_INDEX = ("target", "concept", "arrival", "loss")
"""Columns that every worker holds."""
UNSETTLED = -1
"""Concept of rows that came since the last shift, until it is known which concept that led to."""
DOUBTFUL = -2
"""Concept of rows that came between the estimated onset of a shift and its alarm: they may be of either side."""


class _Draws:
    """A generator for each number, whose draws depend on (seed, purpose, number) alone. To move a counter-based one
    (Philox: Salmon et al. 2011) takes a tenth of the time of making one."""

    def __init__(self, seed: int, purpose: int) -> None:
        self._bits = np.random.Philox(np.random.SeedSequence((seed, purpose)))
        self._generator, self._state = np.random.Generator(self._bits), self._bits.state

    def at(self, number: int) -> np.random.Generator:
        self._state["state"]["counter"][:] = (0, number, 0, 0)
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class Held:
    """What one worker holds of the features and remembered outputs: rows of its share of the slots, in their order."""

    share: Share
    columns: dict[str, npt.NDArray[Any]]


class ReplayMemory:
    """Rows with their targets and the outputs the model gave for them."""

    def __init__(
        self, settings: Memory, task: Task, seed: int, hold_back: bool = False, share: Share | None = None
    ) -> None:
        """`hold_back` keeps an eighth of the rows out of replay: replayed rows are soon known by heart, and would
        tell a decision that any change of the model makes it forget. `share` is this worker's, without it all."""
        self.capacity = settings.rows
        self.share = share or Share()
        self.hold_back = hold_back
        self.kind = settings.kind
        self.balanced = settings.kind != "reservoir" and task == "classification"
        self.task = task
        self._admit, self._replay, self._decide, self._hold = (_Draws(seed, purpose) for purpose in _PURPOSES)
        self.columns: dict[str, npt.NDArray[Any]] = {}
        """Features of this worker's share."""
        self.target = np.zeros(self.capacity, np.int64 if task == "classification" else np.float32)
        self.remembered = np.full((self.share.capacity(self.capacity), 1), np.nan, np.float32)
        """Outputs for the rows of this worker's share, when they were kept."""
        self.concept = np.zeros(self.capacity, np.int64)
        """Of each slot's row: the detector's number of the concept that it came from, UNSETTLED or DOUBTFUL."""
        self.loss = np.zeros(self.capacity, np.float32)
        """Of each slot's row, when it was last learned from (`loss_aware`)."""
        self.arrival = np.zeros(self.capacity, np.int64)
        """Number of each slot's row in the stream."""
        self.excluded: frozenset[int] = frozenset()
        """Concepts whose labels contradict the present ones: their rows are neither drawn nor held."""
        self.rows = 0
        self.seen = 0
        self.seen_per_class: dict[int, int] = {}
        self._slots_per_class: dict[int, list[int]] = {}
        self._full: set[int] = set()
        """Classes that are, or once were, the largest since the memory has been full."""

    def __len__(self) -> int:
        return self.rows

    def choose(
        self, first_row: int, target_B: npt.NDArray[Any], offered_B: npt.NDArray[np.bool_]
    ) -> list[tuple[int, int]]:
        """Decide which of the offered rows to keep: [(row within the batch, slot), ...]. Later pairs win a slot.

        A row of a class that was never the largest takes the place of a row of the largest; the others are sampled
        within their class (`ring`: all of them are kept).
        """
        if self.capacity == 0:
            return []
        draws_B2 = self._admit.at(first_row).random((len(target_B), 2))
        at_N = np.flatnonzero(offered_B)
        label_N = target_B[at_N].astype(np.int64) if self.balanced else np.zeros(len(at_N), np.int64)
        chosen, sampled = [], self.kind in ("reservoir", "class_balanced")
        for at, label, (which, whether) in zip(at_N.tolist(), label_N.tolist(), draws_B2[at_N].tolist(), strict=True):
            self.seen += 1
            seen = self.seen_per_class[label] = self.seen_per_class.get(label, 0) + 1
            if sampled and label in self._full:  # as nearly always
                own = self._slots_per_class[label]
                slot = own[int(which * len(own))] if whether * seen < len(own) else None
            else:
                slot = self._slot_for(label, seen, (which, whether))
            if slot is not None:
                chosen.append((at, slot))
        return chosen

    def _slot_for(self, label: int, seen: int, draw_2: tuple[float, float]) -> int | None:
        """Where the row goes, if anywhere; `seen` rows of its class came so far, this one included."""
        own = self._slots_per_class.setdefault(label, [])
        if self.rows < self.capacity:
            own.append(self.rows)
            self.rows += 1
            if self.rows == self.capacity:
                self._fill()
            return self.rows - 1
        if label not in self._full:
            victims = max(self._slots_per_class.values(), key=len)
            own.append(victims.pop(self._victim(victims, draw_2[0])))
            self._fill()
            return own[-1]
        if self.kind == "ring":
            own.append(own.pop(0))
            return own[-1]
        if draw_2[1] * seen < len(own):
            return own[self._victim(own, draw_2[0])]
        return None

    def _victim(self, slots: list[int], draw: float) -> int:
        """Which place of a class's slots is given up."""
        if self.kind == "ring":
            return 0  # they are in the order in which they were filled
        if self.kind == "loss_aware":
            loss_N = self.loss[slots].astype(np.float64)
            share_N = np.cumsum(loss_N.max() - loss_N + _LEAST_GAP)
            return min(int(np.searchsorted(share_N, draw * share_N[-1], side="right")), len(slots) - 1)
        return int(draw * len(slots))

    def _fill(self) -> None:
        """Note which classes are a largest one now: they are full from now on, also when others have caught up."""
        largest = max(map(len, self._slots_per_class.values()))
        self._full |= {label for label, slots in self._slots_per_class.items() if len(slots) == largest}

    def store(
        self,
        slots: npt.NDArray[np.int64],
        features: Features,
        target: npt.NDArray[Any],
        output: npt.NDArray[np.float32],
        arrival: npt.NDArray[np.int64] | int = 0,
        concept: int | None = 0,
        loss: npt.NDArray[np.float32] | float = 0.0,
    ) -> None:
        """Put rows into their slots, with their numbers in the stream, their concept (None while it is not known) and
        what the model lost on them. A slot named twice keeps the later row. `features` are those of the slots that
        this worker's share holds, all else is of every slot."""
        if not self.columns:
            places = self.share.capacity(self.capacity)
            self.columns = {n: np.zeros((places, *v.shape[1:]), v.dtype) for n, v in features.items()}
        if output.shape[1] > self.remembered.shape[1]:
            wider = np.full((len(self.remembered), output.shape[1]), np.nan, np.float32)
            wider[:, : self.remembered.shape[1]] = self.remembered
            self.remembered = wider
        held = self.share.holds(slots)
        places_H = self.share.places(slots[held])
        for name, values in features.items():
            self.columns[name][places_H] = values
        self.target[slots] = target
        self.arrival[slots] = arrival
        self.loss[slots] = loss
        self.concept[slots] = UNSETTLED if concept is None else concept
        self.remembered[places_H] = np.nan
        self.remembered[places_H, : output.shape[1]] = output[held]

    def draw(self, rows: int, step: int, *, to_decide: bool = False) -> npt.NDArray[np.int64]:
        """Slots to replay at this step, none of them of an excluded concept: without replacement while there are
        enough."""
        generator = (self._decide if to_decide else self._replay).at(step)
        if self.excluded:
            return _choose(generator, rows, (slots := self._replayed())[self._usable(slots)])
        there = self.rows - self.rows // _HELD_EVERY if self.hold_back else self.rows
        slots = _choose(generator, rows, there)
        return slots + slots // (_HELD_EVERY - 1) if self.hold_back else slots

    def held(self, rows: int, step: int, *, excluded: bool = False) -> npt.NDArray[np.int64]:
        """Slots that are never replayed, at most so many; those of excluded concepts only where asked for."""
        slots = np.arange(_HELD_EVERY - 1, self.rows if self.hold_back else 0, _HELD_EVERY)
        if self.excluded and not excluded:
            slots = slots[self._usable(slots)]
        if len(slots) <= rows:
            return slots
        return np.sort(self._hold.at(step).choice(slots, rows, replace=False))

    def keeps_apart(self, slot: int) -> bool:
        """Whether the slot's row is never replayed."""
        return self.hold_back and slot % _HELD_EVERY == _HELD_EVERY - 1

    def _replayed(self) -> npt.NDArray[np.int64]:
        """All slots that may ever be replayed."""
        slots = np.arange(self.rows)
        return slots[slots % _HELD_EVERY != _HELD_EVERY - 1] if self.hold_back else slots

    def _usable(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the slots are of no excluded concept."""
        return ~np.isin(self.concept[slots], list(self.excluded))

    def tag_since(self, first_row: int, concept: int | None) -> None:
        """Rows from `first_row` of the stream on turned out to be of this concept (None while it is not known)."""
        since = np.flatnonzero(self.arrival[: self.rows] >= first_row)
        self.concept[since] = UNSETTLED if concept is None else concept

    def select(self, slots: npt.NDArray[np.int64]) -> Features:
        """Features of slots that this worker's share holds."""
        places = self.share.places(slots)
        return {name: column[places] for name, column in self.columns.items()}

    def remembered_outputs(self, slots: npt.NDArray[np.int64], outputs: int) -> npt.NDArray[np.float32]:
        """What the model answered when the rows were kept, shape [R, outputs]; NaN for classes not known then. The
        slots are of this worker's share."""
        padded = np.full((len(slots), outputs), np.nan, np.float32)
        known = min(outputs, self.remembered.shape[1])
        padded[:, :known] = self.remembered[self.share.places(slots), :known]
        return padded

    @property
    def held_bytes(self) -> int:
        """Of the features and outputs that lie with this worker."""
        return sum(column.nbytes for column in (*self.columns.values(), self.remembered))

    def held_here(self) -> Held:
        """This worker's share of the filled slots, as views."""
        filled = len(self.share.slots(self.rows))
        columns = {name: column[:filled] for name, column in self.columns.items()}
        return Held(self.share, {**columns, "remembered": self.remembered[:filled]})

    def to_arrow(self, shares: Sequence[Held] | None = None) -> pa.Table:
        """All of it as one Arrow table, of all workers' shares, or of this one's where that is all (then columns are
        views of the memory, not copies); `load_arrow` takes it back."""
        stored = self._whole(shares or (self.held_here(),))
        stored |= {name: getattr(self, name)[: self.rows] for name in _INDEX}
        about = {
            "columns": {name: [list(column.shape[1:]), column.dtype.str] for name, column in stored.items()},
            "seen": self.seen,
            "seen_per_class": list(self.seen_per_class.items()),
            "slots_per_class": list(self._slots_per_class.items()),
            "full": sorted(self._full),
        }
        columns = {name: _to_arrow(column) for name, column in stored.items() if _width(column)}
        return pa.table(columns).replace_schema_metadata({"planaria": json.dumps(about)})

    def _whole(self, shares: Sequence[Held]) -> dict[str, npt.NDArray[Any]]:
        """The rows of all filled slots."""
        first, *others = shares
        if not others:
            assert first.share.is_whole, "a share is not the memory"
            return dict(first.columns)
        whole = {name: np.empty((self.rows, *c.shape[1:]), c.dtype) for name, c in first.columns.items()}
        for one in shares:
            for name, column in one.columns.items():
                whole[name][one.share.slots(self.rows)] = column
        return whole

    def load_arrow(self, table: pa.Table) -> None:
        """Take the index, and this worker's share. Raises InputError where the table is not such a memory."""
        try:
            about = load_json(table.schema.metadata[b"planaria"])
            if table.num_rows > self.capacity:
                raise ValueError(f"{table.num_rows} rows do not fit into {self.capacity}")
            own = self.share.slots(table.num_rows)
            stored = {}
            for name, (shape, dtype) in about["columns"].items():
                shared = name not in _INDEX
                places = self.share.capacity(self.capacity) if shared else self.capacity
                if name not in table.column_names:  # of no width
                    stored[name] = np.zeros((places, 0), np.dtype(dtype))
                    continue
                flat = table.column(name).combine_chunks()
                values = flat.flatten() if pa.types.is_fixed_size_list(flat.type) else flat
                rows = values.to_numpy(zero_copy_only=False).reshape(table.num_rows, *shape)
                stored[name] = np.zeros((places, *rows.shape[1:]), np.dtype(dtype))
                if stored[name].dtype.kind not in "biuf":
                    raise ValueError(f"'{name}' is of type {dtype}")
                mine = rows[own] if shared and not self.share.is_whole else rows
                stored[name][: len(mine)] = mine
            self.target, self.remembered = stored.pop("target"), stored.pop("remembered")
            # Tables from before concepts were told apart do not have these.
            self.concept = stored.pop("concept", np.zeros(self.capacity, np.int64))
            self.arrival = stored.pop("arrival", np.zeros(self.capacity, np.int64))
            self.loss = stored.pop("loss", np.zeros(self.capacity, np.float32))
            self.seen_per_class = {int(label): int(count) for label, count in about["seen_per_class"]}
            self._slots_per_class = {int(label): list(slots) for label, slots in about["slots_per_class"]}
            self._full = {int(label) for label in about["full"]}
            in_all = sorted(slot for slots in self._slots_per_class.values() for slot in slots)
            if in_all != list(range(table.num_rows)):
                raise ValueError("its slots are not each of one class")
            self.columns, self.rows, self.seen = stored, table.num_rows, int(about["seen"])
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, pa.ArrowException) as error:
            raise InputError(f"memory: not a usable replay memory ({error}); use an older checkpoint") from None


def _choose(generator: np.random.Generator, rows: int, among: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Up to `rows` of the slots (a number: of as many first ones), and of few slots not each more than a few times."""
    there = among if isinstance(among, int) else len(among)
    rows = min(rows, 4 * there)
    if rows == 0:
        return np.zeros(0, np.int64)
    if rows <= there:
        return generator.choice(among, rows, replace=False).astype(np.int64)
    at = generator.integers(0, there, rows)
    return at if isinstance(among, int) else among[at]


def _to_arrow(column: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    if column.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, _width(column))


def _width(column: npt.NDArray[Any]) -> int:
    """Numbers in one row; 0 for columns that a table does not have."""
    return int(np.prod(column.shape[1:], dtype=np.int64))
