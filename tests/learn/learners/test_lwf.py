"""Keeping to the answers of an earlier self."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from planaria.learn import Teacher

ONE = torch.tensor(1.0)


class Still(nn.Module):
    """Answers with its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return features["numeric"] + self.bias


def test_the_same_answers_cost_nothing_and_others_more_the_further_they_are() -> None:
    teacher, taught = Teacher(1.0, 2.0), torch.tensor([[2.0, 0.0]])
    costs = [
        float(teacher.cost("classification", torch.tensor([[2.0 + by, 0.0]]), taught, ONE)) for by in (0.0, 1.0, 2.0)
    ]
    assert costs[0] < 1e-6 < costs[1] < costs[2]


def test_classes_that_came_later_are_free() -> None:
    teacher, taught = Teacher(1.0, 2.0), torch.tensor([[2.0, 0.0]])
    cost = teacher.cost("classification", torch.tensor([[2.0, 0.0, 9.0]]), taught, ONE)
    torch.testing.assert_close(cost, torch.zeros(1), atol=1e-6, rtol=0)


def test_of_a_regression_the_distance_is_in_units_of_the_targets_spread() -> None:
    cost = Teacher(3.0, 2.0).cost("regression", torch.tensor([[14.0]]), torch.tensor([[10.0]]), torch.tensor(2.0))
    assert cost.tolist() == [12.0]


def test_the_teacher_stays_as_it_was_at_the_shift() -> None:
    live, teacher = Still(), Teacher(1.0, 2.0)
    assert teacher.model is None
    teacher.settle(live)
    with torch.no_grad():
        live.bias += 1
    answer = teacher.answers({"numeric": torch.zeros(1, 2)})
    assert answer.tolist() == [[0.0, 0.0]] and not answer.requires_grad
