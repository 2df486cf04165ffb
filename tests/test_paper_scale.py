"""The paper's scale end to end on a processor, in few steps: slices, evaluation, shipped files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from eqr import checkpoint, runs as results
from eqr.studies import results as studies
from eqr.studies.results import Pick
from eqr.studies.rows import STUDIES, study

#: What makes a recipe of the paper profile small enough for a test; the rest is its own.
TINY = {
    "data.source": "generate",
    "data.train": 8,
    "data.test": 8,
    "model.hidden": 32,
    "model.width_multiple": 32,
    "train.steps": 6,
    "train.batch": 4,
    "train.warmup": 2,
    "train.dtype": "float32",
    "train.eval_every": 3,
    "train.eval_problems": 4,
    "train.eval_depth": 2,
    "train.checkpoint_every": 2,
}
#: A maze of 30×30 cells takes seconds a step here; its operator does not depend on the size.
SMALL_MAZE = {"task.height": 6, "task.width": 6, "task.path_min": 4, "task.path_max": 20}


@pytest.fixture
def small(monkeypatch):
    """The study of the paper's scale with rows and evaluations cut down."""
    old, rows = study("paper-scale"), []
    for row in old.rows:
        tiny = TINY | (SMALL_MAZE if row.name.startswith("maze") else {})
        tiny["data.seed"] = 1 if row.name.endswith("hard") else 0
        kinds = tuple(
            replace(
                kind,
                config=replace(
                    kind.config,
                    depths=(1, 16),
                    breadth=min(kind.config.breadth, 2),
                    problems=4,
                ),
                breadths=tuple(b for b in kind.breadths if b <= 2),
            )
            for kind in row.evaluate
        )
        if row.name == "sudoku9":
            tiny["data.source"] = "data/cache/not-there"
        overrides = {**row.overrides, **tiny}
        rows.append(replace(row, overrides=overrides, evaluate=kinds))
    monkeypatch.setitem(STUDIES, "paper-scale", replace(old, rows=tuple(rows)))


@pytest.mark.slow
def test_rows_are_made_in_slices_and_shipped_with_weights(
    small, eqr, in_this_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    out = tmp_path / "results"
    rows = "sudoku9-fast-hard,sudoku9-fast-feedforward-hard,maze30-fast-trm"
    command = ["study", "run", "paper-scale", "--profile", "paper", "--rows", rows]
    command += ["--out", str(out)]
    first = eqr(*command, "--stop-after", 0, "--json")
    assert first.code == 0 and json.loads(first.out)["cells"] == [], first.err
    assert first.err.count("stopped; run the same command again to go on") == 3
    last = eqr(*command, "--weights", "--json")
    assert last.code == 0, last.err
    assert len(json.loads(last.out)["cells"]) == 3
    outcomes = studies.load("paper-scale", "paper", out)
    assert outcomes.problems("grid") == 4 and set(outcomes.curves.step) == {3, 6}
    assert outcomes.accuracy(Pick("sudoku9-fast-hard", 16, 2, "converged", "grid")).n == 1
    assert outcomes.seeds("maze30-fast-trm", "grid") == [], "its restarts are all the same"
    # What is shipped solves puzzles on a machine that has no store.
    path = out / "paper-scale/maze30-fast-trm-0.safetensors"
    assert last.err.count(".safetensors") == 3
    loaded = checkpoint.load_model(path)
    assert loaded.task.height == 6 and loaded.meta["from"] != loaded.sha256
    # Another machine, with nothing in its store, adds a row to the files.
    monkeypatch.setenv("EQR_STORE", str(tmp_path / "elsewhere"))
    command[6] = "maze30-fast-feedforward"
    again = eqr(*command, "--store", tmp_path / "elsewhere", "--json")
    assert again.code == 0 and len(json.loads(again.out)["cells"]) == 4, again.err
    assert results.shipped(out)[str(path)] == []
    path.write_bytes(b"x")
    assert "damaged" in results.shipped(out)[str(path)][0]
    # A row whose data are not at hand fails by itself; what the files hold stays.
    command[6] = "maze30-fast-feedforward,sudoku9"
    done = eqr(*command, "--json")
    assert done.code == 1 and len(json.loads(done.out)["cells"]) == 4
    assert "no data set here" in json.loads(done.out)["failed"]["sudoku9 seed 0"]


def test_a_study_runs_in_its_own_profiles_only(eqr):
    done = eqr("study", "run", "paper-scale", "--profile", "laptop")
    assert done.code == 1 and "'paper-scale' is not run in profile 'laptop'" in done.err
    done = eqr("study", "run", "shaping", "--profile", "paper")
    assert done.code == 1 and "not run in profile 'paper'" in done.err
    listed = json.loads(eqr("study", "list", "--profile", "paper", "--json").out)
    assert [one["study"] for one in listed] == ["paper-scale", "night", "sources"]
