"""Compiled kernels, and random numbers inside them: SplitMix64 (Steele et al. 2014).

One stream per (seed, index), so that problem i does not depend on how many are made or in which
chunks. Numba's cache does not notice a change here in the modules that call it: delete __pycache__
after editing these functions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

_GOLDEN, _MIX_A, _MIX_B = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


def kernel(function: Callable) -> Callable:
    """Compile a function to machine code, once for all processes where that can be stored."""
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # a package that is read-only, of a user without a home
        return njit(function)


@kernel
def mix64(x):
    """Scramble a uint64: every input bit reaches every output bit. Also serves as a hash."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


@kernel
def random_stream(seed, index):
    """The stream of problem ``index`` under ``seed`` (both uint64): a one-element state array."""
    return np.array([mix64(mix64(seed + _GOLDEN) + mix64(~index))], dtype=np.uint64)


@kernel
def random_below(stream, n):
    """A whole number from 0 to n - 1; the bias is below n / 2**32."""
    stream[0] += _GOLDEN
    return np.int64(((mix64(stream[0]) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@kernel
def random_unit(stream):
    """A float from [0, 1) in steps of 2**-53."""
    stream[0] += _GOLDEN
    return np.float64(mix64(stream[0]) >> np.uint64(11)) / 2.0**53
