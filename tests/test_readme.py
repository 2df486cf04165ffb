"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from eqr import PROJECT, experiments, task as tasks
from eqr.recipes import load_recipe, load_task
from eqr.settings import ConfigError, ProblemError

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (PROJECT / "README.md").read_text(), re.M | re.S)


def block(kind: str, word: str) -> str:
    """The README's one block of this kind that has the word."""
    (text,) = [text for name, text in BLOCKS if name == kind and word in text]
    return text


def test_the_library_in_five_lines(monkeypatch, tmp_path, capsys):
    """With the smoke profile's model in place of the laptop's, which trains for minutes."""
    monkeypatch.setenv("EQR_STORE", str(tmp_path))
    real = experiments.train_or_load
    monkeypatch.setattr(experiments, "train_or_load", lambda name: real(name, "smoke"))
    code = block("python", "train_or_load")
    lines = [line for line in code.splitlines() if line and not line.startswith("from ")]
    assert len(lines) <= 5
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"^\d \d \d", printed) and re.search(r"\d\.\d+ (True|False)$", printed.strip())


@pytest.fixture
def latin(tmp_path, monkeypatch):
    """A folder with the README's own task and its recipe, and nothing of the project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "_tasks", dict(tasks._tasks))  # each folder has a file of its own
    tasks._tasks.pop("latin", None)
    (tmp_path / "latin.py").write_text(block("python", "class Latin"))
    (tmp_path / "latin.toml").write_text(block("toml", "latin.py:Latin"))
    assert len((tmp_path / "latin.py").read_text().splitlines()) < 60
    return tmp_path


def test_a_task_of_ones_own_trains_evaluates_plots_and_solves(eqr, latin):
    train, evaluate, solve = (
        shlex.split(line.removeprefix("$ "))
        for line in block("console", "latin.toml").strip().splitlines()
    )
    done = eqr("train", train[-1].rstrip(")"))
    assert done.code == 0, done.err
    last = re.findall(r"D=16: ([\d.]+)%", done.err)[-1]
    assert float(last) > 50, "it learns"
    model = done.out.strip()
    for words in (evaluate, solve):
        done = eqr(*(model if word == "$MODEL" else word for word in words[1:]))
        assert done.code == 0, done.err
    assert "residual by iteration" in done.out and "valid by the rules" in done.out
    assert (latin / "accuracy.png").stat().st_size > 5000


def test_what_a_task_does_not_say_itself_suits_a_board_of_symbols(latin):
    task = load_recipe("latin.toml").task
    problems = task.generate(6, 3)
    assert (task.generate(2, 3, start=4).inputs == problems.inputs[4:]).all()
    assert task.check(problems.inputs, problems.labels).all()
    assert not task.check(problems.inputs, np.roll(problems.labels, 1, 0)).any()
    board = problems.inputs[0]
    assert (task.parse(task.render(board)) == board).all() and task.vocab_size == 7
    with pytest.raises(ProblemError, match="character 1 is 'x'"):
        task.parse("x" * 25)
    tensors = [torch.as_tensor(one) for one in (problems.inputs, problems.labels)]
    moved = task.augment(*tensors, torch.Generator())
    assert all(map(torch.equal, moved, tensors)), "it has no symmetries"
    keys = [key(problems.inputs, problems.labels) for key in (task.symmetry_key, task.problem_key)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 6
    assert task.solve(board) is None and task.read(latin) is None
    axes = Figure().subplots()
    task.draw(axes, board, problems.labels[0])
    assert len(axes.texts) == 25


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("gone.py:Latin", "gone.py is not a file"),
        ("latin.py:Square", "no task 'Square' there"),
        ("no_such_module:Task", "install it"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_with_the_remedy(latin, reference, said):
    with pytest.raises(ConfigError) as error:
        load_task(reference, latin)
    assert said in str(error.value) and reference in str(error.value)


def test_without_its_file_the_task_is_named(eqr, latin, tmp_path, monkeypatch):
    """A model stores the kind of its task, and reading one never runs anybody's code."""
    monkeypatch.delitem(tasks._tasks, "latin", raising=False)
    (tmp_path / "again.toml").write_text('base = "headroom"\n[task]\nkind = "latin"\n')
    done = eqr("train", "again.toml")
    assert done.code == 1 and "--task my_task.py:MyTask" in done.err
