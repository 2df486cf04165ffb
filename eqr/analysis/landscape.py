"""The attractors of a problem and their basins: how many, how broad, right or wrong (paper §2).

Two ways to look at a landscape (chapter *Settle or wander?*): what many trajectories of many
problems do, sorted into attractors and modes; and slices of the latent space of one
problem, which show what start ends where and how tangled the border is. Derivatives at a state are
in :mod:`eqr.analysis.dynamics`.

Shapes: ``P`` problems × ``B`` restarts over ``D`` outer iterations; ``N`` numbers in a flat state.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from eqr.analysis.dynamics import Dynamics
from eqr.evaluate import answer_hash
from eqr.model import residual
from eqr.rollout import Iteration, record, rollout
from eqr.stats import power_law

TOLERANCE = 0.02  # residual below which a trajectory counts as settled, as in eqr.solve
UNSETTLED = -1  # settling time of a trajectory that did not settle

# --- trajectories ------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """Where P problems × B restarts were after D iterations, and how they got there.

    ``vars`` gives the arrays for a stored run, ``Ends(**arrays)`` reads them back.
    """

    residual: np.ndarray  # (D, P, B) float32, of every iteration
    exact: np.ndarray  # (D, P, B) bool
    answer: np.ndarray  # (P, B) int64: a hash of the last decoded answer
    attractor: np.ndarray  # (P, B) int: cluster of the last state, 0 the most frequent
    recurrence: np.ndarray  # (P, B) RMS distance to the nearest of the states W..2 before the last
    period: np.ndarray  # (P, B) int: how many iterations before the last that nearest state was


@torch.no_grad()
def ends(
    model: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    depth: int,
    breadth: int,
    noise: float = 0.0,
    seed: int = 0,
    window: int = 16,
    radius: float = 0.1,
    rows: int = 512,
) -> Ends:
    """Run ``breadth`` trajectories of every problem and look at where they end.

    Args:
        inputs, labels: (P, S) tokens.
        window: how many iterations to look back for a state that returns.
        radius: RMS distance below which two last states belong to one attractor.
        rows: trajectories in flight; whole problems are kept together.
    """
    by_depth, once = (depth, len(inputs), breadth), (len(inputs), breadth)
    result = Ends(
        residual=np.zeros(by_depth, np.float32),
        exact=np.zeros(by_depth, bool),
        answer=np.zeros(once, np.int64),
        attractor=np.zeros(once, np.int64),
        recurrence=np.zeros(once, np.float32),
        period=np.zeros(once, np.int64),
    )
    truth = torch.as_tensor(labels, device=model.device).long()
    recent: deque[Tensor] = deque(maxlen=window + 1)

    def keep(it: Iteration) -> dict[str, Tensor]:
        if it.depth == 1:
            recent.clear()
        if depth - it.depth <= window:
            recent.append(it.step.state.flat())
        if it.depth == depth:
            at = it.problem, it.restart
            result.answer[at] = answer_hash(it.answer).cpu().numpy()
            last, past = recent[-1], list(recent)[-3::-1]  # two before, three before, …
            back = [(last - z).square().mean(1).sqrt() for z in past]
            back = back or [last.new_full((len(last),), math.inf)]  # too early to return
            nearest = torch.stack(back).min(0)
            result.recurrence[at] = nearest.values.cpu().numpy()
            result.period[at] = nearest.indices.cpu().numpy() + 2
            states = last.cpu().numpy()
            for problem in np.unique(it.problem):
                result.attractor[problem] = cluster(states[it.problem == problem], radius)
        own = truth[torch.from_numpy(it.problem).to(model.device)]
        return {"residual": it.residual, "exact": (it.answer == own).all(1)}

    iterations = rollout(
        model, torch.as_tensor(inputs), depth=depth, breadth=breadth, noise=noise, seed=seed,
        rows=max(1, rows // breadth) * breadth,
    )  # fmt: skip
    record(iterations, vars(result), keep, range(1, depth + 1))
    return result


def kinds(trajectories: Ends, tolerance: float = TOLERANCE) -> np.ndarray:
    """How each trajectory ended, (P, B): ``"fixed point"``, ``"cycle"`` or ``"wanders"``.

    A fixed point: the last residual is below ``tolerance``. A cycle: it is not, but the last state
    returns to within ``tolerance`` of one of the states before. Anything else wanders: chaos, a
    cycle longer than the window, or a very slow approach.
    """
    returns = np.where(trajectories.recurrence < tolerance, "cycle", "wanders")
    return np.where(trajectories.residual[-1] < tolerance, "fixed point", returns)


def settling_time(residuals: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """First iteration, from 1, from which on the residual stays below ``tolerance``.

    Args:
        residuals: (D, …) by iteration.

    Returns:
        (…) ints; :data:`UNSETTLED` where the last residual is not below.

    >>> settling_time(np.array([[.5, .5], [.01, .01], [.03, .01]]), 0.02)
    array([-1,  2])
    """
    above = ~(np.asarray(residuals) < tolerance)  # NaN is not below
    last = len(above) - np.argmax(above[::-1], axis=0)  # the last iteration not below, from 1
    last = np.where(above.any(0), last, 0)
    return np.where(above[-1], UNSETTLED, last + 1)


def cluster(states: np.ndarray, radius: float) -> np.ndarray:
    """Group states (B, N) by single linkage at RMS distance ``radius``; (B,) labels.

    Labels are numbered by falling frequency, so 0 is the attractor of the largest mass.
    """
    states = np.asarray(states, np.float64)
    if len(states) == 1:
        return np.zeros(1, int)
    tree = linkage(states, method="single")
    raw = fcluster(tree, radius * math.sqrt(states.shape[1]), criterion="distance")
    _, first, names, sizes = np.unique(
        raw, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(sizes), int)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[names]


def attractors(trajectories: Ends) -> pd.DataFrame:
    """The attractors that settled restarts have reached, one row each.

    Columns: ``problem, attractor, restarts`` (settled ones that ended there), ``mass`` (of all B
    restarts), ``right``, ``residual`` (mean of the last ones) and ``iterations`` (mean settling
    time). Trajectories that did not settle belong to no attractor.
    """
    settled = trajectories.residual[-1] < TOLERANCE
    frame = pd.DataFrame(
        {
            "problem": np.nonzero(settled)[0],
            "attractor": trajectories.attractor[settled],
            "right": trajectories.exact[-1][settled],
            "residual": trajectories.residual[-1][settled],
            "iterations": settling_time(trajectories.residual)[settled],
        }
    )
    grouped = frame.groupby(["problem", "attractor"])
    table = grouped.agg(
        restarts=("right", "size"),
        right=("right", "mean"),
        residual=("residual", "mean"),
        iterations=("iterations", "mean"),
    ).reset_index()
    table["mass"] = table.restarts / settled.shape[1]
    table["right"] = table.right > 0.5
    return table


# --- modes ----------------------------------------------------------------------------------

#: The four landscapes of the paper (§1), as this classifier decides them.
MODES: Mapping[str, str] = {
    "a": "no correct attractor: no restart ends right",
    "b": "correct and spurious: some settle at the right answer, others at a wrong one",
    "c": "correct but narrow or weak: some end right, though not as in b or d",
    "d": "broad and stable: nearly all end right, and settled",
}


def modes(exact: np.ndarray, settled: np.ndarray, *, broad: float = 0.9) -> np.ndarray:
    """The mode of each problem, (P,) of ``"a"`` to ``"d"``, from restarts of it.

    Args:
        exact, settled: (P, B) bool at the last iteration.
        broad: share of restarts that must end right and settled for ``"d"``.
    """
    exact, settled = np.asarray(exact, bool), np.asarray(settled, bool)
    coexist = (settled & exact).any(1) & (settled & ~exact).any(1)
    stable = (exact & settled).mean(1) >= broad
    return np.select([~exact.any(1), stable, coexist], ["a", "d", "b"], "c")


# --- slices of the latent space ----------------------------------------------------------


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
) -> dict[str, np.ndarray]:
    """Iterate every start of the plane through three states; a map of the basins it cuts.

    The start at (u, v) is ``c0 + u (c1 − c0) + v (c2 − c0)``: the corners lie at (0, 0), (1, 0)
    and (0, 1).

    Args:
        dynamics: of one problem (one row).
        corners: (3, N) flat states.
        label: (S,) the right tokens; None marks nothing as exact.
        size: points a side, n.
        span: range of the coordinate u, and of v unless ``span_v`` says otherwise.

    Returns:
        ``u`` and ``v``, (n,) coordinates; and of each start, (n, n) with v along the rows:
        ``answer``, a number for the decoded answer, 0 the most frequent; ``exact``, bool;
        ``residual`` of the last iteration; ``settled_at``, :func:`settling_time`.
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
    points = {
        "answer": rank[names.ravel()],
        "exact": exact,
        "residual": trace[-1],
        "settled_at": settling_time(trace, tolerance),
    }
    points = {name: each.reshape(size, size) for name, each in points.items()}
    return {"u": axis_u, "v": axis_v} | points


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

    Raises:
        ValueError: the largest radius does not fit into the slice.
    """
    labels, edge = np.asarray(labels), max(radii)
    m, n = (side - 2 * edge for side in labels.shape)
    if min(m, n) < 1:
        raise ValueError(f"radius {edge} does not fit into a slice of {labels.shape} points")
    # The same points at every radius: a window that shrinks as ε grows would bend the line.
    inner, shares = labels[edge : edge + m, edge : edge + n], []
    for radius in radii:
        shifts = [(-radius, 0), (radius, 0), (0, -radius), (0, radius)]
        moved = [labels[edge + i : edge + i + m, edge + j : edge + j + n] for i, j in shifts]
        shares.append((np.array(moved) != inner).any(0).mean())
    share, radius = np.array(shares), np.array(radii)
    used = share > 0
    if used.sum() < 2:
        return Exponent(math.nan, math.nan, math.nan, radius, share)
    return Exponent(*power_law(radius[used], share[used]), radius, share)
