"""Runs by name: a trained model, an evaluation; made once, then read from the store.

Notebooks, ``eqr train`` and the book's builder come through here, so that each of them finds what
another has already made. (``eqr eval`` computes anew and stores nothing.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqr import checkpoint, data, evaluate
from eqr.config import EvalConfig, Recipe, load_recipe, to_dict
from eqr.data import Dataset
from eqr.store import Run, Store
from eqr.train import Event, train


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model with all that a chapter wants to know about it."""

    run: Run
    recipe: Recipe
    data: Dataset
    checkpoint: checkpoint.Checkpoint

    @property
    def model(self):
        return self.checkpoint.model

    @property
    def seconds(self) -> float:
        """Wall time of the training, all sessions of a resumed run together."""
        return json.loads(self.run.file("timing.json").read_text())["seconds"]

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
        """The tidy table of :func:`eqr.evaluate.table`."""
        return evaluate.table(
            self.records,
            breadths=breadths,
            select=select,
            layers=self.layers,
            noise=self.config.noise,
        )


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
) -> Run | None:
    """Train a recipe unless the store has it; None if ``stop_after_s`` ended it early."""
    problems = dataset(recipe, store, on_data)

    def make(directory: Path) -> bool:
        events = train(recipe, problems, directory, device=device, stop_after_s=stop_after_s)
        for event in events:
            if on_event:
                on_event(event)
        return (directory / "model.safetensors").exists()

    named = train_named(recipe, problems)
    return store.obtain("train", named, make, scratch=["resume.safetensors"])


def train_named(recipe: Recipe, problems: Dataset) -> dict[str, Any]:
    """What the id of a training run hashes."""
    return {"recipe": to_dict(recipe, defaults=False), "data": problems.digest}


def trained(
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


def of_run(run: Run, recipe: Recipe, store: Store) -> Trained:
    """The trained model in a complete training run of ``recipe``."""
    loaded = checkpoint.load_model(run.file("model.safetensors"))
    return Trained(run, recipe, dataset(recipe, store), loaded)


def eval_named(model: Trained, config: EvalConfig) -> dict[str, Any]:
    """What the id of an evaluation hashes; ``problems`` is cut to what there is."""
    problems = min(config.problems or len(model.data.test), len(model.data.test))
    return {
        "weights": model.checkpoint.sha256,
        "data": model.data.digest,
        "eval": to_dict(replace(config, problems=problems), defaults=False),
    }


def evaluated(
    model: Trained,
    config: EvalConfig,
    store: Store | None = None,
) -> Evaluated:
    """Evaluate on the recipe's test problems, or read the stored evaluation."""
    test = model.data.test
    named = eval_named(model, config)
    config = replace(config, problems=named["eval"]["problems"])

    def make(directory: Path) -> None:
        kept = evaluate.records(model.model, test.inputs, test.labels, config)
        np.savez_compressed(
            directory / "records.npz", **{f.name: getattr(kept, f.name) for f in fields(kept)}
        )

    run = (store or Store()).obtain("eval", named, make)
    with np.load(run.file("records.npz"), allow_pickle=False) as arrays:
        kept = evaluate.Records(**arrays)
    return Evaluated(run, kept, config, model.recipe.model.layers)
