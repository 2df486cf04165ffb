"""Run a study: train and evaluate what is missing of its cells, each of which becomes a file.

Cells run in processes of one thread each; whatever is killed goes on where it was when the study
is run again, since training resumes and the store keeps what is complete.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eqr import experiments
from eqr.cli.console import say
from eqr.config import SEMANTICS
from eqr.cost import cost
from eqr.data import NoDataSet
from eqr.settings import ConfigError
from eqr.store import Store
from eqr.studies.cells import (
    Cell,
    CellFile,
    StudyError,
    cells_of,
    finished,
    ship_weights,
    shipped_model,
)
from eqr.studies.results import results_folder
from eqr.studies.rows import study
from eqr.train import Event, TrainingError

PAUSE_S = 30.0  # seconds between two lines about one training run


def work(
    cell: Cell,
    root: Path,
    out: Path,
    device: str = "cpu",
    stop_after_s: float | None = None,
    weights: bool = False,
) -> str | None:
    """Train and evaluate a cell and write its file; returns a line about it, or None if it was
    stopped early.

    Raises:
        TrainingError: the training diverged.
        StudyError: the row evaluates models of another study, which are not in ``out``.
    """
    began = shown = time.monotonic()
    store, recipe = Store(root), cell.recipe()
    source = study(cell.study).row(cell.row).weights

    def show(event: Event) -> None:
        nonlocal shown
        if event.kind == "eval" and time.monotonic() - shown > PAUSE_S:
            shown = time.monotonic()
            exact = event.metrics[f"exact_{recipe.train.eval_depth}"]
            say(f"  {cell}: step {event.step} of {recipe.train.steps}, exact {exact:.1%}")

    if source:
        model = shipped_model(replace(cell, study=source), out, store, device)
    else:
        run = experiments.train_run(
            recipe, store, device=device, on_event=show, stop_after_s=stop_after_s
        )
        if run is None:
            return None
        model = experiments.load_trained(run, store, device)
    trained = time.monotonic()
    evaluations = []
    for kind in cell.evaluations():
        if evaluations and stop_after_s is not None and time.monotonic() - began > stop_after_s:
            return None  # what there is, is stored; the rest another time
        evaluations.append(
            (kind, experiments.evaluate_or_load(model, kind.config, store, level=kind.level))
        )
    path = cell.path(out)
    shipped = ""
    if weights and not source:
        made = run.file("model.safetensors")
        shipped = "; " + ship_weights(made, path.with_suffix(".safetensors"))
    CellFile.of(cell, model, evaluations, cost(recipe, model.data)).write(path)
    row = study(cell.study).row(cell.row)
    exact = evaluations[0][1].records.at(row.depth).exact[:, 0].mean()
    seconds = f"trained {model.seconds:.0f} s, evaluated {time.monotonic() - trained:.0f} s"
    return f"{cell}: exact {exact:.1%} at D = {row.depth}; {seconds}{shipped}"


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
    device: str = "cpu",
    stop_after_s: float | None = None,
    weights: bool = False,
    tell: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Run what is missing of a study; returns its ``cells``, those ``missing``, and ``failed``.

    Args:
        name, profile: of the study.
        rows, seeds: which cells to run.
        jobs: processes of one thread side by side.
        out: folder of the results; None takes the shipped results' place. Cells whose files lie
            there are done, whether this store has them or not.
        overwrite: run the cells again that have a file, and replace it.
        device: of trainings and evaluations.
        stop_after_s: leave a cell after about so many seconds, to go on when run again.
        weights: put the models' weights beside the files, as float16.
        tell: gets a line of progress at a time.

    Raises:
        ConfigError: an unknown study, profile or row, or a file that would be lost.
    """
    wanted, store = study(name), store or Store()
    out = Path(out or results_folder(profile))
    asked = cells_of(wanted, profile, rows, seeds)

    def done(cell: Cell) -> bool:
        ships = weights and not wanted.row(cell.row).weights
        lacks = ships and not cell.path(out).with_suffix(".safetensors").exists()
        return not overwrite and finished(cell, out, store) and not lacks

    todo = [cell for cell in asked if not done(cell)]
    stay = set((out / name).glob("*.npz")) - {cell.path(out) for cell in todo}
    for path in sorted(stay) if todo else ():
        if (older := CellFile.read(path).about["semantics"]) != SEMANTICS:
            raise ConfigError(
                f"{path}: of semantics {older}, which this version would train otherwise and never "
                "averages with its own: name another folder with --out"
            )
    tell(f"{name} ({profile}): {len(asked) - len(todo)} of {len(asked)} cells are done")
    failed: dict[str, str] = {}
    if todo:
        # Two processes with two threads each on two cores are ten times slower than with one.
        os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"
        context, order = multiprocessing.get_context("spawn"), [row.name for row in wanted.rows]
        with ProcessPoolExecutor(jobs, context, begin) as pool:
            # Seed by seed, so that a study that is stopped early has every row.
            futures = {
                pool.submit(work, cell, store.root, out, device, stop_after_s, weights): cell
                for cell in sorted(todo, key=lambda c: (c.seed, order.index(c.row)))
            }
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    try:
                        line = future.result()
                    except (TrainingError, NoDataSet, StudyError) as error:
                        failed[str(futures[future])] = str(error)
                        line = f"{futures[future]}: FAILED, {error}"
                    if line is None:
                        line = f"{futures[future]}: stopped; run the same command again to go on"
                    tell(f"[{number}/{len(todo)}] {line}")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    every = dict.fromkeys([*cells_of(wanted, profile, None, None), *asked])
    status: dict[str, Any] = {"cells": [], "missing": [], "failed": failed}
    for cell in every:
        status["cells" if cell.path(out).exists() else "missing"].append([cell.row, cell.seed])
    return status
