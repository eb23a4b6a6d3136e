"""Simulated streams: the same from the same seed, alike within a family, and as they say they are."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from planaria.errors import InputError
from planaria.meta import interactions, lookup, matching, tables, teacher
from planaria.meta.families import FAMILIES, SPLIT, SimStream, make_stream
from planaria.meta.simulate import (
    LABEL_NOISES,
    PHASE_ROWS_RANGE,
    PHASES_RANGE,
    PRICE_RANGE,
    TILTS,
    TOTAL_ROWS_RANGE,
    Concept,
    Integers,
    Phase,
    Source,
    generator,
    plan,
    realise,
    with_label_noise,
)
from planaria.signals import Features, Fields
from planaria.stream import fetch

SETS = {"fashion": "fashion_mnist", "recurring": "fashion_mnist", "weather": "weather"}
"""What must be fetched for a family."""
PLANNED = sorted(set(FAMILIES) - {"weather", "stationary", "recurring"})
"""Families with random phases."""
SOURCES: dict[str, Source[Any]] = {
    "teacher": teacher.SOURCE,
    "k_lookup": lookup.SOURCE,
    "interactions": interactions.SOURCE,
    "matching": matching.SOURCE,
    "sums": tables.sums(),
    "planes": tables.planes(),
    "centres": tables.centres(),
    "segments": tables.segments(),
}


@lru_cache(maxsize=48)
def made(family: str, seed: int) -> SimStream:
    try:
        if family in SETS:
            fetch(SETS[family])
    except InputError as error:
        pytest.skip(str(error))
    return make_stream(family, seed)


def first_seed(family: str, **wanted: object) -> SimStream:
    """The first stream of the family with those values."""
    streams = (made(family, seed) for seed in range(40))
    return next(stream for stream in streams if all(getattr(stream, name) == v for name, v in wanted.items()))


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_seeds_give_equal_streams_and_other_seeds_others(family: str) -> None:
    one, other = made(family, 3), made(family, 4)
    again = FAMILIES[family](3)
    assert all(one.features[name].tobytes() == again.features[name].tobytes() for name in one.features)
    assert np.array_equal(one.target, again.target)
    assert replace(one, features={}, target=again.target) == replace(again, features={})
    assert one.price != other.price
    assert not np.array_equal(one.target[:1000], other.target[:1000])


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_of_a_family_have_equal_shapes(family: str) -> None:
    def shape(stream: SimStream) -> tuple[object, ...]:
        fields = stream.fields
        columns = (len(fields.numeric), len(fields.categorical), fields.categories, fields.image_shape)
        inputs = {name: (values.dtype, values.shape[1:]) for name, values in stream.features.items()}
        return columns, inputs, stream.outputs, stream.patch

    assert shape(made(family, 3)) == shape(made(family, 4))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", (3, 4))
def test_inputs_and_labels_lie_where_they_should(family: str, seed: int) -> None:
    stream = made(family, seed)
    rows = len(stream.target)
    assert all(len(values) == rows for values in stream.features.values())
    assert stream.target.dtype == np.int64
    assert 1 < len(np.unique(stream.target)) and 0 <= stream.target.min() <= stream.target.max() < stream.outputs
    if stream.fields.image_shape is not None:
        image = stream.features["image"]
        assert image.shape == (rows, *stream.fields.image_shape)
        assert image.dtype == np.uint8 or (image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1)
    if stream.fields.numeric:
        numeric = stream.features["numeric"]
        assert numeric.shape == (rows, len(stream.fields.numeric)) and numeric.dtype == np.float32
        assert not np.isinf(numeric).any()
    if stream.fields.categorical:
        assert 0 <= stream.features["categorical"].min()
        assert stream.features["categorical"].max() < stream.fields.categories


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_at_most_ten_tokens(family: str) -> None:
    stream = made(family, 3)
    fields = stream.fields
    if fields.image_shape is None:
        assert 1 + len(fields.numeric) + len(fields.categorical) <= 10
        return
    _, height, width = fields.image_shape
    assert height % stream.patch == width % stream.patch == 0
    assert 1 + height * width // stream.patch**2 <= 10


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_of_phases_has_an_entry_for_each(family: str) -> None:
    stream = made(family, 3)
    assert stream.starts[0] == 0 and list(stream.starts) == sorted(set(stream.starts))
    assert stream.starts[-1] < len(stream.target)
    lengths = {len(of_phase) for of_phase in (stream.contexts, stream.demand, stream.changes, stream.gradual_rows)}
    assert lengths == {len(stream.starts)}
    assert PRICE_RANGE[0] <= stream.price <= PRICE_RANGE[1]
    assert stream.label_noise in LABEL_NOISES


@pytest.mark.parametrize("family", PLANNED)
@pytest.mark.parametrize("seed", (3, 4))
def test_phases_are_as_many_and_as_long_as_promised(family: str, seed: int) -> None:
    stream = made(family, seed)
    rows = np.diff([*stream.starts, len(stream.target)])
    assert PHASES_RANGE[0] <= len(rows) <= PHASES_RANGE[1]
    assert PHASE_ROWS_RANGE[0] <= rows.min() and rows.max() <= PHASE_ROWS_RANGE[1]
    assert TOTAL_ROWS_RANGE[0] <= rows.sum() <= TOTAL_ROWS_RANGE[1]
    assert all(gradual < count for gradual, count in zip(stream.gradual_rows, rows, strict=True))


@pytest.mark.parametrize("name", SOURCES)
def test_each_kind_of_change_does_what_its_name_says(name: str) -> None:
    source, seen = SOURCES[name], set()
    for seed in range(30):
        phases = plan(source, generator("changes", seed))
        known: set[int] = set()
        for before, phase in zip([None, *phases[:-1]], phases, strict=True):
            now, seen = phase.concept, seen | {phase.change}
            if before is None:
                assert phase.change == "start" and not phase.gradual_rows
            elif phase.change == "virtual":
                assert now is before.concept and not np.array_equal(phase.tilt, before.tilt)
            elif phase.change == "return":
                assert now.number in known and now is not before.concept
            elif phase.change == "labels":
                assert now.rule is before.concept.rule and now.number not in known
                assert not np.array_equal(now.labels_C, before.concept.labels_C)
            else:
                assert now.rule is not before.concept.rule and now.number not in known
            known.add(now.number)
    assert seen == {"start", "new", "return", "labels", "virtual"}


def test_a_gradual_change_begins_with_the_old_concept_and_ends_with_the_new() -> None:
    def draw(random: object, rule: int, tilt: object, rows: int) -> tuple[Features, Integers]:
        return {"numeric": np.full((rows, 1), rule, np.float32)}, np.full(rows, rule)

    source = Source(Fields("classification", numeric=("x",)), 2, lambda random, before: 1, draw)
    old, new = (Concept(number, number, np.arange(2)) for number in (0, 1))
    phases = [Phase(500, old, np.zeros(TILTS), "start"), Phase(3000, new, np.zeros(TILTS), "new", gradual_rows=1000)]
    stream = realise("gradual", 0, source, phases, generator("gradual", 0))
    rule = stream.features["numeric"][:, 0]
    assert not rule[:500].any() and rule[1500:].all()
    assert rule[500:600].mean() < 0.15 < 0.4 < rule[900:1100].mean() < 0.6 < 0.85 < rule[1400:1500].mean()
    right = rule == stream.target
    assert abs(right.mean() - (1 - stream.label_noise)) < 0.03, "labels change with the rows that they belong to"


def test_label_noise_makes_that_share_of_labels_wrong() -> None:
    target = np.arange(40_000) % 4
    noisy = with_label_noise(target, 4, 0.2, generator("noise", 0))
    assert abs((noisy != target).mean() - 0.2) < 0.01
    assert set(np.unique(noisy)) == {0, 1, 2, 3}
    assert np.array_equal(with_label_noise(target, 4, 0.0, generator("noise", 0)), target)


def test_a_returning_concept_gives_equal_pictures_their_old_labels() -> None:
    stream = first_seed("recurring", label_noise=0.0)
    labels: dict[tuple[int, bytes], set[int]] = {}
    of_row = np.repeat(stream.contexts, np.diff([*stream.starts, len(stream.target)]))
    for context, image, label in zip(of_row, stream.features["image"], stream.target, strict=True):
        labels.setdefault((int(context), image.tobytes()), set()).add(int(label))
    assert len(labels) < len(stream.target), "no picture came twice"
    assert all(len(known) == 1 for known in labels.values())
    pictures = {image for _, image in labels}
    several = [{next(iter(labels[n, image])) for n in range(3) if (n, image) in labels} for image in pictures]
    assert max(len(known) for known in several) == 3
    assert all(
        len(known) == sum((n, image) in labels for n in range(3))
        for known, image in zip(several, pictures, strict=True)
    )


def test_the_recurring_stream_has_nine_abrupt_phases_of_three_concepts() -> None:
    stream = made("recurring", 3)
    assert sorted(stream.contexts) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert all(one != next_ for one, next_ in zip(stream.contexts, stream.contexts[1:], strict=False))
    assert not any(stream.gradual_rows)


def test_the_virtual_stream_has_one_concept_and_the_stationary_one_phase() -> None:
    assert set(made("virtual", 3).contexts) == {0}
    assert set(made("virtual", 3).changes[1:]) == {"virtual"}
    assert made("stationary", 3).starts == (0,) and len(made("stationary", 3).target) == 100_000


def test_weather_keeps_the_order_of_the_real_months() -> None:
    stream = made("weather", 3)
    later = stream.contexts[1:]
    assert all(after == before % 12 + 1 for before, after in zip(stream.contexts, later, strict=False))
    assert len(stream.target) >= TOTAL_ROWS_RANGE[0]
    assert len({made("weather", seed).contexts[0] for seed in range(6)}) > 1
    assert len({made("weather", seed).fields.numeric for seed in range(6)}) > 1


@pytest.mark.parametrize("family", ("teacher", "k_lookup"))
def test_demand_is_known_where_the_rule_says_it(family: str) -> None:
    demands = {demand for seed in range(8) for demand in made(family, seed).demand}
    assert demands == {1, 2, 3, 4, 5}
    for seed in range(8):
        stream = made(family, seed)
        by_context: dict[int, set[int | None]] = {}
        for context, demand in zip(stream.contexts, stream.demand, strict=True):
            by_context.setdefault(context, set()).add(demand)
        assert all(len(known) == 1 for known in by_context.values())


@pytest.mark.parametrize("keys", (1, 5))
def test_the_label_of_a_lookup_depends_on_the_wanted_keys_alone(keys: int) -> None:
    random = generator("wanted", keys)
    rule = lookup.new_rule(random, None)
    rule = replace(rule, wanted=np.arange(keys))
    features, target = lookup.draw(random, rule, np.zeros(TILTS), 4000)
    lit = features["image"].reshape(-1, 4, 6, 4).transpose(0, 2, 1, 3).reshape(-1, 6, 16) == 1
    assert (lit[..., :6].sum((1, 2)) == 6).all() and (lit[..., 6:14].sum((1, 2)) == 6).all()
    value_of_key = np.einsum("btk,btv->bkv", lit[..., :6].astype(int), lit[..., 6:14].astype(int)).argmax(2)
    score = sum(rule.table_TVC[key, value_of_key[:, key]] for key in range(keys))
    assert np.array_equal(np.asarray(score).argmax(1), target)


def test_the_names_of_the_split_are_the_families_each_in_one_part() -> None:
    named = [family for part in SPLIT.values() for family in part]
    assert sorted(named) == sorted(FAMILIES)
    assert len(named) == len(set(named))


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'teachers' is not known .did you mean 'teacher'"):
        make_stream("teachers", 0)
