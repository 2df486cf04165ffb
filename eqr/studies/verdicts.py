"""The rules of the preregistration, as code: what depth and breadth are worth under a shift,
and the verdicts (page *Preregistration*, chapter *Which axis holds?*).

Everything is computed for each seed by itself; intervals are t intervals over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eqr.stats import Difference, auroc, mean_interval, over_seeds
from eqr.studies.results import Pick, Results
from eqr.studies.rows_shift import BASES, FACTOR, FAMILIES, LEVELS, Family
from eqr.tasks.shift import Level

AXES = ("depth", "breadth")
PLAIN = Level("plain")  # what a name stands for that is no level: a group's own problems
HELD, COLLAPSED = 0.5, 0.25  # shares of the repair rate in distribution
ROOM = 0.05  # failures of the base that there must be for a rate of repair to mean anything
STEEP = 0.5  # of the accuracy in distribution: a larger loss from level to level is no grace
SIGNAL = 0.6  # AUROC above which the residual still tells right from wrong
ERRORS, FEW, MANY = 0.05, 0.10, 0.20  # wrong answers among those given: at τ, and under shift
ANSWERED = 0.2  # of the problems, where no threshold keeps the errors at ERRORS
SETTLED = 0.9  # quantile of the residuals of right answers in distribution


# ---------------------------------------------------------------------------------------- measures


@dataclass(frozen=True, slots=True)
class Asked:
    """What one model (a row of the study with one seed) did at one level."""

    accuracy: dict[tuple[int, int], float]  # by (depth, breadth); breadth by smallest residual
    coverage: float  # pass@8 at the larger base
    exact: np.ndarray  # (P, B) bool: each restart at the larger base
    residual: np.ndarray  # (P, B) float: its residual
    chosen: np.ndarray  # (P,) bool: whether the restart with the smallest residual is right
    valid: np.ndarray  # (P,) bool: whether the rules accept it, which may accept none or several
    deep_exact: np.ndarray  # (P,) bool: the deepest single trajectory
    deep_residual: np.ndarray  # (P,) float
    bases: tuple[int, ...] = BASES  # that gains and rooms are averaged over

    @property
    def room(self) -> float:
        """F: the share of problems that the bases fail on."""
        return 1 - float(np.mean([self.accuracy[base, 1] for base in self.bases]))

    def gain(self, axis: str) -> float:
        """G: what an axis adds to the accuracy of a base, averaged over the bases."""
        grown = {"depth": lambda d: (FACTOR * d, 1), "breadth": lambda d: (d, FACTOR)}[axis]
        return float(np.mean([self.accuracy[grown(d)] - self.accuracy[d, 1] for d in self.bases]))

    def repair(self, axis: str) -> float:
        """R = G / F: the share of the bases' failures that an axis repairs; NaN without any."""
        return self.gain(axis) / self.room if self.room else math.nan

    @property
    def signal(self) -> float:
        """AUROC of the residual over all restarts at the larger base."""
        return auroc(self.residual.ravel(), self.exact.ravel())[0]

    @property
    def answer_residual(self) -> np.ndarray:
        """(P,) the residual of the chosen answer."""
        return self.residual.min(1)


def asked(
    results: Results, row: str, seed: int, level: str, bases: tuple[int, ...] = BASES
) -> Asked:
    """What a model did at a level of the study ``shift``; its own problems go by its group's name.

    Args:
        bases: that gains are averaged over, of :data:`eqr.studies.rows_shift.BASES`.

    Raises:
        StudyError: the records have no such level for this row and seed.
    """
    deep, wide = f"{level}.deep", f"{level}.wide"
    accuracy = {}
    for base in bases:
        for depth, breadth, rule, kind in (
            (base, 1, "average", deep),
            (FACTOR * base, 1, "average", deep),
            (base, FACTOR, "converged", wide),
        ):
            pick = Pick(row, depth, breadth, rule, kind)
            accuracy[depth, breadth] = float(results.outcomes(pick, seed).mean())
    exact = results.unpack(f"{row}/{seed}/{wide}")[-1].astype(bool)
    best = Pick(row, BASES[-1], FACTOR, "converged", wide)
    chosen = results.outcomes(best, seed).astype(bool)
    residual = results.recorded("residual", row, seed, wide).astype(float)
    valid = np.zeros_like(chosen) if LEVELS.get(level, PLAIN).spoil == "unsolvable" else chosen
    if f"{row}/{seed}/{wide}/checked" in results.bits:
        accepted = results.recorded("checked", row, seed, wide)[-1]
        valid = accepted[np.arange(len(accepted)), residual.argmin(1)]
    return Asked(
        accuracy,
        float(exact.any(1).mean()),
        exact,
        residual,
        chosen,
        valid,
        results.unpack(f"{row}/{seed}/{deep}")[-1, :, 0].astype(bool),
        results.recorded("residual", row, seed, deep)[:, 0].astype(float),
        bases,
    )


def group_of(row: str) -> str:
    """What the models of a row were trained on."""
    return row.rpartition("-")[0]


def by_seed(
    results: Results, row: str, level: str, bases: tuple[int, ...] = BASES
) -> dict[int, Asked]:
    """What each seed of a row did at a level."""
    seeds = results.seeds(row, f"{level}.wide")
    return {seed: asked(results, row, seed, level, bases) for seed in seeds}


def curve(results: Results, row: str, family: Family) -> pd.DataFrame:
    """One line for each level of a family, the training problems first.

    Columns: ``level, title``, and mean accuracy with ``_low, _high`` of the base (16, 1), ``base``,
    of eight times its depth, ``deep``, and of eight times its breadth, ``wide``.
    """
    lines, base = [], BASES[-1]
    picks = {"base": (base, 1), "deep": (FACTOR * base, 1), "wide": (base, FACTOR)}
    for level in (family.trained, *family.levels):
        cells = by_seed(results, row, level).values()
        title = LEVELS[level].title if level in LEVELS else level.rpartition("-")[2]
        line = {"level": level, "title": "trained" if level == family.trained else title}
        for name, pick in picks.items():
            mean = mean_interval([one.accuracy[pick] for one in cells]).as_share()
            line |= {name: mean.mean, f"{name}_low": mean.low, f"{name}_high": mean.high}
        lines.append(line)
    return pd.DataFrame(lines)


# ---------------------------------------------------------------------------------------- verdicts


def contrast(
    results: Results,
    row: str,
    level: str,
    axis: str,
    share: float,
    bases: tuple[int, ...] = BASES,
) -> Difference:
    """The interval of ``R(level) − share · R(in distribution)``, seed by seed."""
    here, home = (by_seed(results, row, name, bases) for name in (level, group_of(row)))
    both = sorted(set(here) & set(home))
    return mean_interval([here[s].repair(axis) - share * home[s].repair(axis) for s in both])


def axis_verdict(
    results: Results, row: str, level: str, axis: str, bases: tuple[int, ...] = BASES
) -> str:
    """``no gain``, ``no room``, ``holds``, ``collapses``, ``loses half`` or ``undecided``; with one
    seed only ``too few seeds``.

    ``collapses`` says more than ``loses half`` and comes before it.
    """
    here, home = (by_seed(results, row, name, bases) for name in (level, group_of(row)))
    gain = mean_interval([one.repair(axis) for one in home.values()])
    if len(set(here) & set(home)) < 2:
        return "too few seeds"
    if not gain.low > 0:
        return "no gain"
    if np.mean([one.room for one in here.values()]) < ROOM:
        return "no room"
    half, quarter = (
        contrast(results, row, level, axis, share, bases) for share in (HELD, COLLAPSED)
    )
    if half.low > 0:
        return "holds"
    if quarter.high < 0:
        return "collapses"
    return "loses half" if half.high < 0 else "undecided"


def first_hypothesis(results: Results, row: str, family: Family) -> str:
    """H1 for one family: ``supported``, ``contradicted``, ``undecided`` or ``not testable``; with
    one seed only ``too few seeds``."""
    depth, breadth = (axis_verdict(results, row, family.far, axis) for axis in AXES)
    if "too few seeds" in (depth, breadth):
        return "too few seeds"
    if {depth, breadth} & {"no gain", "no room"}:
        return "not testable"
    if depth == "holds" and breadth == "collapses":
        return "supported"
    keeps = contrast(results, row, family.far, "breadth", COLLAPSED).low > 0
    lost = contrast(results, row, family.far, "depth", HELD).high < 0
    return "contradicted" if keeps or lost else "undecided"


def overall(verdicts: Sequence[str]) -> str:
    """H1 over all families, from their verdicts: two thirds of the testable ones decide."""
    testable = [v for v in verdicts if v not in ("not testable", "too few seeds")]
    for word in ("supported", "contradicted"):
        if testable and testable.count(word) >= 2 / 3 * len(testable):
            return word
    return "neither" if testable else "not testable"


def grace(results: Results, row: str, family: Family) -> tuple[Difference, str]:
    """The largest loss of A(128, 1) from a level to the next, as a share of that in distribution,
    and its verdict: ``graceful``, ``catastrophic`` or ``undecided``.

    Levels of a family without an order are each compared with the problems of the training.
    """
    levels = [by_seed(results, row, level) for level in (family.trained, *family.levels)]
    seeds = sorted(set.intersection(*(set(level) for level in levels)))
    top, losses = (FACTOR * BASES[-1], 1), []
    for seed in seeds:
        values = [level[seed].accuracy[top] for level in levels]
        before = values[:-1] if family.ordered else [values[0]] * (len(values) - 1)
        steps = [a - b for a, b in zip(before, values[1:], strict=True)]
        losses.append(max(steps) / values[0] if values[0] else math.nan)
    interval = mean_interval(losses)
    if interval.high <= STEEP:
        return interval, "graceful"
    return interval, "catastrophic" if interval.low > STEEP else "undecided"


def loss_of_breadth(results: Results, row: str, level: str) -> tuple[Difference, str]:
    """H2: the share of the fall of ``log A(16, 8)`` that is pass@8's, and its word.

    ``coverage`` or ``selection`` by the mean over seeds; ``all lost`` where no answer is right any
    more; ``–`` where breadth does not lose half, so that there is nothing to explain.
    """
    nothing = mean_interval([])
    if axis_verdict(results, row, level, "breadth") not in ("loses half", "collapses"):
        return nothing, "–"
    home, here = by_seed(results, row, group_of(row)), by_seed(results, row, level)
    wide, shares = (BASES[-1], FACTOR), []
    for seed in sorted(set(home) & set(here)):
        before, after = home[seed], here[seed]
        if not after.accuracy[wide]:
            continue
        fall = math.log(after.accuracy[wide] / before.accuracy[wide])
        if fall < 0:
            shares.append(math.log(after.coverage / before.coverage) / fall)
    if not shares:
        return nothing, "all lost"
    interval = mean_interval(shares)
    return interval, "coverage" if interval.mean > 0.5 else "selection"


def signal_verdict(results: Results, row: str, level: str) -> tuple[Difference, str]:
    """H3: the AUROC of the residual at a level, and ``stays``, ``is lost`` or ``undecided``."""
    interval = over_seeds(one.signal for one in by_seed(results, row, level).values())
    word = (
        "stays" if interval.low > SIGNAL else "is lost" if interval.high < SIGNAL else "undecided"
    )
    return interval, word


def threshold(home: Asked) -> float:
    """τ: the largest residual up to which the chosen answers to the first half of the problems in
    distribution are wrong in at most 5 % of the cases; else one that answers a fifth of them."""
    half = len(home.chosen) // 2
    residual, right = home.answer_residual[:half], home.chosen[:half]
    order = np.argsort(residual)
    wrong = np.cumsum(~right[order]) / np.arange(1, half + 1)
    good = np.flatnonzero(wrong <= ERRORS)
    place = good[-1] if len(good) else math.ceil(ANSWERED * half) - 1
    return float(residual[order][place])


def abstention(results: Results, row: str, level: str) -> tuple[Difference, Difference, str]:
    """H4: (wrong among the answers given, share of problems answered, ``few``/``many``/…).

    In distribution the second half of the problems is judged, under shift all of them. Where a
    puzzle has several solutions an answer is wrong if the rules refuse it. A seed that answers
    nothing has no share of wrong answers and is left out of it.
    """
    home, here = by_seed(results, row, group_of(row)), by_seed(results, row, level)
    wrong, given = [], []
    for seed in sorted(set(home) & set(here)):
        tau, one = threshold(home[seed]), here[seed]
        first = len(one.chosen) // 2 if level == group_of(row) else 0
        answered = one.answer_residual[first:] <= tau
        given.append(answered.mean())
        if answered.any():
            wrong.append(1 - one.valid[first:][answered].mean())
    interval = mean_interval(wrong)
    word = "few" if interval.high <= FEW else "many" if interval.low > MANY else "undecided"
    return interval, mean_interval(given), word


def settling(results: Results, row: str, level: str) -> tuple[Difference, str]:
    """H5: the share of the failures at D = 128 that have settled, ``settle`` or ``wander``."""
    home, here = by_seed(results, row, group_of(row)), by_seed(results, row, level)
    shares = []
    for seed in sorted(set(home) & set(here)):
        right = home[seed].deep_residual[home[seed].deep_exact]
        failed = here[seed].deep_residual[~here[seed].deep_exact]
        if len(right) and len(failed):
            shares.append(float((failed <= np.quantile(right, SETTLED)).mean()))
    interval = mean_interval(shares)
    return (
        interval,
        "settle" if interval.low > 0.5 else "wander" if interval.high < 0.5 else "undecided",
    )


def retention(results: Results, row: str, other: str, level: str) -> tuple[Difference, str]:
    """H6: ``A(128, 1)`` at a level as a share of that in distribution, ``row`` − ``other``.

    A seed that solves nothing in distribution is left out.
    """
    top = (FACTOR * BASES[-1], 1)
    shares = []
    for name in (row, other):
        home, here = by_seed(results, name, group_of(name)), by_seed(results, name, level)
        both = [s for s in home if s in here and home[s].accuracy[top] > 0]
        shares.append({s: here[s].accuracy[top] / home[s].accuracy[top] for s in both})
    seeds = sorted(set(shares[0]) & set(shares[1]))
    interval = mean_interval([shares[0][s] - shares[1][s] for s in seeds])
    return interval, "above" if interval.low > 0 else "below" if interval.high < 0 else "undecided"


def verdict_table(results: Results, row: str) -> pd.DataFrame:
    """The verdicts at the far level of every family that the row was asked."""
    lines = []
    for family in FAMILIES:
        if family.trained != group_of(row) or not results.seeds(row, f"{family.far}.wide"):
            continue
        far = family.far
        line = {"family": family.name, "far level": far}
        for axis in AXES:
            cells = by_seed(results, row, far).values()
            line[f"R {axis}"] = over_seeds(one.repair(axis) for one in cells).text()
            line[axis] = axis_verdict(results, row, far, axis)
        line["H1"] = first_hypothesis(results, row, family)
        loss, word = grace(results, row, family)
        line |= {"largest loss": loss.text(), "A(128, 1)": word}
        line["seeds"] = len(results.seeds(row, f"{far}.wide"))
        lines.append(line)
    return pd.DataFrame(lines)
