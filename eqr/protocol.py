"""Evaluate as the paper does: named settings as data, and the published numbers beside ours."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

import pandas as pd
import typer
from pydantic import Field, Strict

from eqr import SHIPPED
from eqr.config import Count, Dtype, EvalConfig, Size
from eqr.recipes import RECIPES
from eqr.select import check_selections
from eqr.settings import ConfigError, from_dict, nearest, settings
from eqr.stats import mean_interval

PROTOCOLS = RECIPES / "protocols.toml"
PUBLISHED = SHIPPED / "registry" / "results.csv"
TASKS = {"sudoku": "Sudoku-Extreme", "maze": "Maze-Unique"}  # whose numbers are published


@settings
class Protocol:
    """What a protocol fixes; everything else is as ``eqr eval`` has it."""

    section: ClassVar[str] = "protocol"
    depth: Count
    breadth: Count
    noise: dict[str, Size]  # β by the kind of the task
    select: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    problems: Count | None = None  # the first so many; None: all
    seeds: Count = 1
    dtype: Dtype = "float32"

    def config(self, task: str, seed: int, problems: int | None = None) -> EvalConfig:
        """The evaluation with one seed.

        Raises:
            ConfigError: the protocol says nothing about tasks of this kind.
        """
        if task not in self.noise:
            known = " and ".join(self.noise)
            raise ConfigError(
                f"the protocols say nothing about {task}, only about {known}: use --depth, "
                "--breadth and --noise"
            )
        return EvalConfig(
            (self.depth,), self.breadth, self.noise[task], seed=seed,
            problems=problems or self.problems, dtype=self.dtype,
        )  # fmt: skip


FIXES = ("depth", "breadth", "select", "noise", "symmetry", "window")  # options of `eqr eval`


def load_protocol(name: str, given: typer.Context | None = None) -> Protocol:
    """A protocol by name.

    Raises:
        ConfigError: there is none (with the near miss), or the command was ``given`` an option that
            the protocol fixes.
    """
    for option in FIXES if given else ():
        if given.get_parameter_source(option).name == "COMMANDLINE":
            raise ConfigError(f"--protocol {name} says what --{option} is: leave one of them out")
    known = tomllib.loads(PROTOCOLS.read_text(encoding="utf-8"))
    if name not in known:
        raise ConfigError(f"protocol {name!r} is not known; {nearest(name, known)}")
    protocol = from_dict(Protocol, known[name], name)
    check_selections(protocol.select)
    return protocol


def over_seeds(
    protocol: Protocol, seed: int, evaluate: Callable[[int], pd.DataFrame]
) -> pd.DataFrame:
    """The table of ``evaluate(seed)``; of several seeds their mean, with its 95 % t interval."""
    tables = [evaluate(seed + k) for k in range(protocol.seeds)]
    table = tables[0].assign(seeds=protocol.seeds)
    if protocol.seeds > 1:
        for row in table.index:
            interval = mean_interval([one.exact[row] for one in tables])
            table.loc[row, ["exact", "low", "high"]] = interval.mean, interval.low, interval.high
            for name in ("token", "residual"):
                table.loc[row, name] = sum(one[name][row] for one in tables) / len(tables)
    return table


def published(protocol: Protocol, task: str, path: Path = PUBLISHED) -> pd.DataFrame:
    """The published numbers at a protocol's depth and breadth, of EqR and what it is compared with.

    Columns are those of the registry: ``model, test_set, beta, selection, n, exact`` (per cent),
    ``numerics, reference, evidence``; empty where a source does not say.
    """
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    same = (table.task == TASKS.get(task)) & (table.depth == str(protocol.depth))
    same &= table.breadth == str(protocol.breadth)
    columns = ["model", "test_set", "beta", "selection", "n", "exact", "numerics", "reference"]
    return table[same][[*columns, "evidence"]]
