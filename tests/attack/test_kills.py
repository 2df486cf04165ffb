"""SIGKILL at random moments: what is made in the end is what an uninterrupted process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from harness import FULL, cases, killed, strays

from eqr import data, experiments
from eqr.checkpoint import load_model
from eqr.config import EvalConfig
from eqr.files import file_sha256
from eqr.store import Store, inspect
from eqr.studies import run as studies
from eqr.studies.cells import Cell, CellFile

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes here."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def soundness(store: Store) -> list[str]:
    """What is wrong in a store that nobody works in."""
    faults = [fault for path in store.paths() for fault in inspect(path).faults]
    faults += [fault for path in store.paths() for fault in inspect(path).strays]
    return faults + strays(store.root)


def test_a_training_killed_again_and_again(make_recipe, tmp_path, tally, draw):
    recipe = make_recipe(train={"steps": 12, "checkpoint_every": 1, "eval_every": 4})
    whole, count = Store(tmp_path / "whole"), 0
    experiments.train_run(recipe, whole)
    for number in range(cases(3, 26)):
        store = Store(tmp_path / f"store{number}")
        work = lambda store=store: experiments.train_run(recipe, store)  # noqa: E731
        seconds = timed(lambda s=store: experiments.train_run(replace(recipe, seed=1), s))
        for _ in range(4):
            count += killed(work, draw.uniform(0, seconds))
        run, other = work(), whole.get(whole.run_id("train", work().manifest["config"]))
        for name in ("model.safetensors", "log.jsonl"):
            same = file_sha256(run.file(name)) == file_sha256(other.file(name))
            tally.add("same" if same else f"silent difference: {name}", number)
        for fault in soundness(store):
            tally.add(f"loss: {fault}", number)
    tally.counts["killed"] = count


def test_an_evaluation_killed_again_and_again(learned, make_recipe, tmp_path, tally, draw):
    store = Store(tmp_path / "store")
    model = experiments.load_trained(experiments.train_run(make_recipe(), store), store)
    count = 0
    for number in range(cases(3, 20)):
        config = EvalConfig((1, 2, 8), breadth=2, seed=number)
        whole = experiments.evaluate_or_load(model, config, Store(tmp_path / "whole"))
        work = lambda config=config: experiments.evaluate_or_load(model, config, store)  # noqa: E731
        other = replace(config, seed=10**6 + number)
        seconds = timed(lambda other=other: experiments.evaluate_or_load(model, other, store))
        for _ in range(3):
            count += killed(work, draw.uniform(0, seconds))
        same = all((work()[name] == value).all() for name, value in whole.arrays.items())
        tally.add("same" if same else "silent difference", number)
        for fault in soundness(store):
            tally.add(f"loss: {fault}", number)
    tally.counts["killed"] = count


def test_a_data_set_that_is_replaced_is_the_old_or_the_new_one(problems, tmp_path, tally, draw):
    """Killed while one is written over another: one of the two, whole, and nothing beside it."""
    place, count = tmp_path / "set", 0
    other = replace(problems, test=data.take_rows(problems.test, range(12)))
    data.save(problems, place)
    work = lambda made: data.save(made, place, overwrite=True)  # noqa: E731
    seconds = timed(lambda: work(problems))
    for number in range(cases(20, 130)):
        made = (other, problems)[number % 2]
        count += killed(lambda made=made: work(made), draw.uniform(0, 1.2 * seconds))
        try:
            there = data.load(place).digest
        except Exception as error:
            tally.add(f"loss: {error}", number)
            work(problems)
            continue
        known = {problems.digest, other.digest}
        tally.add("same" if there in known else "silent difference", number)
    work(problems)
    beside = sorted(path.name for path in tmp_path.iterdir())
    tally.add("same" if beside == ["set"] else f"stray: {beside}")
    tally.counts["killed"] = count


def test_a_study_killed_again_and_again(tmp_path, tally, draw):
    cell, out = Cell("construction", "smoke", "feedforward", 0), tmp_path / "out"
    store = Store(tmp_path / "store")
    work = lambda: studies.work(cell, store.root, out)  # noqa: E731
    seconds = timed(lambda: studies.work(cell, tmp_path / "whole", tmp_path / "other"))
    whole, count = CellFile.read(cell.path(tmp_path / "other")), 0
    for _ in range(cases(3, 30)):
        count += killed(work, draw.uniform(0, seconds))
    work()
    there = CellFile.read(cell.path(out))
    same = all((there.outcomes[k] == v).all() for k, v in whole.outcomes.items())
    same &= there.table.exact.equals(whole.table.exact) and there.curve.equals(whole.curve)
    tally.add("same" if same else "silent difference")
    for fault in [*soundness(store), *strays(out)]:
        tally.add(f"loss: {fault}")
    tally.counts["killed"] = count


def executed(source: Path, out: Path) -> subprocess.Popen:
    """``eqr notebook`` in a group of processes of its own, so that its kernel can be killed too."""
    words = ["-m", "eqr", "notebook", str(source), str(out), "-p", "x=3"]
    hidden = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A kernel of the same name that is none, where Jupyter looks first.
    other = source.parent / "jupyter" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text('{"argv": ["false"], "display_name": "other", "language": "python"}')
    hidden["env"] = os.environ | {"JUPYTER_PATH": str(source.parent / "jupyter")}
    return subprocess.Popen([sys.executable, *words], start_new_session=True, **hidden)


@pytest.fixture
def source(tmp_path) -> Path:
    """A notebook with a parameter, that takes a second."""
    made = nbformat.v4.new_notebook()
    made.cells = [nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["parameters"]})]
    made.cells += [nbformat.v4.new_code_cell("import time\ntime.sleep(1)\nprint('x is', x)")]
    nbformat.write(made, tmp_path / "source.ipynb")
    return tmp_path / "source.ipynb"


def shown(path: Path) -> str:
    """What the cells of an executed notebook have printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", ()))


@pytest.mark.skipif(not FULL, reason="each takes some seconds: make attack")
def test_a_notebook_killed_leaves_the_old_copy_or_none(source, tmp_path, tally, draw):
    out, count = tmp_path / "out" / "copy.ipynb", 0
    for number in range(cases(0, 12)):
        process = executed(source, out)
        time.sleep(draw.uniform(0.5, 8))
        count += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
        process.communicate()
        good = not out.exists() or shown(out) == "x is 3\n"
        tally.add("same" if good else "loss: half a notebook", number)
    assert executed(source, out).wait() == 0
    tally.add("same" if shown(out) == "x is 3\n" else "loss: another notebook")
    left = sorted(path.name for path in out.parent.iterdir())
    tally.add("same" if left == ["copy.ipynb"] else f"stray: {left}")
    tally.counts["killed"] = count


@pytest.mark.skipif(not FULL, reason="each takes some seconds: make attack")
def test_notebooks_executed_at_once_into_one_file(source, tmp_path, tally):
    out = tmp_path / "copy.ipynb"
    for number in range(cases(0, 3)):
        both = [executed(source, out) for _ in range(3)]
        said = [process.communicate()[1] for process in both]
        good = all(process.returncode == 0 for process in both) and shown(out) == "x is 3\n"
        tally.add("same" if good else f"loss: {said}", number)
        tally.add("same" if any("waiting for process" in text for text in said) else "silent wait")


def test_data_sets_built_at_once_into_one_place(problems, tmp_path, tally):
    """Of four processes one writes; the others are told that it is there."""
    for number in range(cases(3, 30)):
        place, children = tmp_path / f"set{number}", []
        for _ in range(4):
            if not (child := os.fork()):
                code = 1
                try:
                    data.save(problems, place)
                    code = 0
                except data.DataError:
                    code = 3
                finally:
                    os._exit(code)
            children.append(child)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)
        good = codes == [0, 3, 3, 3] and data.load(place).digest == problems.digest
        tally.add("same" if good and not strays(tmp_path) else f"loss: {codes}", number)


def test_trainings_of_one_model_at_once(make_recipe, tmp_path, tally):
    """The second uses what the first has made; a store that is read-only can be read."""
    recipe = make_recipe(train={"steps": 6, "checkpoint_every": 2})
    for number in range(cases(2, 8)):
        store, children = Store(tmp_path / f"store{number}"), []
        for _ in range(3):
            if not (child := os.fork()):
                code = 1
                try:
                    code = int(experiments.train_run(recipe, store) is None)
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
        (run,) = store.paths()
        good = codes == [0, 0, 0] and load_model(run / "model.safetensors") and not soundness(store)
        tally.add("same" if good else f"loss: {codes} {soundness(store)}", number)
