"""The shift, registered a second time: its study, estimands, simulation and verdicts.

Page *Preregistration* says what is asked and gives this file's sha256, so it is not edited after.

With A(D, B) the exact accuracy, depth is worth ``logit A(64, 1) − logit A(4, 1)`` and breadth
``logit A(4, 64) − logit A(4, 1)``. r is what is left of a gain at a level of a shift, as a share of
that on problems like the training's. The difference of a family is the mean over its levels of
``r of depth − r of breadth``; H2 has breadth at as many iterations as depth, A(4, 16).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eqr.config import EvalConfig
from eqr.select import RULES as CHOICES
from eqr.stats import Difference, holm
from eqr.studies.campaign import CAMPAIGN
from eqr.studies.study import Evaluation, Study
from eqr.tasks.shift import Level

if TYPE_CHECKING:
    from eqr.studies.results import Results

ROW, SEEDS, PROBLEMS = "ri-ni", 12, 1024
BASE, DEPTH, BREADTH, EQUAL = 4, 64, 64, 16  # (4, 16) spends as many iterations as (64, 1)
RULE = "margin"  # which restart is taken: the best of all rules on validation problems, seeds 0, 1
DEMAND = 0.4  # logits that each axis must gain on validation problems
ROOM = 0.01, 0.95  # accuracy of the base within which a level is analysed
LEAST = 8  # families that must be left
HALF_A_HALVING = 0.25  # differences all below it contradict a hypothesis
BLOCKS = 16  # of problems, for the part of the error that is the problems'
CREDENCES = {
    "H1": {"supported": 0.07, "contradicted": 0.80, "undecided": 0.13},
    "H2": {"supported": 0.08, "contradicted": 0.75, "undecided": 0.17},
}

# ------------------------------------------------------------------------------------------- study


def _clues(count: int, **rest: Any) -> dict[str, Any]:
    return {"minimal": False, "clues_min": count, "clues_max": count, **rest}


ANY, EASY = {"rating_min": None}, {"rating_min": None, "rating_max": 0}
#: By family: its levels, as fields of the task or of the evaluation.
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "more clues": {"clues-12": _clues(12), "clues-14": _clues(14)},
    "fewer clues": {"clues-9": {"clues_max": 9}, "clues-8": {"clues_max": 8} | ANY},
    "easier": {"rating-0": EASY},
    "easier, more clues": {f"easy-{n}": _clues(n, **EASY) for n in (11, 14)},
    "harder": {"rating-3": {"rating_min": 3}, "rating-5": {"rating_min": 5}},
    "symmetric": {"symmetric": _clues(12, layout="symmetric")},
    "clustered": {"clustered": _clues(12, layout="clustered")},
    "noise": {"noise-0.1": {"noise": 0.1}, "noise-0.2": {"noise": 0.2}},
    "weights": {"weights-3": {"weight_noise": 0.03}, "weights-10": {"weight_noise": 0.1}},
    "precision": {"bfloat16": {"dtype": "bfloat16"}},
}
HOME, VALIDATION = "depth", "validation"  # the training's problems: the test ones, and others
OF_EVALUATION = {"noise", "weight_noise", "dtype", "split"}  # the other fields are a task's
LEVELS = {name: fields for levels in FAMILIES.values() for name, fields in levels.items()}


def _asked(name: str, fields: Mapping[str, Any], rules: Sequence[str]) -> tuple[Evaluation, ...]:
    """A level asked deep and wide."""
    level, config = None, EvalConfig((BASE, DEPTH), problems=PROBLEMS)
    if set(fields) <= OF_EVALUATION:
        config = replace(config, **fields)
    else:
        level = Level(name, fields)
    wide = replace(config, depths=(BASE,), breadth=BREADTH)
    return (
        Evaluation(name, config, level=level),
        Evaluation(f"{name}.wide", wide, (1, EQUAL, BREADTH), ("average", *rules), level=level),
    )


def _evaluations() -> tuple[Evaluation, ...]:
    pairs = [_asked(HOME, {}, ("margin", "majority", "converged"))]
    pairs.append(_asked(VALIDATION, {"split": VALIDATION}, tuple(CHOICES)))
    pairs += [_asked(name, fields, ("margin", "majority")) for name, fields in LEVELS.items()]
    return tuple(one for pair in pairs for one in pair)


SHIFT_AGAIN = Study(
    "shift-again",
    "Distribution shift, registered a second time: what is left of depth's and of breadth's gain",
    "none of the paper's; the prediction that the first registration could not test",
    "Models, problems of a level; of H2 NFE too. The models are the campaign's, as it ships them.",
    (
        replace(
            CAMPAIGN.row(ROW), evaluate=_evaluations(), seeds=SEEDS, depth=DEPTH, paper=(),
            weights="campaign",
        ),
    ),
    profiles=("laptop",),
)  # fmt: skip

# ---------------------------------------------------------------------------------------- measures

#: By level: how many problems of each block were solved, (4, seeds, BLOCKS) for base, deep, wide
#: and wide at equal NFE; the base's is the mean over all its restarts.
Solved = dict[str, np.ndarray]


def solved(results: Results, name: str, seeds: Sequence[int]) -> np.ndarray:
    """The records of a level, as :data:`Solved` has them."""
    from eqr.studies.results import Pick

    wide = Pick(ROW, BASE, BREADTH, RULE, f"{name}.wide")
    picks = (
        replace(wide, select="average"),
        Pick(ROW, DEPTH, evaluation=name),
        wide,
        replace(wide, breadth=EQUAL),
    )
    each = np.array([[results.outcomes(pick, seed) for seed in seeds] for pick in picks])
    return each.reshape(4, len(seeds), BLOCKS, -1).sum(3)


def gains(counts: np.ndarray, problems: int) -> np.ndarray:
    """Mean over the seeds of the logits gained by depth, breadth, breadth at equal NFE; (3,)."""
    share = (counts.sum(2) + 0.5) / (problems + 1)  # finite where none or all are solved
    logit = np.log(share / (1 - share)).mean(1)
    return logit[1:] - logit[0]


def differences(levels: Solved, families: Mapping[str, Sequence[str]], problems: int) -> np.ndarray:
    """What depth keeps minus what breadth keeps: (F + 1, 2), of each family and of their mean; for
    breadth, and for breadth at equal NFE."""
    home = gains(levels[HOME], problems)
    kept = {name: gains(counts, problems) / home for name, counts in levels.items()}
    each = np.array([np.mean([kept[name] for name in names], 0) for names in families.values()])
    each = each[:, :1] - each[:, 1:]
    return np.vstack([each, each.mean(0)])


@dataclass(frozen=True, slots=True)
class Answer:
    """What the records say about one hypothesis, of a family or over all."""

    gap: Difference  # its n is one more than the degrees of freedom
    verdict: str  # supported, contradicted, undecided


def answers(
    levels: Solved, families: Mapping[str, Sequence[str]], problems: int
) -> dict[str, dict[str, Answer]]:
    """By hypothesis: over all families (``all``), of shifts at large, and of each family.

    The errors are jackknife ones, over seeds and over blocks of problems, added; t has the seeds'
    degrees of freedom. *At large* the spread between the families comes in, with theirs if fewer.
    *Supported*: above 0; *contradicted*: below HALF_A_HALVING. One-sided tests at 2.5 %, Holm's
    over H1 and H2 for ``all``, and over a hypothesis's families.
    """
    value = differences(levels, families, problems)
    seeds, rest = levels[HOME].shape[1], problems * (BLOCKS - 1) // BLOCKS
    variance = np.zeros_like(value)
    for axis, count, left in ((1, seeds, problems), (2, BLOCKS, rest)):
        without = [
            differences({k: np.delete(v, at, axis) for k, v in levels.items()}, families, left)
            for at in range(count)
        ]
        variance += (count - 1) * np.var(without, axis=0)
    large = variance[-1] + value[:-1].var(axis=0, ddof=1) / len(families)
    result: dict[str, dict[str, Answer]] = {}
    overall = judged(value[-1], variance[-1], seeds - 1)
    at_large = judged(value[-1], large, min(seeds, len(families)) - 1, single=True)
    for k, name in enumerate(("H1", "H2")):
        own = judged(value[:-1, k], variance[:-1, k], seeds - 1)
        result[name] = {"all": overall[k], "at large": at_large[k]}
        result[name] |= dict(zip(families, own, strict=True))
    return result


def judged(
    value: np.ndarray, variance: np.ndarray, freedom: int, single: bool = False
) -> list[Answer]:
    """Differences (n,) with their intervals and verdicts, tested together unless ``single``."""
    from scipy.special import stdtr, stdtrit

    error = np.sqrt(np.maximum(variance, 1e-12))
    above = stdtr(freedom, -value / error)
    below = stdtr(freedom, (value - HALF_A_HALVING) / error)
    # At most one of the two can be a false decision, whatever the truth is.
    p = np.minimum(1.0, 2 * np.minimum(above, below)).tolist()
    half = error * stdtrit(freedom, 0.975)
    decided = []
    for k, adjusted in enumerate(p if single else holm(p)):
        gap = Difference(
            float(value[k]), float(value[k] - half[k]), float(value[k] + half[k]), freedom + 1
        )
        word = "supported" if 2 * above[k] <= 0.05 else "contradicted"
        decided.append(Answer(gap, word if adjusted <= 0.05 else "undecided"))
    return decided


# ---------------------------------------------------------------------------------------- verdicts


def demand(results: Results) -> np.ndarray:
    """The gains of depth, breadth, breadth at equal NFE on the validation problems, (3,)."""
    counts = solved(results, VALIDATION, range(SEEDS))
    return gains(counts, results.problems(f"{VALIDATION}.wide"))


def analysed(results: Results) -> tuple[Solved, dict[str, list[str]]]:
    """The levels whose base leaves room, and the families with one; nothing of other ones.

    Raises:
        StudyError: not all registered seeds are there: nothing is looked at before.
    """
    from eqr.studies.cells import StudyError

    if lacking := sorted(set(range(SEEDS)) - set(results.seeds(ROW))):
        raise StudyError(
            f"study shift-again: seeds {lacking} of {ROW} are missing, and the registration has "
            f"{SEEDS}; run `eqr study run shift-again`"
        )
    levels = {name: solved(results, name, range(SEEDS)) for name in (HOME, *LEVELS)}
    base = {name: counts[0].sum() / SEEDS / PROBLEMS for name, counts in levels.items()}
    usable = {name: [k for k in of if ROOM[0] <= base[k] <= ROOM[1]]
              for name, of in FAMILIES.items()}  # fmt: skip
    families = {name: names for name, names in usable.items() if names}
    return levels, families


def verdicts(results: Results) -> dict[str, dict[str, Answer]] | str:
    """The registered answers, or why there are none."""
    levels, families = analysed(results)
    if (demand(results)[:2] < DEMAND).any():
        return f"not testable: an axis gains less than {DEMAND} logits on validation problems"
    if len(families) < LEAST:
        return f"not testable: {len(families)} families have room, of the {LEAST} registered"
    return answers(levels, families, PROBLEMS)


def gains_table(results: Results) -> pd.DataFrame:
    """Accuracy of the four ways and what is left of each gain, a line a level."""
    levels, families = analysed(results)
    home, lines = gains(levels[HOME], PROBLEMS), []
    for family, names in {"–": [HOME], **FAMILIES}.items():
        for name in names:
            share = levels[name].sum(2).mean(1) / PROBLEMS
            kept = gains(levels[name], PROBLEMS) / home
            line = {"family": family, "level": name}
            line |= dict(zip(("base", "deep", "wide", "equal"), share, strict=True))
            line |= dict(zip(("r depth", "r breadth", "r equal"), kept, strict=True))
            lines.append(line | {"analysed": name in [HOME, *families.get(family, ())]})
    return pd.DataFrame(lines)


def brier(hypothesis: str, verdict: str) -> float:
    """The score of the credences: 0 is certain and right, 2 certain and wrong; a third each 0.67.

    >>> round(brier("H1", "contradicted"), 3)
    0.062
    """
    return sum((p - (word == verdict)) ** 2 for word, p in CREDENCES[hypothesis].items())


# -------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True, slots=True)
class Spread:
    """How logits of base, deep and wide vary, in the first study's records."""

    seeds: np.ndarray  # (3, 3) covariance over seeds of what all levels share
    levels: np.ndarray  # (3, 3) of what they do not; with the noise of 256 problems
    problems: float  # sd of what is a problem's own, for all models and ways

    def times(self, factor: float) -> Spread:
        """With so many times the variance."""
        root = math.sqrt(factor)
        return Spread(factor * self.seeds, factor * self.levels, root * self.problems)


def spread(first: Results) -> Spread:
    """Of the study ``shift``: its EqR on minimal Sudoku, from D = 8, breadth 8 by majority."""
    from eqr.studies.results import Pick

    row, home = "minimal-eqr", "minimal"
    seeds = first.seeds(row, f"{home}.wide")
    names = [k.removesuffix(".wide") for k in first.meta["evaluations"] if k.endswith(".wide")]
    ways = [(8, 1, "average", "deep"), (64, 1, "average", "deep"), (8, 8, "majority", "wide")]

    def right(name: str, way: tuple) -> np.ndarray:
        pick = Pick(row, *way[:3], f"{name}.{way[3]}")
        return np.array([first.outcomes(pick, seed) for seed in seeds])

    logits = []
    for name in names:
        if first.seeds(row, f"{name}.wide") != seeds:
            continue  # of other models
        each = np.array([right(name, way) for way in ways])
        share = (each.sum(2) + 0.5) / (each.shape[2] + 1)
        if ROOM[0] <= share[0].mean() <= ROOM[1]:
            logits.append(np.log(share / (1 - share)).T)
    around = np.array(logits)  # (L, seeds, 3)
    around -= around.mean(1, keepdims=True)
    shared = around.mean(0)
    own = (around - shared).reshape(-1, 3)
    free = (len(logits) - 1) * (len(seeds) - 1)
    # What two models agree on about a problem: a correlation of bits, as of normals cut at 0.
    agreement = np.corrcoef(right(home, ways[0]))[np.triu_indices(len(seeds), 1)].mean()
    latent = math.sin(math.pi * agreement / 2)
    problems = math.sqrt(latent / (1 - latent)) * math.pi / math.sqrt(3)
    return Spread(np.cov(shared.T), own.T @ own / free, problems)


#: Base accuracy in logits and what depth, breadth, breadth at equal NFE gain: about those of the
#: first two models on validation problems.
PILOT = -1.5, (1.4, 2.2, 1.4)


def simulated(
    assumed: Spread,
    kept: tuple[float, float],
    rng: np.random.Generator,
    *,
    seeds: int = SEEDS,
    problems: int = PROBLEMS,
    families: Mapping[str, Sequence[str]] = FAMILIES,
    apart: float = 0.0,
) -> Solved:
    """A study in which depth and breadth keep ``kept`` of their gains in every family; in each
    axis with a normal deviate of sd ``apart``, family by family."""
    base, gained = PILOT[0], np.array(PILOT[1])
    way, side = [0, 1, 2, 2], [0, 1, 1]
    shared = rng.multivariate_normal(np.zeros(3), assumed.seeds, seeds)
    # A difference between problems flattens the curve of the mean by this factor.
    steeper = math.sqrt(1 + 0.346 * assumed.problems**2)
    share = {HOME: np.ones(3)}
    for names in families.values():
        own = (np.array(kept) + apart * rng.standard_normal(2))[side]
        share |= dict.fromkeys(names, own)
    levels = {}
    for name, left in share.items():
        own = shared + rng.multivariate_normal(np.zeros(3), assumed.levels, seeds)
        logit = base + np.array([0.0, *(left * gained)])[:, None] + own.T[way]
        puzzle = assumed.problems * rng.standard_normal(problems)
        chance = 1 / (1 + np.exp(-steeper * logit[:, :, None] - puzzle))
        right = rng.random(chance.shape) < chance
        levels[name] = right.reshape(4, seeds, BLOCKS, -1).sum(3)
    return levels


def rates(assumed: Spread, kept: tuple[float, float], studies: int, **size: Any) -> pd.DataFrame:
    """How often simulated studies give each verdict: for H1 and H2 over all families and at large,
    and for a single family of H1."""
    rng, counts = np.random.default_rng(0), []
    families = size.get("families", FAMILIES)
    problems = size.get("problems", PROBLEMS)
    for _ in range(studies):
        found = answers(simulated(assumed, kept, rng, **size), families, problems)
        lines = {f"{h}, {k}": found[h][k].verdict for h in found for k in ("all", "at large")}
        words = [found["H1"][name].verdict for name in families]
        counts += lines.items()
        counts += [("H1, a family", word) for word in words]
    frame = pd.DataFrame(counts, columns=["of", "verdict"])
    return pd.crosstab(frame.of, frame.verdict, normalize="index")
