"""Claims and their verdicts: what each chapter ends with.

A claim compares a measured value and its 95 % interval with a bound that was chosen beforehand. The
verdict follows from the interval alone: *reproduced* if all of it satisfies the bound, *not
reproduced* if none of it does, *undecided* if the bound lies inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eqr.evaluate import paired_difference, wilson


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of a claims table; exactly one of ``at_least`` and ``at_most`` is set.

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
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"claim {self.name!r}: set one of at_least and at_most")

    @classmethod
    def of_share(cls, name: str, hits: np.ndarray, **rest) -> Claim:
        """A claim about the share of ``hits`` (any shape), with its Wilson interval."""
        hits = np.asarray(hits, float).ravel()
        low, high = wilson(float(hits.sum()), len(hits))
        return cls(name, float(hits.mean()) if len(hits) else None, low, high, len(hits), **rest)

    @classmethod
    def of_difference(cls, name: str, ours: np.ndarray, other: np.ndarray, **rest) -> Claim:
        """A claim about the mean of ``ours − other`` over the same problems (n,), paired."""
        found = paired_difference(ours, other)
        return cls(name, found.mean, found.low, found.high, found.n, **rest)

    @property
    def verdict(self) -> str:
        """``reproduced``, ``not reproduced``, ``undecided`` or ``not run``."""
        if self.value is None or self.low is None or self.high is None:
            return "not run"
        if self.at_least is not None:
            holds, fails = self.low >= self.at_least, self.high < self.at_least
        else:
            holds, fails = self.high <= self.at_most, self.low > self.at_most
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
        rule = f"≥ {claim.at_least:g}" if claim.at_least is not None else f"≤ {claim.at_most:g}"
        rows.append(
            {
                "claim": claim.name,
                "measured": number(claim.value),
                "95 % interval": f"[{number(claim.low)}, {number(claim.high)}]",
                "bound": rule,
                "verdict": claim.verdict,
                "paper": claim.paper,
                "n": claim.n,
                "seeds": claim.seeds,
                "β": f"{claim.noise:g}",
                "profile": profile,
                "run": claim.run,
            }
        )
    return pd.DataFrame(rows).set_index("claim").rename_axis(None)
