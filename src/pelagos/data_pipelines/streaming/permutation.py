"""Keyed hashes and permutations: randomness that is a pure function of its key.

Everything is integer arithmetic modulo 2^64, so results are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
_U64 = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1
_NUM_ROUNDS = 8
# A Feistel network on fewer bits mixes poorly; more bits only lengthen the cycle walks.
_MIN_HALF_BITS = 4


def mix(values: _U64) -> _U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), elementwise.

    It is a bijection of 64 bits in which every input bit changes about half of the output bits.
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return values ^ (values >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """A 64-bit key from integers, in which order matters."""
    key = 0
    for part in parts:
        key = _mix_integer((((key * 3 + part) ^ key) + _GOLDEN) & _MASK)
    return key


def _mix_integer(value: int) -> int:
    """`mix` of one Python integer."""
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def keyed_hash(key: int, values: IntArray) -> IntArray:
    """A non-negative 63-bit number for each value, under a key."""
    hashed = mix(mix(values.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)))
    return (hashed >> np.uint64(1)).astype(np.int64)


class KeyedPermutation:
    """A pseudo-random permutation of `0 .. size - 1`, evaluated anywhere without a table.

    A balanced Feistel network permutes the next power of four; indices that fall outside are
    permuted again until they fall inside (cycle walking, Black and Rogaway 2002), fewer than four
    times on average for sizes above 64.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got size {size}")
        self.size = size
        half_bits = max(-(-(size - 1).bit_length() // 2), _MIN_HALF_BITS)
        self._half_bits = np.uint64(half_bits)
        self._half_mask = np.uint64(2**half_bits - 1)
        self._round_keys = [np.uint64(derive_key(key, i)) for i in range(_NUM_ROUNDS)]

    def __call__(self, indices: Sequence[int] | IntArray) -> IntArray:
        """The images of `indices`, each in `0 .. size - 1`."""
        given = np.asarray(indices, dtype=np.int64)
        if given.size and not (given.min() >= 0 and given.max() < self.size):
            raise ValueError(f"indices must be in 0..{self.size - 1}")
        if self.size == 1:
            return np.zeros_like(given)
        images = self._feistel(given.astype(np.uint64))
        outside = images >= np.uint64(self.size)
        while outside.any():
            images[outside] = self._feistel(images[outside])
            outside = images >= np.uint64(self.size)
        return images.astype(np.int64)

    def _feistel(self, values: _U64) -> _U64:
        left, right = values >> self._half_bits, values & self._half_mask
        for round_key in self._round_keys:
            left, right = right, left ^ (mix(right + round_key) & self._half_mask)
        return (left << self._half_bits) | right
