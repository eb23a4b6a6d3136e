"""Randomness as a pure function of (key, row number): any slice, in any order, on any worker, gives the same draw.

Everything here is integer arithmetic on 64-bit words, so results are equal on every machine and library version.
Source of `mix`: the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_ROUNDS = 6
"""Of the Feistel network; must be even, so that the two halves end with the widths they began with."""


def key(seed: int, *parts: int | str) -> int:
    """A 64-bit key for one purpose of one seed."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(words: Words) -> Words:
    """Scrambles each word; a bijection of the 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def word(key: int, rows: Integers) -> Words:
    """A random word for each row."""
    return mix(rows.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))


def uniform(key: int, rows: Integers) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each row."""
    return (word(key, rows) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: int, count: int) -> npt.NDArray[np.float32]:
    """`count` standard normal numbers (Box-Muller)."""
    rows = np.arange(count, dtype=np.int64)
    radius = np.sqrt(-2.0 * np.log1p(-uniform(key, 2 * rows)))
    return (radius * np.cos(2.0 * np.pi * uniform(key, 2 * rows + 1))).astype(np.float32)


def shuffled(key: int, count: int) -> Integers:
    """A random order of 0..count-1, held in memory."""
    return np.argsort(word(key, np.arange(count, dtype=np.int64)), kind="stable").astype(np.int64)


def place_in_shuffle(key: int, turns: Integers, positions: Integers, sizes: Integers) -> Integers:
    """Where a random order of 0..size-1 puts each position; every turn has an order of its own. Holds no table.

    A Feistel network over the smallest power of two that holds the size; what falls outside is put through
    again ("cycle walking", Black and Rogaway 2002), which keeps it a bijection of 0..size-1.
    """
    keys, limits = word(key, turns), sizes.astype(np.uint64)
    bits = np.maximum(2, np.frexp((sizes - 1).astype(np.float64))[1]).astype(np.uint64)  # bit_length of size - 1
    places = _feistel(positions.astype(np.uint64), keys, bits)
    outside = np.flatnonzero(places >= limits)
    while outside.size:
        places[outside] = _feistel(places[outside], keys[outside], bits[outside])
        outside = outside[places[outside] >= limits[outside]]
    return places.astype(np.int64)


def _feistel(words: Words, keys: Words, bits: Words) -> Words:
    one = np.uint64(1)
    right_bits = bits >> one
    left_bits = bits - right_bits
    for turn in range(_ROUNDS):
        left, right = words >> right_bits, words & ((one << right_bits) - one)
        scrambled = mix(right + keys + np.uint64((turn + 1) * _GOLDEN & _MASK)) & ((one << left_bits) - one)
        words = np.bitwise_or(right << left_bits, left ^ scrambled, dtype=np.uint64)
        left_bits, right_bits = right_bits, left_bits
    return words
