"""Each channel alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import ks_2samp

from planaria.detect import loss as loss_module
from planaria.detect.channel import Channel, Evidence
from planaria.detect.loss import LossDetector
from planaria.detect.predictions import PredictionChannel, _kolmogorov_smirnov
from planaria.detect.saved import Saved
from planaria.detect.windows import WindowChannel
from planaria.errors import InputError
from planaria.policy import InputChannel, LossChannel
from planaria.signals import StepReport

B = 100


def step(number: int, **columns: npt.NDArray[Any]) -> StepReport:
    rows = len(next(iter(columns.values())))
    empty = np.zeros(rows, np.float32)
    return StepReport(
        step=number,
        start=number * B,
        loss_B=columns.get("loss", empty),
        error_B=empty,
        target_B=empty,
        output_BC=columns.get("output", empty[:, None]),
        sketch_BF=columns.get("sketch", empty[:, None]),
    )


def alarms(channel: Channel, kind: str, rows: npt.NDArray[Any]) -> list[tuple[int, Evidence]]:
    """(rows seen, evidence) for every step with evidence."""
    found = []
    for number in range(len(rows) // B):
        report = step(number, **{kind: rows[number * B : (number + 1) * B].astype(np.float32)})
        if (evidence := channel.update(report)) is not None:
            found.append(((number + 1) * B, evidence))
    return found


def first_alarm(channel: Channel, kind: str, rows: npt.NDArray[Any]) -> tuple[int, Evidence]:
    found = alarms(channel, kind, rows)
    assert found
    return found[0]


# -- loss


def exponential(*parts: tuple[int, float], seed: int = 0) -> npt.NDArray[np.float64]:
    chance = np.random.default_rng(seed)
    return np.concatenate([chance.exponential(scale, rows) for rows, scale in parts])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_loss_alarms_soon_after_it_doubles_whatever_its_unit(scale: float) -> None:
    seen, evidence = first_alarm(LossDetector(LossChannel()), "loss", scale * exponential((5_000, 1), (2_000, 2)))
    assert 5_000 < seen <= 5_300
    assert 4_900 <= evidence.onset_sample <= 5_100
    assert evidence.statistic > evidence.threshold


def test_the_loss_gives_no_alarm_over_100000_rows() -> None:
    assert alarms(LossDetector(LossChannel()), "loss", exponential((100_000, 1))) == []


def test_the_loss_gives_no_alarm_when_it_falls() -> None:
    assert alarms(LossDetector(LossChannel()), "loss", exponential((5_000, 2), (5_000, 1), (20_000, 0.3))) == []


def test_not_a_number_and_infinity_do_not_stop_the_loss_channel() -> None:
    rows = exponential((3_000, 1), (2_000, 3))
    rows[[10, 700, 2_000]] = np.nan, np.inf, -np.inf
    channel = LossDetector(LossChannel())
    assert first_alarm(channel, "loss", rows)[0] > 3_000
    json.dumps(channel.state(), allow_nan=False)


def test_a_window_of_another_river_makes_adwin_start_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    channel = LossDetector(LossChannel())
    alarms(channel, "loss", exponential((2_000, 1)))
    state = channel.state()
    state["adwin"]["river"] = "0.1"
    channel.load_state(Saved(state))
    assert channel._adwin.width == 0
    assert "ADWIN starts anew" in caplog.text


def test_a_window_that_river_cannot_decode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = LossDetector(LossChannel())
    state = channel.state()
    state["adwin"] |= {"window": "", "sha256": loss_module.hashlib.sha256(b"").hexdigest()}
    with pytest.raises(InputError, match="window cannot be read"):
        channel.load_state(Saved(state))


# -- windows


def window_channel(features: int, **changes: Any) -> WindowChannel:
    return WindowChannel("inputs", InputChannel(**changes), features, lambda report: report.sketch_BF)


def normal(rows: int, features: int = 32, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(rows, features))


@pytest.mark.parametrize(("jump", "within"), [(0.15, 1_100), (0.3, 400), (1.0, 200)])
def test_a_jump_of_all_means_is_found_within(jump: float, within: int) -> None:
    rows = normal(8_000)
    rows[5_000:] += jump
    seen, evidence = first_alarm(window_channel(32), "sketch", rows)
    assert 5_000 < seen <= 5_000 + within
    assert abs(evidence.onset_sample - 5_000) <= 128


def test_windows_give_no_alarm_over_100000_rows() -> None:
    assert alarms(window_channel(16), "sketch", normal(100_000, 16)) == []


def test_rows_that_resemble_their_neighbours_give_no_alarm() -> None:
    """Each row keeps 80% of the one before: 128 rows then say no more than 14 independent ones."""
    rows = normal(50_000, 8)
    for number in range(1, len(rows)):
        rows[number] = 0.8 * rows[number - 1] + 0.6 * rows[number]
    assert alarms(window_channel(8), "sketch", rows) == []


def test_features_that_never_vary_or_repeat_each_other_do_no_harm() -> None:
    rows = normal(20_000, 6)
    rows[:, 3] = 7.0
    rows[:, 4] = rows[:, 5]
    assert alarms(window_channel(6), "sketch", rows) == []
    rows[12_000:, 3] += 0.5
    assert first_alarm(window_channel(6), "sketch", rows)[0] <= 12_300


def test_a_window_channel_is_silent_until_it_has_a_reference() -> None:
    rows = normal(3_000)
    rows[500:] += 3
    channel = window_channel(32, reference_rows=1_024)
    assert all(seen > 1_024 for seen, _ in alarms(channel, "sketch", rows))


def test_a_dismissed_alarm_leaves_the_channel_armed() -> None:
    rows = normal(8_000)
    rows[5_000:5_100] += 1
    rows[6_000:] += 1
    channel = window_channel(32)
    seen, _ = first_alarm(channel, "sketch", rows[:5_200])
    channel.dismiss()
    later = [step(number, sketch=rows[number * B : (number + 1) * B].astype(np.float32)) for number in range(52, 63)]
    found = [report.start + B for report in later if channel.update(report) is not None]
    assert seen <= 5_200
    assert found[0] in (6_100, 6_200)


# -- predictions


@pytest.mark.parametrize("seed", range(5))
def test_kolmogorov_smirnov_agrees_with_scipy_also_with_ties(seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(600, 3)).astype(np.float32)
    rows[:, 1] = rows[:, 1].round(1)
    expected = max(ks_2samp(rows[:400, column], rows[400:, column]).statistic for column in range(3))
    assert _kolmogorov_smirnov(rows, 400) == pytest.approx(expected * np.sqrt(400 * 200 / 600))


def test_predictions_that_turn_confident_in_another_class_are_seen() -> None:
    rows = normal(6_000, 5)
    rows[4_000:, 2] += 2
    seen, evidence = first_alarm(PredictionChannel(InputChannel(), "classification"), "output", rows)
    assert 4_000 < seen <= 4_400
    assert evidence.onset_sample < seen


def test_predictions_of_a_slowly_learning_model_give_no_alarm() -> None:
    rows = normal(40_000, 5) * np.linspace(1, 3, 40_000)[:, None]
    assert alarms(PredictionChannel(InputChannel(), "classification"), "output", rows) == []


def test_predictions_go_on_when_a_class_is_added() -> None:
    channel = PredictionChannel(InputChannel(), "classification")
    alarms(channel, "output", normal(3_000, 3))
    channel.update(step(30, output=normal(B, 4).astype(np.float32)))
    assert channel.state()["rows"]["shape"][1] == 4
