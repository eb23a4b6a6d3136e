"""When each head was born: heads that have not had time to integrate are left alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from planaria.blueprint import Edit, GrowHeads, Prune, RecycleHead, Share, ShrinkHeads

Births = list[list[int]]
"""Per layer and head: the sample at which it was born."""


def births_after(edit: Edit, births: Sequence[Sequence[int]], sample: int, owners: Sequence[int]) -> Births:
    """Births after an edit at `sample`. Those of a restored state come with that state.

    `owners` says for each layer whose attention it used before the edit: shared heads are born and go together.
    """
    after = [list(layer) for layer in births]
    if isinstance(edit, Share):
        first, second = sorted(owners[layer] for layer in edit.layers)
        if edit.part == "attention":  # which of the second's heads went into which of the first's is not told
            return [list(after[first]) if owner == second else after[at] for at, owner in enumerate(owners)]
        return after
    if isinstance(edit, Prune):
        for part in edit.parts:
            after = births_after(part, after, sample, owners)
        return after
    if not isinstance(edit, GrowHeads | ShrinkHeads | RecycleHead):
        return after
    for layer in (at for at, owner in enumerate(owners) if owner == owners[edit.layer]):
        if isinstance(edit, GrowHeads):
            after[layer] += [sample] * edit.heads
        elif isinstance(edit, ShrinkHeads):
            after[layer] = [b for head, b in enumerate(after[layer]) if head not in edit.heads]
        else:
            del after[layer][edit.head]
            after[layer].append(sample)  # surgery puts the fresh head last
    return after
