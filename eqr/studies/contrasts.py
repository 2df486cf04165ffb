"""The steps that the campaign decides: which row, depth, breadth and rule against which other.

Each step of a construction path is compared with the row before it, in the table it stands in.
:func:`planned` fixes the number of seeds from the first few, :func:`claims` gives the verdicts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from eqr.stats import seeds_for_difference
from eqr.studies.campaign import PATH, PILOTS
from eqr.studies.cells import StudyError
from eqr.studies.claims import LARGE, Claim, Paired, decide
from eqr.studies.results import Pick, Results

LEAST, MOST = 8, 40  # seeds of a row


@dataclass(frozen=True, slots=True)
class Contrast:
    """One step: ours against the other, and what the paper has."""

    ours: Pick
    other: Pick
    paper: float = 0.0  # its difference; 0: it shows one and prints no number
    side: int = 1  # of the paper's difference


EQR = Pick("ri-ni")
WIDE = Pick("ri-ni", 16, 32, "converged", "breadth")


def _path(table: str, *rows: str) -> Contrast:
    """The last of the rows against the one before it, by the paper's figures in the table."""
    other, ours = (next(one for one in PATH if one.name == row) for row in rows)
    difference = (ours.paper[table] - other.paper[table]) / 100
    return Contrast(Pick(ours.name, ours.depth), Pick(other.name, other.depth), difference)


#: By table, and name.
TABLES: dict[str, dict[str, Contrast]] = {
    "Table 2": {
        "weight tying": _path("Table 2", "feedforward", "weight-tied"),
        "segments": _path("Table 2", "weight-tied", "segmented"),
        "two latents": _path("Table 2", "segmented", "hierarchy"),
        "halting": _path("Table 2", "hierarchy", "halting"),
    },
    "Table 3": {
        "random start": _path("Table 3", "halting", "ri"),
        "damping and noise": _path("Table 3", "ri", "ri-ni"),
    },
    "Table 4": {
        "depth": Contrast(replace(EQR, depth=64), EQR, 0.930 - 0.864),
        # The paper's is at D = 64 and B = 128, from 93.0 to 99.8.
        "breadth": Contrast(WIDE, replace(WIDE, breadth=1, select="average"), 0.998 - 0.930),
    },
    "Figure 8": {
        "EqR: residual above majority": Contrast(WIDE, replace(WIDE, select="majority")),
        "TRM-style: residual below majority": Contrast(
            replace(WIDE, row="halting"),
            replace(WIDE, row="halting", select="majority"),
            side=-1,
        ),
    },
}


def paired(results: Results, contrast: Contrast) -> Paired:
    """The accuracies of both over the seeds that both have."""
    ours, other = contrast.ours, contrast.other
    seeds = set(results.seeds(ours.row, ours.evaluation))
    seeds &= set(results.seeds(other.row, other.evaluation))
    both = (
        np.array([results.outcomes(pick, seed).mean() for seed in sorted(seeds)])
        for pick in (ours, other)
    )
    return Paired(*both, contrast.side, abs(contrast.paper))


def claims(results: Results, *tables: str) -> list[Claim]:
    """The steps of the tables as a chapter's claims; those of one table are judged together.

    Their ids are ``table-2-halting`` and so on.
    """
    return [one for t in tables for one in judged(results, t, TABLES[t]).values()]


def judged(results: Results | None, table: str, steps: Mapping[str, Contrast]) -> dict[str, Claim]:
    """The steps as claims, by their names; *not run* without results, or three seeds of both."""
    lines = {}
    nothing = Paired(np.array([]), np.array([]), 1)
    pairs = {name: paired(results, one) if results else nothing for name, one in steps.items()}
    for name, one in decide(pairs).items():
        asked, gap = steps[name], one.gap
        bounds = (gap.mean, gap.low, gap.high) if gap.n > 2 else (None, None, None)
        kind = asked.ours.evaluation
        lines[name] = Claim(
            f"{table}, {name}: {shown(asked.ours)} − {shown(asked.other)}",
            *bounds,
            results.problems(kind) if gap.n else 0,
            **{"at_least" if asked.side > 0 else "at_most": 0.0},
            paper=f"{100 * asked.paper:+.1f} points" if asked.paper else "no number",
            seeds=gap.n,
            noise=results.meta["evaluations"][kind]["noise"] if gap.n else 0.0,
            run=results.id if results else "–",
            id=re.sub(r"\W+", "-", f"{table} {name}".lower()),
            unit="points",
            judged=one,
        )
    return lines


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
    for table, steps in TABLES.items():
        for name, one in steps.items():
            if one.ours.row == one.other.row:
                continue
            both = pd.concat([on_validation(results, k) for k in (one.ours, one.other)], axis=1)
            gap = (both.iloc[:, 0] - both.iloc[:, 1]).dropna()
            sd, effect = float(gap.std()), max(abs(one.paper), LARGE)
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
    """The rate of each row with the highest mean accuracy on the validation problems.

    Raises:
        StudyError: a cell of the tuning is missing: no row may have had less of it than others.
    """
    if pilots.missing:
        lacks = ", ".join(f"{row} seed {seed}" for row, seed in pilots.missing[:3])
        raise StudyError(
            f"study tuning lacks {len(pilots.missing)} cells ({lacks}, …): run `eqr study run "
            "tuning`"
        )
    seen: dict[str, dict[float, float]] = {}
    for one in pilots.study.rows:
        rate, pick = one.overrides["train.lr"], Pick(one.name, one.depth)
        row = one.name.removesuffix(f"-{rate:g}")
        # The row's own number of seeds: it is the budget that all had.
        seeds = [pilots.outcomes(pick, seed).mean() for seed in range(one.seeds)]
        seen.setdefault(row, {})[rate] = float(np.mean(seeds))
    return {row: max(rates, key=rates.__getitem__) for row, rates in seen.items()}
