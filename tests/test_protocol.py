"""Protocols are the paper's settings, and published numbers stand beside ours."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from eqr.protocol import PROTOCOLS, load_protocol, over_seeds, published_beside
from eqr.settings import ConfigError
from eqr.stats import wilson
from eqr.studies.registry import published
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku

PAPER = {  # paper.md, section 4; the released evaluation's settings
    "paper-16-1": (16, 1, {"sudoku": 0.0, "maze": 0.01}, None, 1, "float32"),
    "paper-64-1": (64, 1, {"sudoku": 0.0, "maze": 0.01}, None, 1, "float32"),
    "paper-64-128": (64, 128, {"sudoku": 0.5, "maze": 0.01}, None, 1, "float32"),
    "official-smoke": (64, 128, {"sudoku": 0.5, "maze": 0.01}, 2048, 5, "bfloat16"),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_protocol_is_what_the_paper_says(name):
    fixed = load_protocol(name)
    values = (fixed.depth, fixed.breadth, fixed.noise, fixed.problems, fixed.seeds, fixed.dtype)
    assert values == PAPER[name]
    config = fixed.config("maze", seed=3)
    assert (config.depths, config.breadth, config.noise) == ((fixed.depth,), fixed.breadth, 0.01)
    assert config.window == 3 and config.seed == 3
    assert (fixed.select == ("average",)) == (fixed.breadth == 1)
    with pytest.raises(ConfigError, match="say nothing about miniarc, only about sudoku and maze"):
        fixed.config("miniarc", seed=0)


def test_the_published_numbers_are_those_of_the_same_depth_and_breadth():
    everything = published()
    for name in PAPER:
        fixed = load_protocol(name)
        for task in (Sudoku(3, 3), Maze(30, 30), Sudoku(2, 3), Maze(9, 9)):
            beside = published_beside(fixed, task)
            assert bool(len(beside)) == (task.height in (30, 9) and task != Maze(9, 9))
            same = everything[everything.breadth == fixed.breadth]
            assert set(beside.exact) <= set(same.exact)
    top = published_beside(load_protocol("paper-64-128"), Sudoku(3, 3))
    assert {99.8, 99.79} <= set(top.exact), "the paper's and the README's"
    assert json.loads(json.dumps(top.to_dict("records"), allow_nan=False))


def test_several_seeds_are_averaged_with_their_spread_and_an_interval_of_the_problems():
    fixed = load_protocol("official-smoke")
    exact = {7: 0.5, 8: 0.6, 9: 0.7, 10: 0.6, 11: 0.6}
    row = {"depth": 64, "n": 100, "low": 0.0, "high": 1.0, "token": 0.9, "residual": 0.1}
    table = over_seeds(fixed, 7, lambda seed: pd.DataFrame([row | {"exact": exact[seed]}]))
    assert table.exact.item() == pytest.approx(0.6) and table.seeds.item() == 5
    assert (table.low.item(), table.high.item()) == pytest.approx(wilson(60, 100))
    assert table["sd"].item() == pytest.approx(0.0707, abs=1e-4)
    none = over_seeds(fixed, 0, lambda seed: pd.DataFrame([row | {"exact": 0.0}]))
    assert none.high.item() > 0.03, "no success among a hundred is not certainly none"


def test_eval_takes_a_protocol_and_refuses_what_it_fixes(eqr, learned, monkeypatch, tmp_path):
    model = learned.path
    small = PROTOCOLS.read_text().replace("depth = 64", "depth = 4").replace("= 128", "= 3")
    own = tmp_path / "protocols.toml"
    own.write_text(small)
    monkeypatch.setattr("eqr.protocol.PROTOCOLS", own)
    done = eqr("eval", "-c", model, "--protocol", "official-smoke", "--problems", "8", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert {row["select"] for row in values["ours"]} == {"logits", "majority", "oracle"}
    assert {row["seeds"] for row in values["ours"]} == {5} and values["published"] == []
    refused = eqr("eval", "-c", model, "--protocol", "paper-16-1", "--depth", "4")
    assert refused.code == 1 and "says what --depth is" in refused.err
    near = eqr("eval", "-c", model, "--protocol", "paper-16")
    assert near.code == 1 and "did you mean 'paper-16-1'?" in near.err
