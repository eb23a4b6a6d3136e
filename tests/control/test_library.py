"""The concept library: what is kept, what goes first, and that it survives being saved."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from planaria.blueprint import Blueprint
from planaria.control.library import SNAPSHOT_ROWS, ConceptLibrary, Snapshot
from planaria.errors import InputError
from planaria.model import build

BLUEPRINT = Blueprint("classification", 16, 4, 32, (2, 3), 4, image_shape=(1, 8, 8), patch=4)
BIRTHS = [[0, 100], [0, 0, 50]]


def snapshot(sample: int, seed: int = 0) -> Snapshot:
    return Snapshot.of(build(BLUEPRINT, seed), BLUEPRINT, BIRTHS, sample)


def left(library: ConceptLibrary, concept: int, sample: int) -> None:
    """A concept that was left at `sample`."""
    library.roll(snapshot(sample))
    library.leave(concept, sample, sample)


def test_a_snapshot_is_a_copy_that_later_steps_do_not_touch() -> None:
    model = build(BLUEPRINT)
    kept = Snapshot.of(model, BLUEPRINT, BIRTHS, 10)
    before = model.output.bias.detach().clone()
    with torch.no_grad():
        model.output.bias.add_(1.0)
    assert torch.equal(kept.weights["output.bias"], before)


def test_heads_are_as_old_after_a_restore_as_they_were_when_kept() -> None:
    assert snapshot(300).births(10_000) == [[9_700, 9_800], [9_700, 9_700, 9_750]]


def test_the_newest_copy_from_before_the_onset_is_kept() -> None:
    library = ConceptLibrary(2)
    for sample in (512, 1_024, 1_536):
        library.roll(snapshot(sample))
    assert [kept.sample for kept in library.rolling] == [1_024, 1_536]
    library.leave(0, onset_sample=1_500, sample=1_800)
    assert library.entries[0].snapshot.sample == 1_024
    assert library.rolling == [], "the copies were of the concept that was left"


def test_a_change_older_than_both_copies_replaces_no_entry_but_may_make_the_first() -> None:
    library = ConceptLibrary(2)
    library.roll(snapshot(1_024))
    library.leave(0, onset_sample=900, sample=1_500)
    assert library.entries[0].snapshot.sample == 1_024
    library.roll(snapshot(4_096))
    library.leave(0, onset_sample=4_000, sample=4_500)
    assert library.entries[0].snapshot.sample == 1_024


def test_copies_are_due_every_so_many_rows_and_never_where_nothing_is_kept() -> None:
    library, off = ConceptLibrary(1), ConceptLibrary(0)
    assert library.due(64) and not off.due(10_000)
    library.roll(snapshot(64))
    assert not library.due(64 + SNAPSHOT_ROWS - 1) and library.due(64 + SNAPSHOT_ROWS)


def test_the_entry_that_is_least_worth_keeping_goes_first() -> None:
    library = ConceptLibrary(3)
    for concept, sample in enumerate((1_000, 2_000, 3_000)):
        left(library, concept, sample)
    library.restored(0, 1_500)
    left(library, 3, 4_000)
    assert set(library.entries) == {0, 2, 3}, "2,000 rows old once restored is worth more than 2,000 never restored"
    left(library, 4, 9_000)
    assert set(library.entries) == {0, 3, 4}
    left(library, 0, 9_500)
    assert library.entries[0].restored == 1, "a concept's new entry keeps the record of the old one"


def test_a_library_survives_being_saved() -> None:
    library, again = ConceptLibrary(3), ConceptLibrary(3)
    for concept in range(2):
        left(library, concept, 1_000 * concept)
    library.restored(1, 5_000)
    library.roll(snapshot(6_000, seed=1))
    state = json.loads(json.dumps(library.state()))
    again.load_state(state, load(save(library.tensors())))
    assert again.state() == library.state()
    assert all(torch.equal(value, library.tensors()[name]) for name, value in again.tensors().items())
    assert again.entries[1].snapshot.ages == library.entries[1].snapshot.ages


def test_a_library_without_its_weights_is_refused() -> None:
    library = ConceptLibrary(3)
    left(library, 0, 1_000)
    with pytest.raises(InputError, match=r"concept library: not usable .*use an older checkpoint"):
        ConceptLibrary(3).load_state(library.state(), {})
