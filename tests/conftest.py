"""What several test files share: a tiny task, a model trained on it, and the command line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from eqr import data, train
from eqr.checkpoint import load_model
from eqr.cli import main as cli
from eqr.config import Recipe, recipe_from_dict
from eqr.data import Dataset
from eqr.model import Reasoner
from eqr.streams import stream
from eqr.task import Problems
from eqr.tasks.sudoku import Sudoku

SHARED = Path(__file__).resolve().parents[2] / "shared"

TINY = {
    "name": "tiny",
    "task": {"kind": "sudoku", "box_height": 2, "box_width": 2, "clues_min": 7, "clues_max": 9},
    "data": {"train": 64, "test": 24},
    "model": {
        "hidden": 24,
        "blocks": 1,
        "high_cycles": 2,
        "low_cycles": 2,
        "width_multiple": 16,
    },
    "train": {
        "steps": 24,
        "batch": 16,
        "optimizer": "adamw",
        "lr": 0.005,
        "warmup": 10,
        "weight_decay": 0.1,
        "ema": 0.9,
        "loss": "softmax",
        "halt_max": 8,
        "log_every": 4,
        "eval_every": 12,
        "eval_problems": 8,
        "eval_depth": 4,
        "checkpoint_every": 6,
    },
}

# Two files of that name cannot both be searched for doctests.
collect_ignore = ["conftest.py", "attack/conftest.py"]


def tiny(seed: int = 0, **sections: dict) -> Recipe:
    """The tiny recipe with some settings replaced: ``tiny(train={"steps": 3})``."""
    values = {key: dict(v) if isinstance(v, dict) else v for key, v in TINY.items()}
    for name, settings in sections.items():
        values[name] |= settings
    return recipe_from_dict(values | {"seed": seed})


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Two processes with two threads each are ten times slower on two cores than with one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """The function :func:`tiny`."""
    return tiny


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material beside the project that a plain checkout does not have."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the project")
    return SHARED


@pytest.fixture(scope="session")
def problems() -> Dataset:
    """The data set of the tiny recipe."""
    recipe = tiny()
    return data.build(recipe.task, recipe.data)


@dataclass(frozen=True)
class Learned:
    """A tiny model that has learned its task, and how."""

    path: Path  # model.safetensors
    recipe: Recipe
    events: list[train.Event]


@pytest.fixture(scope="session")
def learned(tmp_path_factory, problems) -> Learned:
    """A model trained for some seconds; its folder holds log, resume file and model."""
    recipe = tiny(train={"steps": 200, "batch": 32, "eval_every": 1000, "checkpoint_every": 1000})
    folder = tmp_path_factory.mktemp("learned")
    events = list(train.train(recipe, problems, folder))
    return Learned(folder / "model.safetensors", recipe, events)


@pytest.fixture(scope="session")
def model(learned) -> Reasoner:
    """The learned model itself; no test changes it."""
    return load_model(learned.path).model


@pytest.fixture(scope="session")
def pool() -> Problems:
    """Nine 9×9 puzzles, to write files of others from."""
    return Sudoku().generate(9, seed=1)


@pytest.fixture(scope="session")
def csv_files(pool) -> dict[str, bytes]:
    """Their files in the schema of Sudoku-Extreme: six for training, three for the test."""
    boards = zip(*(map(Sudoku().format, a) for a in (pool.inputs, pool.labels)), strict=True)
    rows = [f"made,{question},{answer},{k}" for k, (question, answer) in enumerate(boards)]
    parts = {"train.csv": rows[:6], "test.csv": rows[6:]}
    header = "source,question,answer,rating"
    return {name: "\n".join([header, *part, ""]).encode() for name, part in parts.items()}


@pytest.fixture(scope="session")
def official_tensors() -> dict[str, torch.Tensor]:
    """A model of one block for 5×5 mazes, its tensors named as in the official files."""
    shapes = {
        "embed_tokens.embedding_weight": (6, 8),
        "lm_head.weight": (6, 8),
        "q_head.weight": (2, 8),
        "q_head.bias": (2,),
        "L_level.layers.0.self_attn.qkv_proj.weight": (24, 8),
        "L_level.layers.0.self_attn.o_proj.weight": (8, 8),
        "L_level.layers.0.mlp.gate_up_proj.weight": (512, 8),
        "L_level.layers.0.mlp.down_proj.weight": (8, 256),
    }
    draw = stream(0, "official")
    return {
        f"_orig_mod.model.inner.{name}": torch.randn(shape, generator=draw)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a file; it does not stay, for the event loop that it needs."""
    from browsing import browser

    with browser() as running:
        yield running


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory) -> Path:
    """The built pages of the real book around stand-in chapters."""
    from browsing import stand_in_book

    return stand_in_book(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="session")
def built_book(request) -> Path:
    """The folder that ``EQR_SITE`` names, a really built book; without it, the stand-in."""
    if named := os.environ.get("EQR_SITE"):
        assert (Path(named) / "index.html").is_file(), f"EQR_SITE: no book in {named}"
        return Path(named).resolve()
    return request.getfixturevalue("stand_in")


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """A study's cells run in this process, as it was changed and with what it has loaded."""
    monkeypatch.setattr("eqr.studies.run.ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *said: str) -> None:
        """Assert that the command ended in one line of error that holds these words."""
        assert self.code == 1 and self.out == "", self.out
        assert self.err.startswith("error: "), self.err
        assert all(words in self.err for words in said), self.err
        assert len(self.err.strip().splitlines()) == 1, self.err


@pytest.fixture
def eqr(monkeypatch, capsys, tmp_path) -> Callable[..., Done]:
    """Run a command of ``eqr`` in this process: ``eqr("solve", ..., stdin="...")``.

    Runs go to a store below ``tmp_path``. An error that ``main`` does not turn into a message
    comes through as the exception it is.
    """
    monkeypatch.setenv("EQR_STORE", str(tmp_path / "store"))

    def run(*words: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["eqr", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        written = capsys.readouterr()
        return Done(code, written.out, written.err)

    return run
