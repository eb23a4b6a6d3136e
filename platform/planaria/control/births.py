"""When each head was born: heads that have not had time to integrate are left alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from planaria.blueprint import Edit, GrowHeads, RecycleHead, ShrinkHeads

Births = list[list[int]]
"""Per layer and head: the sample at which it was born."""


def births_after(edit: Edit, births: Sequence[Sequence[int]], sample: int) -> Births:
    """Births after an edit at `sample`. Those of a restored state come with that state."""
    after = [list(layer) for layer in births]
    if isinstance(edit, GrowHeads):
        after[edit.layer] += [sample] * edit.heads
    elif isinstance(edit, ShrinkHeads):
        after[edit.layer] = [b for head, b in enumerate(after[edit.layer]) if head not in edit.heads]
    elif isinstance(edit, RecycleHead):
        del after[edit.layer][edit.head]
        after[edit.layer].append(sample)  # surgery puts the fresh head last
    return after
