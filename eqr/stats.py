"""Intervals for problems that come in groups, as those of one task of Mini-ARC do.

Problems of one group are not independent, so the unit is the group (chapter *Beyond one rule*). The
group of a problem is its :meth:`eqr.task.Task.symmetry_key`, or anything else that can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from eqr.evaluate import Difference, paired_difference, wilson


def clustered(exact: np.ndarray, groups: Sequence[bytes]) -> tuple[float, float, float]:
    """Mean of problems that come in groups, as those of one task, with its 95 % interval.

    The Wilson interval with the effective number of problems: their number over the design effect
    (the variance of the groups' sums against that of independent problems; Kish 1965), and never
    more than there are problems nor fewer than there are groups.

    Args:
        exact: (P,) accuracies in [0, 1].
        groups: of each problem, for example :meth:`eqr.task.Task.symmetry_key`.

    Returns:
        (mean, low, high).

    >>> [round(v, 3) for v in clustered(np.array([1, 1, 0, 0]), [b"a", b"a", b"b", b"b"])]
    [0.5, 0.095, 0.905]
    """
    exact = np.asarray(exact, float)
    which, many = numbered(groups)
    mean, n = float(exact.mean()), len(exact)
    single = mean * (1 - mean)
    effective = float(many)
    if single > 0 and many > 1:
        sums = np.bincount(which, exact - mean)
        spread = (sums**2).sum() * many / (many - 1) / n**2  # of the mean
        effective = min(max(single / max(spread, 1e-12), many), n)
    return (mean, *wilson(mean * effective, effective))


def paired(ours: np.ndarray, other: np.ndarray, groups: Sequence) -> Difference:
    """Mean of ``ours − other`` (P,) over groups, each with equal weight; see
    :func:`eqr.evaluate.paired_difference`."""
    which, many = numbered(groups)
    count = np.bincount(which, minlength=many)
    means = [np.bincount(which, np.asarray(a, float), many) / count for a in (ours, other)]
    return paired_difference(*means)


def resampled(
    statistic: Callable[[np.ndarray], float], groups: Sequence, times: int = 1000
) -> Difference:
    """A statistic of problems with its 95 % percentile interval when whole groups are resampled.

    Args:
        statistic: of the indices of some problems (they repeat); NaN where it does not exist.
        groups: of each problem.
        times: resamples; those without a value are left out, and with fewer than half of them left
            the bounds are NaN.
    """
    which, many = numbered(groups)
    members = [np.flatnonzero(which == group) for group in range(many)]
    draw, found = np.random.default_rng(0), []
    for _ in range(times):
        chosen = draw.integers(many, size=many)
        found.append(statistic(np.concatenate([members[group] for group in chosen])))
    kept = [value for value in found if not math.isnan(value)]
    value = statistic(np.arange(len(which)))
    low, high = (math.nan, math.nan)
    if 2 * len(kept) >= times:
        low, high = np.quantile(kept, (0.025, 0.975))
    return Difference(float(value), float(low), float(high), many)


def numbered(groups: Sequence) -> tuple[np.ndarray, int]:
    """The groups as numbers from 0, (P,), and how many there are.

    >>> numbered([b"x", b"y", b"x"])
    (array([0, 1, 0]), 2)
    """
    known: dict = {}
    which = np.array([known.setdefault(group, len(known)) for group in groups])
    return which, len(known)
