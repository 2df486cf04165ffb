"""What a model is asked that it was not trained on, and under other conditions (*Under shift*).

A *level* is one severity of a shift: fields of the task that differ from training, or givens that
were spoiled. Its problems are a function of the level, the data set and their number. A model
itself is perturbed by noise on its weights, another precision, or a board of another size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqr import locate
from eqr.config import EvalConfig
from eqr.data import DataError, Dataset, join, load, take_rows
from eqr.model import Reasoner
from eqr.settings import ConfigError, ProblemError, digest
from eqr.streams import stream, stream_seed
from eqr.task import Problems, Task, task_from_dict, task_to_dict
from eqr.tasks.sudoku import Sudoku
from eqr.tasks.sudoku_solver import geometry

#: How often a pool of problems is drawn before a level counts as out of reach.
POOLS = 40
TRIES = 200  # of givens taken from one puzzle, until a second solution appears


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
            return several(task, take_rows(dataset.test, range(n)), int(taken), seed)
        return unsolvable(task, dataset.test, n, seed)
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


# --- Sudoku that should not be: with several solutions, or with none ------------------------------


def several(task: Sudoku, problems: Problems, taken: int, seed: int) -> Problems:
    """Puzzles with ``taken`` random givens less, which have several solutions.

    The labels stay those of the whole puzzles: one solution of several. From minimal puzzles any
    given will do; from others draws that leave one solution are dropped.

    Raises:
        ProblemError: fewer than 1 or more than all givens are to be taken, or no draw leaves
            several solutions.
    """
    if taken < 1:
        raise ProblemError(f"taken={taken} must be at least 1")

    inputs = np.empty_like(problems.inputs)
    for i, puzzle in enumerate(problems.inputs):
        rng, givens = np.random.default_rng((seed, i)), np.flatnonzero(puzzle > 1)
        if taken > len(givens):
            raise ProblemError(f"taken={taken}: puzzle {i} has {len(givens)} givens")
        for _ in range(TRIES):
            spoiled = puzzle.copy()
            spoiled[rng.choice(givens, taken, replace=False)] = 1
            if task.count_solutions(spoiled) > 1:
                break
        else:
            raise ProblemError(
                f"puzzle {i} keeps one solution without {taken} of its givens, in {TRIES} tries: "
                "take more away, or start from minimal puzzles"
            )
        inputs[i] = spoiled
    return Problems(inputs, problems.labels, problems.rating)


def unsolvable(task: Sudoku, problems: Problems, n: int, seed: int) -> Problems:
    """The first n puzzles in which one given can be changed such that no two givens clash and yet
    no solution is left. Puzzles without such a change (few) are skipped.

    The labels stay those of the whole puzzles, and are wrong: nothing would be right.

    Raises:
        ProblemError: fewer than n of the puzzles have such a change.
    """
    units, unit_of = geometry(task.box_height, task.box_width)
    rows, changed = [], []
    for i, puzzle in enumerate(problems.inputs):
        if len(rows) == n:
            break
        pairs = [(c, t) for c in np.flatnonzero(puzzle > 1) for t in range(2, task.vocab_size)]
        for at in np.random.default_rng((seed, i)).permutation(len(pairs)):
            cell, token = pairs[at]
            if token in puzzle[units[unit_of[cell]]]:  # a clash, or the digit that is there
                continue
            spoiled = puzzle.copy()
            spoiled[cell] = token
            if task.count_solutions(spoiled, 1) == 0:
                rows.append(i)
                changed.append(spoiled)
                break
    if len(rows) < n:
        raise ProblemError(f"{len(rows)} of {len(problems)} puzzles can be spoiled, wanted {n}")
    return Problems(np.stack(changed), problems.labels[rows], problems.rating[rows])


# --- The model under other conditions -------------------------------------------------------------


@torch.no_grad()
def perturbed(model: Reasoner, config: EvalConfig) -> Reasoner:
    """The model as ``config`` wants it run; itself where that changes nothing.

    ``weight_noise`` adds to every weight a normal draw of so many times the root mean square of its
    tensor, from a stream of ``config.seed``; ``dtype`` converts weights, and with them all latents.
    """
    if not config.weight_noise and config.dtype == "float32":
        return model
    changed = copy.deepcopy(model)
    for index, weight in enumerate(changed.parameters()):
        if config.weight_noise:
            draw = torch.randn(weight.shape, generator=stream(config.seed, "weights", index))
            size = config.weight_noise * weight.square().mean().sqrt()
            weight += size * draw.to(weight.device)
    return changed.to(getattr(torch, config.dtype))


def on_board(model: Reasoner, task: Task) -> Reasoner:
    """The model on the board of ``task``, with the same weights; itself where the size is equal.

    Raises:
        ConfigError: the vocabulary differs, or weights are bound to the number of cells.
    """
    if (model.height, model.width, model.vocab_size) == (task.height, task.width, task.vocab_size):
        return model
    moved = Reasoner.for_task(task, model.config)
    size = f"{model.height}x{model.width}"
    try:
        moved.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"a model for {size} boards cannot be asked about {task.height}x{task.width}: only "
            'model.mixer = "attention" and the same vocabulary leave the size open'
        ) from error
    return moved.to(model.device, model.lm_head.weight.dtype).eval().requires_grad_(False)
