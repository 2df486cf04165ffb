"""The attractors of a problem and their basins: how many, how broad, right or wrong (paper §2).

What many trajectories of many problems do, sorted into attractors, modes and tables: the chapter
*Reading the landscape*. Derivatives at a state are in :mod:`eqr.analysis.dynamics`, slices of the
latent space in :mod:`eqr.analysis.basins`; their functions can be imported from here as well.

Shapes: ``P`` problems × ``B`` restarts over ``D`` outer iterations; ``N`` numbers in a flat state.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from eqr.analysis.basins import (
    NEVER,
    TOLERANCE,
    Basins,
    Exponent,
    Pca,
    Slice,
    basin_entropy,
    latent_slice,
    pca,
    settling_time,
    uncertainty_exponent,
)
from eqr.analysis.dynamics import (
    Dynamics,
    MapModel,
    fixed_point,
    gap_lipschitz,
    jacobian_norm,
    local_lipschitz,
    lyapunov,
    margin,
    spectral_radius,
)
from eqr.evaluate import answer_hash
from eqr.rollout import Iteration, record, rollout
from eqr.stats import Difference, paired_difference, wilson

__all__ = [
    "MODES", "NEVER", "TOLERANCE", "Basins", "Dynamics", "Ends", "Exponent", "MapModel", "Pca",
    "Slice", "attractors", "basin_entropy", "cluster", "ends", "fixed_point", "gap_lipschitz",
    "jacobian_norm", "kinds", "latent_slice", "local_lipschitz", "lyapunov", "margin",
    "mode_gains", "modes", "path_independence", "pca", "reliability", "settled_correct",
    "settling_time", "spectral_radius", "uncertainty_exponent",
]  # fmt: skip

# --- trajectories ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ends:
    """Where P problems × B restarts were after D iterations, and how they got there."""

    residual: np.ndarray  # (D, P, B) float32, of every iteration
    exact: np.ndarray  # (D, P, B) bool
    answer: np.ndarray  # (P, B) int64: a hash of the last decoded answer
    attractor: np.ndarray  # (P, B) int: cluster of the last state, 0 the most frequent
    recurrence: np.ndarray  # (P, B) RMS distance to the nearest of the states W..2 before the last
    period: np.ndarray  # (P, B) int: how many iterations before the last that nearest state was

    def arrays(self) -> dict[str, np.ndarray]:
        """For a stored run; ``Ends(**arrays)`` reads them back."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


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
    count = len(inputs)
    result = Ends(
        residual=np.zeros((depth, count, breadth), np.float32),
        exact=np.zeros((depth, count, breadth), bool),
        answer=np.zeros((count, breadth), np.int64),
        attractor=np.zeros((count, breadth), np.int64),
        recurrence=np.zeros((count, breadth), np.float32),
        period=np.zeros((count, breadth), np.int64),
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
            for problem in np.unique(it.problem):
                mine = it.problem == problem
                states = last[torch.from_numpy(mine).to(last.device)].cpu().numpy()
                result.attractor[problem] = cluster(states, radius)
        own = truth[torch.from_numpy(it.problem).to(model.device)]
        return {"residual": it.residual, "exact": (it.answer == own).all(1)}

    iterations = rollout(
        model, torch.as_tensor(inputs), depth=depth, breadth=breadth, noise=noise, seed=seed,
        rows=max(1, rows // breadth) * breadth,
    )  # fmt: skip
    record(iterations, result.arrays(), keep, range(1, depth + 1))
    return result


def kinds(found: Ends, tolerance: float = TOLERANCE) -> np.ndarray:
    """How each trajectory ended, (P, B): ``"fixed point"``, ``"cycle"`` or ``"wanders"``.

    A fixed point: the last residual is below ``tolerance``. A cycle: it is not, but the last state
    returns to within ``tolerance`` of one of the states before. Anything else wanders: chaos, a
    cycle longer than the window, or a very slow approach.
    """
    settled = found.residual[-1] < tolerance
    cycle = found.recurrence < tolerance
    return np.where(settled, "fixed point", np.where(cycle, "cycle", "wanders"))


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


def attractors(found: Ends, tolerance: float = TOLERANCE) -> pd.DataFrame:
    """The attractors that settled restarts have reached, one row each.

    Columns: ``problem, attractor, restarts`` (settled ones that ended there), ``mass`` (of all B
    restarts), ``right``, ``residual`` (mean of the last ones) and ``iterations`` (mean settling
    time). Trajectories that did not settle belong to no attractor.
    """
    settled, last = found.residual[-1] < tolerance, found.exact[-1]
    when = settling_time(found.residual, tolerance)
    problem, restart = np.nonzero(settled)
    frame = pd.DataFrame(
        {
            "problem": problem,
            "attractor": found.attractor[problem, restart],
            "right": last[problem, restart],
            "residual": found.residual[-1][problem, restart],
            "iterations": when[problem, restart],
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


def path_independence(exact: np.ndarray) -> Difference:
    """``Δ_PI(B) = E_x |mean over B of acc(x) − acc_1(x)|`` with a 95 % interval (paper A.1).

    Args:
        exact: (P, B) bool; the first restart is the single one.
    """
    exact = np.asarray(exact, float)
    return paired_difference(np.abs(exact.mean(1) - exact[:, 0]), np.zeros(len(exact)))


# --- modes and tables --------------------------------------------------------------------

#: The four landscapes of the paper (§1), as this classifier decides them.
MODES: Mapping[str, str] = {
    "a": "no correct attractor: no restart ends right",
    "b": "correct and spurious: some end right, and others settle at a wrong answer",
    "c": "correct but narrow or weak: few end right, or none settles at a wrong answer",
    "d": "broad and stable: nearly all end right, and settled",
}


def modes(
    exact: np.ndarray, settled: np.ndarray, *, broad: float = 0.9, narrow: float = 0.25
) -> np.ndarray:
    """The mode of each problem, (P,) of ``"a"`` to ``"d"``, from restarts of it.

    Args:
        exact, settled: (P, B) bool at the last iteration.
        broad: share of restarts that must end right and settled for ``"d"``.
        narrow: share of restarts that end right below which a basin counts as narrow, ``"c"``.
    """
    exact, settled = np.asarray(exact, bool), np.asarray(settled, bool)
    some = exact.any(1)
    spurious = (settled & ~exact).any(1)
    stable = (exact & settled).mean(1) >= broad
    few = exact.mean(1) < narrow
    return np.select([~some, stable, few | ~spurious], ["a", "d", "c"], "b")


def mode_gains(
    mode: np.ndarray, base: np.ndarray, deeper: np.ndarray, wider: np.ndarray
) -> pd.DataFrame:
    """What depth and breadth bought in each mode, at equal cost.

    Args:
        mode: (P,) from :func:`modes`, on other restarts than the ones below.
        base, deeper, wider: (P,) accuracy of each problem at the base budget, with more depth, and
            with more breadth.

    Returns:
        One row a mode: ``n``, ``base``, and the paired gains ``depth`` and ``breadth`` with their
        95 % intervals; NaN where no problem has the mode.
    """
    rows = []
    for name in MODES:
        mine = mode == name
        row: dict[str, Any] = {"mode": name, "n": int(mine.sum()), "base": math.nan}
        for kind, gained in (("depth", deeper), ("breadth", wider)):
            if mine.any():
                found = paired_difference(gained[mine], base[mine])
                values = found.mean, found.low, found.high
            else:
                values = math.nan, math.nan, math.nan
            row |= dict(zip((kind, f"{kind}_low", f"{kind}_high"), values, strict=True))
        if mine.any():
            row["base"] = float(np.mean(base[mine]))
        rows.append(row)
    return pd.DataFrame(rows).set_index("mode")


def settled_correct(settled: np.ndarray, exact: np.ndarray) -> pd.DataFrame:
    """The 2×2 table of settled × correct, (n,) bool each, as counts and shares of each column.

    ``share`` is that of the right (or wrong) answers which settled, with its Wilson interval.
    """
    settled, exact = np.asarray(settled, bool).ravel(), np.asarray(exact, bool).ravel()
    rows = []
    for name, mine in (("right", exact), ("wrong", ~exact)):
        n, hits = int(mine.sum()), int((mine & settled).sum())
        low, high = wilson(hits, n)
        share = hits / n if n else math.nan
        rows.append(
            {"answer": name, "settled": hits, "not settled": n - hits, "n": n, "share": share,
             "low": low, "high": high}
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("answer")


def reliability(residuals: np.ndarray, exact: np.ndarray, bins: int = 8) -> pd.DataFrame:
    """Accuracy in bins of equal count by residual, with Wilson intervals: a reliability curve.

    Args:
        residuals, exact: (n,).
    """
    residuals, exact = np.ravel(residuals), np.ravel(exact)
    rows = []
    for part in np.array_split(np.argsort(residuals, kind="stable"), min(bins, len(residuals))):
        low, high = wilson(float(exact[part].sum()), len(part))
        rows.append(
            {"residual": float(np.median(residuals[part])), "n": len(part),
             "exact": float(exact[part].mean()), "low": low, "high": high}
        )  # fmt: skip
    return pd.DataFrame(rows)
