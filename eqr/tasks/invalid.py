"""Sudoku that should not be: with several solutions, or with none (chapter *Under shift*)."""

from __future__ import annotations

import numpy as np

from eqr.settings import ProblemError
from eqr.task import Problems
from eqr.tasks.sudoku import Sudoku
from eqr.tasks.sudoku_solver import geometry

TRIES = 200  # of givens taken from one puzzle, until a second solution appears


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
