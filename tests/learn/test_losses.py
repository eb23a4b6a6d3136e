from __future__ import annotations

import torch

from planaria.learn import row_error, row_loss

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
