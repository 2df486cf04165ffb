"""Compute planner: which (D, B, halting, selection) for a target or a budget (chapter *Spending
inference compute*).

    grid = plan_grid.stored_grid(model, store)
    print(plan(grid, budget=200))

The best of many settings on the same problems looks better than it is. So the expectation of a plan
is cross-fitted: the setting for a fold of the problems is chosen on the other folds. What a budget
of c can buy, E(c), is the *frontier*; since a larger budget can be spent like a smaller one, E is
made to rise by isotonic regression. A plan for a budget reads the frontier at it, a plan for a
target asks where the frontier reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from eqr.analysis.plan_grid import Grid, PlanError, Setting
from eqr.stats import Difference, paired_difference, share_interval
from eqr.streams import stream_seed

FOLDS = 5
NAMES = {"nfe": "NFE", "layers": "layers", "seconds": "s"}  # of the units, in messages


@dataclass(frozen=True, slots=True)
class Point:
    """One step of the frontier: what to run from this budget on."""

    budget: float  # in the frontier's unit: the cost of a setting
    row: int  # of the grid: the setting to run
    expected: Difference  # cross-fitted accuracy, rising along the frontier
    recorded: Difference  # of the setting itself, on the problems it was chosen on: optimistic
    tied: int | None  # the other of the best two, where they cannot be told apart


def recorded(grid: Grid, row: int) -> Difference:
    """Accuracy of a setting on all its problems, with its interval."""
    values = grid.exact[row]
    return share_interval(float(values.mean()), values, int(grid.groups[row]))


def gap(grid: Grid, row: int, other: int) -> Difference:
    """Paired difference of two settings."""
    return paired_difference(grid.exact[row], grid.exact[other])


def choices(grid: Grid, cost: np.ndarray) -> dict[float, tuple[int, int | None]]:
    """For each cost of a setting, what to choose with that budget: (row, the one it ties with).

    That is the most accurate setting it pays for; if the paired difference of the best two does not
    exclude zero, they tie, and it is the cheaper of them.
    """
    mean = grid.exact.mean(1)
    best: list[int] = []  # the best two so far
    chosen: dict[float, tuple[int, int | None]] = {}
    compare = cache(lambda one, other: gap(grid, one, other))
    for row in np.lexsort((-mean, cost)).tolist():
        best = sorted([*best, row], key=lambda r: (-mean[r], cost[r]))[:2]
        pair = best[0], None
        if len(best) == 2 and compare(*best).low <= 0:
            pair = tuple(sorted(best, key=lambda r: cost[r]))
        chosen[float(cost[row])] = pair
    return chosen


def frontier(grid: Grid, unit: str = "nfe", folds: int = FOLDS, seed: int = 0) -> list[Point]:
    """What each budget buys, from the cheapest setting to the dearest.

    Args:
        unit: of the budget: ``nfe``, ``layers`` or ``seconds``, a problem.
        folds: of the cross-fitting; ``seed`` draws them.

    Raises:
        PlanError: no settings, or fewer than two problems.
    """
    if not grid.settings or grid.exact.shape[1] < 2:
        raise PlanError("a plan needs records of at least one setting on at least two problems")
    cost, n = grid.cost(unit), grid.exact.shape[1]
    order = np.random.default_rng(stream_seed(seed, "plan folds")).permutation(n)
    fold = order % min(folds, n)  # of each problem, (P,)
    budgets = np.unique(cost)
    values = np.empty((len(budgets), n))  # of each problem, cross-fitted
    for k in np.unique(fold):
        steps = choices(grid.problems(fold != k), cost)
        rows = [steps[budget][0] for budget in budgets.tolist()]
        values[:, fold == k] = grid.exact[rows][:, fold == k]
    whole, points = choices(grid, cost), []
    blocks = isotonic_regression(values.mean(1)).blocks  # ends of the runs averaged to rise
    for first, last in pairwise(blocks.tolist()):
        pooled = values[first:last].mean(0)
        for budget in budgets[first:last].tolist():
            row, tied = whole[budget]
            expected = share_interval(float(pooled.mean()), pooled, int(grid.groups[row]))
            points.append(Point(budget, row, expected, recorded(grid, row), tied))
    return points


def at_budget(points: Sequence[Point], budget: float) -> Point | None:
    """The last step that a budget pays for; None where it pays for none."""
    paid = [point for point in points if point.budget <= budget]
    return paid[-1] if paid else None


# ---------------------------------------------------------------------------------------- planning


@dataclass(frozen=True, slots=True)
class Option:
    """A setting as it is reported, with its cost a problem."""

    setting: Setting
    recorded: Difference
    nfe: float
    layers: float
    seconds: float
    run: str  # the stored run it was read from
    gap: Difference | None = None  # its recorded accuracy minus the plan's, paired; None: the plan


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to a target or a budget."""

    asked: str
    status: str  # see :func:`plan`
    best: Option
    expected: Difference  # cross-fitted
    others: tuple[Option, ...]
    notes: tuple[str, ...]
    clock: str  # where the seconds come from; always with many rows in flight

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def __str__(self) -> str:
        best, lines = self.best, [f"{self.asked}: {self.status}"]
        lines += [
            f"  run       {best.setting}",
            f"  expected  {percent(self.expected)}, cross-fitted, n = {self.expected.n}",
            f"  recorded  {percent(best.recorded)} on the problems it was chosen on ({best.run})",
            f"  cost      {best.nfe:.4g} NFE, {best.layers:.4g} layer evaluations, "
            f"{best.seconds:.3g} s a problem ({self.clock})",
        ]
        for other in self.others:
            to_it = [f"{100 * v:+.1f}" for v in (other.gap.mean, other.gap.low, other.gap.high)]
            lines.append(
                f"  or        {other.setting}: {percent(other.recorded)}, {other.nfe:.4g} NFE; "
                f"{to_it[0]} [{to_it[1]}, {to_it[2]}] to it"
            )
        return "\n".join([*lines, *(f"  note      {note}" for note in self.notes)])


def percent(accuracy: Difference) -> str:
    """An accuracy for people.

    >>> percent(Difference(0.912, 0.884, 0.934, 512))
    '91.2 % [88.4, 93.4]'
    """
    mean, low, high = (100 * v for v in (accuracy.mean, accuracy.low, accuracy.high))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def option(grid: Grid, row: int, beside: int | None = None) -> Option:
    """A setting of the grid as it is reported."""
    cost = {unit: float(grid.cost(unit)[row]) for unit in ("nfe", "layers", "seconds")}
    to_it = None if beside is None else gap(grid, row, beside)
    return Option(grid.settings[row], recorded(grid, row), **cost, run=grid.runs[row], gap=to_it)


def plan(
    grid: Grid,
    *,
    budget: float | None = None,
    target: float | None = None,
    unit: str = "nfe",
    folds: int = FOLDS,
    seed: int = 0,
    others: int = 3,
) -> Plan:
    """The most accurate setting within a budget, or the cheapest that reaches a target.

    The status for a budget is ``supported``, or ``tie`` where the best two settings cannot be told
    apart; for a target it is ``supported`` where all of the expectation's interval reaches it,
    ``likely`` where the expectation does, and ``uncertain`` where the records only do not exclude
    it.

    Args:
        budget: the most to spend on a problem, in ``unit``; of a halting rule the mean counts.
        target: exact accuracy in (0, 1].
        others: runners-up to report.

    Raises:
        PlanError: the records support no answer; says why.
        ValueError: not exactly one of budget and target, or one out of its range.
    """
    if (budget is None) == (target is None):
        raise ValueError("give exactly one of budget and target")
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget {budget} must be a positive number")
    if target is not None and not 0 < target <= 1:
        raise ValueError(f"target {target} must lie above 0 and at most at 1, as in 0.98")
    points = frontier(grid, unit, folds, seed)
    if target is None:
        asked = f"budget {budget:g} {NAMES[unit]} a problem"
        point, status, notes, rest = _within(grid, points, budget, unit)
    else:
        asked = f"target {target:.1%}"
        point, status, notes, rest = _reaching(grid, points, target, grid.cost(unit))
    return Plan(
        asked,
        status,
        best=option(grid, point.row),
        expected=point.expected,
        others=tuple(option(grid, row, point.row) for row in rest[:others]),
        notes=(*notes, *grid.notes),
        clock=grid.clock,
    )


#: What is chosen: a point of the frontier, the status, notes, and the rows of the runners-up.
Choice = tuple[Point, str, list[str], list[int]]


def _within(grid: Grid, points: Sequence[Point], budget: float, unit: str) -> Choice:
    cost, name, mean = grid.cost(unit), NAMES[unit], grid.exact.mean(1)
    point = at_budget(points, budget)
    if point is None:
        row = int(cost.argmin())
        raise PlanError(
            f"budget {budget:g} {name} is below the cheapest recorded setting "
            f"({grid.settings[row]}: {cost[row]:.4g} {name}); record smaller depths"
        )
    paid = [r for r in np.lexsort((cost, -mean)).tolist() if cost[r] <= budget and r != point.row]
    gaps = {r: gap(grid, r, point.row) for r in paid}
    equal = [r for r in paid if gaps[r].low <= 0 <= gaps[r].high]
    notes = []
    if point.tied is not None:
        notes.append(
            f"a tie with {grid.settings[point.tied]} ({cost[point.tied]:.4g} {name}): n = "
            f"{point.recorded.n} problems cannot tell them apart; this one is not dearer"
        )
    if equal and cost[low := min(equal, key=lambda r: cost[r])] < cost[point.row]:
        notes.append(
            f"{len(equal)} settings cannot be told from it; the cheapest: {grid.settings[low]}, "
            f"{cost[low]:.4g} {name}, {percent(recorded(grid, low))}"
        )
    notes += beyond(grid, point.row, budget, unit)
    return point, "supported" if point.tied is None else "tie", notes, paid


def beyond(grid: Grid, row: int, budget: float, unit: str) -> list[str]:
    """A note where the budget pays for more than was recorded, which no record can judge."""
    chosen, price = grid.settings[row], grid.cost(unit) / grid.nfe.mean(1)
    nfe = budget / price[row]
    like = [s for s in grid.settings if (s.noise, s.halting) == (chosen.noise, chosen.halting)]
    broad = max(s.breadth for s in like if s.depth == chosen.depth)
    deep = max(s.depth for s in like if s.breadth >= chosen.breadth)
    spent = float(grid.nfe[row].mean())
    notes = []
    if spent / chosen.breadth * (broad + 1) <= nfe:
        notes.append(
            f"the budget would pay for more restarts, but B > {broad} was not recorded "
            f"at D = {chosen.depth}"
        )
    if spent / chosen.depth * 2 * deep <= nfe:
        notes.append(
            f"the budget would pay for more depth, but D > {deep} was not recorded "
            f"with B = {chosen.breadth}"
        )
    return notes


def _reaching(grid: Grid, points: Sequence[Point], target: float, cost: np.ndarray) -> Choice:
    accuracies = [recorded(grid, row) for row in range(len(grid.settings))]
    top = max(range(len(accuracies)), key=lambda row: accuracies[row].high)
    if accuracies[top].high < target:
        raise PlanError(
            f"target {target:.1%} is out of reach of the records: the highest interval is "
            f"{percent(accuracies[top])} ({grid.settings[top]}); record more depth or breadth"
        )
    reached = [point for point in points if point.expected.mean >= target]
    assured = [point for point in points if point.expected.low >= target]
    point, notes = reached[0] if reached else points[-1], []
    if not reached:
        notes.append(
            f"no recorded setting is expected to reach {target:.1%}; the intervals do not exclude "
            "it: no other comes closer"
        )
    elif not assured:
        notes.append(f"no plan has all of its interval above {target:.1%}")
    elif assured[0].row != point.row:
        sure = option(grid, assured[0].row)
        notes.append(
            f"to have the whole interval above {target:.1%}: {sure.setting}, {sure.nfe:.4g} NFE, "
            f"expected {percent(assured[0].expected)}"
        )
    status = "uncertain" if not reached else "supported" if point in assured else "likely"
    if point.tied is not None:
        notes.append(f"a tie with {grid.settings[point.tied]}: it is not cheaper")
    mean = grid.exact.mean(1)
    order = np.argsort(cost, kind="stable") if reached else np.lexsort((cost, -mean))
    rest = [int(r) for r in order if r != point.row and (mean[r] >= target or not reached)]
    return point, status, notes, rest


# -------------------------------------------------------------------------------------- validating


def validate(
    grid: Grid,
    budgets: Sequence[float],
    *,
    unit: str = "nfe",
    splits: int = 20,
    seed: int = 0,
    folds: int = FOLDS,
) -> pd.DataFrame:
    """Plan on a random half of the problems, and see what is obtained on the other half.

    Columns: ``split, budget, setting, predicted`` (cross-fitted) with ``low, high``, where a new
    mean over as many problems as the other half has is expected to lie with 95 %; ``recorded``
    (the optimistic accuracy on the planning half), ``obtained`` and ``n`` on the other half,
    ``covered``, ``nfe`` planned and ``nfe_obtained``. Splits of one set of problems overlap: their
    rows are not independent.

    Budgets below the cheapest setting are left out.
    """
    rows = []
    for split in range(splits):
        draw = np.random.default_rng(stream_seed(seed, "plan split", split))
        first, second = np.array_split(draw.permutation(grid.exact.shape[1]), 2)
        half = grid.problems(np.sort(first))
        points = frontier(half, unit, folds, seed + split)
        for budget in budgets:
            point = at_budget(points, budget)
            if point is None:
                continue
            obtained, expected = float(grid.exact[point.row, second].mean()), point.expected
            wider = math.sqrt(1 + expected.n / len(second))  # the other half is a sample too
            low = expected.mean - (expected.mean - expected.low) * wider
            high = expected.mean + (expected.high - expected.mean) * wider
            rows.append(
                {
                    "split": split,
                    "budget": budget,
                    "setting": str(half.settings[point.row]),
                    "predicted": expected.mean,
                    "low": low,
                    "high": high,
                    "recorded": point.recorded.mean,
                    "obtained": obtained,
                    "n": len(second),
                    "covered": low <= obtained <= high,
                    "nfe": float(half.nfe[point.row].mean()),
                    "nfe_obtained": float(grid.nfe[point.row, second].mean()),
                }
            )
    return pd.DataFrame(rows)


def validation_table(trials: pd.DataFrame) -> pd.DataFrame:
    """Means of :func:`validate` by budget: predicted, obtained, both errors, coverage."""
    by = trials.groupby("budget")
    table = by[["predicted", "recorded", "obtained", "nfe", "nfe_obtained"]].mean()
    table.insert(3, "predicted − obtained", table.predicted - table.obtained)
    table.insert(4, "recorded − obtained", table.recorded - table.obtained)
    table["coverage"], table["splits"] = by.covered.mean(), by.size()
    return table
