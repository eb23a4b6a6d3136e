"""Sums over rows, and what is solved from them."""

from __future__ import annotations

import pytest
import torch

from planaria.learn import Products, Sums, nested_ridge, ridge


def _rows(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    described = torch.cat((torch.randn(rows, 4, generator=generator), torch.ones(rows, 1)), 1)
    return described, torch.randn(rows, 2, generator=generator)


def _of(*parts: tuple[torch.Tensor, torch.Tensor]) -> Sums:
    sums = Sums.empty(5, 2, torch.device("cpu"))
    for described, target in parts:
        sums.add(described, target)
    return sums


def test_many_rows_give_what_least_squares_gives() -> None:
    described, target = _rows(300, 0)
    sums = _of((described, target))
    expected = torch.linalg.lstsq(described, target).solution
    torch.testing.assert_close(ridge(sums.gram_DD, sums.cross_DC, 1e-6), expected, rtol=1e-3, atol=1e-4)


def test_a_pull_draws_the_weights_to_zero_but_not_the_constant() -> None:
    described, target = _rows(300, 0)
    sums = _of((described, target + 7))
    weights = ridge(sums.gram_DD, sums.cross_DC, 1e9)
    assert weights[:-1].abs().max() < 1e-3
    torch.testing.assert_close(weights[-1], target.mean(0) + 7, rtol=1e-3, atol=1e-3)


def test_rows_taken_in_by_their_products_count_as_rows_do_and_fade_with_them() -> None:
    first, second = _rows(50, 1), _rows(40, 2)
    one, other = _of(first), Sums.empty(5, 2, torch.device("cpu"))
    other.absorb(Products.of(*first))
    for sums in (one, other):
        sums.fade(0.5)
    one.add(*second)
    other.absorb(Products.of(*second))
    torch.testing.assert_close(one.gram_DD, other.gram_DD)
    torch.testing.assert_close(one.cross_DC, other.cross_DC)
    assert one.rows == other.rows == pytest.approx(65)


def test_rows_taken_out_again_leave_no_trace() -> None:
    first, second = _rows(50, 1), _rows(40, 2)
    sums, alone = _of(first, second), _of(first)
    sums.add(*second, -1.0)
    torch.testing.assert_close(sums.gram_DD, alone.gram_DD)
    torch.testing.assert_close(sums.cross_DC, alone.cross_DC)
    assert round(sums.rows) == 50


def test_merged_sums_are_those_of_all_rows_also_where_one_knows_more_classes() -> None:
    first, (described, target) = _rows(50, 1), _rows(40, 2)
    wider = torch.cat((target, target[:, :1]), 1)
    merged, other = _of(first), Sums.empty(5, 3, torch.device("cpu"))
    other.add(described, wider)
    merged.merge(other)
    expected = (
        torch.cat((first[0], described)).double().T
        @ torch.cat((torch.nn.functional.pad(first[1], (0, 1)), wider)).double()
    )
    torch.testing.assert_close(merged.cross_DC, expected)


def test_a_feature_that_no_row_had_has_no_weight() -> None:
    described, target = _rows(60, 3)
    described[:, 1] = 0
    sums = _of((described, target))
    weights = ridge(sums.gram_DD, sums.cross_DC, 1.0)
    assert torch.equal(weights[1], torch.zeros(2)) and weights.isfinite().all()


def test_without_rows_nothing_is_estimated() -> None:
    sums = _of()
    assert torch.equal(ridge(sums.gram_DD, sums.cross_DC, 1.0), torch.zeros(5, 2))


def test_packed_sums_come_back_bit_for_bit_and_others_are_refused() -> None:
    """Also where rows wait to be summed up, faded and with fewer columns than now."""
    sums = _of(*(_rows(60, seed) for seed in range(6)))
    sums.fade(0.9)
    sums.add(*_rows(7, 9))
    sums.widen(3)
    again = Sums.unpacked(sums.packed())
    for each in (sums, again):
        each.fade(0.5)
        each.add(_rows(20, 10)[0], torch.ones(20, 3))
    assert again.rows == sums.rows
    assert torch.equal(again.gram_DD.tril(), sums.gram_DD.tril()) and torch.equal(again.cross_DC, sums.cross_DC)
    with pytest.raises(ValueError, match="15 products of features are not those of 4 features"):
        Sums.unpacked({**sums.packed(), "cross": torch.zeros(4, 2)})


def test_rows_that_fade_count_as_they_would_one_by_one() -> None:
    parts = [_rows(30, seed) for seed in range(20)]
    sums, expected = Sums.empty(5, 2, torch.device("cpu")), torch.zeros(5, 5, dtype=torch.float64)
    for described, target in parts:
        sums.fade(0.8)
        sums.add(described, target)
        expected = 0.8 * expected + described.double().T @ described.double()
    torch.testing.assert_close(sums.gram_DD, expected)
    assert sums.rows == pytest.approx(float(expected[-1, -1]))


def test_what_uses_the_first_features_alone_comes_of_the_same_factor() -> None:
    described, target = _rows(300, 5)
    described[:, 1] = 0.0  # a category that the table does not have
    sums = _of((described, target))
    every, some = nested_ridge(sums.gram_DD, sums.cross_DC, 1e-6, first=3)
    torch.testing.assert_close(every, ridge(sums.gram_DD, sums.cross_DC, 1e-6), rtol=1e-4, atol=1e-5)
    assert torch.equal(some[[1, 3]], torch.zeros(2, 2))
    expected = torch.linalg.lstsq(described[:, [0, 2, 4]], target).solution
    torch.testing.assert_close(some[[0, 2, 4]], expected, rtol=1e-3, atol=1e-4)


def test_what_is_solved_is_the_same_after_a_checkpoint() -> None:
    """Which holds one triangle of the products; the other one differs by rounding."""
    described, target = _rows(300, 6)
    sums = Sums.empty(5, 2, torch.device("cpu"))
    sums.add(described * torch.tensor([1.0, 3.0, 7.0, 11.0, 1.0]), target)
    sums.gram_DD.add_(sums.gram_DD.triu(1) * 1e-6)
    restored = Sums.unpacked(sums.packed())
    for one, other in zip(*(nested_ridge(s.gram_DD, s.cross_DC, 1.0, first=2) for s in (sums, restored)), strict=True):
        assert torch.equal(one, other)
