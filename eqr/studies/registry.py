"""A registry of the published numbers on EqR and its relatives, with ours in the same columns,
which of them contradict each other, and what padding does to some (chapter *Paper against ours*).
"""

from __future__ import annotations

import base64
import math
from html import escape

import pandas as pd

from eqr import SHIPPED
from eqr.files import shipped_file
from eqr.studies.cells import StudyError
from eqr.studies.contrasts import Contrast
from eqr.studies.paper import PARTS, available, profile_of
from eqr.studies.results import Pick
from eqr.studies.rows import STUDIES

PUBLISHED = SHIPPED / "registry" / "results.csv"
#: What the registry says of a number: ``README.md`` beside it.
COLUMNS = (
    *("id", "source", "reference", "year", "model", "weights", "task", "test_set", "depth"),
    *("breadth", "beta", "selection", "n", "exact", "low_or_sd", "high", "numerics", "evidence"),
    "remark",
)
NUMBERS = ("year", "depth", "breadth", "beta", "n", "exact", "low_or_sd", "high")
TASKS = {"sudoku": "Sudoku", "maze": "mazes", "miniarc": "Mini-ARC"}
SELECTED = {
    "average": "mean of restarts",
    "converged": "top-1 by latent residual",
    **{"majority": "majority", "oracle": "any (oracle)"},
}
#: Our runs with restarts, beside those that stand for a figure of the paper.
WIDE = [
    ("campaign", Pick(row, 16, 32, select, "breadth"))
    for row in ("ri-ni", "halting")
    for select in SELECTED
]
#: Settings in which two numbers on the same model and task may differ.
SETTINGS = ("depth", "breadth", "beta", "selection", "weights", "test_set", "numerics")
NEAR = 1.0  # points that other starts, hardware and rounding may make


def published() -> pd.DataFrame:
    """The numbers of ``data/registry/results.csv``.

    Raises:
        StudyError: the file has other columns, or no number where one belongs.
    """
    frame = pd.read_csv(shipped_file(PUBLISHED), dtype=str)
    if tuple(frame) != COLUMNS:
        raise StudyError(f"{PUBLISHED}: columns must be {','.join(COLUMNS)}; restore the file")
    try:
        return frame.astype(dict.fromkeys(NUMBERS, float))
    except ValueError as error:
        raise StudyError(f"{PUBLISHED}: {error}; write a number there or nothing") from error


def measured(profile: str = "laptop") -> pd.DataFrame:
    """Our runs that stand for figures of the paper, in the registry's columns and ``seeds``.

    ``low_or_sd`` and ``high`` are a 95 % t interval over seeds, from three seeds on; ``reference``
    is the id of the stored results.
    """
    studies, rows = available(profile), []
    steps = ((part.study, one) for part in PARTS for one in part.steps.values())
    picks = [(name, pick) for name, one in steps if isinstance(one, Contrast)
             for pick in (one.ours, one.other)]  # fmt: skip
    for name, pick in dict.fromkeys(one for one in [*picks, *WIDE] if one[0] in studies):
        study, row = studies[name], STUDIES[name].row(pick.row)
        seeds = len(study.seeds(pick.row, pick.evaluation))
        if not seeds:
            continue
        mean, recipe = study.accuracy(pick), row.build(profile_of(name, profile), 0)
        low, high = (100 * min(1.0, max(0.0, end)) for end in (mean.low, mean.high))
        task, settings = recipe.task, study.meta["evaluations"][pick.evaluation]
        kind = TASKS.get(task.kind, task.kind)
        how = (pick.evaluation, f"{pick.depth}x{pick.breadth}", pick.select)
        rows.append(
            {
                "id": "/".join([name, pick.row, *how]),
                "source": "this book",
                "reference": study.id,
                "year": 2026,
                "model": row.title.removeprefix("… "),
                "weights": "own",
                "task": kind if task.kind == "miniarc" else f"{task.height}x{task.width} {kind}",
                "test_set": recipe.data.source.removeprefix("data/"),
                "depth": pick.depth,
                "breadth": pick.breadth,
                "beta": settings["noise"],
                "selection": SELECTED[pick.select] if pick.breadth > 1 else None,
                "n": study.problems(pick.evaluation),
                "exact": 100 * mean.mean,
                "low_or_sd": low if seeds > 2 else None,
                "high": high if seeds > 2 else None,
                "numerics": ", ".join([settings.get("dtype", "float32"), *study.meta["hardware"]]),
                "evidence": "run here",
                "seeds": seeds,
            }
        )
    return pd.DataFrame(rows, columns=[*COLUMNS, "seeds"])


def contradictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Pairs of numbers on the same model, task, depth and breadth whose values differ.

    Each is compared with the first of ``rows`` on the same; the size of a model is left out, since
    few sources state it. Values differ that are more than :data:`NEAR` points apart and further
    than two samples of n problems in nineteen of twenty cases. Where a source does not state depth
    or breadth, its number contradicts if it agrees with none of such weights. What the oracle
    chooses is a bound, and compared with nothing.

    Columns: ``id, other`` (the first), ``model, task, exact, other exact, differ in``.
    """
    chosen = rows[~rows.selection.str.startswith("any", na=False)]
    family, pairs = chosen.model.str.replace(r" [\d.]+M\b", "", regex=True), []
    for (model, task), same in chosen.groupby([family, "task"], sort=False):
        stated = same.dropna(subset=["depth", "breadth"])
        for _, row in same.iterrows():
            if row.id in set(stated.id):
                firsts = stated[(stated.depth == row.depth) & (stated.breadth == row.breadth)][:1]
            else:
                alike = stated[(stated.weights == row.weights) | (row.weights == "unknown")]
                firsts = alike if len(alike) else stated[:1]
            if len(firsts) and not any(agree(row, first) for _, first in firsts.iterrows()):
                first = firsts.iloc[0]
                differ = [
                    f"{ON_PAGE[name]} {shown(first[name])} / {shown(row[name])}"
                    for name in SETTINGS
                    if shown(first[name]) != shown(row[name])
                ]
                differ = "; ".join(differ) or "nothing that both state"
                pairs.append((row.id, first.id, model, task, row.exact, first.exact, differ))
    names = ["id", "other", "model", "task", "exact", "other exact", "differ in"]
    return pd.DataFrame(pairs, columns=names)


def agree(one: pd.Series, other: pd.Series) -> bool:
    """Whether two numbers of the registry may be one: see :func:`contradictions`."""
    spread = sum(row.exact * (100 - row.exact) / row.n for row in (one, other) if row.n > 0)
    return abs(one.exact - other.exact) <= max(NEAR, 1.96 * math.sqrt(spread))


def registry(profile: str = "laptop") -> pd.DataFrame:
    """All published numbers and ours: the registry's columns, ``seeds``, ``contradicts`` (ids)."""
    rows = published()
    pairs = contradictions(rows)[["id", "other"]].to_numpy().tolist()
    both = pd.DataFrame([*pairs, *(pair[::-1] for pair in pairs)], columns=["id", "other"])
    against = both.groupby("id", sort=False).other.agg(" ".join)
    rows = pd.concat([rows, measured(profile)], ignore_index=True)
    return rows.assign(contradicts=rows.id.map(against))


def shown(value: object) -> str:
    """A value of the registry as text; a dash where its source does not say."""
    if value is None or value != value:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:g}"


def per_cent(value: float, digits: int = 3) -> str:
    """With its decimals, of which there is at least one."""
    text = f"{value:.{digits}f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


#: The columns on the page with their titles, and those by which it can be filtered.
ON_PAGE = {
    **{"source": "source", "model": "model", "task": "task", "exact": "exact, %"},
    **{"contradicts": "other value", "depth": "D", "breadth": "B", "beta": "β"},
    **{"selection": "selection", "n": "n", "interval": "95 % interval or sd", "seeds": "seeds"},
    **{"weights": "weights", "test_set": "test set", "numerics": "numerics"},
    **{"evidence": "evidence", "remark": "remark"},
}
FILTERS = ("source", "task", "weights", "evidence")


def as_html(rows: pd.DataFrame, caption: str, name: str = "eqr-registry") -> str:
    """The registry as a table to read, which ``book/_static/tables.js`` lets sort and filter, and
    a link that saves it as CSV.

    Args:
        rows: of :func:`registry`.
        caption: of the table.
        name: of the saved file.
    """
    exact = rows.set_index("id").exact
    kinds = {"contradicts": " data-marked"} | dict.fromkeys(FILTERS, " data-filter")
    heads = "".join(
        f'<th scope="col"{kinds.get(key, "")}>{title}</th>' for key, title in ON_PAGE.items()
    )
    lines = []
    for _, row in rows.iterrows():
        texts = {key: escape(shown(row.get(key))) for key in ON_PAGE}
        texts["source"] += f"<small>{escape(row.reference)}</small>"
        texts["exact"] = per_cent(row.exact, 1 if row.source == "this book" else 3)
        if row.high == row.high:
            texts["interval"] = f"{row.low_or_sd:.1f} to {row.high:.1f}"
        elif row.low_or_sd == row.low_or_sd:
            texts["interval"] = f"sd {row.low_or_sd:g}"
        if isinstance(row.contradicts, str):
            links = (f'<a href="#{i}">{per_cent(exact[i])}</a>' for i in row.contradicts.split())
            texts["contradicts"] = f"≠ {', '.join(links)}"
        anchor = f' id="{row.id}"' if "/" not in row.id else ""
        lines.append(f"<tr{anchor}><td>{'</td><td>'.join(texts.values())}</td></tr>")
    saved = base64.b64encode(rows.to_csv(index=False).encode()).decode()
    return (
        f'<div class="eqr-registry"><p><a download="{name}.csv" href="data:text/csv;charset=utf-8;'
        f'base64,{saved}">Save all {len(rows)} rows as CSV</a></p><div class="eqr-scroll" '
        f'role="region" tabindex="0" aria-label="Registry"><table class="dataframe"><caption>'
        f"{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
        "</table></div></div>"
    )


def captioned(table: pd.DataFrame, caption: str) -> str:
    """A small table as HTML with its caption."""
    html = table.to_html(index=False, border=0, classes="eqr-words", float_format="{:.1f}".format)
    return html.replace("<thead>", f"<caption>{escape(caption)}</caption><thead>", 1)


# ------------------------------------------------------------------- rows that pad the last batch


def as_official(exact: float, problems: int, batch: int) -> float:
    """An accuracy in per cent as the breadth metrics of the official code report it (aba94e9,
    ``evaluators/eval_fn.py``): rows that fill up the last batch are counted, and as solved."""
    padding = -problems % batch
    return (exact * problems + 100 * padding) / (problems + padding)


def without_padding(exact: float, problems: int, batch: int, digits: int) -> list[float]:
    """The accuracies, in per cent, that :func:`as_official` turns into ``exact``, rounded so."""
    half = 0.5000001 * 10**-digits
    every = (100 * k / problems for k in range(problems + 1))
    return [true for true in every if abs(as_official(true, problems, batch) - exact) <= half]
