"""The paper's figures beside ours: one table, made from the stored studies (paper §5).

The scales differ (5 M parameters on 9×9 Sudoku-Extreme there, 15 thousand on minimal 6×6 Sudoku
here), so values are not expected to agree. What can be reproduced is the *direction* of each step:
a row against its table's first row. The verdict compares the sign of the paper's difference with
the 95 % interval of ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd

from eqr.studies import contrasts
from eqr.studies.campaign import SETTING
from eqr.studies.claims import Claim
from eqr.studies.results import Pick, Results, shipped
from eqr.studies.rows import MAZE, STUDIES

SUDOKU = "Sudoku-Extreme"


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure of the paper, and where ours would come from."""

    table: str
    name: str
    value: float  # exact accuracy in per cent
    task: str = SUDOKU
    study: str | None = None  # None: no experiment at this scale stands for it
    pick: Pick | None = None


#: The row that the others of a table are compared with, by table and study.
BASE = {
    ("Table 2", "construction"): Pick("feedforward", 1),
    ("Table 3", "shaping"): Pick("trm"),
    ("Table 4", "depth-breadth"): Pick("trm"),
    ("Table 7", "construction"): Pick("terminal"),
    ("Table 8", "construction"): Pick("segmented"),
    ("Tables 10–12", "shaping"): Pick("trm"),
    ("A.5", "shaping"): Pick("attention-trm"),
    ("A.5", "miniarc"): Pick("embedding-trm"),
    ("A.6", "shaping"): Pick("trm"),
}

#: Figures that no row of a study carries.
OTHERS = (
    Entry("Table 4", "EqR, D = 64, B = 1", 93.0, study="depth-breadth", pick=Pick("eqr", 64)),
    Entry("Table 4", "EqR, D = 64, B = 1", 93.0, SUDOKU, "paper-scale", Pick("sudoku9-fast", 64)),
    Entry(
        "Table 4",
        f"EqR, D = 64, {SETTING}",
        93.0,
        SUDOKU,
        "campaign",
        Pick("ri-ni", 64),
    ),
    Entry(
        "Table 4",
        "EqR, D = 64, B = 128",
        99.8,
        SUDOKU,
        "paper-scale",
        Pick("sudoku9-fast", 64, 128, "converged", "grid"),
    ),
    Entry(
        "Table 4", "Maze: EqR, D = 64, B = 1", 88.9, MAZE, "paper-scale", Pick("maze30-fast", 64)
    ),
    Entry(
        "Table 4",
        "Maze: EqR, D = 64, B = 128",
        93.0,
        MAZE,
        "paper-scale",
        Pick("maze30-fast", 64, 128, "converged", "grid"),
    ),
    *(
        Entry("Table 3", name, value, MAZE)
        for name, value in (("Baseline", 44.9), ("+ RI", 68.6), ("+ RI + NI", 82.2))
    ),
    Entry("Table 5", "D = 1024, fixed", 96.1),
    Entry("Table 5", "D = 1024, halting head (58.7 iterations)", 95.3),
)


def entries() -> list[Entry]:
    """All figures of the paper that the book knows, by table."""
    figures = [
        Entry(
            figure.table,
            row.title,
            figure.value,
            figure.task,
            study.name,
            Pick(row.name, row.depth),
        )
        for study in STUDIES.values()
        for row in study.rows
        for figure in row.paper
    ]
    return sorted([*figures, *OTHERS], key=lambda entry: entry.table)


def base_of(entry: Entry) -> Pick | None:
    """What an entry is compared with, in its own study; None where there is no such row."""
    if entry.pick is None:
        return None
    if entry.study == "campaign":  # each step against the row before it
        steps = contrasts.TABLES.get(entry.table, {}).values()
        before = {step.ours: step.other for step in steps}
        return before.get(entry.pick, entry.pick if entry.pick in before.values() else None)
    if entry.study == "paper-scale":  # rows of one kind, each with its own baseline
        name = f"{entry.pick.row.removesuffix('-trm')}-trm"
        known = {row.name for row in STUDIES["paper-scale"].rows}
        return Pick(name) if name in known else None
    return BASE.get((entry.table, entry.study))


def profile_of(study: str, profile: str) -> str:
    """Whose records of a study stand in the table: its own profile's where it has but one."""
    own = STUDIES[study].profiles
    return profile if profile in own else own[0]


def available(profile: str) -> dict[str, Results]:
    """The studies whose records are there; altered ones raise, absent ones are left out."""
    studies = {name: shipped(name, profile_of(name, profile)) for name in STUDIES}
    return {name: results for name, results in studies.items() if results}


def direction(entry: Entry, studies: dict[str, Results], base: float) -> tuple[str, str]:
    """Our difference from what it is compared with (:func:`base_of`) as text, and the verdict."""
    first = base_of(entry)
    if first is None or entry.study not in studies:
        return "–", "not run"
    if entry.pick == first:
        return "–", "baseline"
    if entry.study == "campaign":
        named = {step.ours: name for name, step in contrasts.TABLES[entry.table].items()}
        made = contrasts.decided(studies["campaign"], entry.table)[named[entry.pick]]
        return made.gap.scaled(100).text("+.1f"), made.verdict
    side = {"at_least": 0.0} if entry.value > base else {"at_most": 0.0}
    study, text = studies[entry.study], "{}"
    gap = Claim.of_study(entry.name, study, entry.pick, first, **side)
    shared = set(study.seeds(entry.pick.row)) & set(study.seeds(first.row))
    if gap.value is None and len(shared) == 1 and entry.study == "paper-scale":
        one = study.compare(entry.pick, first).problems  # over problems: these very weights
        text = "{} with one seed"
        gap = replace(gap, value=one.mean, low=one.low, high=one.high)
    if gap.value is None:
        return "–", gap.verdict
    step = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    return step, text.format(gap.verdict)


def beside(profile: str = "laptop") -> pd.DataFrame:
    """The paper's figures and ours, one row each, in per cent.

    Columns: ``table, what, task, paper, ours`` (mean over seeds with its 95 % t interval), ``n``
    (problems), ``seeds, profile``, ``paper's step`` and ``our step`` (difference from what it
    is compared with, see :func:`base_of`), ``verdict``.

    Raises:
        StudyError: a shipped file has been altered.
    """
    studies, rows = available(profile), []
    every = entries()
    for entry in every:
        first = base_of(entry)
        same = [
            other.value
            for other in every
            if (other.table, other.task, other.study) == (entry.table, entry.task, entry.study)
            and other.pick
            and other.pick == first
        ]
        base = same[0] if same else math.nan
        ours, n, seeds = "not run", 0, 0
        if entry.study in studies and entry.pick:
            study = studies[entry.study]
            seeds = len(study.seeds(entry.pick.row, entry.pick.evaluation))
            if seeds:
                mean, n = study.accuracy(entry.pick), study.problems(entry.pick.evaluation)
                ours = f"{100 * mean.mean:.1f}"
                if seeds > 1:
                    low, high = max(0.0, mean.low), min(1.0, mean.high)
                    ours += f" [{100 * low:.1f}, {100 * high:.1f}]"
        step, verdict = direction(entry, studies, base)
        gap = entry.value - base
        rows.append(
            {
                "table": entry.table,
                "what": entry.name,
                "task": entry.task,
                "paper": f"{entry.value:g}",
                "ours": ours,
                "n": n or "–",
                "seeds": seeds or "–",
                "profile": profile_of(entry.study, profile) if seeds else "–",
                "paper's step": f"{gap:+.1f}" if gap else "–",
                "our step": step,
                "verdict": verdict,
            }
        )
    frame = pd.DataFrame(rows)
    frame.loc[frame["paper's step"] == "+nan", "paper's step"] = "–"
    return frame
