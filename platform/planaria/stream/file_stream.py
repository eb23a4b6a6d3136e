"""A stream of rows from files: numbers, categories and labels encoded as they come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from planaria.errors import RunError
from planaria.signals import LOOK_BACK_ROWS, Features, Fields
from planaria.stream.chance import key, uniform
from planaria.stream.columns import Columns
from planaria.stream.piece import INFINITE, MISSING, Piece, Pixels, unpack_images
from planaria.stream.rows import DecodedRows, Index
from planaria.stream.source import DataError
from planaria.stream.tape import Tape
from planaria.stream.vocabulary import Coded, Vocabulary
from planaria.stream.window import Window

MAX_LABELS = 65_536
"""More distinct labels than this are an identifier, not a class."""
KNOWN_CHANGES = 1_024
"""Starts of contexts that are remembered, newest last."""
AVAILABLE_ROWS = 65_536
"""How far available() looks ahead, in rows of a table."""
AVAILABLE_BYTES = 128 << 20
"""How far available() looks ahead, in raw pictures."""

Cuts = list[tuple[Piece, slice]]


class FileStream:
    """See planaria.signals.Stream. Every reader of the same rows in order has the same vocabularies."""

    def __init__(
        self,
        tape: Tape,
        window: Window,
        columns: Columns,
        *,
        categories: int,
        seed: int,
        hold_out_fraction: float,
        total_rows: int | None,
    ) -> None:
        self.fields: Fields = columns.fields(categories)
        self.total_rows = total_rows
        self._tape = tape
        self._window = window
        self._columns = columns
        self._hold_out_fraction = hold_out_fraction
        self._hold_out_key = key(seed, "held out")
        self._labels = Vocabulary(capacity=MAX_LABELS)
        self._contexts = Vocabulary(capacity=MAX_LABELS)
        self._categories = [Vocabulary(first=1, capacity=categories - 1) for _ in columns.categorical]
        self._furthest = 0
        self._changes: list[int] = []
        self._last_context: int | None = None
        self._missing = dict.fromkeys((*columns.numeric, *columns.categorical), 0)
        self._infinite = dict.fromkeys(columns.numeric, 0)
        self._overflow = dict.fromkeys(columns.categorical, 0)

    @property
    def labels(self) -> list[str | int]:
        return cast(list[str | int], list(self._labels.values))

    @property
    def contexts(self) -> list[str]:
        """Names of the contexts seen so far, by number. Empty where no context column is named."""
        return [str(value) for value in self._contexts.values]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """What was handled silently, per column: missing and infinite numbers, categories met for the first
        time (unseen) and those that came when every id was taken (overflow)."""
        unseen = {name: len(words) for name, words in zip(self._columns.categorical, self._categories, strict=True)}
        return {
            "missing": dict(self._missing),
            "infinite": dict(self._infinite),
            "unseen": unseen,
            "overflow": dict(self._overflow),
        }

    def read(self, start: int, count: int) -> DecodedRows:
        try:
            return self._encode(start, self._window.cut(start, start + count, wait=True))
        except DataError as error:
            raise RunError(str(error)) from error

    def available(self, start: int) -> int:
        """How many rows from `start` on are there now, as far as it looks ahead. Does not wait."""
        shape = self.fields.image_shape
        ahead = AVAILABLE_ROWS if shape is None else AVAILABLE_BYTES // math.prod(shape)
        end = start + max(1_024, min(AVAILABLE_ROWS, ahead))
        try:
            return sum(rows.stop - rows.start for _, rows in self._window.cut(start, end, wait=False))
        except DataError as error:
            raise RunError(str(error)) from error

    def held_out(self, context: int, count: int) -> None:
        """None: rows are flagged in the stream itself."""
        return None

    def change_before(self, row: int) -> int | None:
        place = int(np.searchsorted(self._changes, row, side="right"))
        return self._changes[place - 1] if place else None

    def state(self) -> dict[str, Any]:
        return {
            "row": self._furthest,
            "labels": self.labels,
            "contexts": list(self._contexts.values),
            "categories": {
                name: list(words.values)
                for name, words in zip(self._columns.categorical, self._categories, strict=True)
            },
            "missing": dict(self._missing),
            "infinite": dict(self._infinite),
            "overflow": dict(self._overflow),
            "changes": list(self._changes),
            "last_context": self._last_context,
            "tape": self._tape.state(self._furthest - LOOK_BACK_ROWS, self._furthest),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._furthest = int(state["row"])
        self._labels.restore(state["labels"])
        self._contexts.restore(state["contexts"])
        for name, words in zip(self._columns.categorical, self._categories, strict=True):
            words.restore(state["categories"][name])
        self._missing = dict(state["missing"])
        self._infinite = dict(state["infinite"])
        self._overflow = dict(state["overflow"])
        self._changes = list(state["changes"])
        self._last_context = state["last_context"]
        self._tape.load_state(state["tape"])
        self._window.clear()

    def _encode(self, start: int, cuts: Cuts) -> DecodedRows:
        count = sum(rows.stop - rows.start for _, rows in cuts)
        fresh = max(0, self._furthest - start)
        """Rows of the batch before this one have been counted already."""
        target = self._target(cuts)
        context = self._context(start, cuts, fresh)
        numeric = _joined([piece.numeric_RK[rows] for piece, rows in cuts], np.float32, len(self._columns.numeric))
        categorical = self._categorical(cuts, count, fresh)
        self._count_flaws(cuts)
        self._furthest = max(self._furthest, start + count)
        held_out = uniform(self._hold_out_key, np.arange(start, start + count)) < self._hold_out_fraction
        shape = self.fields.image_shape

        def decode(index: Index) -> Features:
            if shape is None:
                # Copies: whoever changes them must not change what is read again.
                return {"numeric": np.array(numeric[index]), "categorical": np.array(categorical[index])}
            try:
                return {"image": _images(cuts, index, count, shape)}
            except DataError as error:
                raise RunError(str(error)) from error

        return DecodedRows(start, target, context, held_out, decode)

    def _target(self, cuts: Cuts) -> npt.NDArray[Any]:
        if self.fields.task == "regression":
            return _joined([self._values(piece, rows) for piece, rows in cuts], np.float32)
        labels = [self._numbers(self._labels, piece, cast(Coded, piece.target), rows) for piece, rows in cuts]
        return _joined(labels, np.int64)

    def _values(self, piece: Piece, rows: slice) -> npt.NDArray[np.float32]:
        values = cast(npt.NDArray[np.float32], piece.target)[rows]
        unsound = np.flatnonzero(~np.isfinite(values))
        if unsound.size:
            where = piece.where(rows.start + int(unsound[0]))
            raise DataError(f"{where}: target '{self._columns.target}' is missing or infinite; drop the row or fill it")
        return values.copy()

    def _numbers(self, words: Vocabulary, piece: Piece, coded: Coded, rows: slice) -> npt.NDArray[np.int64]:
        """Numbers of labels or contexts, every value of which must be there."""
        name = self._columns.target if words is self._labels else self._columns.context
        for code in coded.unresolved(rows):
            value = coded.values[code]
            place = rows.start + int(np.flatnonzero(coded.codes[rows] == code)[0])
            if value is None:
                raise DataError(f"{piece.where(place)}: '{name}' is missing; drop the row or fill it")
            number = words.number(value)
            if number is None:
                raise DataError(
                    f"{piece.where(place)}: '{name}' has more than {MAX_LABELS} different values; "
                    f"name another column, or use task: regression"
                )
            coded.numbers[code] = number
        return coded.numbers[coded.codes[rows]]

    def _context(self, start: int, cuts: Cuts, fresh: int) -> npt.NDArray[np.int64] | None:
        if self._columns.context is None:
            return None
        numbers = [self._numbers(self._contexts, piece, cast(Coded, piece.context), rows) for piece, rows in cuts]
        context = _joined(numbers, np.int64)
        news = context[fresh:]
        if news.size:
            before = np.concatenate([[news[0] if self._last_context is None else self._last_context], news[:-1]])
            changes = start + fresh + np.flatnonzero(news != before)
            self._changes = [*self._changes, *changes.tolist()][-KNOWN_CHANGES:]
            self._last_context = int(news[-1])
        return context

    def _categorical(self, cuts: Cuts, count: int, fresh: int) -> npt.NDArray[np.int64]:
        numbers = np.zeros((count, len(self._categories)), np.int64)
        for column, words in enumerate(self._categories):
            done = 0
            for piece, rows in cuts:
                coded = piece.categorical[column]
                size = rows.stop - rows.start
                for code in coded.unresolved(rows):
                    value = coded.values[code]
                    coded.numbers[code] = 0 if value is None else words.number(value) or 0
                numbers[done : done + size, column] = coded.numbers[coded.codes[rows]]
                self._count_zeros(column, coded, slice(rows.start + max(0, fresh - done), rows.stop))
                done += size
        return numbers

    def _count_zeros(self, column: int, coded: Coded, rows: slice) -> None:
        """Why some rows have no category of their own."""
        codes = coded.codes[rows]
        zeros = codes[coded.numbers[codes] == 0]
        if zeros.size:
            name = self._columns.categorical[column]
            missing = int((zeros == len(coded.values) - 1).sum())
            self._missing[name] += missing
            self._overflow[name] += zeros.size - missing

    def _count_flaws(self, cuts: Cuts) -> None:
        for piece, rows in cuts:
            if piece.flaws_RK is None:
                continue
            flaws = piece.flaws_RK[max(rows.start, self._furthest - piece.start) : rows.stop]
            for counts, flaw in ((self._missing, MISSING), (self._infinite, INFINITE)):
                for name, found in zip(self._columns.numeric, (flaws == flaw).sum(axis=0).tolist(), strict=True):
                    counts[name] += found


def _joined(parts: list[npt.NDArray[Any]], kind: type[np.generic], *columns: int) -> npt.NDArray[Any]:
    """Parts one after the other; without any, no rows of that kind."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, *columns), kind)


def _images(cuts: Cuts, index: Index, count: int, shape: tuple[int, int, int]) -> Pixels:
    """The chosen pictures [B, channels, height, width]; only these are decoded."""
    chosen = np.arange(count)[index]
    parts, order, first = [], [], 0
    for piece, rows in cuts:
        size = rows.stop - rows.start
        mine = np.flatnonzero((chosen >= first) & (chosen < first + size))
        places = chosen[mine] - first + rows.start
        image = piece.image
        assert image is not None
        pictures = image.take(pa.array(places)) if isinstance(image, pa.Array) else image[places]
        parts.append(unpack_images(pictures, shape, [piece.where(int(place)) for place in places]))
        order.append(mine)
        first += size
    if len(parts) == 1:
        return parts[0]
    images = np.empty((len(chosen), *shape), np.result_type(*parts) if parts else np.uint8)
    for mine, part in zip(order, parts, strict=True):
        images[mine] = part
    return images
