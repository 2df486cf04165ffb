"""Run a study: train and evaluate its rows through the store, then write its files.

Cells run in processes of one thread each; whatever is killed goes on where it was when the study
is run again, since training resumes and the store keeps what is complete. The files hold every
complete cell and say which are missing.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from eqr import experiments
from eqr.cli.console import say
from eqr.data import NoDataSet
from eqr.settings import ConfigError
from eqr.store import Store
from eqr.studies.cells import Cell, cells_of, finished, stored_cost
from eqr.studies.files import carried, ship_weights, write
from eqr.studies.results import results_folder
from eqr.studies.rows import study
from eqr.train import Event, TrainingError

#: Seconds between two lines about one training run, and between two writings of the files.
PAUSE_S = 30.0


def work(
    cell: Cell, root: Path, device: str = "cpu", stop_after_s: float | None = None
) -> str | None:
    """Train and evaluate a cell; returns a line about it, or None if it was stopped early.

    Raises:
        TrainingError: the training diverged.
    """
    began = time.monotonic()
    store, recipe, told = Store(root), cell.recipe(), time.monotonic()

    def show(event: Event) -> None:
        nonlocal told
        if event.kind == "eval" and time.monotonic() - told > PAUSE_S:
            told = time.monotonic()
            exact = event.metrics[f"exact_{recipe.train.eval_depth}"]
            say(f"  {cell}: step {event.step} of {recipe.train.steps}, exact {exact:.1%}")

    run = experiments.train_run(
        recipe, store, device=device, on_event=show, stop_after_s=stop_after_s
    )
    if run is None:
        return None
    model, trained = experiments.of_run(run, recipe, store, device), time.monotonic()
    stored_cost(recipe, store)
    found = []
    for kind in cell.evaluations():
        found.append(experiments.evaluated(model, kind.config, store, level=kind.level))
        if stop_after_s is not None and time.monotonic() - began > stop_after_s:
            break  # what there is, is stored; the rest another time
    if len(found) < len(cell.evaluations()):
        return None
    row = study(cell.study).row(cell.row)
    exact = found[0].records.at(row.depth).exact[:, 0].mean()
    seconds = f"trained {model.seconds:.0f} s, evaluated {time.monotonic() - trained:.0f} s"
    return f"{cell}: exact {exact:.1%} at D = {row.depth}; {seconds}"


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
    device: str = "cpu",
    stop_after_s: float | None = None,
    weights: bool = False,
    tell: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Run what is missing of a study and write its files; returns the content of its JSON.

    Args:
        name, profile: of the study.
        rows, seeds: which cells to run; the files hold the others too where there are any.
        jobs: processes of one thread side by side.
        out: folder of the files; None takes the shipped results' place. Cells that its files hold
            are done, whether this store has them or not, and stay there.
        overwrite: pay no attention to those files: their cells are run anew where they are asked
            for, and lost where this store lacks them.
        files: False leaves the files alone, for one of several machines that run cells side by
            side; of the JSON's content there is then only what concerns the cells asked for.
        device: of trainings and evaluations.
        stop_after_s: leave a cell after about so many seconds, to go on when run again.
        weights: put the models' weights beside the files, as float16.
        tell: gets a line of progress at a time.

    Raises:
        ConfigError: an unknown study, profile or row, or files that would be lost.
    """
    if weights and not files:
        raise ConfigError("weights are shipped with a study's files: leave out --no-files")
    wanted, store = study(name), store or Store()
    out = Path(out or results_folder(profile))
    asked = cells_of(wanted, profile, rows, seeds)
    before = carried(name, profile, out, store) if files and not overwrite else {}
    every = list(dict.fromkeys([*cells_of(wanted, profile, None, None), *asked, *before]))
    order = [row.name for row in wanted.rows]
    every.sort(key=lambda c: (order.index(c.row), c.seed))

    def done(cell: Cell) -> bool:
        kept = before.get(cell)
        if not (kept and kept.complete):
            kept = finished(cell, store)
        return bool(kept and kept.complete)

    todo = [cell for cell in asked if not done(cell)]
    tell(f"{name} ({profile}): {len(asked) - len(todo)} of {len(asked)} cells are done")
    failed: dict[str, str] = {}
    wrote = time.monotonic()
    if todo:
        # Two processes with two threads each on two cores are ten times slower than with one.
        os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, begin) as pool:
            # Seed by seed, so that a study that is stopped early has every row.
            futures = {
                pool.submit(work, cell, store.root, device, stop_after_s): cell
                for cell in sorted(todo, key=lambda c: (c.seed, order.index(c.row)))
            }
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    try:
                        line = future.result()
                    except (TrainingError, NoDataSet) as error:
                        failed[str(futures[future])] = str(error)
                        line = f"{futures[future]}: FAILED, {error}"
                    if line is None:
                        line = f"{futures[future]}: stopped; run the same command again to go on"
                    tell(f"[{number}/{len(todo)}] {line}")
                    if files and time.monotonic() - wrote > PAUSE_S:
                        write(wanted, profile, every, store, out, failed, before)
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
    if weights:
        for line in ship_weights(asked, store, out).values():
            tell(line)
    return write(wanted, profile, every, store, out, failed, before)
