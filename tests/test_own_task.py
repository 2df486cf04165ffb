"""A task in a file of one's own trains, is evaluated and drawn by the same commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from eqr.recipes import load_recipe, load_task
from eqr.settings import ConfigError, ProblemError

OWN = Path(__file__).parent / "own"
TASK = f"{OWN / 'latin_square.py'}:LatinSquare"


@pytest.fixture(scope="module")
def task():
    """The example's task, as its recipe sets it."""
    return load_recipe(str(OWN / "latin_square.toml")).task


def test_it_is_trained_evaluated_and_asked_by_the_commands(eqr, task, tmp_path):
    done = eqr("train", OWN / "latin_square.toml", "--json")
    assert done.code == 0, done.err
    model = json.loads(done.out)["model"]
    words = ("-c", model, "--task", TASK)
    table = eqr("eval", *words, "--depth", "1,8", "--select", "average", "--json")
    assert table.code == 0, table.err
    shallow, deep = (row["exact"] for row in json.loads(table.out))
    assert deep >= shallow and deep > 0.2, "it learns"
    problem = task.generate(1, 1).inputs[0]
    solved = eqr("solve", *words, "--depth", 8, "--json", "--", task.format(problem))
    assert solved.code in (0, 1) and len(json.loads(solved.out)["answer"]) == 16, solved.err


def test_what_a_task_does_not_say_itself_suits_a_board_of_symbols(task):
    problems = task.generate(6, 3)
    assert (task.generate(2, 3, start=4).inputs == problems.inputs[4:]).all()
    assert task.check(problems.inputs, problems.labels).all()
    assert not task.check(problems.inputs, np.roll(problems.labels, 1, 0)).any()
    board = problems.inputs[0]
    assert (task.parse(task.render(board)) == board).all() and task.vocab_size == 6
    with pytest.raises(ProblemError, match="character 1 is 'x'"):
        task.parse("x" * 16)
    with pytest.raises(ProblemError, match=r"3 characters; expected 16 \(4x4\)"):
        task.parse("1.2")
    tensors = [torch.as_tensor(one) for one in (problems.inputs, problems.labels)]
    moved = task.augment(*tensors, torch.Generator())
    assert all(map(torch.equal, moved, tensors)), "it has no symmetries"
    keys = [key(problems.inputs, problems.labels) for key in (task.symmetry_key, task.problem_key)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 6
    assert task.solve(board) is None and task.read(OWN) is None
    axes = Figure().subplots()
    task.draw(axes, board, problems.labels[0])
    assert len(axes.texts) == 16


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("gone.py:LatinSquare", "gone.py is not a file"),
        ("latin_square.py:Square", "no task 'Square' there"),
        ("no_such_module:Task", "install it"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_with_the_remedy(reference, said):
    with pytest.raises(ConfigError) as error:
        load_task(reference, OWN)
    assert said in str(error.value) and reference in str(error.value)
