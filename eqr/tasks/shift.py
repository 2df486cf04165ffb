"""Shifted problems: what a model is asked that it was not trained on (chapter *Under shift*).

A *level* is one severity of a shift: fields of the task that differ from training, or givens that
were spoiled. Its problems are a function of the level, the data set and their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eqr import locate
from eqr.config import digest
from eqr.data import DataError, Dataset, join, load, take_rows
from eqr.streams import stream_seed
from eqr.task import Problems, Task, task_from_dict, task_to_dict
from eqr.tasks import invalid

#: How often a pool of problems is drawn before a level counts as out of reach.
POOLS = 40


@dataclass(frozen=True, slots=True)
class Level:
    """One severity of a shift."""

    name: str
    task: Mapping[str, Any] = field(default_factory=dict)  # fields instead of the training task's
    spoil: str = ""  # "several:2": so many givens taken away; "unsolvable": one given changed
    title: str = ""
    source: str = ""  # a data set directory: its test problems, instead of generated ones
    pin: str = ""  # the problems_digest of all of these

    def __post_init__(self) -> None:
        if self.source and not self.pin:
            raise ValueError(f"level {self.name}: a source needs its pin, to name its content")

    def named(self) -> dict[str, Any]:
        """What its problems depend on, for hashing."""
        named = {"task": dict(self.task), "spoil": self.spoil}
        return named | {"source": self.source, "pin": self.pin} if self.source else named

    def task_from(self, trained: Task) -> Task:
        """The task it poses to a model trained on ``trained``."""
        return task_from_dict(task_to_dict(trained) | dict(self.task))


def level_problems(level: Level, dataset: Dataset, n: int) -> Problems:
    """The first n problems of a level.

    None that is generated shares its :meth:`Task.symmetry_key` with a training problem (for boards
    of one size): the solution grid of a Sudoku, the walls of a maze. Spoiled ones come from the
    test problems, which share none either; a source's problems are taken as they are.

    Raises:
        DataError: too few problems differ from the training ones, or too few to be spoiled; or
            the level's source is absent or holds other problems.
        ProblemError: the task cannot be generated.
    """
    task, seed = level.task_from(dataset.task), stream_seed(0, "shift")
    if level.source:
        return sourced(level, task, n)
    if level.spoil:
        kind, _, taken = level.spoil.partition(":")
        if len(dataset.test) < n:
            raise DataError(f"level {level.name}: {len(dataset.test)} test problems, wanted {n}")
        if kind == "several":
            return invalid.several(task, take_rows(dataset.test, range(n)), int(taken), seed)
        return invalid.unsolvable(task, dataset.test, n, seed)
    comparable = task.same_board(dataset.task)
    train = dataset.train
    known = set(task.symmetry_key(train.inputs, train.labels)) if comparable else set()
    found: list[Problems] = []
    have = 0
    for pool in range(POOLS):
        drawn = task.generate(n, seed, pool * n)
        keys = task.symmetry_key(drawn.inputs, drawn.labels) if comparable else [b""] * n
        fresh = take_rows(drawn, [i for i, key in enumerate(keys) if key not in known][: n - have])
        found.append(fresh)
        have += len(fresh)
        if have == n:
            return join(found)
    raise DataError(
        f"level {level.name}: {have} of {n} problems differ from the training ones up to symmetry; "
        "ask for fewer"
    )


def sourced(level: Level, task: Task, n: int) -> Problems:
    """The first n test problems of the level's source, or all there are; see there."""
    folder = Path(level.source)
    found = load(locate(folder))
    if not task.same_board(found.task):
        raise DataError(f"{folder}: holds problems of another board than level {level.name} asks")
    if problems_digest(found.test) != level.pin:
        raise DataError(
            f"{folder}: test problems are not those of level {level.name} (digest "
            f"{problems_digest(found.test)}, wanted {level.pin}); import them anew"
        )
    return take_rows(found.test, range(min(n, len(found.test))))


def problems_digest(problems: Problems) -> str:
    """Sixteen hex digits over inputs and labels: which problems a level posed."""
    arrays = (problems.inputs, problems.labels)
    return digest([np.ascontiguousarray(a).tobytes().hex() for a in arrays])
