"""The learned value: what it predicts, how it adapts, and the file that holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from planaria.control.features import NAMES, rows_of
from planaria.control.value import Outcomes, ValueEnsemble, load_value
from planaria.errors import InputError
from planaria.signals import Candidate

HandMade = Callable[..., ValueEnsemble]
KEEP = Candidate("keep", None, "keep", (3,), 100)
GROW = Candidate("grow", {"kind": "grow_heads", "layer": 0, "heads": 1}, "keep", (4,), 120)
SHRINK = Candidate("shrink", {"kind": "shrink_heads", "layer": 0, "heads": [0]}, "keep", (2,), 80)
ROWS_KX = rows_of({}, [KEEP, GROW, SHRINK], 1.0, {})
NONE = Outcomes(np.zeros((0, len(NAMES))), np.zeros(0))


def outcomes(of: int, fall: float, count: int = 16) -> Outcomes:
    return Outcomes(np.repeat(ROWS_KX[of : of + 1], count, 0), np.full(count, fall))


def predicted(value: ValueEnsemble, members: list[torch.nn.Module], of: int) -> float:
    """Relative fall of the loss after that candidate, not its difference from keeping."""
    standardised = (torch.from_numpy(ROWS_KX) - value.mean_X) / value.spread_X
    with torch.no_grad():
        return float(members[0](standardised)[of, 0]) * value.unit


def test_gains_are_over_keeping_and_in_the_unit_of_the_value(hand_made: HandMade) -> None:
    value = hand_made(2.0, 4.0, shrink=-1.0)
    mean_K, error_K = value.gains(ROWS_KX, value.adapted(None), 1.0)
    assert mean_K == pytest.approx([0, 3 * 0.05, -0.05], rel=1e-3)
    assert error_K == pytest.approx([0, 0.05, 0], rel=1e-3, abs=1e-6)


def test_the_gain_on_remembered_rows_counts_by_its_weight(hand_made: HandMade) -> None:
    value = hand_made(2.0)
    with torch.no_grad():
        value.members[0].head.weight[1] = 0.5 * value.members[0].head.weight[0]
    plain, weighted = (value.gains(ROWS_KX, value.adapted(None), weight)[0][1] for weight in (0.0, 2.0))
    assert weighted == pytest.approx(2 * plain, rel=1e-6)


def test_without_outcomes_nothing_changes(hand_made: HandMade) -> None:
    value = hand_made(2.0, 4.0)
    before = value.gains(ROWS_KX, value.adapted(None), 1.0)
    after = value.gains(ROWS_KX, value.adapted(NONE), 1.0)
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("fall", [0.3, -0.3])
def test_predictions_move_towards_what_was_seen(hand_made: HandMade, fall: float) -> None:
    value = hand_made(0.0)
    before, after = (predicted(value, value.adapted(known), 1) for known in (None, outcomes(1, fall)))
    assert abs(after - fall) < abs(before - fall)
    assert np.sign(after - before) == np.sign(fall)


def test_adapting_leaves_the_value_as_it_was(hand_made: HandMade) -> None:
    value = hand_made(1.0, 2.0)
    before = value.to_bytes()
    value.adapted(outcomes(1, 0.3))
    assert value.to_bytes() == before


def test_a_value_comes_back_from_its_bytes(hand_made: HandMade, tmp_path: Path) -> None:
    value = hand_made(1.0, 2.0, 3.0, shrink=-1.0)
    path = tmp_path / "value.safetensors"
    path.write_bytes(value.to_bytes())
    again = load_value(path)
    assert again.to_bytes() == value.to_bytes()
    assert again.about == value.about and again.edits == {"grow_heads", "shrink_heads"}
    expected, found = (v.gains(ROWS_KX, v.adapted(outcomes(1, 0.1)), 1.0)[0] for v in (value, again))
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_file_is_a_header_in_json_and_numbers_and_nothing_else(hand_made: HandMade) -> None:
    content = hand_made(1.0).to_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    about = header.pop("__metadata__")
    assert set(about) == {"about", "features"} and json.loads(about["features"]) == list(NAMES)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    numbers = sum(int(np.prod(entry["shape"])) for entry in header.values())
    assert len(content) == end + 4 * numbers


def with_header(content: bytes, **changed: str) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"].update(changed)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def cases(content: bytes) -> dict[str, bytes]:
    about = json.dumps({"unit": 0.05, "edits": [], "mode": "anil"})
    names = json.dumps(NAMES)
    return {
        "empty": b"",
        "cut short": content[: len(content) // 2],
        "cut in its header": content[:100],
        "random": np.random.default_rng(0).bytes(4_000),
        "JSON": b'{"a": 1}',
        "other features": with_header(content, features=json.dumps([*NAMES[:-1], "something else"])),
        "no unit": with_header(content, about="{}"),
        "about is no mapping": with_header(content, about="5"),
        "no members": save({"mean": torch.zeros(3), "spread": torch.ones(3)}, {"about": about, "features": names}),
        "scales of other features": with_mean(content, 3),
        "tensors without a header": save({"mean": torch.zeros(3)}),
    }


def with_mean(content: bytes, width: int) -> bytes:
    value = ValueEnsemble.from_bytes(content)
    value.mean_X = torch.zeros(width)
    return value.to_bytes()


@pytest.mark.parametrize(
    "case",
    [
        "empty",
        "cut short",
        "cut in its header",
        "random",
        "JSON",
        "other features",
        "no unit",
        "about is no mapping",
        "no members",
        "scales of other features",
        "tensors without a header",
    ],
)
def test_a_file_that_is_no_learned_value_is_refused_in_one_line(hand_made: HandMade, tmp_path: Path, case: str) -> None:
    path = tmp_path / "value.safetensors"
    path.write_bytes(cases(hand_made(1.0, 2.0).to_bytes())[case])
    with pytest.raises(InputError) as refused:
        load_value(path)
    assert str(refused.value).startswith(f"{path}: no usable learned value (")
    assert str(refused.value).endswith("make one with `planaria meta-train`")
    assert "\n" not in str(refused.value)


def test_a_value_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nope: no usable learned value .*No such file.*; make one with"):
        load_value(tmp_path / "nope")
