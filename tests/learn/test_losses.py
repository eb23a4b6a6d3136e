from __future__ import annotations

import torch

from planaria.learn import row_error, row_loss, row_loss_bias_fitted

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


def test_with_the_bias_fitted_what_is_known_of_the_frequencies_alone_brings_nothing() -> None:
    target = torch.tensor([0] * 12 + [1] * 4)
    uniform, leaning = torch.zeros(16, 2), torch.tensor([3.0, 0.0]).repeat(16, 1)

    fitted = [row_loss_bias_fitted("classification", output, target, ONE) for output in (uniform, leaning)]

    torch.testing.assert_close(*fitted, atol=0.02, rtol=0)
    frequencies = torch.tensor([12, 4]) / 16
    torch.testing.assert_close(fitted[0], -frequencies.log()[target], atol=0.02, rtol=0)


def test_with_the_bias_fitted_what_is_known_of_the_rows_still_counts() -> None:
    target = torch.tensor([0, 1] * 8)
    knows = torch.nn.functional.one_hot(target).float() * 3
    shifted = knows + torch.tensor([5.0, 0.0])

    assert row_loss("classification", shifted, target, ONE).mean() > 1
    assert row_loss_bias_fitted("classification", shifted, target, ONE).mean() < 0.1


def test_of_a_regression_the_mean_residual_is_taken_off() -> None:
    output, target = torch.tensor([[11.0], [12.0], [13.0]]), torch.tensor([1.0, 2.0, 4.0])

    fitted = row_loss_bias_fitted("regression", output, target, ONE)

    torch.testing.assert_close(fitted, torch.tensor([1 / 9, 1 / 9, 4 / 9]))
