"""The cells of a study: one row with one seed, and what the store has of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eqr import experiments
from eqr.config import Recipe, to_dict
from eqr.cost import Cost, cost
from eqr.data import NoDataSet
from eqr.experiments import Evaluated, Trained
from eqr.settings import ConfigError
from eqr.store import Store
from eqr.studies.rows import Evaluation, Study, study


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a study with one seed."""

    study: str
    profile: str
    row: str
    seed: int

    def recipe(self) -> Recipe:
        return study(self.study).row(self.row).build(self.profile, self.seed)

    def evaluations(self) -> tuple[Evaluation, ...]:
        return study(self.study).row(self.row).evaluations(self.profile)

    def train_id(self, store: Store) -> str | None:
        """The id of its training run; None where its data set is not at hand to be hashed."""
        recipe = self.recipe()
        try:
            problems = experiments.dataset(recipe, store)
        except NoDataSet:
            return None
        return store.run_id("train", experiments.train_named(recipe, problems))

    def __str__(self) -> str:
        return f"{self.row} seed {self.seed}"


def cells_of(
    wanted: Study, profile: str, rows: Iterable[str] | None, seeds: Sequence[int] | None
) -> list[Cell]:
    """The cells asked for; None takes all rows, and each row's own number of seeds.

    Raises:
        ConfigError: the study is not run in the profile, or has no such row.
    """
    if profile not in wanted.profiles:
        raise ConfigError(
            f"study {wanted.name!r} is not run in profile {profile!r}; say --profile "
            f"{' or '.join(wanted.profiles)}"
        )
    names = list(rows) if rows is not None else [row.name for row in wanted.rows]
    return [
        Cell(wanted.name, profile, name, seed)
        for name in names
        for seed in (seeds if seeds is not None else wanted.row(name).seed_range(profile))
    ]


def stored_cost(recipe: Recipe, store: Store, *, make: bool = True) -> Cost | None:
    """The cost of a recipe, which does not depend on its seed; None if absent and not made."""
    values = to_dict(recipe, defaults=False)
    problems = experiments.dataset(recipe, store)
    named = {"recipe": {k: v for k, v in values.items() if k != "seed"}, "data": problems.digest}

    def write(directory: Path) -> None:
        (directory / "cost.json").write_text(json.dumps(asdict(cost(recipe, problems))))

    if not make:
        run = store.get(store.run_id("cost", named))
    else:
        run = store.obtain("cost", named, write)
    return Cost(**json.loads(run.file("cost.json").read_text())) if run else None


@dataclass(frozen=True, slots=True)
class Done:
    """A finished cell: all of its evaluations, save perhaps some that its study got later."""

    cell: Cell
    model: Trained
    evaluated: tuple[tuple[Evaluation, Evaluated], ...]
    cost: Cost

    @property
    def complete(self) -> bool:
        """Whether it has those too."""
        return len(self.evaluated) == len(self.cell.evaluations())

    def origins(self) -> list[dict[str, Any]]:
        """Commit, hardware and time of the stored runs behind it."""
        runs = [self.model.run, *(found.run for _, found in self.evaluated)]
        return [run.manifest["provenance"] for run in runs]


def finished(cell: Cell, store: Store) -> Done | None:
    """What the store has of a cell, if that is all of it; makes nothing and waits for nobody.

    Evaluations that were added to the study later may be absent, so that adding one takes no cell
    out of the study's files before it has been run: see :attr:`Done.complete`.
    """
    run_id = cell.train_id(store)
    recipe, run = cell.recipe(), store.get(run_id) if run_id else None
    if not run:
        return None
    model = experiments.of_run(run, recipe, store)
    have = []
    for one in cell.evaluations():
        named = experiments.eval_named(model, one.config, one.level)
        if store.get(store.run_id("eval", named)):
            have.append(one)
        elif not one.added:
            return None
    price = stored_cost(recipe, store, make=False)
    if not price:
        return None
    found = tuple((e, experiments.evaluated(model, e.config, store, level=e.level)) for e in have)
    return Done(cell, model, found, price)
