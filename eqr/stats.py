"""Every interval and test of the project: one home, so that one quantity has one formula.

All intervals are at 95 %. Which one fits depends on what is independent of what:

=========================  =====================================================================
:func:`wilson`             a share of independent problems
:func:`clustered`          a share of problems in groups, such as those of one Mini-ARC task
:func:`share_interval`     a share where each problem is itself a mean over restarts
:func:`mean_interval`      a mean over few seeds (Student's t)
:func:`paired_difference`  two methods on the same problems, or on the same groups of problems
:func:`holm`               several tests of one table; ``seeds_for_difference`` and
                           ``seeds_for_equivalence`` say how many values a test needs
:func:`auroc`              the area under a ROC curve (DeLong)
:func:`power_law`          the slope of a line on logarithmic axes
:func:`bootstrap`          anything else, by resampling; :func:`resampled` does it by groups
=========================  =====================================================================

SciPy is imported where it is used: a command that prints no interval should not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean, or a mean difference between two methods, with its interval."""

    mean: float
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> Difference:
        """In another unit, as in points of a hundred."""
        return Difference(factor * self.mean, factor * self.low, factor * self.high, self.n)

    def as_share(self) -> Difference:
        """A share over seeds, to be shown: within 0 and 1, no bounds with fewer than three."""
        low, high = (max(0.0, self.low), min(1.0, self.high)) if self.n > 2 else (math.nan,) * 2
        return Difference(self.mean, low, high, self.n)

    def text(self, spec: str = ".2f") -> str:
        """For a table, the numbers written as ``spec`` says; a dash where there are no values.

        >>> Difference(0.2, -0.1, 0.5, 3).text(), Difference(0.2, math.nan, math.nan, 1).text(".0%")
        ('0.20 [-0.10, 0.50]', '20% [one seed]')
        """
        if not self.n:
            return "–"
        if self.n < 3:
            return f"{self.mean:{spec}} [{'one seed' if self.n == 1 else 'two seeds'}]"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); ``n`` may be an effective number.

    >>> tuple(round(v, 4) for v in wilson(8, 10))
    (0.4902, 0.9433)
    >>> wilson(0, 0)
    (0.0, 1.0)
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    # Unlike p ± z·σ, it stays inside [0, 1] and has a width where all or none succeed.
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def clustered(exact: np.ndarray, groups: Sequence) -> tuple[float, float, float]:
    """Mean of problems that come in groups, as those of one task, with its interval.

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
    group, count = number_groups(groups)
    mean, n = float(exact.mean()), len(exact)
    single = mean * (1 - mean)
    effective = float(count)
    if single > 0 and count > 1:
        # Problems of one group that agree make its sum large, and count as fewer problems.
        sums = np.bincount(group, exact - mean)
        spread = (sums**2).sum() * count / (count - 1) / n**2  # of the mean
        effective = min(max(single / max(spread, 1e-12), count), n)
    return (mean, *wilson(mean * effective, effective))


def share_interval(mean: float, values: np.ndarray, groups: int) -> Difference:
    """A mean accuracy with its interval; the unit is a problem.

    Wilson's interval for n p(1−p)/s² yes-or-no trials, where s² is the variance of the problems'
    values: averaging over groups of restarts makes s² smaller than p(1−p). There count at most n
    times ``groups`` trials. With one group it is Wilson's interval itself.

    >>> accuracy = share_interval(0.8, np.repeat([1.0, 0.0], [8, 2]), 1)
    >>> round(accuracy.low, 4), round(accuracy.high, 4)
    (0.4902, 0.9433)
    """
    n = len(values)
    most, spread, binary = n * groups, float(values.var()), mean * (1 - mean)
    trials = min(most, max(n, n * binary / spread)) if spread > 0 else most if binary > 0 else n
    low, high = wilson(mean * trials, trials)
    return Difference(mean, low, high, n)


def mean_interval(values: Sequence[float]) -> Difference:
    """Mean of values (n,), as one of each seed, with its t interval; NaN bounds for n < 2.

    Seeds are few and their spread is estimated from them, hence Student's t and not the normal.

    >>> accuracy = mean_interval([0.8, 0.9, 1.0])
    >>> round(accuracy.mean, 3), round(accuracy.low, 3), round(accuracy.high, 3), accuracy.n
    (0.9, 0.652, 1.148, 3)
    """
    from scipy.special import stdtrit

    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    if n < 2:
        return Difference(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def over_seeds(values: Iterable[float]) -> Difference:
    """:func:`mean_interval` of the values that are not NaN: NaN says that a seed has none."""
    return mean_interval([value for value in values if not math.isnan(value)])


def paired_difference(
    ours: np.ndarray, other: np.ndarray, groups: Sequence | None = None
) -> Difference:
    """Mean of ``ours − other`` over the same problems, with its interval.

    The normal interval with one unit of prior variance spread over the n problems, so that two
    methods that agree everywhere do not get an interval of width zero.

    Args:
        ours, other: (P,) accuracies of each problem, in [0, 1].
        groups: of each problem; the unit is then the group, each with equal weight.

    Raises:
        ValueError: shapes differ.
    """
    ours, other = np.asarray(ours, float), np.asarray(other, float)
    if ours.shape != other.shape or ours.ndim != 1:
        raise ValueError(f"paired arrays must be (P,) alike: {ours.shape} and {other.shape}")
    if groups is not None:
        group, count = number_groups(groups)
        sizes = np.bincount(group, minlength=count)
        ours, other = (np.bincount(group, values, count) / sizes for values in (ours, other))
    gap, n = ours - other, len(ours)
    half = Z95 * math.sqrt((((gap - gap.mean()) ** 2).sum() + 1.0) / n) / math.sqrt(n)
    return Difference(float(gap.mean()), float(gap.mean() - half), float(gap.mean() + half), n)


def seeds_for_difference(sd: float, effect: float) -> int:
    """The least number of paired differences for which a two-sided t test at 5 % has power 0.9.

    Args:
        sd: of the differences.
        effect: their true mean, not 0.

    >>> [seeds_for_difference(9.2, effect) for effect in (10, 5, 2)]
    [11, 38, 225]
    """
    from scipy.special import nctdtr, stdtrit

    def enough(n: int) -> bool:
        shift = math.sqrt(n) * abs(effect) / sd
        return 1 - nctdtr(n - 1, shift, stdtrit(n - 1, 0.975)) >= 0.9

    return _least(enough)


def seeds_for_equivalence(sd: float, margin: float) -> int:
    """The least number of differences of true mean 0 for which two one-sided t tests at 5 %, of
    whether they lie within ``±margin``, have power 0.9.

    >>> seeds_for_equivalence(9.2, 2), seeds_for_equivalence(3, 2)
    (231, 27)
    """
    from scipy.special import stdtr, stdtrit

    def enough(n: int) -> bool:
        shift = math.sqrt(n) * margin / sd
        return 2 * stdtr(n - 1, shift - stdtrit(n - 1, 0.95)) - 1 >= 0.9

    return _least(enough)


def _least(enough: Callable[[int], bool]) -> int:
    """The least n ≥ 2 that is enough, where every larger one is too."""
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted for their number (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, most = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(np.argsort(p_values).tolist()):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = most
    return adjusted


def auroc(residual: np.ndarray, right: np.ndarray) -> tuple[float, float, float]:
    """How well a small residual tells right from wrong: the area under the ROC curve.

    The probability that a random right trajectory has a smaller residual than a random wrong one
    (ties count half), with its interval after DeLong et al. (1988). With fewer than ten of either
    kind that interval means nothing, and [0, 1] is returned.

    Args:
        residual: (n,) residuals.
        right: (n,) bool, whether the answer is exact.

    Returns:
        (area, low, high); NaN where all are right or all are wrong.

    >>> auroc(np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, True, False, False]))[0]
    1.0
    """
    good, bad = residual[right], residual[~right]
    if not len(good) or not len(bad):
        return math.nan, math.nan, math.nan
    wins = (np.sign(bad[:, None] - good[None, :]) + 1) / 2  # (wrong, right)
    area = float(wins.mean())
    spread = [wins.mean(axis).var(ddof=min(1, wins.shape[1 - axis] - 1)) for axis in (0, 1)]
    if min(len(good), len(bad)) < 10:  # the normal approximation would be a fiction
        return area, 0.0, 1.0
    half = Z95 * math.sqrt(spread[0] / len(good) + spread[1] / len(bad))
    return area, max(0.0, area - half), min(1.0, area + half)


def power_law(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float, float]:
    """The exponent k of ``cost ∝ value ** k`` with the t interval of the fitted line's slope.

    Returns:
        (exponent, low, high); the bounds are NaN for a line through two points.

    >>> [round(x, 6) for x in power_law([1, 2, 4, 8], [3, 6, 12, 24])]
    [1.0, 1.0, 1.0]
    """
    from scipy import special, stats

    line = stats.linregress(np.log(values), np.log(costs))
    half = special.stdtrit(len(values) - 2, 0.975) * line.stderr
    return float(line.slope), float(line.slope - half), float(line.slope + half)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of one or several statistics of n problems.

    Args:
        statistic: of indices (draws, n) into the problems, which repeat; gives (..., draws). Draws
            without a value, NaN, are left out; with fewer than half of them left there is none.

    Returns:
        (low, high), each (...).
    """
    rows = np.random.default_rng(seed).integers(n, size=(draws, n))
    values = np.asarray(statistic(rows))
    lacking = np.isnan(values)
    values = np.where(lacking.mean(-1, keepdims=True) > 0.5, 0.0, values)
    bounds = np.nanquantile(values, (0.025, 0.975), axis=-1)
    low, high = np.where(lacking.mean(-1) > 0.5, np.nan, bounds)
    return low, high


def resampled(
    statistic: Callable[[np.ndarray], float], groups: Sequence, draws: int = 1000
) -> Difference:
    """A statistic of problems with its percentile interval when whole groups are resampled.

    Args:
        statistic: of the indices of some problems (they repeat); NaN where it does not exist.
        groups: of each problem.
        draws: resamples; those without a value are left out, and with fewer than half of them left
            the bounds are NaN.
    """
    group, count = number_groups(groups)
    members = [np.flatnonzero(group == which) for which in range(count)]

    def each(rows: np.ndarray) -> np.ndarray:
        values = [statistic(np.concatenate([members[which] for which in row])) for row in rows]
        defined = [value for value in values if not math.isnan(value)]
        return np.array(defined if 2 * len(defined) >= draws else [math.nan])

    low, high = bootstrap(each, count, draws)
    return Difference(float(statistic(np.arange(len(group)))), float(low), float(high), count)


def number_groups(groups: Sequence) -> tuple[np.ndarray, int]:
    """The groups as numbers from 0, (P,), and how many there are.

    >>> number_groups([b"x", b"y", b"x"])
    (array([0, 1, 0]), 2)
    """
    numbers: dict = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups])
    return group, len(numbers)
