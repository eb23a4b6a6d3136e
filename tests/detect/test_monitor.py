"""The monitor on streams of Gaussian clouds: one cloud a class, with known changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planaria.detect import ShiftMonitor
from planaria.detect.signature import MAX_CONCEPTS, Library, Signature
from planaria.errors import InputError
from planaria.policy import Detector, InputChannel
from planaria.signals import Shift, StepReport

FEATURES = 32


@dataclass(frozen=True)
class World:
    """One distribution of sketch, class and loss."""

    variant: int = 0
    classes: tuple[int, ...] = (0, 1, 2, 3)
    labels: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """What each class is called."""
    weights: tuple[float, ...] | None = None
    loss: float = 0.4

    def rows(self, count: int, chance: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        means_KF = np.random.default_rng(1_000 + self.variant).normal(0, 0.7, (8, FEATURES))
        classes = chance.choice(self.classes, count, p=self.weights)
        sketch = means_KF[classes] + chance.normal(size=(count, FEATURES))
        return sketch.astype(np.float32), np.array(self.labels)[classes]


HOME = World()
AWAY = World(variant=1, loss=0.8)
RELABELLED = World(labels=(3, 0, 1, 2, 4, 5, 6, 7))


@dataclass(frozen=True)
class Stretch:
    world: World
    rows: int
    transition: int = 0
    """Rows over which this world replaces the one before, more and more often."""


def reports(*stretches: Stretch, seed: int = 0, batch: int = 128) -> Iterator[StepReport]:
    """The stretches' rows in batches. The loss is exponential: as skewed as that of a classifier."""
    chance = np.random.default_rng(seed)
    parts = []
    before = stretches[0].world
    for stretch in stretches:
        sketch, target = stretch.world.rows(stretch.rows, chance)
        loss = chance.exponential(stretch.world.loss, stretch.rows).astype(np.float32)
        if stretch.transition:
            old = chance.random(stretch.rows) > np.arange(stretch.rows) / stretch.transition
            sketch[old], target[old] = before.rows(int(old.sum()), chance)
            loss[old] *= before.loss / stretch.world.loss
        parts.append((sketch, target, loss))
        before = stretch.world
    sketch, target, loss = (np.concatenate(column) for column in zip(*parts, strict=True))
    output = np.eye(8, dtype=np.float32)[target % 8]
    for step, start in enumerate(range(0, len(target), batch)):
        at = slice(start, start + batch)
        yield StepReport(step, start, loss[at], (loss[at] > 1).astype(np.float32), target[at], output[at], sketch[at])


def shifts_in(stream: Iterable[StepReport], monitor: ShiftMonitor | None = None) -> list[Shift]:
    monitor = monitor or ShiftMonitor(Detector(), "classification")
    return [shift for report in stream if (shift := monitor.update(report)) is not None]


@pytest.mark.parametrize("after", [AWAY, replace(AWAY, loss=0.4), RELABELLED, replace(HOME, classes=(4, 5, 6, 7))])
@pytest.mark.parametrize("batch", [32, 128, 200])
def test_an_abrupt_change_is_reported_once_within_1000_rows(after: World, batch: int) -> None:
    shifts = shifts_in(reports(Stretch(HOME, 5_000), Stretch(after, 5_000), batch=batch))
    assert [shift.kind for shift in shifts] == ["abrupt"]
    assert 5_000 < shifts[0].sample <= 6_000
    assert abs(shifts[0].onset_sample - 5_000) <= 64
    assert shifts[0].statistic > shifts[0].threshold
    assert shifts[0].concept is None


def test_relabelled_classes_are_seen_by_the_pairs_even_if_the_loss_stays_flat() -> None:
    shifts = shifts_in(reports(Stretch(HOME, 5_000), Stretch(RELABELLED, 3_000)))
    assert [shift.detector for shift in shifts] == ["pairs"]


def test_label_free_channels_cannot_see_relabelled_classes() -> None:
    blind = ShiftMonitor(Detector(loss=None, pairs=None, predictions=None), "classification")
    assert shifts_in(reports(Stretch(HOME, 5_000), Stretch(RELABELLED, 5_000)), blind) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_stationary_stream_of_50000_rows_gives_no_shift(seed: int) -> None:
    assert shifts_in(reports(Stretch(HOME, 50_000), seed=seed)) == []


def test_a_world_that_comes_back_is_recurring_with_its_number() -> None:
    stretches = [Stretch(world, 4_000) for world in (HOME, AWAY, HOME, RELABELLED, AWAY, RELABELLED)]
    shifts = shifts_in(reports(*stretches))
    assert [shift.kind for shift in shifts] == ["abrupt", "recurring", "abrupt", "recurring", "recurring"]
    assert [shift.concept for shift in shifts] == [None, 0, None, 1, 2]


def test_without_recognition_a_world_that_comes_back_is_abrupt() -> None:
    forgetful = ShiftMonitor(Detector(recurring=False), "classification")
    shifts = shifts_in(reports(Stretch(HOME, 4_000), Stretch(AWAY, 4_000), Stretch(HOME, 4_000)), forgetful)
    assert [shift.kind for shift in shifts] == ["abrupt", "abrupt"]


def test_a_world_is_recognised_with_somewhat_other_class_frequencies() -> None:
    skewed = replace(HOME, weights=(0.4, 0.25, 0.2, 0.15))
    shifts = shifts_in(reports(Stretch(HOME, 5_000), Stretch(AWAY, 5_000), Stretch(skewed, 5_000)))
    assert [(shift.kind, shift.concept) for shift in shifts] == [("abrupt", None), ("recurring", 0)]


@pytest.mark.parametrize("rows", [2_000, 4_000])
def test_a_slow_change_is_gradual_and_reported_once(rows: int) -> None:
    shifts = shifts_in(reports(Stretch(HOME, 6_000), Stretch(AWAY, 12_000, transition=rows)))
    assert [shift.kind for shift in shifts] == ["gradual"]
    assert 6_000 <= shifts[0].onset_sample < shifts[0].sample <= 6_000 + rows


def test_a_slow_change_ends_in_a_concept_of_its_own() -> None:
    monitor = ShiftMonitor(Detector(), "classification")
    shifts_in(reports(Stretch(HOME, 6_000), Stretch(AWAY, 10_000, transition=2_000)), monitor)
    assert monitor.concept == 1


def falling_then_flat(rows: int) -> Iterator[StepReport]:
    for report in reports(Stretch(HOME, rows)):
        factor = 0.4 + 2 * np.exp(-(report.start + np.arange(len(report.loss_B))) / 3_000)
        yield replace(report, loss_B=(report.loss_B * factor).astype(np.float32))


def test_a_loss_that_falls_and_comes_to_rest_is_no_shift() -> None:
    only_loss = ShiftMonitor(Detector(inputs=None, pairs=None), "classification")
    assert shifts_in(falling_then_flat(30_000), only_loss) == []


def test_an_alarm_of_the_loss_is_withdrawn_where_the_rows_are_as_before(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "planaria.detect")
    assert shifts_in(reports(Stretch(HOME, 5_000), Stretch(replace(HOME, loss=1.6), 3_000))) == []
    assert "withdrawn" in caplog.text


def test_a_jump_of_the_loss_after_an_edit_raises_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "planaria.detect")
    monitor = ShiftMonitor(Detector(), "classification")
    shifts_in(reports(Stretch(HOME, 6_400)), monitor)
    monitor.adapted(6_400)
    later = [replace(r, start=r.start + 6_400) for r in reports(Stretch(replace(HOME, loss=1.6), 6_400), seed=1)]
    assert shifts_in(later, monitor) == []
    assert "withdrawn" not in caplog.text


def linear_regression(slopes: tuple[float, float], rows: int) -> Iterator[StepReport]:
    """The target is a slope times one feature; the slope changes halfway."""
    for report in reports(Stretch(HOME, rows)):
        slope = slopes[0] if report.start < rows // 2 else slopes[1]
        target = slope * report.sketch_BF[:, 0] + 0.3 * report.sketch_BF[:, 1]
        yield replace(report, target_B=target, output_BC=target[:, None])


def test_a_changed_link_of_a_regression_is_seen() -> None:
    monitor = ShiftMonitor(Detector(loss=None), "regression")
    shifts = shifts_in(linear_regression((1.0, -1.0), 10_000), monitor)
    assert len(shifts) == 1
    assert 5_000 < shifts[0].sample <= 6_000


def test_a_regression_that_stays_gives_no_shift() -> None:
    assert shifts_in(linear_regression((1.0, 1.0), 20_000), ShiftMonitor(Detector(), "regression")) == []


STORY = (Stretch(HOME, 3_000), Stretch(AWAY, 4_000), Stretch(HOME, 3_000), Stretch(RELABELLED, 4_000, transition=1_500))
EVERYTHING = Detector(predictions=InputChannel())


@pytest.fixture(scope="module")
def story() -> tuple[list[StepReport], list[Shift], str]:
    monitor = ShiftMonitor(EVERYTHING, "classification")
    steps = list(reports(*STORY))
    shifts = shifts_in(steps, monitor)
    assert len(shifts) >= 3
    return steps, shifts, json.dumps(monitor.state(), allow_nan=False)


@settings(max_examples=8)
@given(cut=st.integers(0, 109))
def test_a_restored_monitor_goes_on_bit_for_bit(cut: int, story: tuple[list[StepReport], list[Shift], str]) -> None:
    steps, expected, end = story
    first = ShiftMonitor(EVERYTHING, "classification")
    before = shifts_in(steps[:cut], first)
    second = ShiftMonitor(EVERYTHING, "classification")
    second.load_state(json.loads(json.dumps(first.state(), allow_nan=False)))
    after = shifts_in(steps[cut:], second)
    assert before + after == expected
    assert json.dumps(second.state(), allow_nan=False) == end


def test_a_monitor_that_loads_a_state_forgets_what_it_had_seen(
    story: tuple[list[StepReport], list[Shift], str],
) -> None:
    steps, _, end = story
    used = ShiftMonitor(EVERYTHING, "classification")
    shifts_in(steps[:60], used)
    used.load_state(json.loads(end))
    assert json.dumps(used.state(), allow_nan=False) == end


def broken(state: dict[str, Any], *path: str | int, to: object) -> dict[str, Any]:
    """A copy with one value replaced, or removed where `to` is Ellipsis."""
    copy: Any = json.loads(json.dumps(state))
    part = copy
    for key in path[:-1]:
        part = part[key]
    if to is ...:
        del part[path[-1]]
    else:
        part[path[-1]] = to
    return dict(copy)


@pytest.mark.parametrize(
    ("path", "to", "words"),
    [
        (("phase",), "dreaming", "phase is 'dreaming'"),
        (("phase",), 3, "phase expected text"),
        (("settle_until",), "soon", "settle_until expected a whole number"),
        (("history",), ..., "history is missing"),
        (("history", "sketch", "shape"), [3, 31], "sketch expected shape [any, 32]"),
        (("history", "sketch", "shape"), [10**12, 32], "do not fill shape"),
        (("history", "sketch", "data"), "not base64!", "is not base64 text"),
        (("history", "sketch", "dtype"), "|O", "expected float32 values"),
        (("channels", "loss"), [1], "expected a mapping, found list"),
        (("channels", "loss", "baseline", "mean"), float("nan"), "expected a finite number"),
        (("channels", "loss", "adwin", "window"), "AAAA", "does not match its checksum"),
        (("channels", "inputs", "reference", "count"), ..., "count is missing"),
        (("channels", "pairs"), ..., "channels: pairs is missing"),
        (("library", "concepts"), {}, "concepts expected a list"),
        (("concept",), 77, "concept is not in the library"),
        (("features",), 16, "features is 16"),
    ],
)
def test_a_broken_state_is_one_line_that_names_the_part(
    path: tuple[str, ...], to: object, words: str, story: tuple[list[StepReport], list[Shift], str]
) -> None:
    state = json.loads(story[2])
    with pytest.raises(InputError) as caught:
        ShiftMonitor(EVERYTHING, "classification").load_state(broken(state, *path, to=to))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("resume from an earlier checkpoint")


def test_an_alarm_without_the_rows_before_it_is_refused(story: tuple[list[StepReport], list[Shift], str]) -> None:
    monitor = ShiftMonitor(EVERYTHING, "classification")
    state: dict[str, Any] = {}
    for report in story[0]:
        monitor.update(report)
        state = monitor.state()
        if state["phase"] == "identifying":
            break
    for key, to, words in (("alarm", None, "alarm is missing"), ("before", [], "before has 0 parts")):
        with pytest.raises(InputError, match=words):
            ShiftMonitor(EVERYTHING, "classification").load_state(broken(state, key, to=to))
    with pytest.raises(InputError, match="no rows from before the alarm"):
        ShiftMonitor(EVERYTHING, "classification").load_state(broken(state, "before", 0, "count", to=0.0))


@pytest.mark.parametrize("state", [{}, {"features": 32}, {"features": True}])
def test_a_state_of_something_else_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="detector state"):
        ShiftMonitor(Detector(), "classification").load_state(state)


def test_the_state_stays_small_with_many_classes_and_worlds() -> None:
    monitor = ShiftMonitor(Detector(settle_samples=512), "classification")
    many = tuple(range(8))
    for number in range(6):
        world = World(variant=number, classes=many, labels=tuple(100 * number + k for k in many))
        steps = reports(Stretch(world, 3_840), seed=number)
        shifts_in([replace(r, start=r.start + 3_840 * number) for r in steps], monitor)
    assert monitor.concept == 5
    assert len(json.dumps(monitor.state())) < 2_000_000


def test_the_library_keeps_the_16_concepts_that_were_current_last() -> None:
    library = Library(features=2, max_distance=0.5)
    chance = np.random.default_rng(0)

    def window(place: int) -> Signature:
        signature = Signature(2)
        signature.add((chance.normal(size=(64, 2)) + 10 * place).astype(np.float32), np.zeros(64, np.int64))
        return signature

    for place in range(MAX_CONCEPTS):
        assert library.enter(library.nearest(window(place)), window(place)) == place
    assert library.enter(library.nearest(window(0)), window(0)) == 0
    assert library.enter(library.nearest(window(99)), window(99)) == MAX_CONCEPTS
    assert library.nearest(window(0)) == 0
    assert library.nearest(window(1)) is None
    assert len(library.state()["concepts"]) == MAX_CONCEPTS


def test_every_worker_sees_the_same() -> None:
    monitors = [ShiftMonitor(Detector(), "classification") for _ in range(2)]
    for report in reports(Stretch(HOME, 3_000), Stretch(AWAY, 2_000)):
        assert monitors[0].update(report) == monitors[1].update(report)
    assert monitors[0].state() == monitors[1].state()


@pytest.mark.parametrize("batch", [10, 32])
def test_small_steps_are_looked_at_together_and_a_state_between_keeps_what_waits(batch: int) -> None:
    steps = list(reports(Stretch(HOME, 4_000), Stretch(AWAY, 3_000), Stretch(HOME, 3_000), batch=batch))
    whole = ShiftMonitor(EVERYTHING, "classification")
    expected = shifts_in(steps, whole)
    assert [shift.kind for shift in expected] == ["abrupt", "recurring"]
    large = shifts_in(reports(Stretch(HOME, 4_000), Stretch(AWAY, 3_000), Stretch(HOME, 3_000), batch=64))
    assert all(abs(a.sample - b.sample) <= 320 for a, b in zip(expected, large, strict=True))
    cut, found = ShiftMonitor(EVERYTHING, "classification"), []
    for report in steps:  # a state between any two steps
        if (shift := cut.update(report)) is not None:
            found.append(shift)
        if report.step % 7 == 0:
            again = ShiftMonitor(EVERYTHING, "classification")
            again.load_state(json.loads(json.dumps(cut.state(), allow_nan=False)))
            cut = again
    assert found == expected and cut.state() == whole.state()


def test_rows_that_wait_are_looked_at_before_the_model_is_edited_and_before_it_knows_more_labels() -> None:
    steps = list(reports(Stretch(HOME, 4_000), Stretch(AWAY, 3_000), batch=10))
    at = next(shift.step for shift in shifts_in(steps))
    told = []
    for edited in (True, False):
        monitor = ShiftMonitor(EVERYTHING, "classification")
        early = shifts_in(steps[: at - 2], monitor)
        assert not early and monitor.state()["waiting"]
        if edited:
            monitor.adapted(10 * (at - 2))
            assert not monitor.state()["waiting"]
        wider = [replace(one, output_BC=np.pad(one.output_BC, ((0, 0), (0, 1)))) for one in steps[at - 2 : at + 30]]
        told += shifts_in(wider, monitor)[:1]
    assert [shift.kind for shift in told] == ["abrupt", "abrupt"]
