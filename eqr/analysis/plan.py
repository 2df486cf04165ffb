"""Compute planner: (D, B, halting, selection) for a target or a budget (chapter *A budget*).

    ways, notes = read_ways(stored_runs(model.sha256, store), model.model.config.layers)
    print(plan(ways, budget=200))

The best of many ways on the same problems looks better than it is. So the expectation of a plan is
cross-fitted: the way for a fold of the problems is chosen on the other folds. What a budget of c
can buy, E(c), is the *frontier*; since a larger budget can be spent like a smaller one, E is made
to rise by isotonic regression. A plan for a budget reads the frontier at it, a plan for a target
asks where the frontier reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from eqr.analysis.ways import UNITS, PlanError, Setting, Way
from eqr.settings import ConfigError, nearest
from eqr.stats import Difference, paired_difference, share_interval
from eqr.streams import stream_seed

FOLDS = 5  # of the cross-fitting
OTHERS = 3  # runners-up of a plan


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What to run and what to expect: a step of the frontier or, with all fields, an answer."""

    budget: float  # from which on the frontier says so: the cost of a way
    best: Way
    expected: Difference  # cross-fitted accuracy, rising along the frontier
    tied: bool  # the best two cannot be told apart
    asked: str = ""
    status: str = ""  # see :func:`plan`
    others: tuple[Way, ...] = ()  # what else the budget buys
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = {"asked": self.asked, "status": self.status, "best": self.best.to_dict()}
        values |= {"expected": asdict(self.expected), "notes": list(self.notes)}
        return values | {"others": [other.to_dict(self.best) for other in self.others]}

    def __str__(self) -> str:
        best, expected = self.best, self.expected
        lines = [
            f"{self.asked}: {self.status}",
            f"  run       {best.setting}",
            f"  expected  {expected.text('.1%')}, cross-fitted, n = {expected.n}",
            f"  recorded  {best.recorded.text('.1%')} on the problems it was chosen on",
            f"  in        {best.run}",
            f"  cost      {best.cost():.4g} NFE, {best.cost('layers'):.4g} layer evaluations, "
            f"{best.cost('seconds'):.3g} s a problem",
        ]
        for other in self.others:
            lines.append(f"  or        {other}; {other.minus(best).text('+.1%')} to it")
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])


def choices(exact: np.ndarray, cost: np.ndarray) -> list[tuple[int, bool]]:
    """For each budget, from the least to the largest cost of a way: which to choose, if by a tie.

    That is the most accurate way it pays for; if the paired difference of the best two does not
    exclude zero, they tie, and it is the cheaper of them.

    Args:
        exact: (S, P) of ways and problems.
        cost: (S,).
    """
    ranked, chosen = np.lexsort((cost, -exact.mean(1))), []
    compare = cache(lambda one, other: paired_difference(exact[one], exact[other]))
    for budget in np.unique(cost):
        best = ranked[cost[ranked] <= budget][:2].tolist()
        tied = len(best) == 2 and compare(*best).low <= 0
        chosen.append((min(best, key=lambda row: cost[row]) if tied else best[0], tied))
    return chosen


def proposed(exact: np.ndarray) -> int:
    """Which of rising breadths (K, P) to propose: the smallest that does best.

    A rule that chooses badly gets worse with every restart, though more of them are right. It is no
    use to stop at the first loss: two restarts have no majority, so that a vote is lost there to
    its tie-break and rises from three on.

    >>> proposed(np.array([[0, 0, 1], [0, 1, 1], [0, 0, 1], [0, 1, 1]]))
    1
    """
    return int(exact.mean(1).argmax())


def frontier(ways: Sequence[Way], unit: str = "nfe", seed: int = 0) -> list[Plan]:
    """What each budget buys, from the cheapest way to the dearest.

    Args:
        ways: on the same problems, see :func:`eqr.analysis.ways.align`.
        unit: of the budget: ``nfe``, ``layers`` or ``seconds``, a problem.
        seed: draws the folds.

    Raises:
        PlanError: no ways, or fewer than two problems.
        ConfigError: an unknown unit.
    """
    if unit not in UNITS:
        raise ConfigError(f"unit {unit!r} is not known; {nearest(unit, UNITS)}")
    if not ways or len(ways[0].exact) < 2:
        raise PlanError("a plan needs records of at least one setting on at least two problems")
    exact = np.array([way.exact for way in ways])
    cost = np.array([way.cost(unit) for way in ways])
    n, budgets = exact.shape[1], np.unique(cost).tolist()
    order = np.random.default_rng(stream_seed(seed, "plan folds")).permutation(n)
    fold = order % min(FOLDS, n)  # of each problem, (P,)
    values = np.empty((len(budgets), n))  # of each problem, cross-fitted
    for k in np.unique(fold):
        rows = [row for row, _ in choices(exact[:, fold != k], cost)]
        values[:, fold == k] = exact[rows][:, fold == k]
    whole, steps = choices(exact, cost), []
    blocks = isotonic_regression(values.mean(1)).blocks  # ends of the runs averaged to rise
    for first, last in pairwise(blocks.tolist()):
        pooled = values[first:last].mean(0)
        for budget, (row, tied) in zip(budgets[first:last], whole[first:last], strict=True):
            expected = share_interval(float(pooled.mean()), pooled, ways[row].groups)
            steps.append(Plan(budget, ways[row], expected, tied))
    return steps


def at_budget(steps: Sequence[Plan], budget: float) -> Plan | None:
    """The last step that a budget pays for; None where it pays for none."""
    return next((step for step in reversed(steps) if step.budget <= budget), None)


def plan(
    ways: Sequence[Way],
    *,
    budget: float | None = None,
    target: float | None = None,
    unit: str = "nfe",
    seed: int = 0,
) -> Plan:
    """The most accurate way within a budget, or the cheapest that reaches a target.

    The status for a budget is ``supported``, or ``tie`` where the best two ways cannot be told
    apart; for a target it is ``supported`` where all of the expectation's interval reaches it,
    ``likely`` where the expectation does, and ``uncertain`` where the records only do not exclude
    it: then no other way comes closer. The others are what costs no more, first of all what cannot
    be told from it, the cheapest first.

    Args:
        budget: the most to spend on a problem, in ``unit``; of a halting rule the mean counts.
        target: exact accuracy in (0, 1].

    Raises:
        PlanError: the records support no answer, or it is no question; says why.
    """
    if (budget is None) == (target is None):
        raise PlanError("give exactly one of budget and target")
    if budget is not None and not 0 < budget < math.inf:
        raise PlanError(f"budget {budget:g} must be a positive number")
    if target is not None and not 0 < target <= 1:
        raise PlanError(f"target {target:g} must lie in (0, 1], as in 0.98")
    steps = frontier(ways, unit, seed)
    if target is None:
        asked, step = f"budget {budget:g} {UNITS[unit]} a problem", at_budget(steps, budget)
        if step is None:
            low = min(ways, key=lambda way: way.cost(unit))
            raise PlanError(f"{asked} is below the cheapest setting ({low}); record smaller depths")
        status = "tie" if step.tied else "supported"
        notes = beyond(ways, step.best.setting, budget / step.best.cost(unit))
    else:
        asked, (step, status, notes) = f"target {target:.1%}", _reaching(ways, steps, target)
    rest = [way for way in ways if way is not step.best and way.cost(unit) <= step.budget]
    rest.sort(key=lambda way: -way.exact.mean())
    equal = [way for way in rest if (gap := way.minus(step.best)).low <= 0 <= gap.high]
    equal.sort(key=lambda way: way.cost(unit))
    if len(equal) > OTHERS:
        notes.append(f"n = {step.expected.n} problems cannot tell {len(equal)} others from it")
    others = [*equal, *(way for way in rest if way not in equal)][:OTHERS]
    return replace(step, asked=asked, status=status, others=tuple(others), notes=tuple(notes))


def beyond(ways: Sequence[Way], chosen: Setting, times: float) -> list[str]:
    """What a budget of so many times the cost would also pay for, and no record can judge."""
    like = [way.setting for way in ways]
    like = [s for s in like if (s.noise, s.halting) == (chosen.noise, chosen.halting)]
    broad = max(s.breadth for s in like if s.depth == chosen.depth)
    deep = max(s.depth for s in like if s.breadth >= chosen.breadth)
    more = []
    if broad + 1 <= times * chosen.breadth:
        more.append(f"more restarts, but B > {broad} was not recorded at D = {chosen.depth}")
    if 2 * deep <= times * chosen.depth:
        more.append(f"more depth, but D > {deep} was not recorded with B = {chosen.breadth}")
    return [f"the budget would pay for {text}" for text in more]


def _reaching(
    ways: Sequence[Way], steps: Sequence[Plan], target: float
) -> tuple[Plan, str, list[str]]:
    """The first step that reaches the target, the status, and notes."""
    top = max(ways, key=lambda way: way.recorded.high)
    if top.recorded.high < target:
        raise PlanError(
            f"target {target:.1%} is out of reach of the records: the highest interval is of "
            f"{top}; record more depth or breadth"
        )
    first = next((step for step in steps if step.expected.mean >= target), None)
    sure = next((step for step in steps if step.expected.low >= target), None)
    if first is None:
        return steps[-1], "uncertain", []
    if sure is None or sure is first:
        return first, "supported" if sure else "likely", []
    dearer = f"{sure.best}, expected {sure.expected.text('.1%')}"
    return first, "likely", [f"to have the whole interval above {target:.1%}: {dearer}"]


def validate(
    ways: Sequence[Way], budgets: Sequence[float], *, unit: str = "nfe", splits: int = 20, seed=0
) -> pd.DataFrame:
    """Plan on a random half of the problems, and see what is obtained on the other half.

    Columns: ``split, budget``; accuracies ``predicted`` (cross-fitted), ``recorded`` (the
    optimistic one of the planning half) and ``obtained`` on the other half; ``covered``, whether
    that lies where a new mean over as many problems is expected with 95 %; ``nfe`` planned and
    ``nfe_obtained``. Splits of one set of problems overlap: their rows are not independent.

    Budgets below the cheapest way are left out.
    """
    rows = []
    for split in range(splits):
        draw = np.random.default_rng(stream_seed(seed, "plan split", split))
        first, second = np.array_split(draw.permutation(len(ways[0].exact)), 2)
        steps = frontier([way.on(np.sort(first)) for way in ways], unit, seed + split)
        elsewhere = {way.setting: way.on(second) for way in ways}
        for budget in budgets:
            if (step := at_budget(steps, budget)) is None:
                continue
            best, expected, row = step.best, step.expected, {"split": split, "budget": budget}
            other = elsewhere[best.setting]
            error = float(other.exact.mean()) - expected.mean
            half = expected.high - expected.mean if error > 0 else expected.mean - expected.low
            half *= math.sqrt(1 + expected.n / len(second))  # the other half is a sample too
            row |= {"predicted": expected.mean, "recorded": float(best.exact.mean())}
            row |= {"obtained": float(other.exact.mean()), "covered": abs(error) <= half}
            rows.append(row | {"nfe": best.cost(), "nfe_obtained": other.cost()})
    return pd.DataFrame(rows)


def validation(
    ways: Sequence[Way], budget: float, unit: str, seed: int
) -> tuple[dict[str, float], str]:
    """The means of :func:`validate` at one budget over its ``splits``, and in words."""
    trials = validate(ways, [budget], unit=unit, seed=seed).drop(columns="split")
    mean = trials.mean()
    return mean.to_dict() | {"splits": len(trials)}, (
        f"validated on {len(trials)} splits into halves: predicted {mean.predicted:.1%}, "
        f"obtained {mean.obtained:.1%} (uncorrected {mean.recorded:.1%}), "
        f"inside the interval {mean.covered:.0%}"
    )
