"""What a restructuring must not change: shipped outcomes, recipes, studies' plans and claims.

``python tests/test_frozen.py --rewrite`` writes ``golden/frozen.json`` anew: do so only where one
of them is to change on purpose, and read the difference line by line. Its sections:

=============  ====================================================================================
``outcomes``   by study, row and seed: which problems each evaluation solved and what it recorded
               beside, the curve of the training, the tables of accuracy and of cost
``recipes``    every setting of every recipe, defaults too, behind its digest
``plans``      by study and profile: what each row trains and how it is evaluated
``claims``     by chapter: value, interval, bound and verdict
``verdicts``   of the preregistration, by model and family of shifts
``paper``      *Paper against ours*, line by line
``ids``        of training runs and evaluations; they may move where a version says so
``not_frozen`` chapters whose claims are not here, and why
=============  ====================================================================================

Digests are of values, whatever file or type holds them. Three functions read through the package:
:func:`outcomes`, :func:`recipes` and :func:`claims`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import symtable
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqr.config import to_dict
from eqr.recipes import PROFILES, load_recipe, recipe_names
from eqr.store import run_id

# All that is read through the package comes by these names.
from eqr.studies import verdicts as rules
from eqr.studies.paper import PARTS, beside
from eqr.studies.results import Results, shipped
from eqr.studies.rows import STUDIES
from eqr.studies.rows_shift import FAMILIES

GOLDEN = Path(__file__).parent / "golden" / "frozen.json"
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

#: How deep each section is one line a key; what lies below stands on one line.
DEPTH = {"outcomes": 3, "claims": 2, "verdicts": 2, "plans": 2, "ids": 2}

#: Chapters that compute claims without a trained model, and the list that collects them.
CHAPTERS = dict.fromkeys(["ambiguity", "fast", "under_shift"], "claims")
TRAINS = "its claims measure a model that is trained when the book is made"
GROWS = "its claims grow with the campaign"
NOT_FROZEN = {
    **dict.fromkeys(["budget", "landscape", "machine", "settling", "theory"], TRAINS),
    **dict.fromkeys(["breadth", "depth", "shaping"], GROWS),
    "explore": "it makes no claims",
    "paper_vs_ours": f"{GROWS}; the others are in the section paper",
    "speed": "its claims are times of this machine",
}

#: Columns of a study's table that were measured; intervals follow from them.
MEASURED = ("depth", "breadth", "select", "n", "exact", "token", "residual", "nfe", "layers")
COSTS = ("parameters", "flops", "train_layers", "train_flops", "activation_bytes", "saved_bytes",
         "train_steps", "train_batch", "train_unroll", "train_seconds")  # fmt: skip


# ------------------------------------------------------------------------------------------ digests


def digest(value: Any) -> str:
    """The first 16 hex digits of the sha256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_array(values: np.ndarray) -> str:
    """The same of an array's shape and numbers, whatever type holds them."""
    numbers = np.ascontiguousarray(values, "<f8") + 0.0  # no negative zeros
    total = hashlib.sha256(repr(numbers.shape).encode() + numbers.tobytes())
    return total.hexdigest()[:16]


def digest_table(frame: Any) -> str:
    """The same of a table's cells, in the order of its rows; numbers to nine digits."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else f"{float(value):.9g}"

    return digest([list(map(text, line)) for line in frame.itertuples(index=False)])


# ------------------------------------------------------------------- read through the package


def studies() -> Iterator[tuple[str, Results]]:
    """The shipped studies by profile and name, of what was trained with semantics 1.

    Later ones grow cell by cell.
    """
    for profile in PROFILES:
        for name, study in STUDIES.items():
            results = shipped(name, profile) if profile in study.profiles else None
            if results and results.meta["semantics"] == 1:
                yield f"{profile}/{name}", results


def outcomes() -> tuple[dict, dict]:
    """Digests of what is shipped of every cell, and the ids of the runs behind it."""
    digests_of, ids = {}, {}
    for key, results in studies():
        shapes = results.meta["shapes"]
        cells, digests_of[key], ids[key] = {}, {}, {}
        for name in results.bits:
            row, seed, outcome = name.split("/", 2)
            values = results.unpack(name) if name in shapes else results.bits[name]
            cells.setdefault((row, int(seed)), {})[outcome] = digest_array(values)
        for (row, seed), digests in cells.items():
            table, curve = (
                frame[(frame.row == row) & (frame.seed == seed)]
                for frame in (results.rows, results.curves)
            )
            curve = curve.drop(columns=["row", "seed"]).dropna(axis="columns", how="all")
            digests["curve"] = digest_table(curve) if len(curve) else "none"
            for name, part in table.groupby("evaluation", sort=False):
                digests[f"{name}/table"] = digest_table(part[list(MEASURED)])
            digests["cost"] = digest_table(table[list(COSTS)].drop_duplicates())
            seconds = table[["evaluation", "eval_seconds"]].drop_duplicates()
            digests["seconds"] = digest_table(seconds)
            digests_of[key][f"{row}/{seed}"] = digests
            evaluated = dict(zip(table.evaluation, table.eval_run, strict=True))
            ids[key][f"{row}/{seed}"] = [*table.train_run.unique(), digest(evaluated)]
    return digests_of, ids


def values_of(recipe: Any) -> dict[str, Any]:
    """Every setting of a recipe, those at their default too, as JSON has it."""
    values = dataclasses.asdict(recipe)
    values["task"]["kind"] = recipe.task.kind
    return json.loads(json.dumps(values, sort_keys=True))


def recipes() -> tuple[dict, dict, dict]:
    """Settings of the recipes; digests of what the studies plan; the recipes' ids."""
    settings, plans, ids = {}, {}, {}
    for profile in PROFILES:
        for name in recipe_names(profile):
            recipe = load_recipe(name, profile)
            values = values_of(recipe)
            settings[f"{profile}/{name}"] = [digest(values), values]
            # Of a run on a data set without a digest: that of the real one is in ``outcomes``.
            named = {"recipe": to_dict(recipe, defaults=False), "data": ""}
            ids.setdefault(profile, {})[name] = run_id("train", named, 1)
        for study in STUDIES.values():
            for row in study.rows if profile in study.profiles else ():
                seeds = list(row.seed_range(profile))
                plans.setdefault(f"{profile}/{study.name}", {})[row.name] = {
                    "recipe": digest([values_of(row.build(profile, seed)) for seed in seeds]),
                    "evaluations": digest([planned(e) for e in row.evaluations(profile)]),
                    "seeds": seeds,
                    "depth": row.depth,
                    "paper": [[p.table, p.value, p.task] for p in row.paper],
                }
    return settings, plans, ids


def planned(evaluation: Any) -> dict[str, Any]:
    """What decides an evaluation's outcomes."""
    level = evaluation.level.named() if evaluation.level else None
    return dataclasses.asdict(evaluation) | {"level": level}


def claims() -> tuple[dict, dict, dict]:
    """Claims by chapter; verdicts of the preregistration; *Paper against ours*."""
    chapters = {}
    for name, collector in CHAPTERS.items():
        space = execute(NOTEBOOKS / f"{name}.ipynb", collector)
        chapters[name] = {
            claim.name: [
                claim.verdict,
                *map(number, (claim.value, claim.low, claim.high)),
                {"bounds": [claim.at_least, claim.at_most], "n": claim.n, "seeds": claim.seeds,
                 "noise": claim.noise, "paper": claim.paper},
            ]
            for claim in space[collector]
        }  # fmt: skip
        assert len(chapters[name]) == len(space[collector]), f"{name}: two claims of one name"
    judged, shift = {}, shipped("shift", "laptop")
    for row in (row.name for row in shift.study.rows):
        for line in rules.verdict_table(shift, row).to_dict("records"):
            judged.setdefault(row, {})[line["family"]] = list(line.values())
        for family in FAMILIES:
            if family.name in judged.get(row, {}):
                judged[row][family.name] += other_verdicts(shift, row, family.far)
    growing = {part.table for part in PARTS if part.study == "campaign"}
    lines, _ = beside("laptop")
    lines = lines[~lines.table.isin(growing)].to_dict("records")
    paper = {f"{place}": list(map(str, line.values())) for place, line in enumerate(lines)}
    return chapters, judged, paper


def other_verdicts(shift: Results, row: str, level: str) -> list[Any]:
    """H2 to H6 for one row at one level, each with the mean that it follows from."""
    judged = [
        rules.loss_of_breadth(shift, row, level),
        rules.signal_verdict(shift, row, level),
        rules.abstention(shift, row, level),
        rules.settling(shift, row, level),
    ]
    if row.endswith("-eqr"):
        judged.append(rules.retention(shift, row, row.replace("eqr", "trm"), level))
    return [[word, *(number(d.mean) for d in means)] for *means, word in judged]


# --------------------------------------------------------------------------------- chapters


def number(value: float | None) -> float | str | None:
    """Ten digits of a number, or what JSON has for one that is none."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.10g}")
    return str(value)


def names(code: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives to the cells below it, and those that it has from above."""
    table = symtable.symtable(code, "cell", "exec")
    stored = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
    read, inner = {s.get_name() for s in table.get_symbols() if s.is_referenced()}, [table]
    while inner:
        children = inner.pop().get_children()
        read |= {s.get_name() for t in children for s in t.get_symbols() if s.is_global()}
        inner += children
    return stored, read


def needed_cells(cells: list[str], collector: str) -> list[int]:
    """The code cells that the list ``collector`` is made by, which leaves out most figures.

    A cell is needed if it assigns what a later needed cell reads, or reads the list, or calls a
    function that does.
    """
    writers = {collector}
    for code in cells:
        functions = (n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef))
        writers |= {f.name for f in functions if names(ast.unparse(f))[1] & writers}
    wanted, needed = {collector}, []
    for place in reversed(range(len(cells))):
        stored, read = names(cells[place])
        if stored & wanted or read & writers:
            wanted = (wanted | read) - stored | {collector}
            needed.insert(0, place)
    return needed


def execute(notebook: Path, collector: str) -> dict[str, Any]:
    """What the names of a notebook stand for after the cells that ``collector`` needs.

    Its parameters have their own values: the laptop profile, seed 0.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    space = {"display": lambda *_: None}
    with contextlib.redirect_stdout(io.StringIO()):
        for place in needed_cells(codes, collector):
            exec(compile(codes[place], f"{notebook.name}, code cell {place}", "exec"), space)
    return space


# -------------------------------------------------------------------------------------------- test


def everything() -> dict[str, Any]:
    """All sections of the file."""
    import matplotlib
    import pandas as pd

    matplotlib.use("Agg")
    with pd.option_context("display.max_rows", 60), matplotlib.rc_context():
        cells, runs = outcomes()
        settings, plans, ids = recipes()
        chapters, judged, paper = claims()
        matplotlib.pyplot.close("all")
    return {
        "outcomes": cells,
        "recipes": settings,
        "plans": plans,
        "claims": chapters,
        "verdicts": judged,
        "paper": paper,
        "ids": ids | runs,
        "not_frozen": NOT_FROZEN,
    }


def lines_of(value: Any, depth: int, indent: str = "") -> str:
    """JSON with one line for each key down to ``depth``."""
    if depth == 0 or not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    parts = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {lines_of(v, depth - 1, inner)}"
             for k, v in value.items()]  # fmt: skip
    return "{\n" + ",\n".join(parts) + f"\n{indent}}}"


def flat(value: Any, depth: int, key: str = "") -> dict[str, Any]:
    """The leaves at ``depth`` of nested mappings, by their joined keys."""
    if depth == 0 or not isinstance(value, Mapping):
        return {key: value}
    parts = [flat(v, depth - 1, f"{key} > {k}" if key else k) for k, v in value.items()]
    return {name: leaf for part in parts for name, leaf in part.items()}


def equal(ours: Any, frozen: Any) -> bool:
    """Whether two leaves agree; measured numbers to a millionth, which no table shows."""
    if isinstance(ours, float) and isinstance(frozen, float):
        return math.isclose(ours, frozen, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(ours, list) and isinstance(frozen, list):
        return len(ours) == len(frozen) and all(map(equal, ours, frozen))
    return ours == frozen


def differences(section: str, ours: Any, frozen: Any) -> list[str]:
    """One line for each key that is not what it was."""
    ours, frozen = (flat(part, DEPTH.get(section, 1)) for part in (ours, frozen))
    return [
        f"{key}: {ours.get(key, 'absent')} is not {frozen.get(key, 'absent')}"
        for key in [*frozen, *(key for key in ours if key not in frozen)]
        if key not in ours or key not in frozen or not equal(ours[key], frozen[key])
    ]


SECTIONS = tuple(json.loads(GOLDEN.read_text("utf-8"))) if GOLDEN.is_file() else ()


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return json.loads(json.dumps(everything()))


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_frozen_is_what_it_was(now, section):
    changed = differences(section, now[section], json.loads(GOLDEN.read_text("utf-8"))[section])
    shown = "\n".join(changed[:40])
    assert not changed, f"{section}: {len(changed)} keys differ, of which\n{shown}"


def test_no_section_is_left_out(now):
    assert set(now) == set(SECTIONS)
    assert all(now.values())
    chapters = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert chapters == set(CHAPTERS) | set(NOT_FROZEN)


def test_a_difference_is_reported_by_its_key():
    frozen = {"a/b": {"x/0": {"depth": "1" * 16}}}
    ours = {"a/b": {"x/0": {"depth": "2" * 16, "wide": "3" * 16}}}
    reported = differences("outcomes", ours, frozen)
    keys = [line.partition(":")[0] for line in reported]
    assert keys == ["a/b > x/0 > depth", "a/b > x/0 > wide"]
    assert digest_array(np.array([True, False])) == digest_array(np.float32([1, 0]))
    assert digest_array(np.array([True, False])) != digest_array(np.array([[True, False]]))
    assert not equal([0.5, "undecided"], [0.5, "reproduced"])
    assert not equal([0.5], [0.50001])


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        raise SystemExit(f"{__doc__}")
    sections = [
        f" {json.dumps(name)}: {lines_of(section, DEPTH.get(name, 1), ' ')}"
        for name, section in everything().items()
    ]
    GOLDEN.write_text("{\n" + ",\n".join(sections) + "\n}\n", "utf-8")
