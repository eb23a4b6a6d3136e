"""Held-out evaluation per context: how well the model answers for every context it has seen.

Contexts are known here and, but for boundaries that a policy has told, nowhere else in the loop.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planaria.job import Evaluation
from planaria.learn import ReplayMemory
from planaria.plain_arrow import load_arrow
from planaria.policy import Memory
from planaria.signals import Features, Fields, Rows, Stream, Task

_BESIDE = 8
"""Numbers of a kept row that are neither features nor outputs, at most."""

Score = Callable[[Features, npt.NDArray[Any]], tuple[float, float]]
"""(mean error, mean squared error) of the model on such rows; both 0-1 errors for classification."""


class Evaluator:
    """Gathers held-out rows per context, and measures the model on them whenever the context changes and at the end."""

    def __init__(self, settings: Evaluation, stream: Stream, task: Task, seed: int) -> None:
        self.settings, self.stream, self.task, self.seed = settings, stream, task, seed
        self.current: int | None = None
        self.seen: list[int] = []
        self.best: dict[int, float] = {}
        self.gathered: dict[int, ReplayMemory] = {}

    def take(self, rows: Rows, watched: npt.NDArray[np.int64] | None = None) -> bool:
        """Note the contexts of a batch and keep its held-out rows, of those that are watched (None: all). True where
        the stream has just left a context."""
        context_B = rows.context
        self._gather(rows, context_B, np.arange(len(rows)) if watched is None else watched)
        newest = 0 if context_B is None or not len(context_B) else int(context_B[-1])
        left = self.current is not None and newest != self.current
        alone = context_B is None or bool((context_B == newest).all())
        for context in [newest] if alone or context_B is None else [int(c) for c in np.unique(context_B)]:
            if context not in self.seen:
                self.seen.append(context)
        for old in self.seen[: -self.settings.max_contexts]:
            self.gathered.pop(old, None)
            self.best.pop(old, None)
        self.seen = self.seen[-self.settings.max_contexts :]
        self.current = newest
        return left

    def measure(
        self, spread: Callable[[int, Callable[[int], tuple[float, float] | None]], list[Any]], score: Score
    ) -> dict[int, tuple[float, float]]:
        """(error, squared error) per context, the contexts spread over the workers; remembers each one's best."""
        contexts = list(self.seen)

        def one(at: int) -> tuple[float, float] | None:
            held = self.held_out(contexts[at])
            return None if held is None else score(*held)

        found = {c: v for c, v in zip(contexts, spread(len(contexts), one), strict=True) if v is not None}
        for context, (error, _) in found.items():
            self.best[context] = min(error, self.best.get(context, error))
        return found

    def forgetting(self, final: Mapping[int, tuple[float, float]]) -> dict[int, float]:
        """Rise of each context's error since its best, in the error's unit (Chaudhry et al. 2018)."""
        return {context: error - self.best[context] for context, (error, _) in final.items() if context in self.best}

    def held_out(self, context: int) -> tuple[Features, npt.NDArray[Any]] | None:
        """The rows on which a context is measured, and their targets; None where there are none."""
        rows = self.stream.held_out(context, self.settings.rows_per_context)
        if rows is not None:
            return (rows.select(slice(None)), rows.target) if len(rows) else None
        kept = self.gathered.get(context)
        if kept is None or not len(kept):
            return None
        slots = np.arange(len(kept))
        return kept.select(slots), kept.target[slots]

    def _gather(self, rows: Rows, context_B: npt.NDArray[np.int64] | None, watched: npt.NDArray[np.int64]) -> None:
        flagged = watched[rows.held_out[watched]]
        if not len(flagged):
            return
        contexts = np.zeros(len(rows), np.int64) if context_B is None else context_B
        for context in np.unique(contexts[flagged]).tolist():
            offered = np.zeros(len(rows), np.bool_)
            offered[flagged[contexts[flagged] == context]] = True
            kept = self.gathered.setdefault(context, self._store())
            chosen = kept.choose(rows.start, rows.target, offered)
            if chosen:
                at, slots = (np.array(column, np.int64) for column in zip(*chosen, strict=True))
                kept.store(slots, rows.select(at), rows.target[at], np.zeros((len(at), 1), np.float32))

    def _store(self) -> ReplayMemory:
        return ReplayMemory(Memory(kind="reservoir", rows=self.settings.rows_per_context), self.task, self.seed + 1)

    def state(self) -> dict[str, Any]:
        return {"current": self.current, "seen": self.seen, "best": list(self.best.items())}

    def files(self) -> dict[str, bytes]:
        """One Arrow file for each context whose rows the stream itself held out."""
        return {f"held_out-{context}.arrow": table_bytes(kept.to_arrow()) for context, kept in self.gathered.items()}

    def load(self, state: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
        self.current = state["current"]
        self.seen = [int(c) for c in state["seen"]]
        self.best = {int(c): float(v) for c, v in state["best"]}
        for name, content in parts.items():
            if name.startswith("held_out-"):
                kept = self._store()
                kept.load_arrow(table_from(content, self.settings.rows_per_context, self.stream.fields, 1))
                self.gathered[int(name.removeprefix("held_out-").removesuffix(".arrow"))] = kept


def table_bytes(table: pa.Table) -> bytes:
    """An Arrow table as an IPC stream. Compressed: 2,000 rows of a picture or a table take half to a third of the bytes
    for 2 ms."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def table_from(content: bytes, rows: int, fields: Fields, others: int) -> pa.Table:
    """Inverse of `table_bytes`, of up to so many rows of a stream with `others` numbers beside what it has itself.
    Raises ValueError where it is not that."""
    own = math.prod(fields.image_shape or (0,)) + len(fields.numeric) + len(fields.categorical)
    return load_arrow(content, most_bytes=8 * rows * (own + others + _BESIDE) + (1 << 20), most_rows=rows)
