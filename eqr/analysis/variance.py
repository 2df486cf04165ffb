"""Repeated trajectories as nested Monte Carlo (chapter *A budget*).

A number of a trajectory, as whether its answer is exact, depends on the puzzle, on the *start* (the
first state and the noise up to depth d) and on the *path* (the noise after d). Paths that share a
start share the cost of its d iterations. :func:`components` splits the variance in three,
:func:`group` says what a group of trajectories is worth for its NFE, and
:func:`allocation` how many paths a start should have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Components:
    """Variances in the squared unit of the values; unbiased, so that a small one may be below 0."""

    puzzle: float  # of a puzzle's mean, over puzzles
    start: float  # of a start's mean, over the starts of a puzzle
    path: float  # of a value, over the paths of a start

    @property
    def within(self) -> float:
        """Variance of one trajectory's value, given the puzzle."""
        return self.start + self.path

    @property
    def share(self) -> float:
        """Part of the variance within puzzles that is due to the start; NaN where there is none."""
        return self.start / self.within if self.within > 0 else math.nan

    @property
    def clipped(self) -> Components:
        """The same with 0 for negative estimates: for decisions, which need variances."""
        return Components(*(max(0.0, v) for v in (self.puzzle, self.start, self.path)))


@dataclass(frozen=True, slots=True)
class Group:
    """An estimate of a puzzle's mean from several trajectories."""

    starts: int
    paths: int  # of each start
    variance: float
    nfe: float  # outer iterations that it costs

    @property
    def product(self) -> float:
        """Variance × NFE: lower is better, and averaging over more such groups leaves it as is."""
        return self.variance * self.nfe


@dataclass(frozen=True, slots=True)
class Allocation:
    """How many paths should leave each start, for puzzles that are given."""

    paths: int  # the best whole number
    ideal: float  # the best real one, J*, which may be below 1 or infinite
    product: float  # variance × NFE with ``paths``
    saved: float  # share of the NFE of independent restarts of equal variance; 0 where paths is 1


# -------------------------------------------------------------------------------------- components


def components(values: np.ndarray) -> Components:
    """Nested analysis of variance by the method of moments.

    With mean squares ``MS`` of puzzles, starts and paths: ``E MS_path = σ²_N``, ``E MS_start =
    σ²_N + J σ²_S``, ``E MS_puzzle = σ²_N + J σ²_S + IJ σ²_P``. The estimates solve these. They are
    unbiased whatever the distribution, if starts are independent given the puzzle and paths given
    the start; 0 and 1 will do. A puzzle's own variances are averaged over the puzzles.

    Args:
        values: (P, I, J) of puzzle, start and path.

    Raises:
        ValueError: not three axes, a NaN, or fewer than two of a kind.

    >>> components(np.array([[[1, 1], [0, 0]], [[1, 0], [1, 0]]]))
    Components(puzzle=-0.125, start=0.125, path=0.25)
    """
    _, starts, paths = _nested(values).shape
    mean, between, path = _by_puzzle(values)
    start = between.mean() - path.mean() / paths
    puzzle = mean.var(ddof=1) - between.mean() / starts
    return Components(float(puzzle), float(start), float(path.mean()))


def _by_puzzle(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each puzzle (P,): mean, variance of its starts' means, mean variance within a start."""
    values = np.asarray(values, float)
    means = values.mean(2)  # (P, I)
    return means.mean(1), means.var(1, ddof=1), values.var(2, ddof=1).mean(1)


def _nested(values: np.ndarray, least: tuple[int, int, int] = (2, 2, 2)) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 3:
        raise ValueError(f"values must be (puzzles, starts, paths), not of shape {values.shape}")
    for have, need, name in zip(values.shape, least, ("puzzles", "starts", "paths"), strict=True):
        if have < need:
            raise ValueError(f"{have} {name}: their variance needs at least {need}")
    if not np.isfinite(values).all():
        raise ValueError("values must be finite: a NaN or an infinity is among them")
    return values


# ------------------------------------------------------------------------------------------ groups


def nfe(starts: float, paths: float, part_at: float, depth: float) -> float:
    """Outer iterations of ``I`` starts that part at d into J paths: ``I (d + J (D − d))``.

    Raises:
        ValueError: not ``0 ≤ d ≤ D``, or fewer than one start or path.
    """
    if not 0 <= part_at <= depth:
        raise ValueError(f"paths part at a depth between 0 and {depth}, not at {part_at}")
    if starts < 1 or paths < 1:
        raise ValueError(f"a group has at least one start and one path, not {starts} and {paths}")
    return starts * (part_at + paths * (depth - part_at))


def group(parts: Components, starts: int, paths: int, *, part_at: float, depth: float) -> Group:
    """A mean over I starts × J paths of a puzzle at its NFE: ``σ²_S / I + σ²_N / (IJ)``.

    Raises:
        ValueError: as :func:`nfe`.

    >>> group(Components(0.0, 0.125, 0.25), 1, 2, part_at=8, depth=16)
    Group(starts=1, paths=2, variance=0.25, nfe=24)
    """
    spread = (parts.start + parts.path / paths) / starts
    return Group(starts, paths, spread, nfe(starts, paths, part_at, depth))


def held_out(values: np.ndarray, paths: int) -> tuple[float, float]:
    """Variance of a group of one start and ``paths`` paths: predicted, and measured elsewhere.

    Predicted from the first half of the starts. Measured among the second: the variance of the mean
    over ``paths`` paths, averaged over the puzzles and over the disjoint sets of paths there are.
    With fewer paths than there are the prediction extrapolates.

    Args:
        values: (P, I, J) with I at least 4.

    Raises:
        ValueError: too few starts or paths.
    """
    half = _nested(values, (2, 4, max(2, paths))).shape[1] // 2
    parts = components(values[:, :half])
    sets = values.shape[2] // paths
    others = values[:, half:, : sets * paths]
    means = others.reshape(*others.shape[:2], sets, paths).mean(3)  # (P, starts, sets)
    return parts.start + parts.path / paths, float(means.var(1, ddof=1).mean())


# -------------------------------------------------------------------------------------- allocation


def allocation(parts: Components, *, part_at: float, depth: float, most: int = 64) -> Allocation:
    """Paths a start that minimise variance × NFE: ``J* = √(σ²_N d / (σ²_S (D − d)))``.

    The number of starts cancels. Negative estimates count as 0; where nothing is due to the start
    J* is infinite and ``paths`` is ``most``. Of equally good numbers the smallest is taken.

    Raises:
        ValueError: not ``0 ≤ d < D``, or no variance to divide.
    """
    if not 0 <= part_at < depth:
        raise ValueError(f"paths part at a depth from 0 to below {depth}, not at {part_at}")
    parts = parts.clipped
    if parts.within == 0:
        raise ValueError("no variance: every allocation is as good as any other")
    options = [
        group(parts, 1, count, part_at=part_at, depth=depth).product for count in range(1, most + 1)
    ]
    best = int(np.argmax(np.asarray(options) <= min(options) * (1 + 1e-9)))  # ties by rounding
    gain = parts.path * part_at
    ideal = math.sqrt(gain / (parts.start * (depth - part_at))) if parts.start else math.inf * gain
    if math.isnan(ideal):
        ideal = 1.0  # d = 0 and all is due to the path: every number is as good
    return Allocation(best + 1, ideal, options[best], 1 - options[best] / options[0])
