"""Slices of the latent space: which start ends where, and how tangled the border is (paper §2).

Part of the chapter *Reading the landscape*; attractors, modes and tables are in
:mod:`eqr.analysis.landscape`, whose namespace holds these functions too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from eqr.analysis.dynamics import Dynamics
from eqr.model import residual
from eqr.stats import power_law

TOLERANCE = 0.02  # residual below which a trajectory counts as settled, as in eqr.solve
NEVER = -1  # settling time of a trajectory that did not settle


def settling_time(residuals: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """First iteration, from 1, from which on the residual stays below ``tolerance``.

    Args:
        residuals: (D, …) by iteration.

    Returns:
        (…) ints; :data:`NEVER` where the last residual is not below.

    >>> settling_time(np.array([[.5, .5], [.01, .01], [.03, .01]]), 0.02)
    array([-1,  2])
    """
    above = ~(np.asarray(residuals) < tolerance)  # NaN is not below
    last = len(above) - np.argmax(above[::-1], axis=0)  # the last iteration not below, from 1
    last = np.where(above.any(0), last, 0)
    return np.where(above[-1], NEVER, last + 1)


@dataclass(frozen=True, slots=True)
class Slice:
    """A plane of starts of one problem and what became of each."""

    u: np.ndarray  # (n,) coordinates along the first direction
    v: np.ndarray  # (m,)
    answer: np.ndarray  # (m, n) int: decoded answer, 0 the most frequent
    exact: np.ndarray  # (m, n) bool
    residual: np.ndarray  # (m, n) of the last iteration
    settled_at: np.ndarray  # (m, n) settling time, NEVER where it did not


@torch.no_grad()
def latent_slice(
    dynamics: Dynamics,
    corners: Tensor,
    label: np.ndarray | None = None,
    *,
    depth: int,
    size: int = 64,
    span: tuple[float, float] = (-0.5, 1.5),
    span_v: tuple[float, float] | None = None,
    tolerance: float = TOLERANCE,
    rows: int = 512,
) -> Slice:
    """Iterate every start of the plane through three states; a map of the basins it cuts.

    The start at (u, v) is ``c0 + u (c1 − c0) + v (c2 − c0)``: the corners lie at (0, 0), (1, 0)
    and (0, 1).

    Args:
        dynamics: of one problem (one row).
        corners: (3, N) flat states.
        label: (S,) the right tokens; None marks nothing as exact.
        size: points a side.
        span: range of the coordinate u, and of v unless ``span_v`` says otherwise.
    """
    axis_u, axis_v = (np.linspace(*reach, size) for reach in (span, span_v or span))
    grids = np.meshgrid(axis_v, axis_u, indexing="ij")
    grid_v, grid_u = (torch.from_numpy(grid.ravel()) for grid in grids)
    base, du, dv = corners[0], corners[1] - corners[0], corners[2] - corners[0]
    tokens, gaps = [], []
    for first in range(0, size * size, rows):
        u, v = (g[first : first + rows, None].to(base) for g in (grid_u, grid_v))
        z = base + u * du + v * dv
        here = replace(dynamics, x=dynamics.x.expand(len(z), -1))
        trace = []
        for _ in range(depth):
            step = here.step(z)
            trace.append(residual(here.state(z), step.state))
            z = step.state.flat()
        tokens.append(step.answer.numpy())
        gaps.append(torch.stack(trace).numpy())
    answers, trace = np.concatenate(tokens), np.concatenate(gaps, axis=1)
    _, names, counts = np.unique(answers, axis=0, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"))
    exact = np.zeros(len(answers), bool) if label is None else (answers == label).all(1)
    shape = (size, size)
    return Slice(
        u=axis_u,
        v=axis_v,
        answer=rank[names.ravel()].reshape(shape),
        exact=exact.reshape(shape),
        residual=trace[-1].reshape(shape),
        settled_at=settling_time(trace, tolerance).reshape(shape),
    )


@dataclass(frozen=True, slots=True)
class Basins:
    """Basin entropy of a slice (Daza et al. 2016)."""

    entropy: float  # mean Gibbs entropy of a box, nats
    boundary: float  # the same over mixed boxes; above ln 2, as boxes shrink: fractal
    mixed: float  # share of boxes that hold two basins or more
    boxes: int


def basin_entropy(labels: np.ndarray, box: int = 5) -> Basins:
    """Unpredictability of the basin that a start near a point falls into.

    Args:
        labels: (m, n) basin of every point.
        box: points a side of the boxes that the slice is cut into.
    """
    labels = np.asarray(labels)
    m, n = (side // box * box for side in labels.shape)
    if not m or not n:
        raise ValueError(f"a slice of {labels.shape} points has no box of {box} × {box}")
    boxes = labels[:m, :n].reshape(m // box, box, n // box, box).swapaxes(1, 2)
    found = np.array(
        [
            stats.entropy(np.unique(cell, return_counts=True)[1])
            for cell in boxes.reshape(-1, box * box)
        ]
    )
    mixed = found > 0
    inside = float(found[mixed].mean()) if mixed.any() else 0.0
    return Basins(float(found.mean()), inside, float(mixed.mean()), len(found))


@dataclass(frozen=True, slots=True)
class Exponent:
    """Uncertainty exponent α of a slice, with the points that it was fitted to."""

    alpha: float  # NaN where fewer than two radii have uncertain points
    low: float  # NaN where fewer than three have
    high: float
    radii: np.ndarray  # (K,) in points of the slice
    uncertain: np.ndarray  # (K,) share of points with another basin at that distance


def uncertainty_exponent(
    labels: np.ndarray, radii: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
) -> Exponent:
    """How fast the uncertain share f(ε) of starts falls as they are known better: f ∝ ε^α.

    A point is ε-uncertain if one of its four neighbours at distance ε ends elsewhere (McDonald et
    al. 1985). α = 1 for a smooth boundary; below 1 it is fractal, and knowing the start ten times
    better helps by less than ten. The interval is that of the fitted line only.
    """
    labels, edge = np.asarray(labels), max(radii)
    m, n = (side - 2 * edge for side in labels.shape)
    if min(m, n) < 1:
        raise ValueError(f"radius {edge} does not fit into a slice of {labels.shape} points")
    # The same points at every radius: a window that shrinks as ε grows would bend the line.
    inner, shares = labels[edge : edge + m, edge : edge + n], []
    for radius in radii:
        shifts = [(-radius, 0), (radius, 0), (0, -radius), (0, radius)]
        differs = [
            labels[edge + i : edge + i + m, edge + j : edge + j + n] != inner for i, j in shifts
        ]
        shares.append(np.logical_or.reduce(differs).mean())
    share, radius = np.array(shares), np.array(radii)
    used = share > 0
    if used.sum() < 2:
        return Exponent(math.nan, math.nan, math.nan, radius, share)
    return Exponent(*power_law(radius[used], share[used]), radius, share)


@dataclass(frozen=True, slots=True)
class Pca:
    """A plane that shows as much as possible of a cloud of states."""

    mean: np.ndarray  # (N,)
    axes: np.ndarray  # (K, N) orthonormal
    explained: np.ndarray  # (K,) share of the variance

    def project(self, states: np.ndarray) -> np.ndarray:
        """Coordinates (…, K) of states (…, N)."""
        return (states - self.mean) @ self.axes.T


def pca(states: np.ndarray, components: int = 2) -> Pca:
    """Principal axes of states (M, N)."""
    states = np.asarray(states, np.float64)
    mean = states.mean(0)
    _, size, axes = np.linalg.svd(states - mean, full_matrices=False)
    variance = size**2 / (size**2).sum()
    return Pca(mean, axes[:components], variance[:components])
