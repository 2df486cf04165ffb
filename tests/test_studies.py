"""Studies: rows that build, runs that resume, files that verify, comparisons that are paired."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eqr import experiments
from eqr.config import EvalConfig, recipe_from_dict, to_dict
from eqr.cost import cost
from eqr.model import Reasoner
from eqr.recipes import PROFILES
from eqr.settings import ConfigError
from eqr.stats import mean_interval, paired_difference
from eqr.store import Store
from eqr.studies import results as studies, run as study_run
from eqr.studies.cells import Cell, CellFile, arrays_of, finished, hashed
from eqr.studies.results import Pick, StudyError
from eqr.studies.rows import STUDIES, Evaluation, Row, Study, studies_of, study
from eqr.train import Trainer

ROWS = [
    (p, name, row.name) for name, one in STUDIES.items() for row in one.rows for p in one.profiles
]
CHOSEN = ["act", "late-12"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def written(store, tmp_path_factory) -> Path:
    """Two rows of the smoke profile with two seeds, run in two processes."""
    out = tmp_path_factory.mktemp("results")
    lines: list[str] = []
    meta = study_run.run(
        "construction", "smoke", rows=CHOSEN, jobs=2, store=store, out=out, tell=lines.append
    )
    assert lines[0].endswith("0 of 4 cells are done") and len(lines) == 5
    assert meta["cells"] == [["late-12", 0], ["late-12", 1], ["act", 0], ["act", 1]]
    return out


@pytest.fixture
def results(written) -> studies.Results:
    return studies.load("construction", "smoke", written)


def test_cells_of_another_semantics_are_neither_extended_nor_averaged(written, store, tmp_path):
    """What an earlier version trained is read; two versions' trainings never lie together."""
    shutil.copytree(written, tmp_path / "old")
    for path in (tmp_path / "old" / "construction").glob("act-*.npz"):
        cell = CellFile.read(path)
        about, parts = cell.about | {"semantics": 1}, (cell.table, cell.curve, cell.outcomes)
        CellFile(*parts, about, hashed(arrays_of(*parts), about)).write(path)
    with pytest.raises(StudyError, match=r"cells of semantics 1 and \d.*lie together; move those"):
        studies.load("construction", "smoke", tmp_path / "old")
    again = {"store": store, "out": tmp_path / "old"}
    with pytest.raises(ConfigError, match=r"act-0.npz: of semantics 1.*name another folder"):
        study_run.run("construction", "smoke", rows=["head"], seeds=[0], **again)
    with pytest.raises(ConfigError, match=r"act-0.npz: this version would train"):
        study_run.run("construction", "smoke", rows=["act"], seeds=[0], **again)
    for path in (tmp_path / "old" / "construction").glob("late-*.npz"):
        path.unlink()
    assert studies.load("construction", "smoke", tmp_path / "old").meta["semantics"] == 1


# -------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("profile", "name", "row"), ROWS)
def test_every_row_builds_a_valid_recipe_and_a_model(profile, name, row):
    found = study(name).row(row)
    recipe = found.build(profile, seed=3)
    assert recipe.seed == 3 and recipe_from_dict(to_dict(recipe)) == recipe
    with torch.device("meta"):
        Reasoner.for_task(recipe.task, recipe.model)
    for one in found.evaluations(profile):
        assert max(one.breadths) <= one.config.breadth
    assert found.depth in found.evaluations(profile)[0].config.depths
    assert found.evaluate[0].name == "depth", "the summary reads it"


@pytest.mark.parametrize("profile", PROFILES)
def test_rows_of_a_study_differ_and_share_what_the_study_says(profile):
    for one in studies_of(profile):
        recipes = [to_dict(row.build(profile, 0)) for row in one.rows]
        assert len({json.dumps(r) for r in recipes}) == len(recipes)
        assert len({row.name for row in one.rows}) == len(one.rows)
        kinds = {e.name: e for row in one.rows for e in row.evaluations(profile)}
        for row in one.rows:
            assert all(kinds[e.name] == e for e in row.evaluations(profile))
    if profile == "paper":
        return
    equal = {
        (r.train.steps, r.train.batch * r.train.unroll * r.model.layers)
        for r in (row.build(profile, 0) for row in STUDIES["construction"].rows)
    }
    assert len(equal) == 1, "the construction path is matched in steps and layer evaluations"


def test_a_row_without_changes_is_the_recipe_itself():
    """So that a study shares the runs of the chapters."""
    one, other = study("construction").row("act"), study("shaping").row("trm")
    assert one.build("laptop", 0) == other.build("laptop", 0)


def test_activation_memory_is_measured_on_few_samples_and_scaled(store):
    recipe = study("construction").row("act").build("smoke", 0)
    data, train = experiments.dataset(recipe, store), recipe.train
    recipes = [replace(recipe, train=replace(train, batch=batch)) for batch in (2, 1000)]
    one, two = (cost(recipe, data).saved_bytes for recipe in recipes)
    assert two == 500 * one


CONSTRUCTION = ["act", "hierarchy", "terminal", "deeper", "feedforward"]
OPERATORS = ["learned-start", "attention-trm", "attention-ri-ni"]


@pytest.mark.parametrize("row", [*CONSTRUCTION, *OPERATORS])
def test_activation_memory_is_its_formula(row, store):
    recipe = study("construction" if row in CONSTRUCTION else "shaping").row(row).build("smoke", 0)
    found = cost(recipe, experiments.dataset(recipe, store))
    assert found.saved_bytes == pytest.approx(found.activation_bytes, rel=0.04)


def test_memory_grows_with_unrolling_and_not_with_segments(store):
    kept = {}
    for row in ("segmented", "terminal"):
        recipe = study("construction").row(row).build("smoke", 0)
        data = experiments.dataset(recipe, store)
        kept[row] = cost(recipe, data).saved_bytes / recipe.train.batch
        one, trainer = [], Trainer(recipe, data)
        for _ in range(2):
            with torch.autograd.graph.saved_tensors_hooks(
                lambda value, one=one: one.append(1) or value, lambda value: value
            ):
                trainer.advance()
            one.append(0)
        first = one.index(0)
        assert len(one) == 2 * (first + 1), "the second step keeps as much as the first"
    assert kept["terminal"] / kept["segmented"] == pytest.approx(16, rel=0.03)


# ------------------------------------------------------------------------------------ files, resume


def test_the_table_is_tidy_and_traces_to_its_runs(results, store):
    keys = ["row", "seed", "evaluation", "depth", "breadth", "select"]
    assert not results.rows.duplicated(keys).any() and len(results.rows) == 2 * 2 * 7
    for run in {*results.rows.train_run, *results.rows.eval_run}:
        assert store.get(run), run
    line = results.rows[(results.rows.row == "late-12") & (results.rows.depth == 16)].iloc[0]
    assert (line.n, line.nfe, line.layers, line.train_unroll) == (32, 16, 96, 16)
    assert len(results.missing) == 2 * (len(results.study.rows) - len(CHOSEN))
    assert results.seeds("act") == [0, 1] and results.seeds("oracle") == []
    summary = results.summary().set_index("row")
    assert summary.loc["act", "seeds"] == 2 and summary.loc["oracle", "seeds"] == 0
    assert summary.loc["late-12", "paper"] == "57.5 (Table 7)"


def copied(written: Path, place: Path) -> Path:
    """A copy of the results, as on another machine."""
    return Path(shutil.copytree(written, place))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.npz")}


def test_cells_with_a_file_are_done_and_a_study_is_extended_by_copying(
    written, in_this_process, tmp_path, monkeypatch
):
    """Without a store that has their runs, and without being touched."""
    out = copied(written, tmp_path / "out")
    given = {"profile": "smoke", "store": Store(tmp_path / "store"), "out": out}
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(study_run, "ProcessPoolExecutor", lambda *_: pytest.fail("a cell was run"))
        meta = study_run.run("construction", rows=CHOSEN, **given, tell=lines.append)
    assert lines == ["construction (smoke): 4 of 4 cells are done"]
    assert len(meta["cells"]) == 4 and len(meta["missing"]) == 26
    meta = study_run.run("construction", rows=["weight-tied"], seeds=[0], **given, tell=str)
    assert len(meta["cells"]) == 5 and meta["cells"][0] == ["weight-tied", 0]
    assert content(written).items() <= content(out).items()
    new, old = (studies.load("construction", "smoke", place) for place in (out, written))
    assert new.id != old.id
    kept = new.rows[new.rows.row != "weight-tied"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, old.rows, check_exact=True)
    for key in old.bits:
        assert np.array_equal(new.unpack(key), old.unpack(key)), key


def test_an_evaluation_that_a_study_gets_later_is_missing_until_it_is_run(
    written, store, tmp_path, monkeypatch
):
    """Results can be read without it; the next run of a cell makes it and nothing else."""
    old = study("construction")
    more = Evaluation("symmetry", EvalConfig((2,), breadth=2, symmetry=True), (1, 2))
    rows = tuple(replace(row, evaluate=(*row.evaluate, more)) for row in old.rows)
    monkeypatch.setitem(STUDIES, "construction", replace(old, rows=rows))
    out, cell = copied(written, tmp_path / "out"), Cell("construction", "smoke", "act", 0)
    assert not finished(cell, out, store)
    before = studies.load("construction", "smoke", written).rows
    pd.testing.assert_frame_equal(studies.load("construction", "smoke", out).rows, before)
    # Worked by this process, since another one would not know the new evaluation.
    made = len(list(store.root.iterdir()))
    assert "act seed 0" in study_run.work(cell, store.root, out)
    assert len(list(store.root.iterdir())) == made + 1 and finished(cell, out, store)
    results = studies.load("construction", "smoke", out)
    assert results.seeds("act", "symmetry") == [0] and results.seeds("act") == [0, 1]
    ours, plain = Pick("act", 2, 2, evaluation="symmetry"), Pick("act", 2)
    assert results.compare(ours, plain).seeds.n == 1 and results.accuracy(plain).n == 2
    with pytest.raises(StudyError, match="no seed in common"):
        results.compare(ours, Pick("late-12", 2, 2, evaluation="symmetry"))


def test_files_that_this_version_would_make_otherwise_are_neither_used_nor_lost(
    written, tmp_path, monkeypatch
):
    out, old = copied(written, tmp_path / "out"), study("construction")
    given = {"profile": "smoke", "rows": ["late-12"], "store": Store(tmp_path / "store")}

    def refused(match: str) -> None:
        before = content(out)
        with pytest.raises(ConfigError, match=match):
            study_run.run("construction", **given, out=out, tell=str)
        assert content(out) == before

    with monkeypatch.context() as patch:
        rows = tuple(replace(row, overrides={**row.overrides, "train.lr": 0.5}) for row in old.rows)
        patch.setitem(STUDIES, "construction", replace(old, rows=rows))
        refused(r"late-12-0\.npz: .* would train late-12 seed 0 otherwise; .* --overwrite")
    with monkeypatch.context() as patch:
        once = (Evaluation("depth", EvalConfig((1, 2))),)
        rows = tuple(replace(row, evaluate=once) for row in old.rows)
        patch.setitem(STUDIES, "construction", replace(old, rows=rows))
        refused(r"late-12-0\.npz: evaluation depth .* --overwrite")
    (out / "construction/late-12-0.npz").write_text("row\n")
    refused(r"late-12-0\.npz: damaged.* --overwrite")


def test_outcomes_that_are_not_there_are_named(results):
    with pytest.raises(StudyError, match=r"depth 3 is not in \[1, 2, 4"):
        results.outcomes(Pick("act", 3), 0)
    with pytest.raises(StudyError, match=r"no outcomes of act/9/depth; .* act/0/depth, act/1"):
        results.outcomes(Pick("act"), 9)
    with pytest.raises(ConfigError, match="no row 'akt'; did you mean 'act'"):
        results.outcomes(Pick("akt"), 0)


def test_outcomes_of_every_selection_give_the_accuracies_of_the_table(
    make_recipe, problems, learned, tmp_path, monkeypatch
):
    """On a model that has learned, with starts and noise that make restarts differ."""
    from eqr import checkpoint
    from eqr.store import Run

    rules = ("average", "converged", "majority", "oracle")
    config = EvalConfig((1, 2, 4), breadth=4, noise=0.3)
    row = Row("tiny", "Tiny", "x", (Evaluation("depth", config, (1, 3), rules),), depth=4)
    monkeypatch.setitem(STUDIES, "tiny", Study("tiny", "Tiny", "–", "–", (row,)))
    monkeypatch.setattr(Cell, "recipe", lambda self: learned.recipe)
    store = Store(tmp_path)
    origin = {"commit": "c", "hardware": "h", "finished": "t", "seconds": 1.0}
    (learned.path.parent / "timing.json").write_text('{"seconds": 1.0}')
    names = {"timing.json": "", "model.safetensors": "", "log.jsonl": ""}
    run = Run("train-0", learned.path.parent, {"files": names, "provenance": origin})
    model = experiments.Trained(run, learned.recipe, problems, checkpoint.load_model(learned.path))
    cell = Cell("tiny", "smoke", "tiny", 0)
    found = [(row.evaluate[0], experiments.evaluate_or_load(model, config, store))]
    made = CellFile.of(cell, model, found, cost(learned.recipe, problems))
    made.write(cell.path(tmp_path / "out"))
    assert CellFile.read(cell.path(tmp_path / "out")).sha256 == made.sha256
    results = studies.load("tiny", "smoke", tmp_path / "out")
    assert len(results.rows) == 3 * 2 * 4 and 0 < results.rows.exact.max() < 1
    for line in results.rows.itertuples():
        pick = Pick("tiny", line.depth, line.breadth, line.select)
        assert results.outcomes(pick, 0).mean() == pytest.approx(line.exact, abs=1e-12), pick


def test_an_altered_or_absent_file_is_named(written, tmp_path):
    out = copied(written, tmp_path / "out")
    bad = out / "construction/act-0.npz"
    bad.write_bytes(bad.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(StudyError, match=r"act-0\.npz: damaged.*delete it and run its study"):
        studies.load("construction", "smoke", out)
    for path in (out / "construction").iterdir():
        path.unlink()
    with pytest.raises(StudyError, match="construction: no results there; run `eqr study run"):
        studies.load("construction", "smoke", out)
    with pytest.raises(ConfigError, match="profile 'lapdog' has no studies; did you mean"):
        studies.load("construction", "lapdog")


def test_a_killed_study_goes_on_and_ends_as_an_unbroken_one(written, in_this_process, tmp_path):
    """SIGKILL while a worker trains: no orphan works on, and the results are the same."""
    words = ["study", "run", "construction", "--profile", "smoke", "--rows", "act", "--seeds", "0"]
    words += ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "eqr", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store").glob("partial/train-*/log.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    run = study_run.run(
        "construction", "smoke", rows=["act"], seeds=[0], store=Store(tmp_path / "store"),
        out=tmp_path / "out", tell=str,
    )  # fmt: skip
    assert run["cells"] == [["act", 0]] and len(run["missing"]) == 29
    new, old = (studies.load("construction", "smoke", p) for p in (tmp_path / "out", written))
    assert np.array_equal(new.outcomes(Pick("act"), 0), old.outcomes(Pick("act"), 0))
    columns = [c for c in new.rows if not c.endswith("seconds")]
    same = old.rows.query("row == 'act' and seed == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(new.rows[columns], same[columns], check_exact=True)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    words = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(words, capture_output=True, text=True).stdout
    return state.strip()[:1] not in ("", "Z")


def test_workers_end_with_their_parent(tmp_path):
    """Killed without a chance to tell them, the parent leaves no process behind."""
    code = (
        "import multiprocessing, os, time\n"
        "from eqr.studies import run as study_run\n"
        "if __name__ == '__main__':\n"
        "    pool = study_run.ProcessPoolExecutor(\n"
        "        1, multiprocessing.get_context('spawn'), study_run.begin)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(time.sleep, 60)\n"
        "    time.sleep(60)\n"
    )
    file = tmp_path / "parent.py"
    file.write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(studies.__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, env=environment)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while alive(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.1)


def test_models_of_another_study_are_evaluated_as_it_ships_them(store, tmp_path, monkeypatch):
    row = replace(study("construction").row("act"), weights="construction")
    monkeypatch.setitem(STUDIES, "again", Study("again", "", "", "", (row,)))
    cell, first = (Cell(name, "smoke", "act", 0) for name in ("again", "construction"))
    remedy = "act-0.safetensors: absent; run `eqr study run construction --rows act --seeds 0 --w"
    with pytest.raises(StudyError, match=remedy):
        study_run.work(cell, store.root, tmp_path)
    study_run.work(first, store.root, tmp_path, weights=True)
    study_run.work(cell, store.root, tmp_path, weights=True)
    one, two = (CellFile.read(each.path(tmp_path)) for each in (first, cell))
    assert finished(cell, tmp_path, store) and one.about["train_run"] == two.about["train_run"]
    pd.testing.assert_frame_equal(one.curve, two.curve)
    assert set(one.table.eval_run).isdisjoint(two.table.eval_run), "float16 weights are others"
    assert not cell.path(tmp_path).with_suffix(".safetensors").exists()


# ----------------------------------------------------------------------------------- comparisons


def test_a_comparison_is_paired_over_seeds_and_over_problems(results, monkeypatch):
    rng = np.random.default_rng(0)
    fake = {(r, s): (rng.random(32) < 0.6) * 1.0 for r in ("act", "late-12") for s in (0, 1)}
    monkeypatch.setattr(studies.Results, "outcomes", lambda self, pick, seed: fake[pick.row, seed])
    found = results.compare(Pick("act"), Pick("late-12"))
    gaps = [fake["act", s].mean() - fake["late-12", s].mean() for s in (0, 1)]
    assert found.seeds == mean_interval(gaps) and found.seeds.n == 2
    means = [np.mean([fake[r, s] for s in (0, 1)], axis=0) for r in ("act", "late-12")]
    assert found.problems == paired_difference(*means)
    with pytest.raises(StudyError, match="no seed in common"):
        results.compare(Pick("act"), Pick("oracle"))


# ------------------------------------------------------------------------------------ command line


def test_the_command_lists_refuses_and_reports(eqr, written, store, in_this_process, tmp_path):
    done = eqr("study", "list", "--profile", "smoke", "--out", written)
    assert done.code == 0 and "  act                      2/2 seeds" in done.out
    assert "shaping: " in done.out and "variance: " in done.out
    listed = json.loads(eqr("study", "list", "shaping", "--profile", "smoke", "--json").out)
    first = listed[0]["rows"][0]
    assert first["row"] == "trm" and first["seeds"] == 2 and first["done"] == []
    for words, said in (
        ("study run construktion", "did you mean 'construction'"),
        ("study run construction --rows act,orakle", "no row 'orakle'; did you mean 'oracle'"),
        ("study run construction --seeds 0-x", "--seeds '0-x' must be whole numbers from 0"),
        ("study run construction --profile lapdog", "did you mean 'laptop'"),
    ):
        eqr(*words.split()).refused(said)
    words = f"study run construction --profile smoke --rows act --store {store.root}".split()
    csv = tmp_path / "all.csv"
    done = eqr(*words, "--out", tmp_path / "out", "--table", csv, "--json")
    values = json.loads(done.out)
    assert done.code == 0 and values["cells"] == [["act", 0], ["act", 1]]
    assert len(list(Path(values["folder"]).glob("act-*.npz"))) == 2
    assert len(pd.read_csv(csv)) == 2 * 7 and "oracle 0 1" in done.err, "what is missing is said"


def test_a_training_that_diverges_is_told_and_does_not_stop_the_others(
    store, in_this_process, tmp_path, monkeypatch
):
    real = study_run.experiments.train_run

    def diverge(recipe, *words, **rest):
        if recipe.train.halting == "oracle":
            raise study_run.TrainingError("the loss is nan")
        return real(recipe, *words, **rest)

    monkeypatch.setattr(study_run.experiments, "train_run", diverge)
    lines: list[str] = []
    meta = study_run.run(
        "construction", "smoke", rows=["oracle", "head"], seeds=[0], store=store,
        out=tmp_path, tell=lines.append,
    )  # fmt: skip
    assert meta["failed"] == {"oracle seed 0": "the loss is nan"}
    assert ["head", 0] in meta["cells"] and ["oracle", 0] in meta["missing"]
    assert any("FAILED" in line for line in lines)
