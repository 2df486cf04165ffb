"""Mini-ARC: boards, symmetries, splits, files, and the commands on it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eqr import data, locate
from eqr.analysis.figures import plt
from eqr.imports import datasets as data_import
from eqr.recipes import load_recipe
from eqr.select import Outcomes, selected
from eqr.settings import ProblemError
from eqr.task import task_from_dict, task_to_dict
from eqr.tasks import miniarc_source
from eqr.tasks.miniarc import MiniArc
from eqr.tasks.miniarc_source import COMPOSED, SHIPPED, TURNS, pair_key

TASKS = {
    "context": MiniArc(),
    "tasks": MiniArc(split="tasks", demonstrations=2),
    "embedding": MiniArc(mode="embedding"),
    "turned": MiniArc(mode="embedding", recolour=False),
}
EACH = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
GRID = [[0, 1, 2, 3, 4]] * 5
ONES = "1" * 25


def own(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(task: MiniArc, *arrays: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """The arrays (n, S) under one symmetry a row."""
    symmetry = task.symmetries(len(arrays[0]), own(seed))
    return [symmetry.apply(torch.from_numpy(array)).numpy() for array in arrays]


def pairs_of(task: MiniArc, tokens: np.ndarray, label: np.ndarray) -> np.ndarray:
    """All pairs on a board with its label, the problem last, (k, 2, 25) colours."""
    told = tokens[: task.grid].reshape(-1, 2, 25) if task.in_context else np.zeros((0, 2, 25))
    told = [pair for pair in told if pair.any()]
    return np.array([*told, [tokens[task.grid :], label[task.grid :]]]).astype(np.uint8) - 2


# --------------------------------------------------------------------------------------- symmetries


def test_the_eight_turns_are_a_group_and_composed_is_its_table():
    assert len({turn.tobytes() for turn in TURNS}) == 8
    grid = np.random.default_rng(0).permutation(25)
    for g in range(8):
        assert sorted(COMPOSED[g]) == list(range(8))
        for h in range(8):
            assert (grid[TURNS[h]][TURNS[g]] == grid[TURNS[COMPOSED[g, h]]]).all()


@EACH
def test_every_grid_of_a_board_is_turned_and_recoloured_alike(task):
    drawn = task.generate(40, 1)
    symmetry = task.symmetries(40, own())
    turns = symmetry.place[:, task.grid :].numpy() - task.grid
    x, y = moved(task, drawn.inputs, drawn.labels)
    assert len({turn.tobytes() for turn in turns}) > 4
    for row, turn in enumerate(turns):
        names = symmetry.names[row, 2:12].numpy() - 2  # of the ten colours
        before = pairs_of(task, drawn.inputs[row], drawn.labels[row])
        images = [names[pair[:, turn]].tolist() for pair in before]
        after = [pair.tolist() for pair in pairs_of(task, x[row], y[row])]
        assert (turn == TURNS).all(1).any() and names[0] == 0
        assert sorted(images) == sorted(after) and images[-1] == after[-1]


@EACH
def test_symmetries_do_not_change_the_key(task):
    drawn = task.generate(48, 2)
    x, y = moved(task, drawn.inputs, drawn.labels)
    assert (x != drawn.inputs).any()
    assert task.symmetry_key(x, y) == task.symmetry_key(drawn.inputs, drawn.labels)


def test_an_embedded_board_tells_what_was_done_to_it():
    task = TASKS["embedding"]
    read = task.read(SHIPPED)["train"]
    once = moved(task, read.inputs, read.labels)
    twice = moved(task, *once, seed=1)
    plain = task._raw(read.inputs, read.labels)
    assert task._raw(*once) == task._raw(*twice) == plain, "turned back by its own prefix"
    assert len(set(once[0][:, 1])) == 8 and (once[0][:, 0] == read.inputs[:, 0]).all()


def test_without_recolour_the_colours_stay():
    task = TASKS["turned"]
    drawn = task.generate(30, 3)
    (x,) = moved(task, drawn.inputs)
    grid = slice(task.grid, None)
    assert (np.sort(x[:, grid], 1) == np.sort(drawn.inputs[:, grid], 1)).all()


# ------------------------------------------------------------------------------------------- splits


def test_new_tasks_share_no_pair_with_training_not_even_as_a_demonstration():
    task = TASKS["tasks"]
    read = task.read(SHIPPED)
    seen = {}
    for split, problems in read.items():
        boards = zip(problems.inputs, problems.labels, strict=True)
        seen[split] = {pair_key(p) for board in boards for p in pairs_of(task, *board)}
    assert not seen["train"] & seen["test"]
    keys = {split: set(task.symmetry_key(p.inputs, p.labels)) for split, p in read.items()}
    assert not keys["train"] & keys["test"] and len(keys["test"]) > 30


@pytest.mark.parametrize("name", ["context", "embedding"])
def test_no_answer_to_a_test_query_is_on_a_board(name):
    """Training knows neither the test pair of a task nor, of course, does the board that asks."""
    task = TASKS[name]
    read = task.read(SHIPPED)
    rules = miniarc_source.shipped()
    wanted = [rule.test[0] for rule in rules]
    boards = zip(read["test"].inputs, read["test"].labels, strict=True)
    asked = [pairs_of(task, *b)[-1] for b in boards]
    assert (np.array(asked) == np.array(wanted)).all()
    trained = {rule.train[i].tobytes() for rule in rules for i in range(len(rule.train))}
    boards = zip(read["train"].inputs, read["train"].labels, strict=True)
    assert {p.tobytes() for board in boards for p in pairs_of(task, *board)} <= trained
    if name == "context":
        boards = zip(read["test"].inputs, read["test"].inputs, strict=True)
        told = [pairs_of(task, *board)[:-1] for board in boards]
        assert not any((p == w).all() for w, found in zip(wanted, told, strict=True) for p in found)


def test_what_is_held_out_hangs_on_the_names_alone():
    assert [name for name in "abcdef" if miniarc_source.held_out(name, 30)] == ["a", "c"]
    share = np.mean([miniarc_source.held_out(str(i), 30) for i in range(2000)])
    assert abs(share - 0.3) < 0.04


def test_generated_problems_depend_on_seed_and_place_only_and_are_dealt_by_task():
    task = TASKS["tasks"]
    drawn, later = task.generate(12, 5), task.generate(5, 5, start=7)
    assert (drawn.inputs[7:] == later.inputs).all() and (drawn.labels[7:] == later.labels).all()
    assert len(task.generate(0, 5)) == 0
    recipe = load_recipe("miniarc-tasks", "smoke", overrides={"data.source": "generate"})
    built = data.build(recipe.task, replace(recipe.data, train=60, test=30))
    keys = [set(task.symmetry_key(p.inputs, p.labels)) for p in (built.train, built.test)]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("name", ["miniarc", "miniarc-context", "miniarc-tasks"])
def test_shipped_sets_are_what_import_makes(name):
    recipe = load_recipe(name, "laptop")
    kept = data.load(locate(recipe.data.source))
    made = data_import.read(SHIPPED, recipe.task, train=None)
    assert kept.digest == made.digest and kept.task == recipe.task
    assert (len(kept.train), len(kept.test)) == (recipe.data.train, recipe.data.test)
    (images,) = kept.task.remarks(kept.splits).values()
    assert images == {"miniarc": 21, "miniarc-context": 18, "miniarc-tasks": 0}[name]


# --------------------------------------------------------------------------------------------- text


@EACH
def test_lines_are_read_back_and_labels_can_be_written(task):
    drawn = task.generate(10, 4)
    for tokens in (*drawn.inputs, *drawn.labels):
        assert (task.parse(task.format(tokens)) == tokens).all()
    assert len(task.render(drawn.inputs[0]).splitlines()) >= 7
    assert task_from_dict(task_to_dict(task)) == task


def test_a_task_can_be_named_and_fewer_demonstrations_given():
    task = TASKS["embedding"]
    name = miniarc_source.shipped()[17].name
    grid = "0" * 24 + "7"
    for word in (name, name[:-3], "17"):
        assert task.format(task.parse(f"{word} {grid}")) == f"17 0 0123456789 {grid}"
    context = TASKS["context"]
    assert context.format(context.parse(f"{grid}>{grid} {grid}")) == f"{grid}>{grid} - - {grid}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("context", "", "nothing there"),
        ("context", ONES, "0 demonstrations; this model takes 1 to 3"),
        ("context", f"{ONES} {ONES}", "demonstration 1 must be input>output"),
        ("context", f"{ONES}>{ONES[1:]} {ONES}", "demonstration 1 has 24 characters"),
        ("context", f"- {ONES}", "give at least one"),
        ("context", f"{ONES}>{ONES} {ONES[1:]}x", "the grid: character 25 is 'x'"),
        ("embedding", ONES, "give the task's name or number"),
        ("embedding", f"149 {ONES}", "task '149' is not known; numbers go from 0 to 148"),
        ("embedding", f"diagonal_flop_l6ad1nnu454mki54lq {ONES}", "did you mean 'diagonal_flip"),
        ("embedding", f"Simple {ONES}", "so begin Simple_"),
        ("embedding", f"nothing {ONES}", "names are in tasks.json"),
        ("embedding", f"3 8 0123456789 {ONES}", "orientation '8'"),
        ("embedding", f"3 0 0123456788 {ONES}", "palette '0123456788'"),
    ],
)
def test_a_line_that_is_wrong_says_where(name, text, message):
    with pytest.raises(ProblemError, match=message):
        TASKS[name].parse(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "in-context"}, "did you mean 'in_context'"),
        ({"split": "task"}, "did you mean 'tasks'"),
        ({"mode": "embedding", "split": "tasks"}, "has no vector"),
        ({"demonstrations": 0}, "demonstrations = 0 must be"),
        ({"tasks": 300}, "tasks = 300 must be .* 236"),
        ({"recolour": 1}, "recolour = 1 must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ProblemError, match=message):
        MiniArc(**fields)


# -------------------------------------------------------------------------------------------- files


PAIR = {"input": GRID, "output": GRID}


def one(output: list, **changes: object) -> str:
    """The file of a task that is well formed but for the output of its test and the changes."""
    test = {"input": GRID, "output": output}
    return json.dumps({"a": {"train": [PAIR, PAIR], "test": [test]} | changes})


BAD = {
    "not json": ("{", "not valid JSON"),
    "no object": ("[]", "must be an object of tasks"),
    "one task": (json.dumps(json.loads(one(GRID))["a"]), "is one task"),
    "no object inside": (json.dumps({"a": 3}), "task 'a' = 3 must be a section"),
    "one pair": (one(GRID, train=[PAIR]), r"task 'a'\.train = .* at least 2 items"),
    "misspelt": (one(GRID, tset=[]), "tset is not a known setting; did you"),
    "no output": (one(GRID, test=[{"input": GRID}]), r"test\.0\.output is missing; add it"),
    "cells": (one([[0] * 6] * 5), r"test\.0\.output\.0 = .* at most 5 items"),
    "colour": (one([[0, 1, 2, 3, 10]] * 5), r"output\.0\.4 = 10 must be less than 10"),
    "no number": (one([[True] * 5] * 5), r"output\.0\.0 = True must be a valid integer"),
    "twice": ('{"a": 1, "a": 2}', "'a' stands there twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_tasks_give_one_line_and_leave_nothing(name, eqr, tmp_path):
    text, message = BAD[name]
    (tmp_path / "bad.json").write_text(text)
    done = eqr("data", "import", tmp_path / "bad.json", tmp_path / "out", "--kind", "miniarc")
    done.refused("bad.json")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ProblemError, match=message):
        TASKS["context"].read(tmp_path / "bad.json")


def test_a_folder_of_files_is_read_as_the_file_of_all(tmp_path):
    """ARC's own have a folder for training and one for evaluation."""
    for part in ("training", "evaluation", ".cache"):
        (tmp_path / part).mkdir()
    (tmp_path / ".cache" / "x.json").write_text("no task")
    for k, (name, task) in enumerate(json.loads(SHIPPED.read_text()).items()):
        part = ("training", "evaluation")[k % 2]
        (tmp_path / part / f"{name}.json").write_text(json.dumps(task))
    one, all_ = (TASKS["embedding"].read(path)["train"] for path in (tmp_path, SHIPPED))
    assert (one.inputs == all_.inputs).all() and (one.labels == all_.labels).all()
    with pytest.raises(ProblemError, match="-s tasks=149"):
        MiniArc(mode="embedding", tasks=20).read(SHIPPED)
    shutil.copy(tmp_path / part / f"{name}.json", tmp_path)
    with pytest.raises(ProblemError, match=rf"{name}\.json.*rename one"):
        TASKS["embedding"].read(tmp_path)
    assert TASKS["context"].read(Path(tmp_path / "elsewhere")) is None


def test_shipped_tasks_are_all_there_with_their_licence():
    rules = miniarc_source.shipped()
    assert len(rules) == 149 and sum(len(rule.pairs) for rule in rules) == 677
    assert "Apache License" in (SHIPPED.parent / "LICENSE").read_text()


# ------------------------------------------------------------------------------ evaluation, drawing


@EACH
def test_drawing_shows_every_cell_and_crosses_out_wrong_ones(task):
    drawn = task.generate(2, 6)
    wrong = drawn.labels[0].copy()
    wrong[-1] = 2 if wrong[-1] != 2 else 3
    fig, ax = plt.subplots()
    task.draw(ax, drawn.inputs[0], wrong, drawn.labels[0], np.full(task.seq_len, 0.5))
    pairs = len(pairs_of(task, drawn.inputs[0], drawn.labels[0]))
    texts = [text.get_text() for text in ax.texts]
    assert sum(text.isdigit() for text in texts) == 50 * pairs
    assert sum(line.get_marker() == "x" for line in ax.lines) == 2  # one cross and its edge
    plt.close(fig)


def test_a_vote_has_two_tries():
    answer = np.array([[1, 1, 2, 2, 3], [5, 5, 5, 5, 5]])
    exact = np.array([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    zeros = np.zeros((2, 5))
    outcomes = Outcomes(np.tile([0.1, 0.2, 0.3, 0.4, 0.5], (2, 1)), zeros, answer, zeros, zeros,
                        zeros, exact, exact.astype(float))  # fmt: skip
    assert selected(outcomes, "majority")[0].tolist() == [False, False]
    assert selected(outcomes, "majority2")[0].tolist() == [True, False]
    assert selected(outcomes, "majority2")[2].tolist() == [0.3, 0.1]


# ----------------------------------------------------------------------------------------- commands


def test_the_commands_take_it_like_any_task(eqr, tmp_path):
    out, store = tmp_path / "set", tmp_path / "store"
    built = eqr("data", "import", SHIPPED, out, "--kind", "miniarc", "-s", "mode=embedding",
                "--train", 80)  # fmt: skip
    assert built.code == 0 and eqr("data", "verify", out).code == 0
    assert eqr("data", "build", tmp_path / "b", "--kind", "miniarc", "--train", 70).code == 0
    trained = eqr("train", "miniarc", "--profile", "smoke", "--store", store,
                  "--set", "train.steps=3", "--set", "train.warmup=1")  # fmt: skip
    assert trained.code == 0, trained.err
    (model,) = store.rglob("model.safetensors")
    asked = eqr("eval", "-c", model, "--depth", "1,2", "--breadth", "1,3", "--symmetry",
                "--select", "majority,majority2", "--problems", 5, "--json")  # fmt: skip
    rows = json.loads(asked.out)
    assert len(rows) == 8 and all(0 <= row["exact"] <= 1 for row in rows)
    line = f"3 {'01234' * 5}"
    told = eqr("solve", "-c", model, line, "--depth", 2)
    assert told.code == 0 and "only its label could say" in told.out
    listed = eqr("study", "list", "miniarc", "--json")
    assert json.loads(listed.out)[0]["rows"][0]["row"] == "embedding-eqr"
