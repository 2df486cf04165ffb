"""Recipes are read strictly: what is unknown, missing or ill-typed is named with the mend."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

import eqr.config
from eqr.config import (
    PROFILES,
    RECIPES,
    ConfigError,
    DataConfig,
    EvalConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    digest,
    from_dict,
    load_recipe,
    parse_overrides,
    recipe_from_dict,
    recipe_names,
    to_dict,
)

ALL = [(profile, path.stem) for profile in PROFILES for path in (RECIPES / profile).glob("*.toml")]
CLASSES = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig, "config": EvalConfig}


@pytest.mark.parametrize(("profile", "name"), ALL)
def test_every_shipped_recipe_loads_says_everything_and_survives_the_round_trip(profile, name):
    recipe = load_recipe(name, profile)
    assert name in recipe_names(profile) and recipe.name == name
    assert recipe_from_dict(to_dict(recipe)) == recipe
    written = tomllib.loads((RECIPES / profile / f"{name}.toml").read_text())
    for section in ("task", "data", "model", "train"):
        assert section in written, "a recipe holds all its sections, without inheritance"
    needed = {"hidden", "blocks", "high_cycles", "low_cycles", "init", "damping", "noise"}
    assert needed <= written["model"].keys()


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"train.unroll": 4}, "train"),
        ({"train.unroll": 4, "train.supervise_from": 3}, "train"),
        ({"train.halting": "oracle"}, "train"),
        ({"model.learn_noise": True}, "model"),
        ({"model.norm_swiglu": True}, "model"),
        ({"train.starts": 4}, "train"),
        ({"train.short_until": 0.25}, "train"),
        ({"train.short_until": 0.25, "train.short_low_cycles": 2}, "train"),
    ],
    ids=str,
)
def test_a_setting_added_later_is_written_only_where_it_is_used(settings, where):
    """So that what was trained before it existed keeps its id and its header."""
    plain = load_recipe("headroom", "smoke")
    recipe = load_recipe("headroom", "smoke", overrides=settings)
    for defaults in (True, False):
        new = to_dict(recipe, defaults=defaults)[where]
        old = to_dict(plain, defaults=defaults)[where]
        added = {key.removeprefix(f"{where}."): value for key, value in settings.items()}
        assert new == old | added and not old.keys() & added.keys()
    assert recipe_from_dict(to_dict(recipe)) == recipe


def test_evaluation_settings_survive_the_round_trip():
    config = EvalConfig(depths=(1, 4), breadth=3, noise=0.5, problems=7)
    assert from_dict(EvalConfig, to_dict(config), "eval") == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.step": 5}, r"train\.step is not a known setting; did you mean 'steps'"),
        ({"model.noize": 0.1}, r"model\.noize is not a known setting; did you mean 'noise'"),
        ({"modle.hidden": 8}, r"\[modle\] is not a known section; did you mean 'model'"),
        ({"task.box_hight": 2}, r"unknown key 'box_hight' for sudoku; did you mean 'box_height'"),
        ({"task.kind": "suduko"}, "did you mean 'sudoku'"),
        ({"model.mixer": "mpl"}, r"model\.mixer = 'mpl' must be one of 'mlp', 'attention'"),
        ({"train.steps": 2.5}, r"train\.steps = 2\.5 must be int"),
        ({"train.steps": True}, r"train\.steps = True must be int"),
        ({"train.lr": "fast"}, r"train\.lr = 'fast' must be float"),
        ({"data.augment": 1}, r"data\.augment = 1 must be bool"),
        ({"seed": "x"}, "seed = 'x' must be int"),
        ({"model.damping": 1.0}, r"model\.damping must lie in \[0, 1\)"),
        ({"model.grad_cycles": 9}, r"model\.grad_cycles must lie between 1 and .* = 2"),
        ({"model.rope": "1d"}, r"model\.rope needs model\.mixer = \"attention\""),
        ({"model.mixer": "attention", "model.heads": 3}, r"model\.heads must divide .* = 16"),
        ({"train.batch": 0}, r"train\.batch must be at least 1"),
        ({"train.lr": float("nan")}, r"train\.lr = nan must be a finite number"),
        ({"train.lr": float("inf")}, r"train\.lr"),
        ({"train.unroll": 0}, r"train\.unroll must be at least 1"),
        ({"train.unroll": 4, "train.supervise_from": 5}, r"supervise_from .* train\.unroll = 4"),
        ({"train.unroll": 3}, r"train\.halt_max must be a multiple of train\.unroll = 3"),
        ({"train.halting": "orakle"}, r"'orakle' must be one of 'learned', 'oracle', 'limit'"),
        ({"model.learn_noise": True, "model.noise": 0}, r"model\.noise must be positive for"),
        ({"train.muon_lr": 0.1}, r"train\.muon_lr needs train\.optimizer = \"muon\""),
        ({"train.optimizer": "muon", "train.muon_lr": 0}, r"train\.muon_lr must be positive"),
        ({"train.starts": 0}, r"train\.starts must be at least 1"),
        (
            {"train.starts": 2, "model.init": "fixed", "model.noise": 0},
            r"above 1 needs model\.init",
        ),
        ({"train.short_until": 1.0}, r"train\.short_until must lie in \[0, 1\)"),
        ({"train.short_low_cycles": 0}, r"train\.short_low_cycles must be at least 1"),
        (
            {"train.short_until": 0.5, "train.short_high_cycles": 3},
            r"short_high_cycles must be at most model\.high_cycles = 2",
        ),
        ({"seed": -1}, "seed"),
        ({"data.seed": -1}, r"data\.seed"),
        ({"train": 5}, "train"),
        ({"task": 5}, "task"),
    ],
    ids=str,
)
def test_a_bad_setting_is_named_with_its_mend(settings, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe("sudoku6", "smoke", overrides=settings)
    assert "sudoku6.toml" in str(caught.value), "and so is the file"


def test_a_missing_setting_an_unknown_recipe_and_a_broken_file_are_named(tmp_path):
    values = to_dict(load_recipe("sudoku6", "smoke"))
    del values["model"]["hidden"]
    with pytest.raises(ConfigError, match=r"model\.hidden is missing; add it"):
        recipe_from_dict(values)
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


@pytest.mark.parametrize(
    "settings",
    [{"depths": ()}, {"depths": (4, 2)}, {"depths": (0, 1)}, {"breadth": 0}, {"problems": 0}],
    ids=str,
)
def test_an_evaluation_that_makes_no_sense_is_refused(settings):
    with pytest.raises(ConfigError, match=f"eval.{next(iter(settings))}"):
        EvalConfig(**settings)


def test_settings_from_the_command_line_are_toml_values_or_bare_words():
    found = parse_overrides(["train.steps=3", "model.mixer=attention", "a.b=[1, 2]", "x = 'y=z'"])
    assert found == {"train.steps": 3, "model.mixer": "attention", "a.b": [1, 2], "x": "y=z"}
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
    holders = r"(?:config|model|train|data|found|recipe|test)"
    for field in dataclasses.fields(CLASSES[section]):
        read = re.search(rf"\b{holders}\.{field.name}\b", code)
        by_name = re.search(rf"getattr\({holders}, (split|s)\)", code) and section == "data"
        assert read or (by_name and field.name in ("train", "test")), f"{section}.{field.name}"


def test_configurations_are_frozen_and_take_no_unknown_attribute():
    for cls in (*CLASSES.values(), Recipe):
        assert cls.__dataclass_params__.frozen and "__slots__" in cls.__dict__
