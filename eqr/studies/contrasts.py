"""The steps that the campaign decides: which row, depth, breadth and rule against which other.

Each step of a construction path is compared with the row before it, in the table it stands in.
:func:`planned` fixes the number of seeds from the first few, :func:`decided` gives the verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from eqr.stats import seeds_for_difference
from eqr.studies.claims import LARGE, Decision, Step, decide
from eqr.studies.results import Pick, Results

PILOTS = 4  # seeds whose spread says how many are needed,
LEAST, MOST = 8, 40  # between these

FEEDFORWARD, TIED = Pick("feedforward", 1), Pick("weight-tied", 1)
EQR, TRM = Pick("ri-ni"), Pick("halting")
WIDE = Pick("ri-ni", 16, 32, "converged", "breadth")

#: By table, and name: ours, the other, and the paper's difference (0: it has none).
TABLES: dict[str, dict[str, tuple[Pick, Pick, float]]] = {
    "Table 2": {
        "weight tying": (TIED, FEEDFORWARD, 0.300),
        "segments": (Pick("segmented"), TIED, 0.421),
        "two latents": (Pick("hierarchy"), Pick("segmented"), 0.018),
        "halting": (TRM, Pick("hierarchy"), 0.083),
    },
    "Table 3": {
        "random start": (Pick("ri"), TRM, 0.012),
        "damping and noise": (EQR, Pick("ri"), 0.004),
    },
    "Table 4": {
        "depth": (replace(EQR, depth=64), EQR, 0.066),
        "breadth": (WIDE, replace(WIDE, breadth=1, select="average"), 0.068),
    },
    "Figure 8": {
        "residual above majority, EqR": (WIDE, replace(WIDE, select="majority"), 0.01),
        "residual below majority, TRM-style": (
            replace(WIDE, row="halting"),
            replace(WIDE, row="halting", select="majority"),
            -0.01,
        ),
    },
}


def step(results: Results, ours: Pick, other: Pick, paper: float) -> Step:
    """The accuracies of two picks over the seeds that both have."""
    seeds = set(results.seeds(ours.row, ours.evaluation))
    seeds &= set(results.seeds(other.row, other.evaluation))
    both = (
        np.array([results.outcomes(pick, seed).mean() for seed in sorted(seeds)])
        for pick in (ours, other)
    )
    return Step(*both, paper)


def decided(results: Results) -> dict[str, dict[str, Decision]]:
    """The verdicts of every table; those of one are tested together."""
    return {
        table: decide({name: step(results, *pair) for name, pair in pairs.items()})
        for table, pairs in TABLES.items()
    }


def decided_table(results: Results) -> pd.DataFrame:
    """The verdicts as a page shows them: differences in points with their 95 % intervals."""
    lines = []
    for table, steps in decided(results).items():
        for name, one in steps.items():
            ours, other, paper = TABLES[table][name]
            line = {"table": table, "step": name, "paper": f"{100 * paper:+.1f}"}
            line |= {"ours": shown(ours), "against": shown(other)}
            line |= {"points [95 %]": one.gap.scaled(100).text("+.1f"), "seeds": one.gap.n}
            line |= {"p": f"{one.p:.2g}", "verdict": one.verdict}
            lines.append(line | {"seeds that would decide": one.needed or "–"})
    return pd.DataFrame(lines)


def shown(pick: Pick) -> str:
    """A pick in words."""
    rule = "" if pick.breadth == 1 else f", B = {pick.breadth}, {pick.select}"
    return f"{pick.row}, D = {pick.depth}{rule}"


def planned(results: Results) -> pd.DataFrame:
    """How many seeds each step needs, from the paired spread of the first four.

    Of those only the accuracy on the validation problems is read, at the end of training, so the
    number is fixed whatever the test problems say. The effect is the paper's, or 5 points where it
    has less: smaller ones are decided only if they are larger here. Steps between ways to run one
    row have the seeds of the row.
    """
    lines = []
    for table, pairs in TABLES.items():
        for name, (ours, other, paper) in pairs.items():
            if ours.row == other.row:
                continue
            both = pd.concat([on_validation(results, pick) for pick in (ours, other)], axis=1)
            gap = both.dropna().diff(axis=1).iloc[:, -1] * -1
            sd, effect = float(gap.std()), max(abs(paper), LARGE)
            needed = seeds_for_difference(sd, effect) if sd > 0 else math.nan
            line = {"table": table, "step": name, "pilots": len(gap), "pilot": gap.mean()}
            line |= {"sd": sd, "effect": effect, "for power 0.9": needed}
            lines.append(line | {"seeds": np.clip(needed, LEAST, MOST)})
    return pd.DataFrame(lines)


def on_validation(results: Results, pick: Pick) -> pd.Series:
    """Accuracy at the pick's depth on the validation problems when training ended, by seed."""
    curves = results.curves
    own = curves[(curves.row == pick.row) & (curves.seed < PILOTS)].sort_values("step")
    return own.groupby("seed")[f"exact_{pick.depth}"].last()


def best_rates(pilots: Results) -> Mapping[str, float]:
    """The rate of each row with the highest mean accuracy on the validation problems."""
    seen: dict[str, dict[float, float]] = {}
    for one in pilots.study.rows:
        row, _, rate = one.name.rpartition("-")
        pick = Pick(one.name, one.depth)
        shared = [seed for seed in pilots.seeds(one.name) if seed < 2]  # the tuning budget of each
        mean = float(np.mean([pilots.outcomes(pick, seed).mean() for seed in shared]))
        seen.setdefault(row, {})[float(rate)] = mean
    return {row: max(rates, key=rates.__getitem__) for row, rates in seen.items()}
