from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from planaria.stream.chance import key, normal, place_in_shuffle, shuffled, uniform


@given(size=st.integers(1, 3_000), seed=st.integers(0, 2**70), turn=st.integers(0, 2**40))
def test_a_shuffle_without_a_table_puts_every_position_somewhere_else(size: int, seed: int, turn: int) -> None:
    places = place_in_shuffle(key(seed, "x"), np.full(size, turn), np.arange(size), np.full(size, size))
    assert sorted(places.tolist()) == list(range(size))


def test_shuffles_of_many_sizes_are_drawn_at_once() -> None:
    sizes = np.repeat(np.arange(1, 70), np.arange(1, 70))
    positions = np.concatenate([np.arange(size) for size in range(1, 70)])
    places = place_in_shuffle(key(1), sizes, positions, sizes)
    for size in range(1, 70):
        alone = place_in_shuffle(key(1), np.full(size, size), np.arange(size), np.full(size, size))
        assert (places[sizes == size] == alone).all() and sorted(alone.tolist()) == list(range(size))


def test_passes_have_orders_of_their_own_that_look_random() -> None:
    size, passes = 1_000, 50
    turns, positions = np.divmod(np.arange(size * passes), size)
    places = place_in_shuffle(key(0), turns, positions, np.full(len(turns), size)).reshape(passes, size)
    # The place of position 0 is uniform: mean 499.5, deviation 288.7 / sqrt(50).
    assert abs(places[:, 0].mean() - 499.5) < 4 * 288.7 / 50**0.5
    assert all(abs(np.corrcoef(places[a], places[a + 1])[0, 1]) < 0.15 for a in range(passes - 1))
    assert all(abs(np.corrcoef(places[a, :-1], places[a, 1:])[0, 1]) < 0.15 for a in range(passes))


def test_draws_are_uniform_and_independent_of_neighbours() -> None:
    draws = uniform(key(3, "u"), np.arange(100_000))
    counts = np.histogram(draws, 100, (0, 1))[0]
    assert ((counts - 1_000) ** 2 / 1_000).sum() < 160  # chi-squared, 99 degrees of freedom: p > 1e-4
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.015


def test_normal_numbers_are_normal() -> None:
    numbers = normal(key(1), 100_000)
    assert abs(numbers.mean()) < 0.015 and abs(numbers.std() - 1) < 0.015
    assert abs((np.abs(numbers) < 1.96).mean() - 0.95) < 0.005


def test_draws_never_change_between_versions() -> None:
    """A run that is resumed after an upgrade must go on with the same rows."""
    assert key(0, "draw", 1) == 18293232863006098117
    assert shuffled(key(0), 8).tolist() == [4, 7, 5, 6, 3, 0, 2, 1]
    assert place_in_shuffle(key(0), np.zeros(5, np.int64), np.arange(5), np.full(5, 5)).tolist() == [3, 4, 0, 2, 1]
