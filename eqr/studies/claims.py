"""Claims and their verdicts: what each chapter ends with.

A claim compares a measured value and its 95 % interval with a bound that was chosen beforehand. The
verdict follows from the interval alone: *reproduced* if all of it satisfies the bound, *not
reproduced* if none of it does, *undecided* if the bound lies inside. With two bounds a claim says
that the value lies between them, as that a prediction is met to within a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eqr.stats import Difference, bootstrap, mean_interval, paired_difference, wilson
from eqr.studies.results import Pick, Results


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of a claims table, with ``at_least``, ``at_most``, or both.

    ``value``, ``low`` and ``high`` are None where the claim was not run.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int  # problems (or cases) behind the value
    at_least: float | None = None
    at_most: float | None = None
    paper: str = "–"  # the paper's own figure, at its own scale
    seeds: int = 1
    noise: float = 0.0  # β of the rollouts
    run: str = "–"  # id of the stored run

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"claim {self.name!r}: set at_least, at_most or both")

    @classmethod
    def of_share(cls, name: str, hits: np.ndarray, **rest) -> Claim:
        """A claim about the share of ``hits`` (any shape), with its Wilson interval."""
        hits = np.asarray(hits, float).ravel()
        low, high = wilson(float(hits.sum()), len(hits))
        return cls(name, float(hits.mean()) if len(hits) else None, low, high, len(hits), **rest)

    @classmethod
    def of_difference(cls, name: str, ours: np.ndarray, other: np.ndarray, **rest) -> Claim:
        """A claim about the mean of ``ours − other`` over the same problems (n,), paired."""
        gap = paired_difference(ours, other)
        return cls(name, gap.mean, gap.low, gap.high, gap.n, **rest)

    @classmethod
    def of_mean(cls, name: str, values: np.ndarray, **rest) -> Claim:
        """A claim about the mean of ``values`` (n,), with its t interval; n < 2: not run."""
        values = np.asarray(values, float).ravel()
        if len(values) < 2:
            return cls(name, None, None, None, len(values), **rest)
        interval = mean_interval(values)
        return cls(name, interval.mean, interval.low, interval.high, interval.n, **rest)

    @classmethod
    def of_seeds(cls, name: str, interval: Difference, n: int, **rest) -> Claim:
        """A claim about a mean over seeds, each on n problems; fewer than two seeds: not run."""
        bounds = (
            (interval.mean, interval.low, interval.high) if interval.n > 1 else (None, None, None)
        )
        return cls(name, *bounds, n, seeds=interval.n, **rest)

    @classmethod
    def of_ratio(cls, name: str, ours: np.ndarray, other: np.ndarray, **rest) -> Claim:
        """A claim about ``mean(ours) / mean(other)`` over the same problems (n,).

        The interval comes from 2,000 resamples of the problems (percentile bootstrap).
        """
        ours, other = np.asarray(ours, float), np.asarray(other, float)
        low, high = bootstrap(lambda rows: ours[rows].mean(1) / other[rows].mean(1), len(ours))
        return cls(name, ours.mean() / other.mean(), float(low), float(high), len(ours), **rest)

    @classmethod
    def of_study(cls, name: str, study: Results, ours: Pick, other: Pick, **rest) -> Claim:
        """A claim about ``ours − other`` in a many-seed study: paired by seed, t interval.

        Not run, where a row has fewer than two seeds in common with the other.
        """
        shared = set(study.seeds(ours.row, ours.evaluation))
        shared &= set(study.seeds(other.row, other.evaluation))
        if len(shared) < 2:
            return cls(name, None, None, None, 0, seeds=len(shared), **rest)
        both = study.compare(ours, other)
        rest = {"seeds": both.seeds.n, "run": study.id, **rest}
        gap = both.seeds
        return cls(name, gap.mean, gap.low, gap.high, both.problems.n, **rest)

    @property
    def verdict(self) -> str:
        """``reproduced``, ``not reproduced``, ``undecided`` or ``not run``."""
        if self.value is None or self.low is None or self.high is None:
            return "not run"
        if self.low == self.high and self.low in (self.at_least, self.at_most):
            return "undecided"  # all of it on the bound: nothing was found on either side
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        holds = self.low >= least and self.high <= most
        fails = self.high < least or self.low > most
        return "reproduced" if holds else "not reproduced" if fails else "undecided"


def claims_table(claims: Sequence[Claim], profile: str) -> pd.DataFrame:
    """The table that ends a chapter, one row a claim.

    >>> claims_table([Claim("x", 0.9, 0.8, 0.95, 100, at_least=0.7)], "smoke").verdict.item()
    'reproduced'
    """

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    rows = []
    for claim in claims:
        if claim.at_least is None or claim.at_most is None:
            most = claim.at_least is None
            rule = f"≤ {claim.at_most:g}" if most else f"≥ {claim.at_least:g}"
        else:
            rule = f"{claim.at_least:g} to {claim.at_most:g}"
        rows.append(
            {
                "claim": claim.name,
                "measured [95 %]": (
                    f"{number(claim.value)} [{number(claim.low)}, {number(claim.high)}]"
                ),
                "bound": rule,
                "verdict": claim.verdict,
                "paper": claim.paper,
                "n": claim.n,
                "made from": f"{profile}, {claim.seeds} seed{'s' * (claim.seeds != 1)}, "
                f"β = {claim.noise:g}, {claim.run}",
            }
        )
    return pd.DataFrame(rows).set_index("claim").rename_axis(None)
