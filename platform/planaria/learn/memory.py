"""Replay memory: a bounded set of rows kept for rehearsal, equal on every worker, held in Arrow-compatible columns.

Which rows are admitted and which are replayed depends on (seed, row or step number) alone.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planaria.errors import InputError
from planaria.policy import Memory
from planaria.signals import Features, Task

_ADMIT, _REPLAY = 1, 2


class ReplayMemory:
    """Rows with their targets and the outputs the model gave for them, chosen by reservoir or by class balance."""

    def __init__(self, settings: Memory, task: Task, seed: int) -> None:
        self.capacity = settings.rows
        self.balanced = settings.kind == "class_balanced" and task == "classification"
        self.task, self.seed = task, seed
        self.columns: dict[str, npt.NDArray[Any]] = {}
        self.target = np.zeros(self.capacity, np.int64 if task == "classification" else np.float32)
        self.remembered = np.full((self.capacity, 1), np.nan, np.float32)
        self.rows = 0
        self.seen = 0
        self.seen_per_class: dict[int, int] = {}
        self._slots_per_class: dict[int, list[int]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return self.rows

    def choose(
        self, first_row: int, target_B: npt.NDArray[Any], offered_B: npt.NDArray[np.bool_]
    ) -> list[tuple[int, int]]:
        """Decide which of the offered rows to keep: [(row within the batch, slot), ...]. Later pairs win a slot.

        Reservoir: Vitter 1985. Class-balanced: Chrysakis & Moens 2020 (CBRS): a row of a class that is not the
        largest takes the place of a row of the largest; one of the largest is sampled within its class.
        """
        if self.capacity == 0:
            return []
        draws_B2 = np.random.default_rng((self.seed, _ADMIT, first_row)).random((len(target_B), 2)).tolist()
        chosen = []
        labels = target_B.tolist() if self.balanced else [0] * len(target_B)
        for at in np.flatnonzero(offered_B).tolist():
            slot = self._slot_for(labels[at], draws_B2[at])
            if slot is not None:
                chosen.append((at, slot))
        return chosen

    def _slot_for(self, label: int, draw_2: list[float]) -> int | None:
        """Where the row goes, if anywhere. Most rows of a long stream end at the last comparison: that path is kept
        short, and the size of the largest class is only counted again when a class has given up a row."""
        self.seen += 1
        seen = self.seen_per_class[label] = self.seen_per_class.get(label, 0) + 1
        own = self._slots_per_class.setdefault(label, [])
        if self.rows < self.capacity:
            self.rows += 1
            own.append(self.rows - 1)
            self._largest = max(self._largest, len(own))
            return self.rows - 1
        if len(own) < self._largest:
            victims = max(self._slots_per_class.values(), key=len)
            slot = victims.pop(int(draw_2[0] * len(victims)))
            own.append(slot)
            self._largest = max(map(len, self._slots_per_class.values()))
            return slot
        if draw_2[1] * seen < len(own):
            return own[int(draw_2[0] * len(own))]
        return None

    def store(
        self,
        slots: npt.NDArray[np.int64],
        features: Features,
        target: npt.NDArray[Any],
        output: npt.NDArray[np.float32],
    ) -> None:
        """Put rows into their slots. A slot named twice keeps the later row."""
        if not self.columns:
            self.columns = {n: np.zeros((self.capacity, *v.shape[1:]), v.dtype) for n, v in features.items()}
        if output.shape[1] > self.remembered.shape[1]:
            wider = np.full((self.capacity, output.shape[1]), np.nan, np.float32)
            wider[:, : self.remembered.shape[1]] = self.remembered
            self.remembered = wider
        for name, values in features.items():
            self.columns[name][slots] = values
        self.target[slots] = target
        self.remembered[slots] = np.nan
        self.remembered[slots, : output.shape[1]] = output

    def draw(self, rows: int, step: int, purpose: int = 0) -> npt.NDArray[np.int64]:
        """Slots to replay at this step: without replacement while there are enough."""
        rows = min(rows, 4 * self.rows)
        if rows == 0:
            return np.zeros(0, np.int64)
        generator = np.random.default_rng((self.seed, _REPLAY + purpose, step))
        if rows <= self.rows:
            return generator.choice(self.rows, rows, replace=False).astype(np.int64)
        return generator.integers(0, self.rows, rows)

    def select(self, slots: npt.NDArray[np.int64]) -> Features:
        return {name: column[slots] for name, column in self.columns.items()}

    def remembered_outputs(self, slots: npt.NDArray[np.int64], outputs: int) -> npt.NDArray[np.float32]:
        """What the model answered when the rows were kept, shape [R, outputs]; NaN for classes not known then."""
        padded = np.full((len(slots), outputs), np.nan, np.float32)
        known = min(outputs, self.remembered.shape[1])
        padded[:, :known] = self.remembered[slots, :known]
        return padded

    def to_arrow(self) -> pa.Table:
        """All of it as one Arrow table (columns are views of the memory, not copies); `load_arrow` takes it back."""
        stored = {**self.columns, "target": self.target, "remembered": self.remembered}
        about = {
            "columns": {name: [list(column.shape[1:]), column.dtype.str] for name, column in stored.items()},
            "seen": self.seen,
            "seen_per_class": list(self.seen_per_class.items()),
            "slots_per_class": list(self._slots_per_class.items()),
        }
        columns = {name: _to_arrow(column[: self.rows]) for name, column in stored.items() if _width(column)}
        return pa.table(columns).replace_schema_metadata({"planaria": json.dumps(about)})

    def load_arrow(self, table: pa.Table) -> None:
        """Raises InputError where the table is not a memory of this capacity."""
        try:
            about = json.loads(table.schema.metadata[b"planaria"])
            if table.num_rows > self.capacity:
                raise ValueError(f"{table.num_rows} rows do not fit into {self.capacity}")
            stored = {}
            for name, (shape, dtype) in about["columns"].items():
                stored[name] = np.zeros((self.capacity, *shape), np.dtype(dtype))
                if _width(stored[name]):
                    flat = table.column(name).combine_chunks()
                    values = flat.flatten() if pa.types.is_fixed_size_list(flat.type) else flat
                    held = values.to_numpy(zero_copy_only=False).reshape(table.num_rows, *shape)
                    stored[name][: table.num_rows] = held
            self.target, self.remembered = stored.pop("target"), stored.pop("remembered")
            self.seen_per_class = {int(label): int(count) for label, count in about["seen_per_class"]}
            self._slots_per_class = {int(label): list(slots) for label, slots in about["slots_per_class"]}
            self._largest = max(map(len, self._slots_per_class.values()), default=0)
            self.columns, self.rows, self.seen = stored, table.num_rows, int(about["seen"])
        except (KeyError, ValueError, TypeError, pa.ArrowInvalid) as error:
            raise InputError(f"memory: not a usable replay memory ({error}); use an older checkpoint") from None


def _to_arrow(column: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    if column.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, _width(column))


def _width(column: npt.NDArray[Any]) -> int:
    """Numbers in one row; 0 for columns that a table does not have."""
    return int(np.prod(column.shape[1:], dtype=np.int64))
