"""Recipes on disk: TOML files that list what differs from the defaults, or from a base recipe.

``laptop/`` and ``paper/`` hold one file a recipe; ``smoke.toml`` makes small ones of the laptop's.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eqr.config import Recipe, recipe_from_dict
from eqr.files import ours, parse_toml, read_toml
from eqr.settings import ConfigError, nearest
from eqr.task import Task

PROFILES = ("smoke", "laptop", "paper")
RECIPES = Path(__file__).parent
SMOKE = RECIPES / "smoke.toml"


def recipe_names(profile: str) -> list[str]:
    """Names of the recipes of a profile, sorted."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is not known; {nearest(profile, PROFILES)}")
    folder = RECIPES / ("laptop" if profile == "smoke" else profile)
    return sorted(p.stem for p in folder.glob("*.toml") if p.is_file() and ours(p, folder))


def load_recipe(
    name: str, profile: str = "laptop", *, seed: int | None = None, overrides: Mapping = {}
) -> Recipe:
    """Read a recipe by name and profile, or from a path that ends in ``.toml``.

    Args:
        name: for example ``"sudoku6"``, or a path such as ``"my/recipe.toml"``.
        profile: ``smoke``, ``laptop`` or ``paper``; for a path, where its base is looked up.
        seed: replaces the recipe's seed (initial weights, batches and training noise).
        overrides: dotted names to values, for example ``{"train.steps": 100}``.

    Raises:
        ConfigError: unknown name, profile or key; the message names the file.
    """
    values, files = read_recipe(name, profile)
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        if not isinstance(target, dict):
            raise ConfigError(f"{dotted} is not a known setting")
        target[key] = value
    if seed is not None:
        values["seed"] = seed
    task = values.get("task")
    if isinstance(task, dict) and ":" in str(task.get("kind")):  # the user's own code
        task["kind"] = load_task(task["kind"], files[0].parent).kind
    return recipe_from_dict({"name": files[0].stem} | values, str(files[0]))


def read_recipe(
    name: str, profile: str, folder: Path = Path(), above: tuple[Path, ...] = ()
) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The settings of a recipe over those of its base, and the files that they stand in.

    Args:
        folder: where a path is looked up.
        above: the files that build on it.

    Raises:
        ConfigError: an unknown recipe or profile, no TOML, or a base that builds on the recipe.
    """
    if name.endswith(".toml"):
        path = folder / name
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file")
    else:
        other, _, name = name.rpartition("/")
        profile, names = other or profile, recipe_names(other or profile)
        if name not in names:
            raise ConfigError(
                f"recipe {name!r} is not known in profile {profile!r}; {nearest(name, names)}"
            )
        if profile == "smoke":
            below, files = read_recipe(name, "laptop")
            small = read_toml(SMOKE)
            common = {k: v for k, v in small.items() if k in ("data", "model", "train")}
            return _over(_over(below, common), small.get(name, {})), (*files, SMOKE)
        path = RECIPES / profile / f"{name}.toml"
    if path in above:
        raise ConfigError(f"{path}: base leads back to this file; name another")
    values, files = read_toml(path), (path,)
    if base := values.pop("base", None):
        below, more = read_recipe(base, profile, path.parent, (*above, path))
        values, files = _over(below, values), (*files, *more)
    return values, files


def _over(below: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Settings over those ``below``, section by section; a task of another kind starts anew."""
    merged = {key: value for key, value in below.items() if key != "name"}
    for key, value in values.items():
        there = merged.get(key)
        alike = isinstance(value, dict) and isinstance(there, dict)
        if alike and value.get("kind", there.get("kind")) == there.get("kind"):
            value = there | value
        merged[key] = value
    return merged


def pairs(settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """``"name=value"`` as name and text; ConfigError for anything else."""
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name.strip() or len(setting.splitlines()) != 1:
            raise ConfigError(f"{setting!r} must look like name=value, on one line")
        yield name.strip(), text.strip()


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """``["train.steps=100"]`` to ``{"train.steps": 100}``; values are TOML, bare words strings."""
    overrides = {}
    for name, text in pairs(settings):
        try:
            overrides[name] = parse_toml(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            overrides[name] = text
        except ValueError as error:
            raise ConfigError(f"{name} = {text:.20}… holds {error}") from error
    return overrides


def load_task(reference: str, folder: Path) -> type[Task]:
    """Run the user's own code: ``"my_task.py:MyTask"`` (from ``folder``) or ``"module:MyTask"``.

    Call it only with what the user has typed, or a recipe that the user has named.

    Raises:
        ConfigError: no such file, module or task in it.
    """
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        path = (folder / place).resolve()
        if not path.is_file():
            raise ConfigError(f"task.kind = {reference!r}: {path} is not a file; correct the path")
        place = f"eqr_task_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        if place not in sys.modules:
            spec = importlib.util.spec_from_file_location(place, path)
            sys.modules[place] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[place])
            except BaseException:
                del sys.modules[place]
                raise
    try:
        task = getattr(importlib.import_module(place), name, None)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        raise ConfigError(f"task.kind = {reference!r}: {error}; install it") from error
    if not (isinstance(task, type) and issubclass(task, Task) and task.kind):
        raise ConfigError(f"task.kind = {reference!r}: no task {name!r} there; correct the name")
    task.source = hashlib.sha256(Path(sys.modules[place].__file__).read_bytes()).hexdigest()
    return task
