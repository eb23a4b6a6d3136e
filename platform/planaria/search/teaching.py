"""What the controllers of earlier trials have learned, for those of later ones to begin with.

A trial learns from all trials that are at least `behind` numbers before it, which have ended when it begins: what it
begins with does not depend on which of its neighbours happened to be faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from planaria.control.pooling import State, learned_since, pooled
from planaria.search.places import RESULT, folder_of, lives_in
from planaria.train.folder import RunFolder

TAUGHT = "taught.json"


def taught(
    folder: Path, number: int, behind: int, kind: Literal["learned", "look_ahead", "none"]
) -> dict[str, Any] | None:
    """What the trial's controller, of that kind, begins with; None for nothing. Once asked for it stays the same."""
    place = RunFolder(folder_of(folder, number))
    known = place.path / TAUGHT
    if not known.exists():
        found = pooled(
            [state for earlier in range(number - behind + 1) for state in _learned_in(folder, earlier)], kind
        )
        place.write_json(known, found or {})
    return place.read_json(known) or None


def _learned_in(folder: Path, number: int) -> list[State]:
    """Of each life of a trial that is done what its controller has learned in it."""
    place = folder_of(folder, number)
    if RunFolder(place).read_json(place / RESULT).get("status") != "done":
        return []
    states = []
    for life in map(RunFolder, lives_in(place)):
        state = life.read_json(life.learned)
        if state:
            states.append(learned_since(state, life.read_json(life.inherited)))
    return states
