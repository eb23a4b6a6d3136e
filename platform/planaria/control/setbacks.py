"""Setbacks: a kind of edit that had to be taken back is left alone for a while, and twice as long each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_OPPOSITE = {"grow_heads": "shrink_heads", "shrink_heads": "grow_heads"}


@dataclass
class Setbacks:
    """By kind of edit. What the model just did badly it would do again: what is observed is much the same as before,
    and a few outcomes move a learned value but little."""

    wait_rows: int
    """After the first setback."""
    times: dict[str, int] = field(default_factory=dict)
    """How often it was taken back; every edit of the kind that was well makes it one less."""
    until: dict[str, int] = field(default_factory=dict)
    """The sample from which on it may be tried again."""
    last: str | None = None
    """The newest kind of edit since the last shift."""

    def barred(self, kind: str, sample: int) -> bool:
        return sample < self.until.get(kind, 0)

    def chose(self, kind: str, sample: int) -> None:
        """An edit is carried out. With nothing having changed since, the opposite of the last one takes it back."""
        if self.last is not None and _OPPOSITE.get(kind) == self.last:
            self.undone(self.last, sample)
        self.last = kind

    def undone(self, kind: str, sample: int) -> None:
        self.until[kind] = sample + self.wait_rows * 2 ** self.times.get(kind, 0)
        self.times[kind] = self.times.get(kind, 0) + 1
        self.last = None

    def went_well(self, kind: str) -> None:
        self.times[kind] = max(0, self.times.get(kind, 0) - 1)

    def shifted(self) -> None:
        """What was right before may be wrong now: doing the opposite takes nothing back."""
        self.last = None

    def state(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Setbacks:
        """Raises KeyError, TypeError or ValueError where it is none."""
        times, until = ({str(k): int(v) for k, v in state[name].items()} for name in ("times", "until"))
        return Setbacks(int(state["wait_rows"]), times, until, state["last"])
