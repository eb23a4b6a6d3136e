"""What fresh and replayed rows cost each learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planaria.learn import build_objective, row_loss
from planaria.policy import Learner, Protection

NAN = torch.nan
OUTPUT_BC = torch.tensor([[2.0, 0.0, 5.0], [1.0, 3.0, -1.0]])
TARGET_B = torch.tensor([0, 1])
LOSS_B = row_loss("classification", OUTPUT_BC, TARGET_B, torch.tensor(1.0))


@pytest.mark.parametrize("loss", ["er", "der", "der++"])
def test_fresh_rows_cost_their_ordinary_loss(loss: str) -> None:
    objective = build_objective(Learner.model_validate({"loss": loss}))
    assert torch.equal(objective.fresh(OUTPUT_BC, TARGET_B, LOSS_B, np.array([0, 1])), LOSS_B)


def test_asymmetric_replay_lets_fresh_rows_compete_among_the_classes_of_their_step_alone() -> None:
    objective = build_objective(Learner(loss="er_ace", beta=2.0))
    output_BC = OUTPUT_BC.clone().requires_grad_()
    cost_B = objective.fresh(output_BC, TARGET_B, LOSS_B, np.array([1, 0, 0]))
    torch.testing.assert_close(cost_B, row_loss("classification", OUTPUT_BC[:, :2], TARGET_B, torch.tensor(1.0)))
    cost_B.sum().backward()
    assert output_BC.grad is not None and output_BC.grad[:, 2].tolist() == [0.0, 0.0]
    everyone_B = objective.fresh(OUTPUT_BC, TARGET_B, LOSS_B, np.array([2, 1, 0]))
    torch.testing.assert_close(everyone_B, LOSS_B)
    assert torch.equal(objective.replayed(LOSS_B, lambda: (OUTPUT_BC, OUTPUT_BC)), 2.0 * LOSS_B), "against all classes"


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("er", 1.5), ("er_ace", 1.5), ("der", 0.1 * (1 + 4) / 2), ("der++", 1.5 + 0.1 * (1 + 4) / 2)],
)
def test_dark_replay_adds_the_distance_to_outputs_known_then(loss: str, expected: float) -> None:
    objective = build_objective(Learner.model_validate({"loss": loss, "alpha": 0.1, "beta": 0.5}))
    now, then = torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([[0.0, 0.0, NAN]])
    cost = objective.replayed(torch.tensor([3.0]), lambda: (now, then))
    torch.testing.assert_close(cost, torch.tensor([expected]))


def test_unknown_outputs_send_no_gradient() -> None:
    output = torch.tensor([[1.0, 2.0]], requires_grad=True)
    dark = build_objective(Learner(loss="der++", alpha=1.0, beta=0.0))
    dark.replayed(torch.zeros(1), lambda: (output, torch.tensor([[0.0, NAN]]))).sum().backward()
    assert output.grad is not None
    assert output.grad.tolist() == [[2.0, 0.0]]


def test_what_is_not_given_is_what_was_best() -> None:
    assert [Learner.model_validate({"loss": loss}).distance_weight for loss in ("der", "der++")] == [1.0, 0.1]
    assert Learner(loss="der", alpha=0.0).distance_weight == 0
    weights = [Protection.model_validate({"kind": kind}).weight for kind in ("ewc", "si", "lwf")]
    assert weights == [1.0, 0.1, 0.3] and Protection(kind="si", weight=2.0).weight == 2
