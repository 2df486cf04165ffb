"""Tidy tables of what was measured, with intervals: a row for each setting and selection rule."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from eqr.evaluate import Records
from eqr.halting import Halted
from eqr.rollout import NEVER
from eqr.select import check_selections, selected
from eqr.settings import ConfigError
from eqr.stats import wilson


def accuracy(exact: np.ndarray) -> dict[str, float]:
    """Columns ``n``, ``exact``, ``low`` and ``high`` for the accuracy of each problem, (P,)."""
    low, high = wilson(float(exact.sum()), len(exact))
    return {"n": len(exact), "exact": float(exact.mean()), "low": low, "high": high}


def table(
    records: Records,
    *,
    breadths: Sequence[int],
    select: Sequence[str],
    layers: int,
    noise: float,
    symmetry: bool = False,
    nfe: Callable[[int, int], int] = operator.mul,
) -> pd.DataFrame:
    """One row for each depth, breadth and selection rule.

    Columns: ``depth, breadth, select, noise, symmetry`` (of the restarts), ``n`` (problems),
    ``exact`` with its 95 % Wilson interval ``low, high``, ``token``, ``residual`` (mean of the
    chosen trajectories), ``nfe`` (of depth and breadth, see :meth:`eqr.config.EvalConfig.nfe`) and
    ``layers`` a problem. For the average over restarts the
    interval treats a problem, not a restart, as the unit (restarts of one problem are not
    independent): it errs on the wide side.

    Raises:
        ConfigError: an unknown rule, or a breadth that was not run.
    """
    check_selections(select)  # before the work, so that a misspelt rule costs nothing
    run = records.exact.shape[2]
    for breadth in breadths:
        if not 1 <= breadth <= run:
            raise ConfigError(f"breadth {breadth} was not run; at most {run}")
    rows = []
    for depth in records.depths.tolist():
        for breadth in breadths:
            outcomes = records.at(depth).first(breadth)
            for name in select:
                exact, token, residual = selected(outcomes, name)
                rows.append(
                    {
                        "depth": depth,
                        "breadth": breadth,
                        "select": name,
                        "noise": noise,
                        "symmetry": symmetry,
                        **accuracy(exact),
                        "token": float(token.mean()),
                        "residual": float(residual.mean()),
                        "nfe": nfe(depth, breadth),
                        "layers": nfe(depth, breadth) * layers,
                    }
                )
    return pd.DataFrame(rows)


def halting_table(
    runs: Mapping[str, Halted],
    *,
    select: Sequence[str],
    limit: int,
    noise: float,
) -> pd.DataFrame:
    """One row for each halting rule and selection rule.

    Columns: ``halting`` (the rule), ``depth`` (its limit), ``breadth, select, noise, n``
    (problems), ``exact`` with its 95 % Wilson interval ``low, high`` (see
    :func:`table`), ``settled`` (share of the trajectories run that the rule let go),
    ``nfe`` (mean a problem), ``saving`` (the fixed budget D·B over it), ``seconds`` (wall time) and
    ``cpu_seconds``.

    Args:
        runs: by the text of the rule; the rows of ``fixed`` are the fixed budget.
        limit: the depth limit D of them all.

    Raises:
        ConfigError: an unknown selection rule.
    """
    check_selections(select)
    rows = []
    for rule, run in runs.items():
        ran, breadth = run.depth > 0, run.depth.shape[1]
        nfe = float(run.nfe.mean())
        for name in select:
            if name == "average":  # over the restarts that were started
                exact = run.outcomes.exact.sum(1) / ran.sum(1)
            else:
                exact = selected(run.outcomes, name)[0]
            rows.append(
                {
                    "halting": rule,
                    "depth": limit,
                    "breadth": breadth,
                    "select": name,
                    "noise": noise,
                    **accuracy(exact),
                    "settled": float((run.outcomes.halted_at[ran] < NEVER).mean()),
                    "nfe": nfe,
                    "saving": limit * breadth / nfe,
                    "seconds": run.seconds,
                    "cpu_seconds": run.cpu_seconds,
                }
            )
    return pd.DataFrame(rows)
