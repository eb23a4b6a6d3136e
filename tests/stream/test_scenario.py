"""Scenarios over Fashion-MNIST and over tables: what is drawn, when, and what is done to it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.stream.conftest import everything, example, joined, opened, same, write

from planaria.errors import InputError, RunError
from planaria.job import StreamSettings
from planaria.stream import open_stream

pytestmark = pytest.mark.usefixtures("fashion")


def scenario(*contexts: dict[str, Any], seed: int = 0, **more: Any) -> Any:
    """Fashion-MNIST under a scenario."""
    listed = {"contexts": list(contexts)} if contexts else {}
    chosen = StreamSettings.model_validate({"source": "fashion_mnist", "scenario": {**listed, **more}})
    return open_stream(chosen, seed=seed, base=Path("/"), hold_out_fraction=0.0)


def context(name: str, samples: int = 2_000, **more: Any) -> dict[str, Any]:
    return {"name": name, "samples": samples, **more}


def labels(stream: Any, rows: Any) -> np.ndarray[Any, Any]:
    return np.array(stream.labels)[rows.target]


def refused(*contexts: dict[str, Any], **more: Any) -> str:
    with pytest.raises((InputError, ValidationError)) as refusal:
        scenario(*contexts, **more)
    return str(refusal.value)


MIXED = (
    context("a", 900, classes=[0, 1, 2, 3], blur=0.1),
    context("b", 700, transform="rotate", degrees=30, transition_samples=300),
    context("c", 500, transform="corrupt", class_weights={"3": 0.1, "4": 0}),
    context("d", 400, transform="permute_labels", transition_samples=400),
)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 4_999), max_size=6, unique=True), seed=st.integers(0, 5))
def test_slices_of_a_scenario_put_together_are_the_whole(cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(cuts), 5_000]
    stream = scenario(*MIXED, repeat=2, seed=seed)
    whole = scenario(*MIXED, repeat=2, seed=seed)
    parts = [everything(stream.read(a, b - a)) for a, b in itertools.pairwise(edges)]
    assert same(joined(parts), everything(whole.read(0, 6_000)))
    assert stream.labels == whole.labels


@settings(max_examples=15)
@given(at=st.integers(1, 4_990), start=st.integers(0, 4_990))
def test_a_resumed_scenario_goes_on_as_if_it_had_never_stopped(at: int, start: int) -> None:
    whole, resumed = scenario(*MIXED, repeat=2), scenario(*MIXED, repeat=2)
    whole.read(0, at)
    resumed.load_state(json.loads(json.dumps(whole.state())))
    assert same(everything(resumed.read(start, 99)), everything(whole.read(start, 99)))
    assert resumed.state()["labels"] == whole.state()["labels"]


def test_chosen_rows_are_the_same_as_those_of_the_whole_batch() -> None:
    rows = scenario(*MIXED).read(900, 300)  # within a transition: two contexts in one batch
    index = np.array([299, 3, 3, 150])
    assert (rows.select(index)["image"] == rows.select(slice(None))["image"][index]).all()


def test_another_seed_gives_other_rows() -> None:
    one, two = scenario(*MIXED).read(0, 100), scenario(*MIXED, seed=1).read(0, 100)
    assert (one.select(slice(None))["image"] != two.select(slice(None))["image"]).any()


def test_a_set_without_a_scenario_is_every_row_once() -> None:
    settings = StreamSettings(source="fashion_mnist")
    stream = open_stream(settings, seed=0, base=Path("/"), hold_out_fraction=0.0)
    assert stream.total_rows == 60_000 and stream.available(59_990) == 10 and stream.contexts == ["fashion_mnist"]
    digests = set()
    for start in range(0, 60_000, 6_000):
        rows = stream.read(start, 6_000)
        digests |= {image.tobytes() for image in rows.select(slice(None))["image"]}
    assert len(digests) == 60_000
    assert np.bincount(stream.read(0, 60_000).target).tolist() == [6_000] * 10
    assert len(stream.read(60_000, 10)) == 0
    assert stream.change_before(59_999) is None


def test_rows_do_not_come_again_before_all_of_their_classes_have_come() -> None:
    stream = scenario(context("a", 1_000_000, class_weights={"0": 3, "1": 1}))
    origin = np.concatenate(
        [stream._draw(stream._contexts[0], np.arange(s, s + 4_000)) for s in range(0, 60_000, 4_000)]
    )
    counts = np.bincount(origin, minlength=60_000)
    drawn = labels(stream, stream.read(0, 60_000))
    assert abs((drawn == 0).sum() / (drawn == 1).sum() - 3) < 0.2
    zeros = counts[np.array(stream._pool.target) == 0]
    assert zeros.max() - zeros.min() <= 1


def test_class_weights_set_how_often_labels_come() -> None:
    stream = scenario(context("a", 20_000, class_weights={3: 0.1, "4": 0, 5: 2}))
    share = np.bincount(labels(stream, stream.read(0, 20_000)), minlength=10) / 20_000
    expected = np.array([1, 1, 1, 0.1, 0, 2, 1, 1, 1, 1]) / 9.1
    assert np.abs(share - expected).max() < 0.01 and share[4] == 0


def test_an_abrupt_change_happens_at_one_row() -> None:
    stream = scenario(context("a", 1_000), context("b", 1_000, transform="invert"), context("a", 1_000))
    assert stream.read(0, 3_000).context.tolist() == [0] * 1_000 + [1] * 1_000 + [0] * 1_000
    assert stream.contexts == ["a", "b"]
    assert [stream.change_before(row) for row in (999, 1_000, 1_999, 2_000, 2_999)] == [
        None,
        1_000,
        1_000,
        2_000,
        2_000,
    ]


def test_a_gradual_change_brings_the_new_context_more_and_more_often() -> None:
    stream = scenario(context("a", 8_000), context("b", 8_000, transform="invert", transition_samples=8_000))
    new = stream.read(8_000, 8_000).context
    share = new.reshape(8, 1_000).mean(axis=1)
    assert np.abs(share - (np.arange(8) + 0.5) / 8).max() < 0.06
    assert stream.read(0, 8_000).context.sum() == 0
    assert stream.change_before(12_000) == 8_000


def test_a_repeated_sequence_goes_on_from_its_last_context() -> None:
    stream = scenario(context("a", 500, transition_samples=400), context("b", 500, transform="invert"), repeat=3)
    assert stream.total_rows == 3_000
    assert stream.read(0, 500).context.sum() == 0
    assert 0.3 < stream.read(1_000, 400).context.mean() < 0.7
    assert [stream.change_before(row) for row in (499, 999, 1_200, 2_999)] == [None, 500, 1_000, 2_500]


def test_a_recurring_context_has_the_same_transform_and_other_rows() -> None:
    stream = scenario(
        context("a", 500, transform="permute_pixels"), context("b", 500), context("a", 500, transform="permute_pixels")
    )
    first, again = (stream.read(start, 500).select(slice(None))["image"] for start in (0, 1_000))
    assert not {image.tobytes() for image in first} & {image.tobytes() for image in again}
    # Equal permutations darken the same places: the border of the clothes.
    assert np.corrcoef(first.mean(axis=0).ravel(), again.mean(axis=0).ravel())[0, 1] > 0.97


def test_blurry_boundaries_let_other_classes_through() -> None:
    stream = scenario(context("a", 10_000, classes=[0, 1], blur=0.2), context("b", 1_000, classes=[2, 3, 4]))
    drawn = labels(stream, stream.read(0, 10_000))
    assert abs(np.isin(drawn, [2, 3, 4]).mean() - 0.2) < 0.02
    assert set(drawn) == {0, 1, 2, 3, 4}


def test_class_incremental_splits_the_labels_in_order() -> None:
    stream = scenario(kind="class_incremental", count=3, samples_per_context=200)
    seen = [set(labels(stream, stream.read(start, 200))) for start in (0, 200, 400)]
    assert seen == [{0, 1, 2, 3}, {4, 5, 6}, {7, 8, 9}]
    assert stream.contexts == ["class_incremental_0", "class_incremental_1", "class_incremental_2"]
    assert set(stream.read(0, 200).target) == {0, 1, 2, 3} and set(stream.read(400, 200).target) == {7, 8, 9}


def tail(ratio: float, classes: int = 10) -> np.ndarray[Any, Any]:
    """Shares of the classes of a long tail."""
    weight = ratio ** (-np.arange(classes) / (classes - 1))
    return np.asarray(weight / weight.sum())


def assert_sampled(counts: np.ndarray[Any, Any], share: np.ndarray[Any, Any]) -> None:
    """Within four standard deviations of what independent draws would give, and a row's rounding."""
    rows = counts.sum()
    assert (np.abs(counts - rows * share) <= 4 * np.sqrt(rows * share * (1 - share)) + 1).all(), counts


@pytest.mark.parametrize("kind", ["permuted", "rotated", "class_incremental", "domain_incremental"])
def test_a_long_tailed_stream_has_the_frequencies_of_its_tail(kind: str) -> None:
    stream = scenario(kind=kind, imbalance=100, samples_per_context=4_000)
    rows = stream.read(0, 30_000)
    assert len(rows) == stream.total_rows == 20_000
    origin = np.concatenate([stream._plan(block)[1] for block in range(10)])
    counts = np.bincount(stream._pool.target[origin], minlength=10)
    assert_sampled(counts, tail(100))
    assert counts[0] / counts[9] == pytest.approx(100, rel=0.3)


def test_a_long_tail_over_listed_contexts_is_that_of_the_labels_they_draw() -> None:
    stream = scenario(context("a", 8_000, classes=[2, 5, 7, 9]), imbalance=10)
    assert_sampled(np.bincount(labels(stream, stream.read(0, 8_000)), minlength=10)[[2, 5, 7, 9]], tail(10, 4))
    halved = scenario(context("a", 20_000, class_weights={"0": 0.5, "9": 0}), imbalance=100)
    expected = tail(100) * np.array([0.5, *[1] * 8, 0])
    counts = np.bincount(labels(halved, halved.read(0, 20_000)), minlength=10)
    assert_sampled(counts, expected / expected.sum())


def test_contexts_with_classes_of_their_own_are_as_long_as_these_are_frequent() -> None:
    stream = scenario(kind="class_incremental", imbalance=100, samples_per_context=12_000, transition_samples=600)
    lengths = np.bincount(stream.read(0, 60_000).context)
    starts = [stream.change_before(row) for row in (59_999, 59_000, 55_000, 40_000)]
    assert starts == sorted(starts, reverse=True) and stream.total_rows == 60_000
    assert np.abs(np.diff([*starts[::-1], 60_000]) - 60_000 * tail(100).reshape(5, 2).sum(1)[1:]).max() <= 1
    assert (np.diff(lengths) < 0).all()


def test_blur_lets_the_other_classes_through_as_often_as_their_tail_says() -> None:
    stream = scenario(kind="class_incremental", imbalance=100, blur=0.2, samples_per_context=12_000)
    first = labels(stream, stream.read(0, 38_000))
    counts = np.bincount(first, minlength=10)
    assert counts[2:].sum() / 38_000 == pytest.approx(0.2, abs=0.01)
    assert_sampled(counts[2:], tail(100)[2:] / tail(100)[2:].sum())


def test_a_rare_label_at_the_head_of_a_tail_comes_again_rather_than_bend_it(
    tmp_path: Path, own_data_folder: Path
) -> None:
    random = np.random.default_rng(0)
    few = np.where(np.arange(1_000) < 20, "a", np.where(np.arange(1_000) < 500, "b", "c"))
    path = write(tmp_path / "t.parquet", {**example(1_000), "label": random.permutation(few)})
    stream = opened(path, scenario={"contexts": [context("all", 30_000)], "imbalance": 100})
    counts = dict(zip(*np.unique(labels(stream, stream.read(0, 30_000)), return_counts=True), strict=True))
    assert_sampled(np.array([counts[label] for label in "abc"]), tail(100, 3))


def test_domain_incremental_asks_for_the_place_of_a_class_in_its_group() -> None:
    stream = scenario(kind="domain_incremental", count=5, samples_per_context=400, blur=0.1)
    plain = scenario(kind="class_incremental", count=5, samples_per_context=400, blur=0.1)
    rows, same_rows = stream.read(0, 2_000), plain.read(0, 2_000)
    assert (labels(stream, rows) == labels(plain, same_rows) % 2).all()
    assert sorted(stream.labels) == [0, 1] and stream.contexts[4] == "domain_incremental_4"
    held, pool = stream.held_out(3, 200), stream._test_pool
    class_of = {picture.tobytes(): class_ for picture, class_ in zip(pool.columns["image"], pool.target, strict=True)}
    classes = np.array([class_of[picture.tobytes()] for picture in held.select(slice(None))["image"]])
    assert set(classes) == {6, 7} and (labels(stream, held) == classes % 2).all()
    resumed = scenario(kind="domain_incremental", count=5, samples_per_context=400, blur=0.1)
    resumed.load_state(json.loads(json.dumps(stream.state())))
    assert same(everything(resumed.read(700, 99)), everything(stream.read(700, 99)))


@pytest.mark.parametrize("kind", ["class_incremental", "domain_incremental", "permuted", "rotated"])
def test_ready_made_contexts_come_again_where_they_are_repeated(kind: str) -> None:
    stream = scenario(kind=kind, count=2, samples_per_context=500, repeat=2)
    assert stream.total_rows == 2_000
    assert stream.read(0, 2_000).context.tolist() == ([0] * 500 + [1] * 500) * 2
    assert [stream.change_before(row) for row in (499, 999, 1_499, 1_999)] == [None, 500, 1_000, 1_500]
    first, again = everything(stream.read(500, 500)), everything(stream.read(1_500, 500))
    assert np.corrcoef(first["image"].mean(0).ravel(), again["image"].mean(0).ravel())[0, 1] > 0.97
    assert set(first["target"]) == set(again["target"])
    assert not {row.tobytes() for row in first["image"]} & {row.tobytes() for row in again["image"]}


@settings(max_examples=10)
@given(
    cuts=st.lists(st.integers(1, 2_999), max_size=5, unique=True),
    seed=st.integers(0, 3),
    kind=st.sampled_from(["class_incremental", "domain_incremental", "permuted"]),
)
def test_slices_of_a_long_tailed_stream_put_together_are_the_whole(cuts: list[int], seed: int, kind: str) -> None:
    chosen: dict[str, Any] = {"kind": kind, "imbalance": 30, "samples_per_context": 300, "repeat": 2, "seed": seed}
    edges = [0, *sorted(cuts), 3_000]
    stream, whole = scenario(**chosen), scenario(**chosen)
    parts = [everything(stream.read(a, b - a)) for a, b in itertools.pairwise(edges)]
    assert same(joined(parts), everything(whole.read(0, 3_000)))
    resumed = scenario(**chosen)
    resumed.load_state(json.loads(json.dumps(whole.state())))
    assert same(everything(resumed.read(1_234, 99)), everything(whole.read(1_234, 99)))


def test_hundreds_of_permutations_are_all_different() -> None:
    stream = scenario(kind="permuted", count=200, samples_per_context=1_000)
    assert stream.total_rows == 200_000
    one = [stream._contexts[number].transform for number in range(200)]
    picture = {"image": np.arange(784).reshape(1, 1, 28, 28)}
    assert len({turn(picture, np.zeros(1, np.int64))["image"].tobytes() for turn in one}) == 200


def test_labels_come_in_order_of_first_appearance() -> None:
    stream = scenario(context("a", 100, classes=[7]), context("b", 100, classes=[2]))
    stream.read(0, 50)
    assert stream.labels == [7]
    assert set(stream.read(50, 100).target) == {0, 1} and stream.labels == [7, 2]


@pytest.mark.parametrize("kind", ["permuted", "rotated"])
def test_ready_made_kinds_begin_with_what_is_there_and_differ(kind: str) -> None:
    stream = scenario(kind=kind, count=4, samples_per_context=300)
    means = [stream.read(start, 300).select(slice(None))["image"].mean(axis=0) for start in range(0, 1_200, 300)]
    plain = scenario(context("a", 300)).read(0, 300).select(slice(None))["image"].mean(axis=0)
    assert np.corrcoef(means[0].ravel(), plain.ravel())[0, 1] > 0.97
    differ = [np.corrcoef(means[a].ravel(), means[b].ravel())[0, 1] for a in range(4) for b in range(a)]
    assert max(differ) < 0.99 and min(differ) < 0.9


def test_permuted_labels_are_a_permutation_of_the_contexts_own() -> None:
    plain, permuted = scenario(context("a")), scenario(context("a", transform="permute_labels"))
    before, after = labels(plain, plain.read(0, 2_000)), labels(permuted, permuted.read(0, 2_000))
    pairs = set(zip(before.tolist(), after.tolist(), strict=True))
    assert len(pairs) == 10 and {new for _, new in pairs} == set(range(10)) and any(old != new for old, new in pairs)
    some = scenario(context("z", 50), context("a", classes=[1, 5], transform="permute_labels"))
    assert set(labels(some, some.read(50, 500))) == {1, 5}
    other = scenario(context("a", transform="permute_labels", variant=1))
    assert (labels(other, other.read(0, 2_000)) != after).any()


def test_held_out_rows_are_test_rows_under_the_contexts_transform_and_classes() -> None:
    stream = scenario(context("a", 500), context("b", 500, classes=[1, 2], transform="rotate", degrees=180))
    stream.read(0, 1_000)
    plain, turned = stream.held_out(0, 10_000), stream.held_out(1, 300)
    assert len(plain) == 10_000 and len(turned) == 300
    assert turned.held_out.all() and (turned.context == 1).all()
    assert {stream.labels[number] for number in turned.target} == {1, 2}
    known = {image.tobytes() for image in plain.select(slice(None))["image"]}
    back = np.ascontiguousarray(np.rot90(turned.select(slice(None))["image"], 2, axes=(2, 3)))
    assert all(image.tobytes() in known for image in back)
    assert same(everything(stream.held_out(1, 300)), everything(turned))
    streamed = {image.tobytes() for image in stream.read(0, 500).select(slice(None))["image"]}
    assert not streamed & known


def test_held_out_rows_leave_out_labels_that_have_not_come() -> None:
    stream = scenario(context("a", 500, classes=[0, 1]), context("b", 500, classes=[2, 3]))
    stream.read(0, 100)
    assert len(stream.held_out(0, 50)) == 50
    assert len(stream.held_out(1, 50)) == 0


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        (
            [context("a", classes=[0, 11])],
            "context 'a' has label '11' in classes, which no row has (did you mean '1'?)",
        ),
        ([context("a", class_weights={"x": 1})], "context 'a' has label 'x' in class_weights, which no row has"),
        ([context("a", classes=[3])], "only one label is ever drawn; a classifier needs at least two"),
        ([context("a", blur=0.1)], "context 'a' has blur, but no other context has other classes"),
        (
            [context("a", transform="permute_patches", patch=5)],
            "has patch 5, which does not divide 28x28; choose a divisor",
        ),
        ([context("a"), context("b", classes=[1], transform="permute_labels")], "needs at least two classes"),
        ([context("a"), context("b", classes=[1], class_weights={"1": 0})], "context 'b' has no rows to draw"),
        ([context("a", 10, transition_samples=11)], "a transition must end within its context"),
        ([context("a", degrees=30)], "degrees is 30.0 but transform is none; set transform: rotate"),
        ([context("a"), context("a", classes=[1, 2])], "context 'a' comes again with other settings"),
        ([context("a", class_weights={"1": -1})], "class_weights must not be negative; 0 leaves a label out"),
        ([context("a", classes=[])], "classes is empty; name at least one label or remove it"),
        ([], "contexts is empty; list contexts, or set kind to another one, such as class_incremental"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(contexts: list[dict[str, Any]], words: str) -> None:
    assert words in refused(*contexts)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"kind": "class_incremental", "count": 11},
            "stream.scenario.count: is 11, but there are only 10 labels; lower it",
        ),
        (
            {"kind": "domain_incremental", "count": 3},
            "stream.scenario.count: is 3, but domain_incremental needs groups of equally many labels, at least two, "
            "and there are 10; choose 1 or 2 or 5",
        ),
        ({"kind": "domain_incremental", "count": 10}, "and there are 10; choose 1 or 2 or 5"),
        (
            {"kind": "class_incremental", "imbalance": 100, "transition_samples": 600},
            "stream.scenario.imbalance: 100 leaves context 'class_incremental_4' 323 rows, but it needs 600; "
            "lower imbalance or transition_samples, or raise samples_per_context",
        ),
        ({"kind": "permuted", "imbalance": 0.5}, "greater than or equal to 1"),
        ({"kind": "rotated", "blur": 0.1}, "blur needs contexts with different classes, but kind is rotated"),
        (
            {"kind": "rotated", "samples_per_context": 5, "transition_samples": 6},
            "a transition must end within its context",
        ),
        (
            {"kind": "rotated", "contexts": [context("a")]},
            "kind is rotated, which makes its own contexts; remove contexts",
        ),
        (
            {"contexts": [context("a")], "count": 3},
            "count means nothing when contexts are listed; set it in each context",
        ),
    ],
)
def test_settings_of_a_scenario_that_contradict_each_other_are_refused(more: dict[str, Any], words: str) -> None:
    assert words in refused(**more)


def test_a_scenario_written_out_in_full_is_read_back() -> None:
    """A run's folder holds the job with every key; resuming reads it."""
    for chosen in ({"source": "fashion_mnist"}, {"source": "fashion_mnist", "scenario": {"contexts": [context("a")]}}):
        settings = StreamSettings.model_validate(chosen)
        again = StreamSettings.model_validate(json.loads(settings.model_dump_json()))
        assert again == settings
        assert open_stream(again, seed=0, base=Path("/"), hold_out_fraction=0.0).labels == []


def test_a_checkpoint_of_other_data_is_refused() -> None:
    with pytest.raises(RunError, match="label 'x' of the checkpoint is not in the data any more; start a new run"):
        scenario(context("a")).load_state({"row": 5, "labels": [1, "x"]})


TABLE = [context("a", 300), context("b", 300, transform="corrupt", severity=0.5, transition_samples=100)]


@pytest.fixture
def table(tmp_path: Path, own_data_folder: Path) -> Path:
    return write(tmp_path / "table.parquet", {**example(1_000), "whole": np.arange(1_000)})


def test_a_scenario_over_a_table_never_streams_its_test_rows(table: Path) -> None:
    stream = opened(table, scenario={"contexts": [context("a", 5_000)]})
    assert stream.fields.numeric == ("number", "whole")
    assert set(stream.labels) <= {"a", "b", "c"}
    streamed = stream.read(0, 5_000).select(slice(None))["numeric"]
    held = stream.held_out(0, 500).select(slice(None))["numeric"]
    assert 60 < len(held) < 140
    assert not {row.tobytes() for row in streamed} & {row.tobytes() for row in held}
    assert len({row.tobytes() for row in streamed}) == 1_000 - len(held)


def test_noise_on_a_table_is_scaled_to_each_column_and_keeps_gaps(table: Path) -> None:
    plain = opened(table, scenario={"contexts": [context("a", 900)]}).read(0, 900).select(slice(None))
    noisy = opened(table, scenario={"contexts": [context("a", 900, transform="corrupt", severity=0.5)]})
    features = noisy.read(0, 900).select(slice(None))
    noise = features["numeric"] - plain["numeric"]
    assert (np.isnan(features["numeric"]) == np.isnan(plain["numeric"])).all()
    assert np.allclose(np.nanstd(noise, axis=0), 0.5 * np.nanstd(plain["numeric"], axis=0), rtol=0.1)
    assert (features["categorical"] == plain["categorical"]).all()


def test_rows_of_a_table_are_kept_once_and_used_again(table: Path, own_data_folder: Path) -> None:
    first = everything(opened(table, scenario={"contexts": TABLE}).read(0, 600))
    kept = list((own_data_folder / "spool").iterdir())
    assert len(kept) == 1
    assert same(everything(opened(table, scenario={"contexts": TABLE}).read(0, 600)), first)
    assert list((own_data_folder / "spool").iterdir()) == kept
    write(table, example(500, seed=1))
    opened(table, scenario={"contexts": TABLE})
    assert len(list((own_data_folder / "spool").iterdir())) == 2


def test_a_scenario_over_a_regression_draws_all_rows(tmp_path: Path, own_data_folder: Path) -> None:
    path = write(tmp_path / "a.csv", {**example(200), "label": np.arange(200.0)})
    stream = opened(path, task="regression", scenario={"contexts": TABLE})
    rows = stream.read(0, 150)
    assert rows.target.dtype == np.float32 and len(set(rows.target.tolist())) == 150
    assert not set(stream.held_out(0, 99).target.tolist()) & set(stream.read(0, 600).target.tolist())


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"kind": "domain_incremental"}, "stream.scenario.kind: domain_incremental needs classes; use task"),
        ({"contexts": TABLE, "imbalance": 10}, "stream.scenario.imbalance: needs classes; use task: classification or"),
    ],
)
def test_what_a_regression_cannot_have_is_refused(
    tmp_path: Path, own_data_folder: Path, chosen: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "a.csv", {**example(200), "label": np.arange(200.0)})
    with pytest.raises(InputError) as refusal:
        opened(path, task="regression", scenario=chosen)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("chosen", "changes", "words"),
    [
        (
            context("a", transform="rotate", degrees=9),
            {},
            "context 'a' has transform rotate, which needs images; tables",
        ),
        (context("a", transform="corrupt"), {"features": {"categorical": ["place"]}}, "but the rows hold no numbers"),
        (context("a", classes=["a", "d"]), {}, "has label 'd' in classes, which no row has; there are b, a, c"),
    ],
)
def test_what_a_table_cannot_have_is_refused(
    table: Path, chosen: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as refusal:
        opened(table, scenario={"contexts": [chosen]}, **changes)
    assert words in str(refusal.value)


def test_rows_that_cannot_be_read_are_refused_before_a_scenario_starts(tmp_path: Path, own_data_folder: Path) -> None:
    path = write(tmp_path / "a.parquet", {**example(20), "label": ["a", "b"] * 9 + ["a", None]})
    with pytest.raises(InputError, match=r"a.parquet: row 20: 'label' is missing; drop the row or fill it"):
        opened(path, scenario={"contexts": TABLE})


def test_a_folder_that_cannot_be_written_is_named(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANARIA_DATA", str(table))  # a file, where a folder is needed
    with pytest.raises(InputError, match=r"cannot keep the scenario's rows .* make room or set PLANARIA_DATA"):
        opened(table, scenario={"contexts": TABLE})


@pytest.mark.parametrize("start", [4_096, 5_000])
def test_there_are_no_rows_at_the_end_of_a_scenario_and_behind_it(start: int) -> None:
    assert len(scenario(context("a", 4_096)).read(start, 64)) == 0
