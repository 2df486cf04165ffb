"""Run a study: train and evaluate its rows through the store, then write its files.

The unit is a *cell*, one row with one seed. Cells run in processes of one thread each; whatever is
killed goes on where it was when the study is run again, since training resumes and the store keeps
what is complete. The files hold every complete cell and say which are missing.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eqr import experiments
from eqr.config import SEMANTICS, ConfigError, Recipe, to_dict
from eqr.console import say
from eqr.cost import Cost, cost
from eqr.data import file_sha256
from eqr.evaluate import selected
from eqr.experiments import Evaluated, Trained
from eqr.store import Store, provenance
from eqr.studies import FORMAT, results_folder
from eqr.study_rows import Evaluation, Study, study
from eqr.train import Event, TrainingError

#: Seconds between two lines about one training run, and between two writings of the files.
PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a study with one seed."""

    study: str
    profile: str
    row: str
    seed: int

    def recipe(self) -> Recipe:
        return study(self.study).row(self.row).build(self.profile, self.seed)

    def evaluations(self) -> tuple[Evaluation, ...]:
        return study(self.study).row(self.row).evaluations(self.profile)

    def __str__(self) -> str:
        return f"{self.row} seed {self.seed}"


def work(cell: Cell, root: Path) -> str:
    """Train and evaluate a cell; returns a line about it.

    Raises:
        TrainingError: the training diverged.
    """
    store, recipe, told = Store(root), cell.recipe(), time.monotonic()

    def show(event: Event) -> None:
        nonlocal told
        if event.kind == "eval" and time.monotonic() - told > PAUSE_S:
            told = time.monotonic()
            exact = event.metrics[f"exact_{recipe.train.eval_depth}"]
            say(f"  {cell}: step {event.step} of {recipe.train.steps}, exact {exact:.1%}")

    run = experiments.train_run(recipe, store, on_event=show)
    model = experiments.of_run(run, recipe, store)
    row, began = study(cell.study).row(cell.row), time.monotonic()
    found = [experiments.evaluated(model, e.config, store) for e in cell.evaluations()]
    stored_cost(recipe, store)
    exact = found[0].records.at(row.depth).exact[:, 0].mean()
    seconds = f"trained {model.seconds:.0f} s, evaluated {time.monotonic() - began:.0f} s"
    return f"{cell}: exact {exact:.1%} at D = {row.depth}; {seconds}"


def stored_cost(recipe: Recipe, store: Store, *, make: bool = True) -> Cost | None:
    """The cost of a recipe, which does not depend on its seed; None if absent and not made."""
    values = to_dict(recipe, defaults=False)
    problems = experiments.dataset(recipe, store)
    named = {"recipe": {k: v for k, v in values.items() if k != "seed"}, "data": problems.digest}

    def write(directory: Path) -> None:
        (directory / "cost.json").write_text(json.dumps(asdict(cost(recipe, problems))))

    if not make:
        run = store.get(store.run_id("cost", named))
    else:
        run = store.obtain("cost", named, write)
    return Cost(**json.loads(run.file("cost.json").read_text())) if run else None


@dataclass(frozen=True, slots=True)
class Done:
    """A finished cell: all of its evaluations, save perhaps some that its study got later."""

    cell: Cell
    model: Trained
    evaluated: tuple[tuple[Evaluation, Evaluated], ...]
    cost: Cost

    @property
    def complete(self) -> bool:
        """Whether it has those too."""
        return len(self.evaluated) == len(self.cell.evaluations())

    def origins(self) -> list[dict[str, Any]]:
        """Commit, hardware and time of the stored runs behind it."""
        runs = [self.model.run, *(found.run for _, found in self.evaluated)]
        return [run.manifest["provenance"] for run in runs]


def finished(cell: Cell, store: Store) -> Done | None:
    """What the store has of a cell, if that is all of it; makes nothing and waits for nobody.

    Evaluations that were added to the study later may be absent, so that adding one takes no cell
    out of the study's files before it has been run: see :attr:`Done.complete`.
    """
    recipe = cell.recipe()
    named = experiments.train_named(recipe, experiments.dataset(recipe, store))
    run = store.get(store.run_id("train", named))
    if not run:
        return None
    model = experiments.of_run(run, recipe, store)
    have = []
    for one in cell.evaluations():
        named = experiments.eval_named(model, one.config)
        if store.get(store.run_id("eval", named)):
            have.append(one)
        elif not one.added:
            return None
    price = stored_cost(recipe, store, make=False)
    if not price:
        return None
    found = tuple((e, experiments.evaluated(model, e.config, store)) for e in have)
    return Done(cell, model, found, price)


def tidy(done: Done) -> pd.DataFrame:
    """The rows of a cell's table."""
    train, parts = done.model.recipe.train, []
    for kind, found in done.evaluated:
        part = found.table(kind.breadths, kind.select)
        part.insert(0, "evaluation", kind.name)
        part["eval_seconds"] = found.run.manifest["provenance"]["seconds"]
        part["eval_run"] = found.run.id
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "row", done.cell.row)
    table.insert(1, "seed", done.cell.seed)
    price = asdict(done.cost)
    del price["layers"]  # the table's own column counts those of the whole rollout
    about = {
        **price,
        "train_steps": train.steps,
        "train_batch": train.batch,
        "train_unroll": train.unroll,
        "train_seconds": done.model.seconds,
        "train_run": done.model.run.id,
    }
    return table.assign(**about)


def outcomes(done: Done) -> dict[str, np.ndarray]:
    """Which problems a cell solved, as bools by ``row/seed/evaluation[/select]``.

    The plain key holds every trajectory, (K, P, B) for K depths, P problems, B restarts; that of a
    selection rule the chosen answers, (K, breadths, P). Average and oracle follow from the former.
    """
    kept = {}
    for kind, found in done.evaluated:
        key, records = f"{done.cell.row}/{done.cell.seed}/{kind.name}", found.records
        kept[key] = records.exact
        for rule in kind.select:
            if rule not in ("average", "oracle"):
                kept[f"{key}/{rule}"] = np.stack(
                    [
                        [selected(records.at(d).first(b), rule)[0] for b in kind.breadths]
                        for d in records.depths.tolist()
                    ]
                ).astype(bool)
    return kept


def write(
    wanted: Study,
    profile: str,
    cells: Sequence[Cell],
    store: Store,
    out: Path,
    failed: dict[str, str],
) -> dict[str, Any]:
    """Write the study's files from what the store has of ``cells``; returns the JSON's content.

    Each file is replaced in one go, the JSON last, with the hashes of the others.
    """
    found = [one for cell in cells if (one := finished(cell, store))]
    have = {one.cell for one in found}
    parts = [tidy(one) for one in found]
    empty = pd.DataFrame(columns=["row", "seed", "evaluation"])
    table = pd.concat(parts, ignore_index=True) if parts else empty
    bits = {key: value for one in found for key, value in outcomes(one).items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, **{key: np.packbits(value) for key, value in bits.items()})
    out.mkdir(parents=True, exist_ok=True)
    paths = {kind: out / f"{wanted.name}.{kind}" for kind in ("csv", "npz", "json")}
    replace_file(paths["csv"], table.to_csv(index=False).encode())
    replace_file(paths["npz"], packed.getvalue())
    origins = [origin for one in found for origin in one.origins()]
    kinds = {e.name: e for row in wanted.rows for e in row.evaluations(profile)}
    meta = {
        "format": FORMAT,
        "study": wanted.name,
        "profile": profile,
        "semantics": SEMANTICS,
        "files": {paths[kind].name: file_sha256(paths[kind]) for kind in ("csv", "npz")},
        "cells": [[c.row, c.seed] for c in cells if c in have],
        "missing": [[c.row, c.seed] for c in cells if c not in have],
        "partial": [[one.cell.row, one.cell.seed] for one in found if not one.complete],
        "failed": failed,
        "seeds": sorted({c.seed for c in have}),
        "matched": wanted.matched,
        "rows": {
            row.name: {
                "title": row.title,
                "recipe": row.recipe,
                "overrides": dict(row.overrides),
                "scale": dict(row.scale),
                "paper": [asdict(p) for p in row.paper],
            }
            for row in wanted.rows
        },
        "evaluations": {
            name: {**to_dict(e.config), "breadths": e.breadths, "select": e.select}
            for name, e in kinds.items()
        },
        "shapes": {key: list(value.shape) for key, value in bits.items()},
        "runs": {
            "commits": sorted({o["commit"] for o in origins}),
            "hardware": sorted({o["hardware"] for o in origins}),
            "first": min((o["finished"] for o in origins), default=None),
            "last": max((o["finished"] for o in origins), default=None),
        },
        "written": provenance() | {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    }
    replace_file(paths["json"], (json.dumps(meta, indent=1) + "\n").encode())
    return meta


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cells_of(
    wanted: Study, profile: str, rows: Iterable[str] | None, seeds: Sequence[int] | None
) -> list[Cell]:
    """The cells asked for; None takes all rows, and each row's own number of seeds."""
    names = list(rows) if rows is not None else [row.name for row in wanted.rows]
    return [
        Cell(wanted.name, profile, name, seed)
        for name in names
        for seed in (seeds if seeds is not None else wanted.row(name).seed_range(profile))
    ]


def written_cells(name: str, profile: str, out: Path) -> list[Cell]:
    """The cells of the files that lie in ``out`` by now; none where they cannot be read."""
    try:
        told = json.loads((out / f"{name}.json").read_text())
        if told["profile"] != profile or told["semantics"] != SEMANTICS:
            return []
        known = {row.name for row in study(name).rows}
        return [Cell(name, profile, row, seed) for row, seed in told["cells"] if row in known]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def begin() -> None:
    """Prepare a worker: one thread, and no life beyond its parent's."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # what it was making stays resumable

    threading.Thread(target=follow, daemon=True).start()


def run(
    name: str,
    profile: str = "laptop",
    *,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    store: Store | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    files: bool = True,
    tell: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Run what is missing of a study and write its files; returns the content of its JSON.

    Args:
        name, profile: of the study.
        rows, seeds: which cells to run; the files hold the others too where the store has them.
        jobs: processes of one thread side by side.
        out: folder of the files; None takes the shipped results' place.
        overwrite: allow that cells in the files of ``out`` are lost because this store lacks them.
        files: False leaves the files alone, for one of several machines that run cells side by
            side; of the JSON's content there is then only what concerns the cells asked for.
        tell: gets a line of progress at a time.

    Raises:
        ConfigError: an unknown study, profile or row, or files that would be lost.
    """
    wanted, store = study(name), store or Store()
    out = Path(out or results_folder(profile))
    asked = cells_of(wanted, profile, rows, seeds)
    before = written_cells(name, profile, out) if files else []
    lost = [c for c in before if c not in asked and not finished(c, store)]
    if lost and not overwrite:
        raise ConfigError(
            f"{out / name}.json holds {len(lost)} cells that this store lacks ({lost[0]}, …); "
            "write elsewhere with --out, run them too, or give them up with --overwrite"
        )
    every = list(dict.fromkeys([*cells_of(wanted, profile, None, None), *asked, *before]))
    order = [row.name for row in wanted.rows]
    every.sort(key=lambda c: (order.index(c.row), c.seed))
    todo = [c for c in asked if not ((found := finished(c, store)) and found.complete)]
    tell(f"{name} ({profile}): {len(asked) - len(todo)} of {len(asked)} cells are in the store")
    failed: dict[str, str] = {}
    wrote = time.monotonic()
    if todo:
        # Two processes with two threads each on two cores are ten times slower than with one.
        os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, begin) as pool:
            # Seed by seed, so that a study that is stopped early has every row.
            futures = {
                pool.submit(work, cell, store.root): cell
                for cell in sorted(todo, key=lambda c: (c.seed, order.index(c.row)))
            }
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    try:
                        line = future.result()
                    except TrainingError as error:
                        failed[str(futures[future])] = str(error)
                        line = f"{futures[future]}: FAILED, {error}"
                    tell(f"[{number}/{len(todo)}] {line}")
                    if files and time.monotonic() - wrote > PAUSE_S:
                        write(wanted, profile, every, store, out, failed)
                        wrote = time.monotonic()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if not files:
        have = [cell for cell in asked if finished(cell, store)]
        return {
            "cells": [[c.row, c.seed] for c in have],
            "missing": [[c.row, c.seed] for c in asked if c not in have],
            "failed": failed,
        }
    return write(wanted, profile, every, store, out, failed)
