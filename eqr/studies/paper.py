"""The paper's claims beside ours: one step each, judged on the stored studies (paper §5).

The scales differ (5 M parameters on 9×9 Sudoku-Extreme there, 15 thousand on minimal 6×6 Sudoku
here), so values are not expected to agree. What can be reproduced is the *direction* of a step: a
row against the row before it in the paper's own table. Steps of one table are judged together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from eqr.studies import contrasts
from eqr.studies.claims import Claim
from eqr.studies.contrasts import EQR, OURS, TABLES, WIDE, Contrast
from eqr.studies.results import Pick, Results, shipped
from eqr.studies.rows import STUDIES


@dataclass(frozen=True, slots=True)
class Part:
    """The steps of a table that one study stands for, or none: then a step is the paper's own."""

    table: str
    task: str  # that ours is trained on, or would be
    study: str
    steps: Mapping[str, Contrast | float]


def _rows(table: str, task: str, study: str, steps: Mapping[str, tuple | Contrast | float]) -> Part:
    """A step between two rows of a study, the earlier one first, has the figures they carry."""
    made = {}
    for name, step in steps.items():
        if isinstance(step, tuple):
            before, row = map(STUDIES[study].row, step)
            figures = [
                next(p.value for p in one.paper if table.startswith(p.table))
                for one in (row, before)
            ]
            gap = (figures[0] - figures[1]) / 100
            picks = Pick(row.name, row.depth), Pick(before.name, before.depth)
            step = Contrast(*picks, gap, 1 if gap > 0 else -1)
        made[name] = step
    return Part(table, task, study, made)


def _at_scale(task: str, row: str, feedforward: str, deep: float, wide: float) -> Part:
    """The steps of the paper's Table 4, at its own scale."""
    low = Pick(row, 64, evaluation="grid")
    return _rows(
        f"Table 4, {task}", task, "paper-scale", {
            "EqR above feedforward": (feedforward, row),
            "EqR above TRM-style": (f"{row}-trm", row),
            "depth": Contrast(Pick(row, 64), Pick(row), deep),
            "breadth": Contrast(replace(low, breadth=128, select="converged"), low, wide),
        })  # fmt: skip


SMALL, EXTREME, MAZES = "6×6 Sudoku", "Sudoku-Extreme", "Maze-Unique"
_FAR, _EARLY = Pick("ri-ni", 1024, evaluation="far"), replace(WIDE, depth=4)

#: All steps, in the order of the page.
PARTS = (
    *(Part(table, SMALL, "campaign", steps) for table, steps in TABLES.items() if table != OURS),
    _rows("Figure 3", SMALL, "campaign", {
        "breadth at D = 4": Contrast(_EARLY, replace(_EARLY, breadth=1, select="average"))}),
    _rows("Table 5", SMALL, "campaign", {
        "depth, 64 to 1024": Contrast(_FAR, replace(_FAR, depth=64), 0.031)}),
    _rows("A.6", SMALL, "campaign", {
        "EqR above TRM-style": Contrast(EQR, Pick("halting"), 0.0185)}),
    _rows("Table 7", SMALL, "construction", {
        "loss on every iteration": ("terminal", "all-anchors"),
        "loss on the second half": ("all-anchors", "late-8"),
        "loss on the last quarter": ("late-8", "late-12")}),
    _rows("Table 8", SMALL, "construction", {
        "segments above double depth": ("deeper", "segmented"),
        "short gradient, one latent": ("segmented", "segmented-cut"),
        "short gradient, two latents": ("hierarchy", "hierarchy-cut"),
        "halting by an oracle": ("act", "oracle"),
        "second latent, with halting": ("act-single", "act")}),
    _rows("Tables 10–12", SMALL, "shaping", {
        "learned above fixed start": ("trm", "learned-start"),
        "random above learned start": ("learned-start", "ri"),
        "wider start of the low latents": ("ri", "sigma-1-8")}),
    _rows("A.5, attention", SMALL, "shaping", {
        "random start": ("attention-trm", "attention-ri"),
        "damping and noise": ("attention-ri", "attention-ri-ni")}),
    _rows("A.5, Mini-ARC", "Mini-ARC", "miniarc", {
        "EqR above TRM-style": ("embedding-trm", "embedding-eqr")}),
    _at_scale(EXTREME, "sudoku9-fast", "sudoku9-feedforward", 0.066, 0.068),
    _at_scale(MAZES, "maze30-fast", "maze30-fast-feedforward", 0.067, 0.041),
    _rows("Table 3, Maze-Unique", MAZES, "paper-scale", {
        "random start": 0.237, "damping and noise": 0.136}),
    _rows("Table 5, halting", EXTREME, "paper-scale", {
        "at D = 1024": -0.008, "at D = 64, B = 128": -0.005}),
)  # fmt: skip


def profile_of(study: str, profile: str) -> str:
    """Whose records of a study are read: its own profile's where it has but one."""
    own = STUDIES[study].profiles
    return profile if profile in own else own[0]


def available(profile: str) -> dict[str, Results]:
    """The studies whose records are there; altered ones raise, absent ones are left out."""
    studies = {name: shipped(name, profile_of(name, profile)) for name in STUDIES}
    return {name: results for name, results in studies.items() if results}


def claims(part: Part, results: Results | None) -> dict[str, Claim]:
    """The steps of a part as claims, judged together; *not run* where records lack."""
    tried = {name: step for name, step in part.steps.items() if isinstance(step, Contrast)}
    made = contrasts.judged(results, part.table, tried)
    if part.table not in TABLES:  # the others are a chapter's own
        made = {name: replace(one, id=f"paper-{one.id}") for name, one in made.items()}
    return made


def beside(profile: str = "laptop") -> tuple[pd.DataFrame, list[Claim]]:
    """Every step, one line each, and the claims that are not another chapter's.

    Columns: ``verdict, table, step, task, paper`` (its difference in points; NaN: it prints none),
    ``side`` (its sign), ``value, low, high`` (ours, in points), ``seeds, needed`` (seeds that would
    decide), ``rows`` (ours − the other).

    Raises:
        StudyError: a shipped file has been altered.
    """
    studies, lines, own = available(profile), [], []
    for part in PARTS:
        made = claims(part, studies.get(part.study))
        own += [one for one in made.values() if one.id.startswith("paper-")]
        for name, step in part.steps.items():
            line = {"table": part.table, "step": name, "task": part.task}
            if name not in made:  # there is no row that could be run
                line |= {"verdict": "not run", "paper": 100 * step, "side": math.copysign(1, step)}
                lines.append(line | {"seeds": 0, "rows": "–"})
                continue
            one = made[name]
            gap = one.judged.gap.scaled(100)
            line |= {"verdict": one.verdict, "paper": 100 * step.paper or math.nan}
            line |= {"side": step.side, "value": gap.mean, "seeds": gap.n, "needed": one.needed}
            if gap.n > 2:
                line |= {"low": gap.low, "high": gap.high}
            line["rows"] = f"{contrasts.shown(step.ours)} − {contrasts.shown(step.other)}"
            lines.append(line)
    columns = ["verdict", "table", "step", "task", "paper", "side", "value", "low", "high"]
    return pd.DataFrame(lines, columns=[*columns, "seeds", "needed", "rows"]), own
