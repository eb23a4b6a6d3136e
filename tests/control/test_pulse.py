"""The run's pulse: what decisions observe of the loss."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planaria.control.pulse import Pulse
from planaria.errors import InputError
from planaria.signals import StepReport


def beat(pulse: Pulse, loss: float, rows: int, batch: int = 64) -> None:
    for _ in range(rows // batch):
        loss_B = np.full(batch, loss, np.float32)
        pulse.update(StepReport(0, pulse.samples, loss_B, loss_B > 1, loss_B, loss_B[:, None], loss_B[:, None]))


def test_a_steady_loss_has_no_jump_and_no_slope() -> None:
    pulse = Pulse()
    beat(pulse, 0.5, 20_000)
    seen = pulse.observation()
    assert seen["loss_fast"] == pytest.approx(0.5) == seen["loss_slow"]
    assert (seen["jump"], seen["error_fast"]) == (0, 0)
    assert seen["slope"] == pytest.approx(0) == seen["above_floor"]


def test_a_shift_is_seen_as_a_jump_over_what_was_before_it_and_then_as_a_slope_down() -> None:
    pulse = Pulse()
    beat(pulse, 0.5, 20_000)
    pulse.shifted()
    beat(pulse, 2.0, 1_024)
    risen = pulse.observation()
    assert risen["loss_before"] == pytest.approx(0.5) and 2 < risen["jump"] < 3
    assert risen["slope"] > 0.1 and risen["samples_since_shift"] == 1_024 and risen["error_fast"] > 0.8
    beat(pulse, 2.0, 4_096)
    beat(pulse, 1.0, 512)
    assert pulse.observation()["slope"] < -0.1


def test_a_saved_pulse_goes_on_alike() -> None:
    pulse = Pulse()
    beat(pulse, 0.5, 1_024)
    pulse.shifted()
    again = Pulse.from_state(json.loads(json.dumps(pulse.state())))
    beat(pulse, 1.5, 640)
    beat(again, 1.5, 640)
    assert again == pulse
    with pytest.raises(InputError, match=r"controller state: .*use an older checkpoint"):
        Pulse.from_state({"samples": 3})
