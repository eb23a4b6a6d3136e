"""What the learned value sees of a decision: numbers without a scale, the same for every stream, model and task.

Legend: K candidates, X features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from planaria.control.judge import Situation
from planaria.control.look_ahead import Trial
from planaria.signals import Candidate

Floats = npt.NDArray[np.float64]
LEAST_LOSS = 0.1
"""Nats. Gains are relative to the present loss, but to no less than this."""

OLD = 25.0
"""Cool-downs. What is older is as old as that: a run may go on for much longer than anything that was learned from."""


def _squash(value: float) -> float:
    """Keeps small values as they are and large ones finite."""
    return math.copysign(math.log1p(abs(value)), value)


def _log(value: float) -> float:
    """Of what is never below 0; what is, all the same, counts as 0."""
    return math.log1p(max(0.0, value))


_STATE: dict[str, Callable[[float], float]] = {
    "loss_fast": lambda value: math.log(max(value, 0.02)),
    "error_fast": lambda value: value,
    "jump": _squash,
    "slope": _squash,
    "above_floor": _squash,
    "shift_age": lambda value: _log(min(value, OLD)),
    "edit_age": lambda value: _log(min(value, OLD)),
    "shift_abrupt": float,
    "shift_gradual": float,
    "shift_recurring": float,
    "heads_fraction": float,
    "heads_log": float,
    "heads_mature": float,
    "importance_lowest": float,
    "importance_second": float,
    "growth_strongest": _log,
    "growth_weakest": _log,
    "remembers": float,
    "memory_drift": _squash,
    "library_fit": _squash,
}
"""Observations and how each becomes a feature."""
_OPTION = ("doublings", "share_of_layer", "growth", "importance", "fit")
_TREATMENTS = ("reset", "temper")
EDIT_KINDS = ("grow_heads", "shrink_heads", "recycle_head", "restore")
_TRIAL = ("looked", "gain_recent", "gain_recent_error", "gain_memory")

NAMES: tuple[str, ...] = (*_STATE, *(f"option_{name}" for name in (*_OPTION, *_TREATMENTS, *EDIT_KINDS)), *_TRIAL)
"""Of all features, in order."""
GROUPS: dict[str, tuple[str, ...]] = {
    "loss": ("loss_fast", "error_fast", "jump", "slope", "above_floor"),
    "time": ("shift_age", "edit_age"),
    "shift": ("shift_abrupt", "shift_gradual", "shift_recurring"),
    "heads": ("heads_fraction", "heads_log", "heads_mature"),
    "importance": ("importance_lowest", "importance_second", "option_importance"),
    "growth": ("growth_strongest", "growth_weakest", "option_growth"),
    "memory": ("remembers", "memory_drift", "library_fit", "option_fit"),
    "look_ahead": _TRIAL,
}
"""What ablations leave out together."""


def features(situation: Situation, trials: Mapping[int, Trial]) -> Floats:
    """One row a candidate, shape [K, X]. `trials` holds those that were looked ahead on, by number."""
    return rows_of(situation.observation, situation.candidates, scale_of(situation.loss), trials)


def rows_of(
    observation: Mapping[str, float], candidates: Sequence[Candidate], scale: float, trials: Mapping[int, Trial]
) -> Floats:
    state = [transform(float(observation.get(name, 0.0))) for name, transform in _STATE.items()]
    rows = [
        [*state, *_option(candidate), *_seen(trials.get(0), trials.get(number), scale)]
        for number, candidate in enumerate(candidates)
    ]
    return np.nan_to_num(np.array(rows, np.float64), nan=0.0, posinf=5.0, neginf=-5.0)


def scale_of(loss: float) -> float:
    """Nats that a relative gain of 1 stands for."""
    return max(loss, LEAST_LOSS)


def _option(candidate: Candidate) -> list[float]:
    kind = None if candidate.edit is None else candidate.edit["kind"]
    facts = candidate.facts
    return [
        facts.get("doublings", 0.0),
        facts.get("share_of_layer", 0.0),
        _log(facts.get("growth", 0.0)),
        facts.get("importance", 0.0),
        _squash(facts.get("fit", 0.0)),
        *(float(candidate.treatment == name) for name in _TREATMENTS),
        *(float(kind == name) for name in EDIT_KINDS),
    ]


def _seen(keep: Trial | None, trial: Trial | None, scale: float) -> list[float]:
    """What looking ahead showed, against keeping; zeros where it was not looked."""
    if keep is None or trial is None:
        return [0.0] * len(_TRIAL)
    gain_R, gain_M = keep.recent_R - trial.recent_R, keep.memory_M - trial.memory_M
    error = float(gain_R.std(dtype=np.float64)) / math.sqrt(max(1, len(gain_R)))
    memory = float(gain_M.mean()) if len(gain_M) else 0.0
    return [1.0, _squash(float(gain_R.mean()) / scale), min(1.0, error / scale), _squash(memory / scale)]
