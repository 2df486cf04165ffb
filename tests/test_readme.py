"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shlex

import pytest

from eqr import PROJECT, experiments

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
    refused = eqr("solve", "-c", model, "--task", "latin.py:Latim", solve[-1])
    assert refused.code == 1 and "no task 'Latim' there" in refused.err


def test_without_its_file_the_task_is_named(eqr, latin, tmp_path, monkeypatch):
    """A model stores the kind of its task, and reading one never runs anybody's code."""
    from eqr import task

    monkeypatch.setitem(task._tasks, "latin", "")
    task._tasks.pop("latin")
    (tmp_path / "again.toml").write_text('base = "headroom"\n[task]\nkind = "latin"\n')
    done = eqr("train", "again.toml")
    assert done.code == 1 and "--task my_task.py:MyTask" in done.err
