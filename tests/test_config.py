"""Recipes are read strictly, what is wrong is named with a fix, and the shipped ones train."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import eqr.config
from eqr import checkpoint, data
from eqr.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
    recipe_from_dict,
    to_dict,
)
from eqr.cost import step_flops
from eqr.data import Dataset
from eqr.model import Reasoner
from eqr.recipes import PROFILES, load_recipe, parse_overrides, recipe_names
from eqr.settings import ConfigError, digest, from_dict
from eqr.tasks.maze import Maze
from eqr.train import train

CLASSES = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig, "config": EvalConfig}


RECIPES = [(profile, name) for profile in PROFILES for name in recipe_names(profile)]


@pytest.mark.parametrize(("profile", "name"), RECIPES)
def test_every_shipped_recipe_builds_and_survives_the_round_trip(profile, name):
    recipe = load_recipe(name, profile)
    assert recipe.name == name
    for defaults in (True, False):
        values = json.loads(json.dumps(to_dict(recipe, defaults=defaults)))
        assert recipe_from_dict(values) == recipe
    with torch.device("meta"):
        model = Reasoner.for_task(recipe.task, recipe.model)
    assert step_flops(recipe, model) > 0


def test_what_is_stored_is_what_differs_from_the_defaults():
    """So that a setting that is added later leaves the ids of earlier runs alone."""
    plain = load_recipe("headroom", "smoke")
    stored = to_dict(plain, defaults=False)
    assert "unroll" not in stored["train"] and "norm_swiglu" not in stored["model"]
    for dotted, value in {"train.unroll": 4, "model.norm_swiglu": True}.items():
        section, name = dotted.split(".")
        new = to_dict(load_recipe("headroom", "smoke", overrides={dotted: value}), defaults=False)
        assert new[section] == stored[section] | {name: value}
    assert to_dict(plain)["train"]["unroll"] == 1, "and all of them can be shown"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.step": 5}, r"train\.step .*'steps'"),
        ({"modle.hidden": 8}, r"modle .*'model'"),
        ({"task.kind": "suduko"}, r"task\.kind = 'suduko'.*'sudoku'"),
        ({"task.box_width": "3"}, r"task\.box_width = '3' must be a valid integer"),
        ({"model.mixer": "mpl"}, r"model\.mixer = 'mpl' must be one of 'mlp' or 'attention'"),
        ({"train.steps": 2.5}, r"train\.steps = 2\.5 must be a valid integer"),
        ({"train.lr": float("nan")}, r"train\.lr = nan must be a finite number"),
        ({"data.augment": 1}, r"data\.augment = 1 must be a valid boolean"),
        ({"seed": -1}, r"seed = -1 must be greater than or equal to 0"),
        ({"model.damping": 1.0}, r"model\.damping = 1\.0 must be less than 1"),
        ({"train": 5}, r"train = 5 must be a section"),
        # Rules between settings: each names one of them and the value of the other.
        ({"model.grad_cycles": 9}, r"model\.grad_cycles must .* model\.high_cycles = 2"),
        ({"model.rope": "1d"}, r"model\.rope needs model\.mixer = \"attention\""),
        ({"model.mixer": "attention", "model.heads": 3}, r"model\.heads must divide .* = 16"),
        ({"model.learn_noise": True, "model.noise": 0}, r"model\.noise must be positive for"),
        ({"train.unroll": 4, "train.supervise_from": 5}, r"supervise_from .* train\.unroll = 4"),
        ({"train.unroll": 3}, r"train\.halt_max must be a multiple of train\.unroll = 3"),
        ({"train.muon_lr": 0.1}, r"train\.muon_lr needs train\.optimizer = \"muon\""),
        (
            {"train.starts": 2, "model.init": "fixed", "model.noise": 0},
            r"train\.starts above 1 needs model\.init",
        ),
        (
            {"train.short_until": 0.5, "train.short_high_cycles": 3},
            r"train\.short_high_cycles must be at most model\.high_cycles = 2",
        ),
    ],
    ids=str,
)
def test_a_bad_setting_is_named_with_a_fix(settings, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe("sudoku6", "smoke", overrides=settings)
    assert "sudoku6.toml" in str(caught.value), "and so is the file"


def test_a_missing_setting_an_unknown_recipe_and_a_broken_file_are_named(tmp_path):
    values = to_dict(load_recipe("sudoku6", "smoke"))
    del values["model"]["hidden"]
    with pytest.raises(ConfigError, match=r"model\.hidden is missing; add it"):
        recipe_from_dict(values)
    values = to_dict(load_recipe("sudoku6", "smoke"))
    del values["train"]
    with pytest.raises(ConfigError, match="train is missing"):
        recipe_from_dict(values)
    with pytest.raises(ConfigError, match="did you mean 'sudoku6'"):
        load_recipe("soduku6", "smoke")
    with pytest.raises(ConfigError, match="profile 'lapdog' is not known; did you mean 'laptop'"):
        load_recipe("sudoku6", "lapdog")
    with pytest.raises(ConfigError, match="no such recipe file"):
        load_recipe(str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").write_text("[task\n")
    with pytest.raises(ConfigError, match=r"mine\.toml: not valid TOML"):
        load_recipe(str(tmp_path / "mine.toml"))


def test_evaluation_settings_survive_the_round_trip_or_are_refused():
    config = EvalConfig(depths=(1, 4), breadth=3, noise=0.5, problems=7)
    assert from_dict(EvalConfig, to_dict(config), "eval") == config
    for name, bad in (("depths", ()), ("depths", (4, 2)), ("depths", (0, 1)), ("breadth", 0)):
        with pytest.raises(ConfigError, match=f"eval.{name}"):
            EvalConfig(**{name: bad})


def test_settings_from_the_command_line_are_toml_values_or_bare_words():
    read = parse_overrides(["train.steps=3", "model.mixer=attention", "a.b=[1, 2]", "x = 'y=z'"])
    assert read == {"train.steps": 3, "model.mixer": "attention", "a.b": [1, 2], "x": "y=z"}
    recipe = load_recipe("sudoku6", "smoke", seed=7, overrides={"train.lr": 1})
    assert recipe.seed == 7 and recipe.train.lr == 1.0 and type(recipe.train.lr) is float
    for bad in ("train.steps", "=3"):
        with pytest.raises(ConfigError, match=r"name=value"):
            parse_overrides([bad])


def test_the_digest_names_the_values_and_not_their_order():
    assert digest({"a": 1, "b": [0.1, None]}) == digest({"b": [0.1, None], "a": 1})
    recipe = to_dict(load_recipe("sudoku6", "smoke"))
    seen = {digest(recipe)}
    for section in ("task", "data", "model", "train"):
        for name, value in recipe[section].items():
            changed = {**recipe, section: {**recipe[section], name: f"not {value}"}}
            assert digest(changed) not in seen, f"{section}.{name} does not reach the id"
            seen.add(digest(changed))


@pytest.mark.parametrize("section", CLASSES)
def test_every_setting_is_read_by_the_code(section):
    """A field that nothing outside config.py reads off a configuration is dead."""
    folder = Path(eqr.config.__file__).parent
    code = "\n".join(p.read_text() for p in folder.rglob("*.py") if p.name != "config.py")
    holders = r"(?:config|model|train|data|recipe|test)"
    for field in dataclasses.fields(CLASSES[section]):
        read = re.search(rf"\b{holders}\.{field.name}\b", code)
        by_name = re.search(rf"getattr\({holders}, (split|s)\)", code) and section == "data"
        assert read or (by_name and field.name in ("train", "test")), f"{section}.{field.name}"


def test_configurations_are_frozen_and_take_no_unknown_attribute():
    config = EvalConfig()
    for name in ("breadth", "bredth"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, 2)
    with pytest.raises(ConfigError, match=r"eval\.bredth is not a known setting.*'breadth'"):
        replace(config, bredth=2)


def test_a_recipe_builds_on_another_and_says_where_a_base_goes_wrong(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "smoke/sudoku6"\n[train]\nsteps = 7\n')
    base, recipe = load_recipe("sudoku6", "smoke"), load_recipe(str(mine))
    assert recipe == replace(base, name="mine", train=replace(base.train, steps=7))
    (tmp_path / "other.toml").write_text('base = "mine.toml"\n[task]\nkind = "maze"\n')
    other = load_recipe(str(tmp_path / "other.toml"))
    assert other.train == recipe.train and other.task == Maze(), "another kind starts anew"
    for base, said in {
        "other.toml": "base leads back",
        "soduku6": "did you mean 'sudoku6'",
        "paper/sudoku6": "not known in profile 'paper'",
    }.items():
        mine.write_text(f"base = {base!r}\n")
        with pytest.raises(ConfigError, match=said):
            load_recipe(str(mine))


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
    once = load_recipe("maze30-fast-feedforward", "paper")
    assert once.train == replace(ours.train, halt_max=1, eval_depth=1)
    assert once.model.layers == ours.model.layers, "as many as one outer iteration of maze30"


#: The paper's settings (its section 3 and appendix), and those of the released configurations where
#: it says nothing: the prefix, the head's weight.
PUBLISHED_MODEL = {
    "prefix": 16, "high_cycles": 3, "hierarchical": True, "grad_cycles": 1, "expansion": 4.0,
    "width_multiple": 256, "norm_swiglu": False, "learn_noise": False,
}  # fmt: skip
PUBLISHED_TRAIN = {
    "batch": 768, "optimizer": "adam_atan2", "lr": 1e-4, "warmup": 2000, "schedule": "constant",
    "beta1": 0.9, "beta2": 0.95, "weight_decay": 1.0, "ema": 0.999, "loss": "stablemax",
    "unroll": 1, "starts": 1, "short_until": 0.0, "halting": "learned", "halt_max": 16,
    "halt_explore": 0.1, "halt_weight": 0.5, "dtype": "bfloat16", "clip": None,
}  # fmt: skip
PUBLISHED = {
    "sudoku9": ({"hidden": 512, "blocks": 2, "low_cycles": 6, "mixer": "mlp"}, 50_000, True),
    "maze30": (
        {"hidden": 128, "blocks": 1, "low_cycles": 4, "mixer": "attention", "heads": 8,
         "rope": "1d"}, 100_000, False,
    ),
}  # fmt: skip
EQR = {"init": "random", "damping": 0.05, "noise": 0.01}
TRM = {"init": "fixed", "damping": 0.0, "noise": 0.0}
#: A feedforward network has as many blocks as an outer iteration has layers, and one pass.
ONE_PASS = {"high_cycles": 1, "low_cycles": 1, "hierarchical": False}


@pytest.mark.parametrize("task", PUBLISHED)
@pytest.mark.parametrize("kind", ["", "-trm", "-feedforward"])
def test_the_papers_recipes_are_the_papers_field_by_field(task, kind):
    recipe, (model, steps, augmented) = load_recipe(task + kind, "paper"), PUBLISHED[task]
    wanted = PUBLISHED_MODEL | model | (TRM if kind else EQR)
    train = PUBLISHED_TRAIN | {"steps": steps}
    if kind == "-feedforward":
        layers = {"sudoku9": 42, "maze30": 15}[task]
        wanted, train = wanted | ONE_PASS | {"blocks": layers}, train | {"halt_max": 1}
    assert {name: getattr(recipe.model, name) for name in wanted} == wanted
    assert {name: getattr(recipe.train, name) for name in train} == train
    assert (recipe.data.train, recipe.data.augment) == (1000, augmented)
    if task == "maze30":
        assert (recipe.task.height, recipe.task.path_min, recipe.task.path_max) == (30, 100, 140)
