"""Evaluate as the paper does: named settings as data, and the published numbers beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field, Strict

from eqr.config import Count, Dtype, EvalConfig, Size
from eqr.files import read_toml
from eqr.recipes import RECIPES
from eqr.select import check_selections
from eqr.settings import ConfigError, from_dict, nearest, settings
from eqr.stats import wilson
from eqr.task import Task

PROTOCOLS = RECIPES / "protocols.toml"
#: The tasks whose numbers are published, by kind, height and width of the board.
TASKS = {("sudoku", 9, 9): "Sudoku-Extreme", ("maze", 30, 30): "Maze-Unique"}


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


def load_protocol(name: str) -> Protocol:
    """A protocol by name; ConfigError with the near miss where there is none."""
    known = read_toml(PROTOCOLS)
    if name not in known:
        raise ConfigError(f"protocol {name!r} is not known; {nearest(name, known)}")
    protocol = from_dict(Protocol, known[name], name)
    check_selections(protocol.select)
    return protocol


def over_seeds(
    protocol: Protocol, seed: int, evaluate: Callable[[int], pd.DataFrame]
) -> pd.DataFrame:
    """The mean of the tables of ``evaluate(seed)``, and ``sd`` over the seeds.

    The 95 % Wilson interval is that of one seed's number of problems, which all seeds share.
    """
    tables = [evaluate(seed + k) for k in range(protocol.seeds)]
    every = np.array([table.exact for table in tables])
    table = tables[0].assign(exact=every.mean(0), seeds=protocol.seeds)
    for name in ("token", "residual"):
        table[name] = np.mean([one[name] for one in tables], axis=0)
    bounds = [wilson(exact * n, n) for exact, n in zip(table.exact, table.n, strict=True)]
    table[["low", "high"]] = bounds
    return table.assign(sd=every.std(0, ddof=1)) if protocol.seeds > 1 else table


def published_beside(protocol: Protocol, task: Task) -> pd.DataFrame:
    """The published numbers at a protocol's depth and breadth, of EqR and what it is compared with;
    none where the board is not that of a published task.

    Columns are those of the registry: ``model, test_set, beta, selection, n, exact`` (per cent),
    ``numerics, reference, evidence``; empty where a source does not say.
    """
    from eqr.studies.registry import published  # which reads the studies, too

    table = published()
    board = TASKS.get((task.kind, task.height, task.width))
    same = (table.task == board) & (table.depth == protocol.depth)
    columns = ["model", "test_set", "beta", "selection", "n", "exact", "numerics", "reference"]
    chosen = table[same & (table.breadth == protocol.breadth)][[*columns, "evidence"]]
    return chosen.astype(object).where(chosen.notna(), "")
