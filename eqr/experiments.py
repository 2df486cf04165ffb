"""Runs by name: a trained model, an evaluation; made once, then read from the store.

Notebooks, ``eqr train`` and the book's builder come through here, so that each of them finds what
another has already made. (``eqr eval`` computes anew and stores nothing.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr import checkpoint, data, evaluate, tables
from eqr.compiled import compiled_copy, evaluation_is_long
from eqr.config import EvalConfig, Recipe, recipe_from_dict, to_dict
from eqr.data import Dataset
from eqr.halting import Halted, halting_records, parse_rule
from eqr.model import Reasoner
from eqr.parallel import ALONE, World
from eqr.recipes import load_recipe
from eqr.select import Outcomes
from eqr.store import MANIFEST, Run, Store
from eqr.task import Problems, Task
from eqr.tasks.perturb import on_board, perturbed
from eqr.tasks.shift import Level, level_problems, problems_digest
from eqr.train import Event, train

#: Trajectories in flight in a stored evaluation.
ROWS = {"cpu": 256, "mps": 1024, "cuda": 4096}


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
        lines = self.run.file("log.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == kind]
        return pd.DataFrame(rows).drop(columns="kind")


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Records of an evaluation and where they come from."""

    run: Run
    records: evaluate.Records
    config: EvalConfig
    layers: int  # layer evaluations of one outer iteration

    def table(self, breadths: Sequence[int], select: Sequence[str]) -> pd.DataFrame:
        """The tidy table of :func:`eqr.tables.table`."""
        return tables.table(
            self.records,
            breadths=breadths,
            select=select,
            layers=self.layers,
            noise=self.config.noise,
            symmetry=self.config.symmetry,
            nfe=self.config.nfe,
        )


@dataclass(frozen=True, slots=True)
class HaltingRun:
    """What several halting rules did in one stored run, and where it comes from."""

    run: Run
    kept: dict[str, Halted]  # by the text of the rule
    config: EvalConfig

    def table(self, select: Sequence[str]) -> pd.DataFrame:
        """The tidy table of :func:`eqr.tables.halting_table`."""
        limit, noise = self.config.depths[-1], self.config.noise
        return tables.halting_table(self.kept, select=select, limit=limit, noise=noise)


def dataset(recipe: Recipe, store: Store, progress: data.Progress | None = None) -> Dataset:
    """The data set of a recipe; generated ones are kept beside the store's runs."""
    return data.for_recipe(recipe, store.root / "data", progress)


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

    problems = dataset(recipe, store, on_data)
    named = train_named(recipe, problems)
    run = store.obtain("train", named, make, scratch=["resume.safetensors"])
    if not shared:
        world.share(None)  # there was nothing to train
    world.share(run and run.id)
    return run


def train_named(recipe: Recipe, problems: Dataset) -> dict[str, Any]:
    """What the id of a training run hashes."""
    return {"recipe": to_dict(recipe, defaults=False), "data": problems.digest}


def train_or_load(
    name: str,
    profile: str = "laptop",
    seed: int = 0,
    store: Store | None = None,
) -> Trained:
    """The trained model of a recipe, trained now if the store does not have it.

    Args:
        name, profile, seed: of the recipe, see :func:`eqr.config.load_recipe`.
    """
    store = store or Store()
    recipe = load_recipe(name, profile, seed=seed)
    return of_run(train_run(recipe, store), recipe, store)


def timing(run: Run) -> dict[str, Any]:
    """Whether the operator of a training or evaluation was ``fused``; a training's ``seconds``."""
    has = "timing.json" in run.manifest["files"]  # evaluations got theirs later
    return json.loads(run.file("timing.json").read_text()) if has else {}


def of_run(run: Run, recipe: Recipe, store: Store, device: str = "cpu") -> Trained:
    """The trained model in a complete training run of ``recipe``, on ``device``."""
    loaded = checkpoint.load_model(run.file("model.safetensors"), device)
    return Trained(run, recipe, dataset(recipe, store), loaded)


def halt_or_load(
    model: Trained,
    config: EvalConfig,
    rules: Sequence[str],
    store: Store | None = None,
    *,
    first_settled: float | None = None,
) -> HaltingRun:
    """Run halting rules on the recipe's test problems, or read the stored run.

    Accuracy, compute and wall time of all rules come from one process, one after the other; name
    ``"fixed"`` among them to have the fixed budget's beside.

    Args:
        config: its largest depth is the limit.
        rules: as :func:`eqr.halting.parse_rule` reads them.
        first_settled: as for :func:`eqr.halting.adaptive`.
    """
    test, config = model.data.test, within(config, model)
    parsed = {str(rule): rule for rule in map(parse_rule, rules)}
    measures = [f.name for f in fields(Halted) if f.name != "outcomes"]

    def make(directory: Path) -> None:
        arrays = {}
        for text, rule in parsed.items():
            kept = halting_records(
                model.model, test.inputs, test.labels, config, rule, first_settled=first_settled
            )
            arrays |= {f"{text}/{f.name}": getattr(kept.outcomes, f.name) for f in fields(Outcomes)}
            arrays |= {f"{text}/{name}": getattr(kept, name) for name in measures}
        # npz members are files: a rule's text holds ":" and "," but never "/".
        np.savez_compressed(directory / "records.npz", **arrays)

    named = {
        "weights": model.checkpoint.sha256,
        "data": model.data.digest,
        "eval": to_dict(config, defaults=False),
        "rules": list(parsed),
        "first_settled": first_settled,
    }
    run = (store or Store()).obtain("halting", named, make)
    return HaltingRun(run, read_halted(run), config)


def read_halted(run: Run) -> dict[str, Halted]:
    """What each rule of a stored halting run did, by the text of the rule."""
    measures = [f.name for f in fields(Halted) if f.name != "outcomes"]
    with np.load(run.file("records.npz"), allow_pickle=False) as arrays:
        return {
            text: Halted(
                Outcomes(**{f.name: arrays[f"{text}/{f.name}"] for f in fields(Outcomes)}),
                **{name: arrays[f"{text}/{name}"][()] for name in measures},
            )
            for text in run.manifest["config"]["rules"]
        }


def within(config: EvalConfig, model: Trained) -> EvalConfig:
    """The configuration with ``problems`` cut to the test problems that there are."""
    count = len(model.data.test)
    return replace(config, problems=min(config.problems or count, count))


def eval_named(model: Trained, config: EvalConfig, level: Level | None = None) -> dict[str, Any]:
    """What the id of an evaluation hashes."""
    named = {
        "weights": model.checkpoint.sha256,
        "data": model.data.digest,
        "eval": to_dict(within(config, model), defaults=False),
    }
    return named | {"level": level.named()} if level else named


def posed(
    model: Trained, config: EvalConfig, level: Level | None, store: Store
) -> tuple[Task, Problems]:
    """The task and the problems that an evaluation asks: the recipe's test set, or a level's."""
    if level is None:
        return model.data.task, model.data.test
    count = within(config, model).problems

    def make(directory: Path) -> None:
        problems = level_problems(level, model.data, count)
        arrays = {f.name: getattr(problems, f.name) for f in fields(problems)}
        np.savez_compressed(directory / "problems.npz", **arrays)

    named = {"data": model.data.digest, "level": level.named(), "problems": count}
    run = store.obtain("problems", named, make)
    with np.load(run.file("problems.npz"), allow_pickle=False) as arrays:
        return level.task_from(model.data.task), Problems(**arrays)


def evaluate_or_load(
    model: Trained,
    config: EvalConfig,
    store: Store | None = None,
    progress: data.Progress | None = None,
    level: Level | None = None,
) -> Evaluated:
    """Evaluate on the recipe's test problems or those of a level, or read the stored evaluation."""
    store, config = store or Store(), within(config, model)
    named = eval_named(model, config, level)

    def make(directory: Path) -> None:
        task, test = posed(model, config, level, store)
        operator = on_board(perturbed(model.model, config), task)
        rows = ROWS[model.model.device.type]
        long = evaluation_is_long(operator, config, rows)
        runner = compiled_copy(operator) if long else operator
        about = {"fused": runner is not operator}
        if level:
            about["problems"] = problems_digest(test)
        (directory / "timing.json").write_text(json.dumps(about) + "\n")
        kept = evaluate.records(
            runner,
            test.inputs,
            test.labels,
            config,
            task=task,
            rows=rows,
            progress=progress,
        )
        np.savez_compressed(directory / "records.npz", **kept.arrays())

    run = store.obtain("eval", named, make)
    return Evaluated(run, read_records(run), config, model.recipe.model.layers)


def read_records(run: Run) -> evaluate.Records:
    """The records of a stored evaluation."""
    with np.load(run.file("records.npz"), allow_pickle=False) as arrays:
        return evaluate.Records(**arrays)


@dataclass(frozen=True, slots=True)
class Measured:
    """Named arrays of a measurement on a trained model, and where they come from."""

    run: Run
    arrays: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]


def measure_or_load(
    name: str,
    model: Trained,
    settings: Mapping[str, Any],
    measure: Callable[[], Mapping[str, np.ndarray]],
    store: Store | None = None,
) -> Measured:
    """A measurement on a trained model, made now or read from the store.

    Args:
        name: of the measurement; with ``settings``, the weights and the data it makes the run's id.
        settings: JSON-ready values that the result depends on.
        measure: called if the store has no such run; returns the arrays to keep.
    """

    def make(directory: Path) -> None:
        kept = {key: np.asarray(value) for key, value in measure().items()}
        np.savez_compressed(directory / "arrays.npz", **kept)

    named = {
        "measurement": name,
        "weights": model.checkpoint.sha256,
        "data": model.data.digest,
        "settings": dict(settings),
    }
    run = (store or Store()).obtain("measure", named, make)
    with np.load(run.file("arrays.npz"), allow_pickle=False) as arrays:
        return Measured(run, dict(arrays))


def load_trained(run: Run, store: Store) -> Trained:
    """A stored training with its recipe, data and model, rebuilt from its manifest.

    Raises:
        ConfigError: the recipe holds a setting that this version does not know.
    """
    recipe = recipe_from_dict(run.manifest["config"]["recipe"], f"{run.path / MANIFEST}: recipe")
    loaded = checkpoint.load_model(run.file("model.safetensors"))
    return Trained(run, recipe, dataset(recipe, store), loaded)
