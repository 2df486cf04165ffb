"""Runs by name: a trained model, an evaluation, a measurement; made once, then read from the store.

Notebooks, ``eqr train``, studies and the book's builder come through here, so that each of them
gets what another has already made. (``eqr eval`` computes anew and stores nothing.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr import SHIPPED, checkpoint, data
from eqr.compiled import compiled_copy, evaluation_is_long
from eqr.config import EvalConfig, Recipe, recipe_from_dict, to_dict
from eqr.cost import require_fits
from eqr.data import Dataset
from eqr.evaluate import Records, records
from eqr.files import parse_json, read_json, write_json
from eqr.halting import Halted, halting_records, parse_rule
from eqr.model import Reasoner
from eqr.parallel import ALONE, World
from eqr.recipes import load_recipe
from eqr.rollout import NEVER
from eqr.select import check_selections, selected
from eqr.settings import ConfigError, from_dict
from eqr.stats import wilson
from eqr.store import MANIFEST, Result, Run, Store, read_arrays
from eqr.task import Problems, Task
from eqr.tasks.shift import Level, level_problems, on_board, perturbed, problems_digest
from eqr.train import Event, train

#: Trajectories in flight in a stored evaluation.
ROWS = {"cpu": 256, "mps": 1024, "cuda": 4096}
MODELS = SHIPPED / "models"  # a store of trained models, see :func:`eqr.runs.ship`


# --- Training -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model with all that a chapter wants to know about it."""

    run: Run
    recipe: Recipe
    data: Dataset
    checkpoint: checkpoint.Checkpoint

    @property
    def model(self) -> Reasoner:
        return self.checkpoint.model

    @property
    def task(self) -> Task:
        return self.recipe.task

    @property
    def seconds(self) -> float:
        """Wall time of the training, all sessions of a resumed run together."""
        return timing(self.run)["seconds"]

    def log(self, kind: str) -> pd.DataFrame:
        """Rows of the training log: ``"log"`` (losses) or ``"eval"`` (held-out accuracy)."""
        lines = self.run.file("log.jsonl").read_bytes().splitlines()
        rows = [row for row in map(parse_json, lines) if row["kind"] == kind]
        return pd.DataFrame(rows).drop(columns="kind")

    def config(self, **more: Any) -> dict[str, Any]:
        """What the id of anything measured on this model hashes."""
        return {"weights": self.checkpoint.sha256, "data": self.data.digest, **more}


def dataset(recipe: Recipe, store: Store, progress: data.Progress | None = None) -> Dataset:
    """The data set of a recipe; generated ones are kept beside the store's runs."""
    return data.for_recipe(recipe, store.root / "data", progress)


def train_config(recipe: Recipe, problems: Dataset) -> dict[str, Any]:
    """What the id of a training run hashes."""
    return {"recipe": to_dict(recipe, defaults=False), "data": problems.digest}


def train_run(
    recipe: Recipe,
    store: Store,
    *,
    device: str = "cpu",
    on_event: Callable[[Event], None] | None = None,
    on_data: data.Progress | None = None,
    stop_after_s: float | None = None,
    world: World = ALONE,
) -> Run | None:
    """Train a recipe unless the store has it; None if ``stop_after_s`` ended it early.

    Of several processes the first keeps the store; the others only help it to train.
    """
    require_fits(recipe, device)

    def run_in(directory: Path) -> None:
        settings = {"device": device, "stop_after_s": stop_after_s, "world": world}
        for event in train(recipe, dataset(recipe, store), directory, **settings):
            if on_event:
                on_event(event)

    if world.rank != 0:
        if directory := world.share():
            run_in(directory)
        done = world.share()
        return store.get(done) if done else None

    shared = []

    def make(directory: Path) -> bool:
        shared.append(world.share(directory))
        run_in(directory)
        return (directory / "model.safetensors").exists()

    config = train_config(recipe, dataset(recipe, store, on_data))
    run = store.obtain("train", config, make, scratch=["resume.safetensors"])
    if not shared:
        world.share(None)  # there was nothing to train
    world.share(run and run.id)
    return run


def train_or_load(
    name: str,
    profile: str = "laptop",
    seed: int = 0,
    store: Store | None = None,
    *,
    shipped: bool = True,
) -> Trained:
    """The trained model of a recipe: the one that the project ships, or one trained here.

    Args:
        name, profile, seed: of the recipe, see :func:`eqr.recipes.load_recipe`.
        shipped: prefer the shipped weights, with which a page has the same numbers everywhere.
            Without, or where none are shipped, the store's are read, or trained now.
    """
    store, recipe = store or Store(), load_recipe(name, profile, seed=seed)
    run = shipped_run(recipe, store) if shipped else None
    return load_trained(run or train_run(recipe, store), store)


def shipped_run(recipe: Recipe, store: Store) -> Run | None:
    """The training of a recipe whose model the project ships, if it does."""
    if not MODELS.is_dir():
        return None
    config = train_config(recipe, dataset(recipe, store))
    return Store(MODELS).get(store.run_id("train", config))


def load_trained(run: Run, store: Store, device: str = "cpu") -> Trained:
    """A stored training with its recipe, data and model, on ``device``.

    Raises:
        ConfigError, DataError: an unknown setting; or another data set in the place of its own.
    """
    config = run.manifest["config"]
    recipe = recipe_from_dict(config["recipe"], f"{run.path / MANIFEST}: recipe")
    loaded = checkpoint.load_model(run.file("model.safetensors"), device)
    problems = data.trained_on(recipe, store.root / "data", config["data"])
    return Trained(run, recipe, problems, loaded)


def timing(run: Run) -> dict[str, Any]:
    """Whether the operator of a training or evaluation was ``fused``; a training's ``seconds``."""
    has = "timing.json" in run.manifest["files"]  # evaluations got theirs later
    return read_json(run.file("timing.json")) if has else {}


# --- Evaluations and measurements on a trained model ----------------------------------------------


def accuracy(exact: np.ndarray) -> dict[str, float]:
    """Columns ``n``, ``exact``, ``low`` and ``high`` for the accuracy of each problem, (P,)."""
    low, high = wilson(float(exact.sum()), len(exact))
    return {"n": len(exact), "exact": float(exact.mean()), "low": low, "high": high}


def table(
    records: Records,
    config: EvalConfig,
    breadths: Sequence[int],
    select: Sequence[str],
    layers: int | None = None,
) -> pd.DataFrame:
    """One row for each depth, breadth and selection rule.

    Columns: ``depth, breadth, select, noise, symmetry`` (of the restarts), ``n`` (problems),
    ``exact`` with its 95 % Wilson interval ``low, high``, ``token``, ``residual`` (mean of the
    chosen trajectories), ``nfe`` (of depth and breadth, see :meth:`eqr.config.EvalConfig.nfe`) and
    ``layers`` a problem, where the ``layers`` of an outer iteration are given. For the average
    over restarts the interval treats a problem, not a restart, as the unit (restarts of one
    problem are not independent): it errs on the wide side.

    Raises:
        ConfigError: an unknown rule, or a breadth that was not run.
    """
    check_selections(select)  # before the work, so that a misspelt rule costs nothing
    run = records.exact.shape[2]
    for breadth in breadths:
        if not 1 <= breadth <= run:
            raise ConfigError(f"breadth {breadth} was not run; at most {run}")
    rows = []
    for depth, breadth in itertools.product(records.depths.tolist(), breadths):
        outcomes, nfe = records.at(depth).first(breadth), config.nfe(depth, breadth)
        for name in select:
            exact, token, residual = selected(outcomes, name)
            row = {"depth": depth, "breadth": breadth, "select": name}
            row |= {"noise": config.noise, "symmetry": config.symmetry, **accuracy(exact)}
            row |= {"token": float(token.mean()), "residual": float(residual.mean()), "nfe": nfe}
            rows.append(row | ({"layers": nfe * layers} if layers else {}))
    return pd.DataFrame(rows)


def halting_table(
    rules: Mapping[str, Halted], config: EvalConfig, select: Sequence[str]
) -> pd.DataFrame:
    """One row for each halting rule and selection rule.

    Columns: ``halting`` (the rule), ``depth`` (its limit D), ``breadth, select, noise``, ``n``
    (problems), ``exact`` with its 95 % Wilson interval ``low, high`` (see :func:`table`),
    ``settled`` (share of the trajectories run that the rule let go), ``nfe`` (mean a problem),
    ``saving`` (the fixed budget D·B over it), ``seconds`` (wall time) and ``cpu_seconds``.

    Args:
        rules: what each did, by its text; the rows of ``fixed`` are the fixed budget.

    Raises:
        ConfigError: an unknown selection rule.
    """
    check_selections(select)
    rows, limit = [], config.depths[-1]
    for (rule, halted), name in itertools.product(rules.items(), select):
        ran, nfe = halted.depth > 0, float(halted.nfe.mean())
        if name == "average":  # over the restarts that were started
            exact = halted.exact.sum(1) / ran.sum(1)
        else:
            exact = selected(halted, name)[0]
        row = {"halting": rule, "depth": limit, "breadth": ran.shape[1], "select": name}
        row |= {"noise": config.noise, **accuracy(exact)}
        row |= {"settled": float((halted.halted_at[ran] < NEVER).mean()), "nfe": nfe}
        row |= {"saving": limit * ran.shape[1] / nfe, "seconds": halted.seconds}
        rows.append(row | {"cpu_seconds": halted.cpu_seconds})
    return pd.DataFrame(rows)


@dataclass(frozen=True, slots=True)
class EvalResult(Result):
    """A stored evaluation."""

    config: EvalConfig
    layers: int | None = None  # layer evaluations of one outer iteration, where they are known

    @property
    def records(self) -> Records:
        return Records(**self.arrays)

    def table(self, breadths: Sequence[int], select: Sequence[str]) -> pd.DataFrame:
        """The tidy table of :func:`table`."""
        return table(self.records, self.config, breadths, select, self.layers)


@dataclass(frozen=True, slots=True)
class HaltingResult(Result):
    """What several halting rules did in one stored run."""

    config: EvalConfig

    @property
    def rules(self) -> dict[str, Halted]:
        """What each rule did, by the text of the rule."""
        rules: dict[str, dict[str, Any]] = {}
        for name, values in self.arrays.items():
            rule, _, measure = name.partition("/")
            rules.setdefault(rule, {})[measure] = values[()]  # seconds as a number
        return {rule: Halted(**values) for rule, values in rules.items()}

    def table(self, select: Sequence[str]) -> pd.DataFrame:
        """The tidy table of :func:`halting_table`."""
        return halting_table(self.rules, self.config, select)


def read_result(run: Run) -> EvalResult | HaltingResult:
    """A run of kind ``eval`` or ``halting`` with its configuration.

    Raises:
        ConfigError: its configuration holds a setting that this version does not know.
    """
    config = from_dict(EvalConfig, run.manifest["config"]["eval"], f"{run.path / MANIFEST}: eval")
    kind = {"eval": EvalResult, "halting": HaltingResult}[run.manifest["kind"]]
    return kind(run, read_arrays(run).arrays, config)


def within(config: EvalConfig, model: Trained) -> EvalConfig:
    """The configuration with ``problems`` cut to those of its split that there are.

    Raises:
        ConfigError: the recipe's data have no such split.
    """
    splits = model.data.splits
    if config.split not in splits:
        raise ConfigError(f"eval.split {config.split!r}: the data of {model.recipe.name} have none")
    count = len(splits[config.split])
    return replace(config, problems=min(config.problems or count, count))


def evaluate_or_load(
    model: Trained,
    config: EvalConfig,
    store: Store | None = None,
    progress: data.Progress | None = None,
    level: Level | None = None,
) -> EvalResult:
    """Evaluate on a split of the recipe's problems or on a level's, or read what is stored."""
    store, config = store or Store(), within(config, model)

    def compute(directory: Path) -> dict[str, np.ndarray]:
        task, test = posed(model, config, level, store)
        operator = on_board(perturbed(model.model, config), task)
        rows = ROWS[model.model.device.type]
        long = evaluation_is_long(operator, config, rows)
        runner = compiled_copy(operator) if long else operator
        about = {"fused": runner is not operator}
        if level:
            about["problems"] = problems_digest(test)
        write_json(directory / "timing.json", about)
        problems = test.inputs, test.labels, config
        return records(runner, *problems, task=task, rows=rows, progress=progress).arrays()

    shift = {"level": level.named()} if level else {}
    about = model.config(eval=to_dict(config, defaults=False), **shift)
    result = store.arrays("eval", about, compute, name="records.npz")
    return EvalResult(result.run, result.arrays, config, model.recipe.model.layers)


def posed(
    model: Trained, config: EvalConfig, level: Level | None, store: Store
) -> tuple[Task, Problems]:
    """The task and the problems that an evaluation asks: a split of the recipe's, or a level's."""
    if level is None:
        return model.data.task, model.data.splits[config.split]

    def compute(_: Path) -> dict[str, np.ndarray]:
        problems = level_problems(level, model.data, config.problems)
        return {f.name: getattr(problems, f.name) for f in fields(problems)}

    about = {"data": model.data.digest, "level": level.named(), "problems": config.problems}
    result = store.arrays("problems", about, compute, name="problems.npz")
    return level.task_from(model.data.task), Problems(**result.arrays)


def halt_or_load(
    model: Trained,
    config: EvalConfig,
    rules: Sequence[str],
    store: Store | None = None,
    *,
    first_settled: float | None = None,
) -> HaltingResult:
    """Run halting rules on a split of the recipe's problems, or read the stored run.

    Accuracy, compute and wall time of all rules come from one process, one after the other; name
    ``"fixed"`` among them to have the fixed budget's beside.

    Args:
        config: its largest depth is the limit.
        rules: as :func:`eqr.halting.parse_rule` reads them.
        first_settled: as for :func:`eqr.halting.adaptive`.
    """
    config = within(config, model)
    asked = model.data.splits[config.split]
    parsed = {str(rule): rule for rule in map(parse_rule, rules)}

    def compute(_: Path) -> dict[str, np.ndarray]:
        arrays = {}
        for text, rule in parsed.items():
            halted = halting_records(
                model.model, asked.inputs, asked.labels, config, rule, first_settled=first_settled
            )
            # npz members are files: a rule's text holds ":" and "," but never "/".
            arrays |= {f"{text}/{name}": value for name, value in halted.arrays().items()}
        return arrays

    about = model.config(
        eval=to_dict(config, defaults=False), rules=list(parsed), first_settled=first_settled
    )
    result = (store or Store()).arrays("halting", about, compute, name="records.npz")
    return HaltingResult(result.run, result.arrays, config)


def measure_or_load(
    name: str,
    model: Trained,
    settings: Mapping[str, Any],
    measure: Callable[[], Mapping[str, np.ndarray]],
    store: Store | None = None,
) -> Result:
    """A measurement on a trained model, made now or read from the store.

    Args:
        name: of the measurement; with ``settings``, the weights and the data it makes the run's id.
        settings: JSON-ready values that the result depends on.
        measure: called if the store has no such run; returns the arrays to keep.
    """
    about = model.config(measurement=name, settings=dict(settings))
    return (store or Store()).arrays("measure", about, lambda _: measure())
