"""The decoded pieces around the rows that are being read: decoded once, cut many times, few at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from planaria.signals import LOOK_BACK_ROWS
from planaria.stream.columns import Columns
from planaria.stream.piece import Piece, decode
from planaria.stream.tape import Tape

HELD_BYTES = 256 << 20
"""Of pictures. Where LOOK_BACK_ROWS of them are more, older ones are let go, and read anew if they are asked for."""
_LONGEST_NAP_S = 0.1
"""So that a request to stop is heard soon, however rarely the folder is looked at."""


class Window:
    """Holds rows from LOOK_BACK_ROWS behind the furthest row asked for to the end of the piece that holds it."""

    def __init__(
        self, tape: Tape, columns: Columns, *, follow: bool, poll_s: float, stop_waiting: Callable[[], bool]
    ) -> None:
        self._tape = tape
        self._columns = columns
        self._follow = follow
        self._poll_s = poll_s
        self._stop_waiting = stop_waiting
        self._pieces: list[Piece] = []

    def cut(self, start: int, end: int, *, wait: bool) -> list[tuple[Piece, slice]]:
        """Pieces, and which of their rows make up rows [start, end) or as many of these as there are.

        With `wait`, a stream that follows a folder waits for what is missing until stop_waiting(). Raises DataError.
        """
        self._cover(start, end, wait)
        found = []
        for piece in self._pieces:
            first, last = max(start, piece.start), min(end, piece.end)
            if first < last:
                found.append((piece, slice(first - piece.start, last - piece.start)))
        return found

    def clear(self) -> None:
        self._pieces = []

    def _cover(self, start: int, end: int, wait: bool) -> None:
        if not self._pieces or not self._pieces[0].start <= start <= self._pieces[-1].end:
            self._pieces = []
            self._tape.seek(start)
        while (self._pieces[-1].end if self._pieces else start) < end:
            if not self._load(start) and not (self._follow and self._await(wait)):
                break
        held = sum(piece.picture_bytes for piece in self._pieces)
        while self._pieces and self._pieces[0].end <= start - (LOOK_BACK_ROWS if held < HELD_BYTES else 0):
            held -= self._pieces.pop(0).picture_bytes

    def _load(self, start: int) -> bool:
        """Decode the next rows; False where all known files are read."""
        chunk = self._tape.next()
        if chunk is None:
            return False
        if chunk.start + chunk.batch.num_rows > start - LOOK_BACK_ROWS and chunk.batch.num_rows:
            self._pieces.append(
                decode(chunk.batch, self._columns, start=chunk.start, label=chunk.label, file_start=chunk.file_start)
            )
        return True

    def _await(self, wait: bool) -> bool:
        """True once new files are there; False where waiting is not wanted any more."""
        while not self._tape.refresh():
            if not wait:
                return False
            until = time.monotonic() + self._poll_s
            while (left := until - time.monotonic()) > 0:
                if self._stop_waiting():
                    return False
                time.sleep(min(left, _LONGEST_NAP_S))
        return True
