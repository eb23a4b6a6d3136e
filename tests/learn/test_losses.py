from __future__ import annotations

import torch

from planaria.learn import build_replay_loss, row_error, row_loss
from planaria.policy import Learner

ONE = torch.tensor(1.0, dtype=torch.float64)


def test_row_losses_are_cross_entropies_in_nats() -> None:
    output = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    loss = row_loss("classification", output, torch.tensor([1, 0]), ONE)
    torch.testing.assert_close(loss, torch.tensor([0.6931472, 0.0000454]), atol=1e-6, rtol=1e-4)
    assert row_error("classification", output, torch.tensor([1, 0])).tolist() == [1.0, 0.0]


def test_regression_losses_are_in_units_of_the_targets_spread() -> None:
    output, target = torch.tensor([[3.0], [0.0]]), torch.tensor([1.0, 0.0])
    assert row_loss("regression", output, target, 2 * ONE).tolist() == [1.0, 0.0]
    assert row_error("regression", output, target).tolist() == [2.0, 0.0]


def test_dark_replay_adds_the_distance_to_outputs_known_then() -> None:
    output = torch.tensor([[1.0, 2.0, 7.0]])
    remembered = torch.tensor([[0.0, 0.0, torch.nan]])
    plain = build_replay_loss(Learner(loss="er", beta=0.5))
    dark = build_replay_loss(Learner(loss="der++", alpha=0.1, beta=0.5))
    target, loss = torch.tensor([0]), torch.tensor([3.0])
    assert float(plain(output, target, remembered, loss)) == 1.5
    torch.testing.assert_close(dark(output, target, remembered, loss), torch.tensor([1.5 + 0.1 * (1 + 4) / 2]))


def test_unknown_outputs_send_no_gradient() -> None:
    output = torch.tensor([[1.0, 2.0]], requires_grad=True)
    dark = build_replay_loss(Learner(loss="der++", alpha=1.0, beta=0.0))
    dark(output, torch.tensor([0]), torch.tensor([[0.0, torch.nan]]), torch.zeros(1)).sum().backward()
    assert output.grad is not None
    assert output.grad.tolist() == [[2.0, 0.0]]
