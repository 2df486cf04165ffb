"""Shipped recipes build, and those of the paper profile train in small by the same path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eqr import checkpoint, data
from eqr.config import DataConfig, recipe_from_dict, to_dict
from eqr.cost import step_flops
from eqr.data import Dataset
from eqr.model import Reasoner
from eqr.recipes import PROFILES, load_recipe, recipe_names
from eqr.train import train

TINY = {
    "model.hidden": 32,
    "model.width_multiple": 16,
    "train.batch": 2,
    "train.steps": 2,
    "train.warmup": 1,
    "train.eval_problems": 2,
    "train.eval_depth": 2,
}
SMALL_MAZE = {"task.height": 8, "task.width": 8, "task.path_min": 6, "task.path_max": 40}


@pytest.mark.parametrize(
    ("profile", "name"), [(p, name) for p in PROFILES for name in recipe_names(p)]
)
def test_every_recipe_builds(profile, name):
    recipe = load_recipe(name, profile)
    with torch.device("meta"):
        model = Reasoner.for_task(recipe.task, recipe.model)
    assert step_flops(recipe, model) > 0 and recipe_from_dict(to_dict(recipe)) == recipe


@pytest.fixture(scope="module")
def few() -> dict[str, Dataset]:
    """A handful of problems by kind of task."""
    recipes = {"sudoku": load_recipe("sudoku9", "paper", overrides=TINY),
               "maze": load_recipe("maze30", "paper", overrides=TINY | SMALL_MAZE),
               "miniarc": load_recipe("miniarc", "paper", overrides=TINY),
               "miniarc-tasks": load_recipe("miniarc-tasks", "paper", overrides=TINY)}  # fmt: skip
    return {kind: data.build(r.task, DataConfig(train=4, test=2)) for kind, r in recipes.items()}


@pytest.mark.parametrize("name", recipe_names("paper"))
def test_every_recipe_of_the_paper_profile_trains(name, few, tmp_path):
    """The same path, in small: stopped after the first step, gone on, evaluated, stored."""
    kind = name if name.startswith("miniarc") else name[: 4 if name.startswith("maze") else 6]
    recipe = load_recipe(name, "paper", overrides=TINY | (SMALL_MAZE if kind == "maze" else {}))
    list(train(recipe, few[kind], tmp_path, stop_after_s=0.0))
    events = list(train(recipe, few[kind], tmp_path))
    assert [event.kind for event in events] == ["log", "eval", "checkpoint"]
    assert torch.isfinite(torch.tensor(events[0].metrics["loss"]))
    assert checkpoint.load_model(tmp_path / "model.safetensors").meta["step"] == 2


def test_fast_recipes_and_their_baselines_differ_only_in_the_shaping():
    for task in ("sudoku9", "maze30"):
        ours, other = (load_recipe(f"{task}-{kind}", "paper") for kind in ("fast", "fast-trm"))
        assert ours.train == other.train and ours.data == other.data
        shaping = {"init": "fixed", "damping": 0.0, "noise": 0.0}
        assert replace(ours.model, **shaping) == other.model
        paper = load_recipe(task, "paper")
        assert replace(ours.model, norm_swiglu=False) == paper.model and ours.data == paper.data
        assert ours.train.steps * ours.train.batch < 0.1 * paper.train.steps * paper.train.batch
    once = load_recipe("maze30-feedforward", "paper")
    assert once.train == replace(ours.train, halt_max=1, eval_depth=1)
    assert once.model.layers == ours.model.layers, "as many as one outer iteration of maze30"
