"""How the shipped models of a study reason: do failures settle or search, how far do numbers hold,
what does the running mean of the weights bring, and when does a rule choose worse among more?

``<folder>/<study>-looks/<row>-<seed>.npz`` is a file a model, sealed like those of cells: a table
of values with their intervals, and the arrays behind them. It is made from the weights beside the
study's own file. The selector's law needs no file: the study's outcomes say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eqr import checkpoint
from eqr.analysis.dynamics import Dynamics, lyapunov
from eqr.analysis.plan import proposed
from eqr.analysis.stalled import STABLE, follow, memory_ratio, re_roll
from eqr.compiled import compiled_copy
from eqr.config import SEMANTICS, EvalConfig
from eqr.evaluate import Records, records
from eqr.model import Reasoner
from eqr.run_folder import RAW
from eqr.stats import Difference, mean_interval, paired_difference, wilson
from eqr.store import Store, provenance
from eqr.studies.cells import Cell, CellFile, Shipped, StudyError, shipped_model
from eqr.studies.results import Pick, Results
from eqr.studies.rows import study
from eqr.tasks.shift import perturbed

DEPTH, EXTRA = 32, 32  # iterations before a re-roll, and after
DEPTHS = 16, 32, 64  # at which a trajectory's residual is stored
PROBLEMS = 1024  # the first of the test set
EXPONENTS = 32  # directions in which a trajectory is followed,
FOLLOWED = 32  # of so many problems
FLOORS = 16, 64  # depths at which answers are compared
NOISES = 0.0, 0.01  # the second is what models with noise are trained with

Line = dict[str, Any]
Arrays = dict[str, np.ndarray]


def _line(name: str, value: Difference, noise: float = 0.0) -> Line:
    return {"measure": name, "noise": noise, "value": value.mean, "low": value.low,
            "high": value.high, "n": value.n}  # fmt: skip


def _share(name: str, hits: np.ndarray, noise: float = 0.0) -> Line:
    n = len(hits)
    return _line(name, Difference(float(np.mean(hits)) if n else np.nan, *wilson(hits.sum(), n), n),
                 noise)  # fmt: skip


def settle(model: Shipped, store: Store) -> tuple[list[Line], Arrays]:
    """R of the stalled puzzles; how failures end; the largest Lyapunov exponent."""
    test, lines, arrays = model.data.test, [], {}
    x, y = (torch.as_tensor(each[:PROBLEMS]).long() for each in (test.inputs, test.labels))
    for noise in NOISES:
        rolls = re_roll(model.model, x, y, depth=DEPTH, extra=EXTRA, noise=noise)
        went = follow(model.model, x, y, DEPTHS, noise=noise)
        lost, still = ~went.solved, went.last_changed <= DEPTHS[-1] - STABLE
        lines += [
            _line("R", rolls.ratio(), noise),
            _line("R of all unsolved", memory_ratio(rolls.early, rolls.late, rolls.copies), noise),
            _share("stalled of unsolved", rolls.stalled, noise),
            _share(
                "stalled, solved by a re-roll", (rolls.early + rolls.late)[rolls.stalled] > 0, noise
            ),
            _share("unsolved", lost, noise),
            _share("failures that settle", went.settled[lost], noise),
            _share("failures whose answer stands", still[lost], noise),
            _share("settled and wrong", went.settled & lost, noise),
            _share("solved and lost again", (went.first_solved < 2 * DEPTHS[-1]) & lost, noise),
        ]
        kept = {"early": rolls.early, "late": rolls.late, "stalled": rolls.stalled} | {
            name: getattr(went, name) for name in went.__slots__
        }
        small = {np.dtype(np.int64): np.int32, np.dtype(np.float32): np.float16}
        arrays |= {f"settle-{noise:g}/{k}": v.astype(small.get(v.dtype, v.dtype))
                   for k, v in kept.items()}  # fmt: skip
    growth = exponents(model.model, x[:FOLLOWED])
    arrays["lyapunov"] = growth.astype(np.float32)
    for name, rows in (("solved", went.solved[:FOLLOWED]), ("unsolved", lost[:FOLLOWED])):
        lines.append(_line(f"largest exponent, {name}", mean_interval(growth[rows, 0])))
    return lines, arrays


def exponents(model: Reasoner, x: torch.Tensor) -> np.ndarray:
    """The largest Lyapunov exponents (P, EXPONENTS) of problems, from the state at DEPTH on."""
    dynamics = Dynamics.of(model, x)
    z = dynamics.starts(0)
    for image in dynamics.iterate(z, DEPTH):
        z = image
    return lyapunov(dynamics, z, 16, skip=8, exponents=EXPONENTS).numpy()


def floors(model: Shipped, store: Store) -> tuple[list[Line], Arrays]:
    """The share of puzzles that another arithmetic solves and the first does not, or the reverse;
    and of those with another answer. The first is float32, one thread, operation by operation."""
    test, config = model.data.test, EvalConfig(FLOORS, problems=PROBLEMS)

    def run(runner: Reasoner, threads: int = 1) -> Records:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return records(runner, test.inputs, test.labels, config)
        finally:
            torch.set_num_threads(before)

    first, lines, arrays = run(model.model), [], {}
    half = perturbed(model.model, replace(config, dtype="bfloat16"))
    others: dict[str, Callable[[], Records]] = {
        "bfloat16": lambda: run(half),
        "two threads": lambda: run(model.model, 2),
        "compiled": lambda: run(compiled_copy(model.model)),
    }
    for name, other in others.items():
        seen = other()
        for k, depth in enumerate(FLOORS):
            flip = (seen.exact != first.exact)[k, :, 0]
            lines.append(_share(f"flips, {name}, D = {depth}", flip))
            moved = (seen.answer != first.answer)[k, :, 0]
            lines.append(_share(f"other answers, {name}, D = {depth}", moved))
        arrays[f"exact, {name}"] = seen.exact[:, :, 0]
    return lines, arrays | {"exact": first.exact[:, :, 0]}


def averaging(model: Shipped, store: Store) -> tuple[list[Line], Arrays]:
    """Accuracy of the running mean of the weights minus that of the weights themselves; nothing
    where the store has not got these."""
    run = store.get(model.run.id)
    if run is None or RAW not in run.manifest["files"]:
        return [], {}
    test, config = model.data.test, EvalConfig(FLOORS, problems=2 * PROBLEMS)
    raw = checkpoint.load_model(run.file(RAW)).model
    mean = checkpoint.load_model(run.file("model.safetensors")).model
    ours, other = (records(m, test.inputs, test.labels, config).exact[:, :, 0]
                   for m in (mean, raw))  # fmt: skip
    lines = [_line(f"EMA, D = {depth}", paired_difference(ours[k], other[k]))
             for k, depth in enumerate(FLOORS)]  # fmt: skip
    return lines, {"exact, raw": other}


LOOKS = {"settle": settle, "floors": floors, "averaging": averaging}


def name_of(wanted: str) -> str:
    return f"{wanted}-looks"


def missing(wanted: str, folder: Path, profile: str = "laptop") -> Iterator[Cell]:
    """The models of a study that have weights in a folder and no look yet; of those that have one
    iteration only there is nothing to see."""
    rows = {row.name: row for row in study(wanted).rows}
    for path in sorted((folder / wanted).glob("*.safetensors")):
        row, _, seed = path.stem.rpartition("-")
        cell = Cell(wanted, profile, row, int(seed))
        there = replace(cell, study=name_of(wanted)).path(folder).exists()
        if row in rows and rows[row].depth > 1 and not there:
            yield cell


def look(cell: Cell, folder: Path, store: Store) -> CellFile:
    """Look at one model and write its file."""
    model = shipped_model(cell, folder, store)
    lines, arrays = [], {}
    for measure in LOOKS.values():
        own, seen = measure(model, store)
        lines, arrays = lines + own, arrays | seen
    table = pd.DataFrame(lines)
    table.insert(0, "row", cell.row)
    table.insert(1, "seed", cell.seed)
    about = {
        "format": "eqr-look-1", "study": name_of(cell.study), "profile": cell.profile,
        "row": cell.row, "seed": cell.seed, "semantics": SEMANTICS,
        "train_run": model.run.id, "weights": model.checkpoint.sha256, "written": provenance(),
    }  # fmt: skip
    made = CellFile.packed(table, pd.DataFrame(), arrays, about)
    made.write(replace(cell, study=name_of(cell.study)).path(folder))
    return made


def seen(wanted: str, folder: Path) -> list[CellFile]:
    """All looks at a study's models that there are, verified.

    Raises:
        StudyError: there are none.
    """
    files = [CellFile.read(p) for p in sorted((folder / name_of(wanted)).glob("*.npz"))]
    if not files:
        raise StudyError(f"{folder / name_of(wanted)}: no looks; run `eqr study look {wanted}`")
    return files


# ----------------------------------------------------------------------------------------- reading


def looks_table(files: Sequence[CellFile]) -> pd.DataFrame:
    """Each measure of each row: over seeds with a t interval where there are three, else the mean
    of the models' own intervals. R is that of all the row's puzzles together."""
    lines = pd.concat([file.table for file in files], ignore_index=True)
    shown = []
    for (row, measure, noise), mine in lines.groupby(["row", "measure", "noise"], sort=False):
        values = mine.value.dropna()
        gap = mean_interval(values.tolist())
        if len(values) < 3:
            gap = Difference(*mine[["value", "low", "high"]].mean(), len(values))
        if measure == "R":
            gap = pooled(row, noise, files)
        line = {"row": row, "measure": measure, "noise": noise, "seeds": len(values)}
        shown.append(
            line | {"value": gap.mean, "low": gap.low, "high": gap.high, "n": mine.n.sum()}
        )
    return pd.DataFrame(shown)


def pooled(row: str, noise: float, files: Sequence[CellFile]) -> Difference:
    """R of the stalled puzzles of all models of a row."""
    own = [file for file in files if file.about["row"] == row]
    key, parts = f"settle-{noise:g}", []
    for file in own:
        early, late = (file.outcomes[f"{key}/{half}"] for half in ("early", "late"))
        stalled = np.unpackbits(file.outcomes[f"{key}/stalled"], count=len(early)).astype(bool)
        parts.append((early[stalled], late[stalled]))
    early, late = (np.concatenate(half) for half in zip(*parts, strict=True))
    return memory_ratio(early, late, 8)


def searching(results: Results, files: Sequence[CellFile]) -> pd.DataFrame:
    """A line a model: R and how failures end, beside what breadth gains over depth at 64 NFE, by
    majority of four restarts at D = 16. The claim is that R and gain have a rank correlation of at
    least 0.8."""
    lines = []
    for file in files:
        row, seed = file.about["row"], file.about["seed"]
        wide = results.outcomes(Pick(row, 16, 4, "majority", "breadth"), seed)
        deep = results.outcomes(Pick(row, 64), seed)[: len(wide)]
        own = file.table.set_index(["measure", "noise"]).value
        line = {"row": row, "seed": seed, "gain": wide.mean() - deep.mean()}
        line |= {f"R, β = {noise:g}": own["R", noise] for noise in NOISES}
        lines.append(line | {"failures that settle": own["failures that settle", 0.0]})
    return pd.DataFrame(lines)


def _wide(results: Results) -> Iterator[tuple[str, str, int, str, list[int], tuple[int, ...]]]:
    """Row, evaluation, depth, rule, seeds and breadths of all that chooses among restarts."""
    for row in results.study.rows:
        for kind in row.evaluate:
            seeds = results.seeds(row.name, kind.name)
            if len(kind.breadths) > 1 and seeds:
                for depth in kind.config.depths:
                    for rule in set(kind.select) - {"average", "oracle"}:
                        yield row.name, kind.name, depth, rule, seeds, kind.breadths


def selector_law(results: Results) -> pd.DataFrame:
    """Where a rule does worse with more restarts although more of them solve the puzzle.

    Top-1 of the largest breadth against a single restart (the mean over all), paired: over seeds
    where there are three, else over problems. *Falls*: its interval lies below 0.
    """
    lines = []
    for row, kind, depth, rule, seeds, breadths in sorted(_wide(results)):
        most = Pick(row, depth, breadths[-1], rule, kind)
        ways = most, replace(most, select="average"), replace(most, select="oracle")
        chosen, single, covered = (
            np.array([results.outcomes(way, seed) for seed in seeds]) for way in ways
        )
        gap = mean_interval((chosen - single).mean(1).tolist())
        if len(seeds) < 3:
            gap = paired_difference(chosen.mean(0), single.mean(0))
        word = "falls" if gap.high < 0 else "rises" if gap.low > 0 else "undecided"
        lines.append({
            "row": row, "evaluation": kind, "depth": depth, "rule": rule, "seeds": len(seeds),
            "single": single.mean(), "top-1": chosen.mean(), "pass@B": covered.mean(),
            "gap": gap.mean, "low": gap.low, "high": gap.high, "top-1 with B": word,
        })  # fmt: skip
    return pd.DataFrame(lines)


def planned_breadths(results: Results) -> pd.DataFrame:
    """What breadth :func:`eqr.analysis.plan.proposed` gives for each way to choose, judged where
    it was not planned: on half of the problems, planned on the other half with the model's own
    outcomes (``from`` itself) or with those of the row's other seeds.

    Columns: ``proposed`` breadth; ``regret`` against the best of the recorded ones; ``negative``,
    whether it is shown to do worse there than a smaller one.
    """
    lines = []
    for row, kind, depth, rule, seeds, breadths in sorted(_wide(results)):
        exact = np.array([
            [results.outcomes(Pick(row, depth, b, rule if b > 1 else "average", kind), seed)
             for b in breadths] for seed in seeds
        ])  # fmt: skip
        for at, seed in enumerate(seeds):
            held = exact[at][:, 1::2]
            means = held.mean(1)
            sources = {"itself": exact[at]}
            if len(seeds) > 1:
                sources["other seeds"] = np.delete(exact, at, 0).mean(0)
            for source, own in sources.items():
                k = proposed(own[:, ::2])
                worse = [paired_difference(held[k], held[j]).high < 0 for j in range(k)]
                lines.append({
                    "row": row, "evaluation": kind, "depth": depth, "rule": rule, "seed": seed,
                    "from": source, "proposed": breadths[k], "regret": means.max() - means[k],
                    "negative": any(worse),
                })  # fmt: skip
    return pd.DataFrame(lines)
