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
from eqr.settings import ConfigError
from eqr.stats import mean_interval, paired_difference
from eqr.store import Store
from eqr.studies import files as study_files, results as studies, run as study_run
from eqr.studies.cells import Cell, Done, stored_cost
from eqr.studies.results import Pick, StudyError
from eqr.studies.rows import PROFILES, STUDIES, Evaluation, Row, Study, studies_of, study
from eqr.train import Trainer

ROWS = [
    (p, name, row.name) for name, one in STUDIES.items() for row in one.rows for p in one.profiles
]
CHOSEN = ["act", "late-12"]
KINDS = ("csv", "curves.csv", "npz")


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
    assert study("construction").row("act").build("laptop", 0) == study("shaping").row("trm").build(
        "laptop", 0
    )


def test_activation_memory_is_measured_on_few_samples_and_scaled(store):
    recipe = study("construction").row("act").build("smoke", 0)
    data = experiments.dataset(recipe, store)
    one, two = (
        cost(replace(recipe, train=replace(recipe.train, batch=batch)), data).saved_bytes
        for batch in (2, 1000)
    )
    assert two == 500 * one


@pytest.mark.parametrize("row", ["act", "hierarchy", "terminal", "deeper", "feedforward"])
def test_activation_memory_is_its_formula(row, store):
    recipe = study("construction").row(row).build("smoke", 0)
    found = cost(recipe, experiments.dataset(recipe, store))
    assert found.saved_bytes == pytest.approx(found.activation_bytes, rel=0.04)


@pytest.mark.parametrize("row", ["learned-start", "attention-trm", "attention-ri-ni"])
def test_activation_memory_of_other_operators_is_its_formula(row, store):
    recipe = study("shaping").row(row).build("smoke", 0)
    found = cost(recipe, experiments.dataset(recipe, store))
    assert found.saved_bytes == pytest.approx(found.activation_bytes, rel=0.06)


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


def test_running_again_makes_nothing_and_writes_the_same(written, store, monkeypatch):
    def refuse(*_):
        pytest.fail("nothing is to be trained")

    monkeypatch.setattr(study_run, "ProcessPoolExecutor", refuse)
    before = {k: (written / f"construction.{k}").read_bytes() for k in KINDS}
    study_run.run("construction", "smoke", rows=["act"], store=store, out=written, tell=str)
    for kind, content in before.items():
        assert (written / f"construction.{kind}").read_bytes() == content, kind


def test_an_evaluation_added_later_leaves_finished_cells_where_they_are(
    written, store, tmp_path, monkeypatch
):
    """They stay in the files without it, and the next run makes it and nothing else."""
    old = study("construction")
    more = Evaluation("symmetry", EvalConfig((2,), breadth=2, symmetry=True), (1, 2), added=True)
    rows = tuple(replace(row, evaluate=(*row.evaluate, more)) for row in old.rows)
    monkeypatch.setitem(STUDIES, "construction", replace(old, rows=rows))
    out = tmp_path / "out"
    shutil.copytree(written, out)
    given = {"profile": "smoke", "store": store, "out": out, "tell": str}
    meta = study_run.run("construction", rows=[], **given)
    assert (
        meta["cells"] == meta["partial"] == [["late-12", 0], ["late-12", 1], ["act", 0], ["act", 1]]
    )
    before = pd.read_csv(written / "construction.csv")
    pd.testing.assert_frame_equal(pd.read_csv(out / "construction.csv"), before)
    # Worked by this process, since another one would not know the new evaluation.
    made = len(list(store.root.iterdir()))
    assert "act seed 0" in study_run.work(Cell("construction", "smoke", "act", 0), store.root)
    assert len(list(store.root.iterdir())) == made + 1
    meta = study_run.run("construction", rows=[], **given)
    assert (
        meta["partial"] == [["late-12", 0], ["late-12", 1], ["act", 1]] and len(meta["cells"]) == 4
    )
    results = studies.load("construction", "smoke", out)
    assert results.seeds("act", "symmetry") == [0] and results.seeds("act") == [0, 1]
    ours, plain = Pick("act", 2, 2, evaluation="symmetry"), Pick("act", 2)
    assert results.compare(ours, plain).seeds.n == 1 and results.accuracy(plain).n == 2
    with pytest.raises(StudyError, match="no seed in common"):
        results.compare(ours, Pick("late-12", 2, 2, evaluation="symmetry"))


def test_cells_that_the_store_has_not_got_are_carried_over(written, tmp_path, monkeypatch):
    """Bit for bit, and without being run again; the files can so be extended anywhere."""
    out = tmp_path / "out"
    shutil.copytree(written, out)
    given = {"profile": "smoke", "store": Store(tmp_path / "store"), "out": out}
    files = {k: (out / f"construction.{k}").read_bytes() for k in KINDS}
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(study_run, "ProcessPoolExecutor", lambda *_: pytest.fail("a cell was run"))
        meta = study_run.run("construction", rows=CHOSEN, **given, tell=lines.append)
    assert lines == ["construction (smoke): 4 of 4 cells are done"]
    assert len(meta["cells"]) == 4
    for kind, content in files.items():
        assert (out / f"construction.{kind}").read_bytes() == content, kind
    meta = study_run.run("construction", rows=["weight-tied"], seeds=[0], **given, tell=str)
    assert len(meta["cells"]) == 5 and meta["cells"][0] == ["weight-tied", 0]
    new, old = (studies.load("construction", "smoke", p) for p in (out, written))
    kept = new.rows[new.rows.row != "weight-tied"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, old.rows, check_exact=True)
    for key in old.bits:
        assert np.array_equal(new.unpack(key), old.unpack(key)), key
    assert set(new.meta["runs"]["hardware"]) >= set(old.meta["runs"]["hardware"])
    meta = study_run.run("construction", rows=[], **given, overwrite=True, tell=str)
    assert meta["cells"] == [["weight-tied", 0]] and len(meta["missing"]) == 29


def test_a_store_with_fewer_evaluations_takes_none_from_the_files(
    written, store, tmp_path, monkeypatch
):
    old = study("construction")
    extra = [
        Evaluation(name, EvalConfig((2,), breadth=2, seed=seed), (1, 2), added=True)
        for seed, name in enumerate(("one", "two"))
    ]
    rows = tuple(replace(row, evaluate=(*row.evaluate, *extra)) for row in old.rows)
    monkeypatch.setitem(STUDIES, "construction", replace(old, rows=rows))
    full, cell = Store(tmp_path / "store"), Cell("construction", "smoke", "act", 0)
    shutil.copytree(store.root, full.root)
    model = experiments.of_run(full.get(cell.train_id(full)), cell.recipe(), full)
    experiments.evaluated(model, extra[0].config, full)
    given = {"profile": "smoke", "rows": [], "out": tmp_path / "out", "tell": str}
    study_run.run("construction", store=full, **given)
    for runs in (store, full):  # the store without "one", then with it again
        study_run.run("construction", store=runs, **given)
        found = studies.load("construction", "smoke", tmp_path / "out")
        assert found.seeds("act", "one") == [0], runs.root
    assert found.meta["partial"].count(["act", 0]) == 1, '"two" has not been run'


def test_files_that_this_version_would_make_otherwise_are_neither_kept_nor_lost(
    written, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(written, out)
    given = {"profile": "smoke", "rows": [], "store": Store(tmp_path / "store"), "out": out}

    def refused(match: str) -> None:
        files = sorted(p.read_bytes() for p in out.iterdir())
        with pytest.raises(ConfigError, match=match):
            study_run.run("construction", **given)
        assert sorted(p.read_bytes() for p in out.iterdir()) == files

    old = study("construction")
    with monkeypatch.context() as patch:
        rows = tuple(replace(row, overrides={**row.overrides, "train.lr": 0.5}) for row in old.rows)
        patch.setitem(STUDIES, "construction", replace(old, rows=rows))
        refused(r"construction\.json: cells holds late-12 seed 0, .* --overwrite")
    with monkeypatch.context() as patch:
        other = Evaluation("depth", EvalConfig((1, 2)))
        rows = tuple(replace(row, evaluate=(other,)) for row in old.rows)
        patch.setitem(STUDIES, "construction", replace(old, rows=rows))
        refused(r"construction\.json: evaluations\.depth .* --overwrite")
    (out / "construction.csv").write_text("row\n")
    refused(r"construction\.csv: altered.* --overwrite")
    meta = study_run.run("construction", **given, overwrite=True, tell=str)
    assert meta["cells"] == [] and len(meta["missing"]) == 30
    assert len(studies.load("construction", "smoke", out).rows) == 0


def test_outcomes_are_those_of_the_records_and_agree_with_the_table(results, store):
    for seed in (0, 1):
        for depth in (1, 16):
            outcome = results.outcomes(Pick("act", depth), seed)
            line = results.rows.query(f"row == 'act' and seed == {seed} and depth == {depth}")
            assert outcome.mean() == line.exact.item() and len(outcome) == line.n.item()
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
    found = ((row.evaluate[0], experiments.evaluated(model, config, store)),)
    price = stored_cost(learned.recipe, store)
    done = Done(cell, model, found, price)
    monkeypatch.setattr(study_files, "finished", lambda *_: done)
    study_files.write(study("tiny"), "smoke", [cell], store, tmp_path / "out", {})
    results = studies.load("tiny", "smoke", tmp_path / "out")
    assert len(results.rows) == 3 * 2 * 4 and 0 < results.rows.exact.max() < 1
    for line in results.rows.itertuples():
        pick = Pick("tiny", line.depth, line.breadth, line.select)
        assert results.outcomes(pick, 0).mean() == pytest.approx(line.exact, abs=1e-12), pick


@pytest.mark.parametrize("kind", ["csv", "curves.csv", "npz", "json"])
def test_an_altered_or_absent_file_is_named(written, tmp_path, kind):
    for path in written.iterdir():
        shutil.copy(path, tmp_path / path.name)
    bad = tmp_path / f"construction.{kind}"
    bad.write_bytes(bad.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(StudyError, match=rf"construction\.{kind}: (altered|damaged).*eqr run"):
        studies.load("construction", "smoke", tmp_path)
    bad.unlink()
    with pytest.raises(StudyError, match=rf"construction\.{kind}: absent.*eqr run constr"):
        studies.load("construction", "smoke", tmp_path)
    with pytest.raises(ConfigError, match="profile 'lapdog' has no studies; did you mean"):
        studies.load("construction", "lapdog")


def test_cells_can_be_run_without_touching_the_files(written, store, tmp_path):
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    meta = study_run.run(
        "construction", "smoke", rows=["act"], store=store, out=written, files=False, tell=str
    )
    assert meta == {"cells": [["act", 0], ["act", 1]], "missing": [], "failed": {}}
    assert {path.name: path.read_bytes() for path in written.iterdir()} == before
    study_run.run(
        "construction", "smoke", rows=[], store=store, out=tmp_path / "new", files=False, tell=str
    )
    assert not (tmp_path / "new").exists()


def test_a_killed_study_goes_on_and_ends_as_an_unbroken_one(written, store, tmp_path):
    """SIGKILL while a worker trains: no orphan works on, and the results are the same."""
    words = ["run", "construction", "--profile", "smoke", "--rows", "act", "--seeds", "0"]
    words += ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "eqr", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
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
    assert new.rows[columns].equals(same[columns])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        os.kill(pid, 0)
        state = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
        )
    except ProcessLookupError:
        return False
    return state.stdout.strip()[:1] not in ("", "Z")


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
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not alive(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


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


def test_the_command_lists_refuses_and_reports(eqr, written, store, tmp_path):
    done = eqr("run", "--list", "--profile", "smoke", "--store", store.root)
    assert done.code == 0 and "  act                      2/2 seeds" in done.out
    assert "shaping: " in done.out and "depth-breadth: " in done.out
    listed = json.loads(eqr("run", "shaping", "--list", "--profile", "smoke", "--json").out)
    first = listed[0]["rows"][0]
    assert first["row"] == "trm" and first["seeds"] == 2 and first["done"] == []
    for words, said in (
        ("run construktion", "did you mean 'construction'"),
        ("run construction --rows act,orakle", "no row 'orakle'; did you mean 'oracle'"),
        ("run construction --seeds 0-x", "--seeds '0-x' must be whole numbers from 0"),
        ("run construction --seeds=-1", "must be whole numbers"),
        ("run construction --profile lapdog", "'lapdog' has no studies; did you mean 'laptop'"),
        ("run", "which study? One of construction"),
    ):
        done = eqr(*words.split())
        assert done.code == 1 and said in done.err and done.out == "", words
    words = ["run", "construction", "--profile", "smoke", "--rows", "act", "--store", store.root]
    done = eqr(*words, "--out", tmp_path / "out", "--json")
    values = json.loads(done.out)
    assert done.code == 0 and Path(values["table"]).is_file() and len(values["cells"]) == 4
    assert "oracle 0 1" in done.err, "what is missing is said"


def test_a_training_that_diverges_is_told_and_does_not_stop_the_others(
    store, in_this_process, tmp_path, monkeypatch
):
    real = study_run.experiments.train_run

    def diverge(recipe, *words, **rest):
        if recipe.train.halting == "oracle":
            raise study_run.TrainingError("the loss is nan")
        return real(recipe, *words, **rest)

    monkeypatch.setattr(study_run, "ProcessPoolExecutor", in_this_process)
    monkeypatch.setattr(study_run.experiments, "train_run", diverge)
    lines: list[str] = []
    meta = study_run.run(
        "construction", "smoke", rows=["oracle", "head"], seeds=[0], store=store,
        out=tmp_path, tell=lines.append,
    )  # fmt: skip
    assert meta["failed"] == {"oracle seed 0": "the loss is nan"}
    assert ["head", 0] in meta["cells"] and ["oracle", 0] in meta["missing"]
    assert any("FAILED" in line for line in lines)
