"""What a study is made of: evaluations, rows, and rows that are read together.

A row is a recipe with some settings replaced, and the evaluations it needs; nothing here runs. The
studies themselves are in :mod:`eqr.studies.rows` and :mod:`eqr.studies.rows_shift`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eqr.config import EvalConfig, Recipe
from eqr.recipes import load_recipe
from eqr.settings import ConfigError, nearest
from eqr.tasks.shift import Level

DEPTHS = (1, 2, 4, 8, 16, 32, 64)
RULES = ("average", "converged", "majority", "oracle")
NO_HALTING = {"train.halting": "limit", "train.halt_weight": 0.0}
FIXED = {"model.init": "fixed", "model.damping": 0.0, "model.noise": 0.0}
ONE_PASS = {
    "model.hierarchical": False,
    "model.high_cycles": 1,
    "model.low_cycles": 6,
    "train.halt_max": 1,
    **NO_HALTING,
}
FEEDFORWARD = ONE_PASS | {"model.low_cycles": 1, "model.blocks": 6}
#: What an evaluation can keep of every trajectory: the residual at its largest depth; whether the
#: rules accept its answer, at all depths; and which restart was the first with the same answer.
KEPT = ("residual", "checked", "answer")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of a trained model; its name tells rows of equal depth and breadth apart."""

    name: str
    config: EvalConfig
    breadths: tuple[int, ...] = (1,)
    select: tuple[str, ...] = ("average",)
    level: Level | None = None  # problems of a shift; None: the recipe's, of config.split
    keep: tuple[str, ...] = ()  # of KEPT, beside which problems were solved

    def within(self, profile: str) -> Evaluation:
        """As it is run in ``profile``: smoke tests stop at breadth 8, and at depth 64 where
        nothing but outcomes is kept."""
        if profile != "smoke":
            return self
        depths = tuple(d for d in self.config.depths if d <= 64 or self.keep)
        paths = self.config.branches
        breadth = min(self.config.breadth, 8 // paths * paths)
        breadths = tuple(b for b in self.breadths if b <= breadth) or (breadth,)
        small = {"depths": depths, "breadth": breadth}
        if self.level:  # whose problems are made to measure
            small["problems"] = min(self.config.problems, 16)
        return replace(self, config=replace(self.config, **small), breadths=breadths)


@dataclass(frozen=True, slots=True)
class Published:
    """A figure of the paper: exact accuracy in per cent."""

    table: str
    value: float
    task: str = "Sudoku-Extreme"


@dataclass(frozen=True, slots=True)
class Row:
    """One model of a study."""

    name: str
    title: str
    recipe: str
    evaluate: tuple[Evaluation, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)  # dotted, as load_recipe takes
    scale: Mapping[str, float] = field(default_factory=dict)  # dotted: times the recipe's own value
    paper: tuple[Published, ...] = ()
    depth: int = 16  # the depth that is compared with the paper's figure
    seeds: int = 3
    weights: str = ""  # the study whose shipped models are evaluated; empty: trained here

    def build(self, profile: str, seed: int) -> Recipe:
        """The recipe of this row."""
        base = load_recipe(self.recipe, profile)
        scaled = {}
        for dotted, factor in self.scale.items():
            section, _, key = dotted.rpartition(".")
            scaled[dotted] = max(1, round(factor * getattr(getattr(base, section), key)))
        return load_recipe(self.recipe, profile, seed=seed, overrides={**self.overrides, **scaled})

    def evaluations(self, profile: str) -> tuple[Evaluation, ...]:
        """The evaluations as they are run in ``profile``."""
        return tuple(e.within(profile) for e in self.evaluate)

    def seed_range(self, profile: str) -> range:
        """The seeds it is run with unless others are asked for."""
        return range(min(self.seeds, 2) if profile == "smoke" else self.seeds)


@dataclass(frozen=True, slots=True)
class Study:
    """Rows that are read together."""

    name: str
    title: str
    tables: str  # what of the paper it redoes
    matched: str  # what is held equal between the rows
    rows: tuple[Row, ...]
    profiles: tuple[str, ...] = ("smoke", "laptop")  # that it is run in

    def row(self, name: str) -> Row:
        """A row by name; ConfigError with the near miss where there is none."""
        known = {row.name: row for row in self.rows}
        if name not in known:
            raise ConfigError(f"study {self.name!r} has no row {name!r}; {nearest(name, known)}")
        return known[name]
