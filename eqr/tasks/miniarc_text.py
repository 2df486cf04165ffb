"""Problems of Mini-ARC as one line of text, and as boards for a terminal.

A grid is 25 digits, row by row; what tells the rule stands before it, see
:meth:`eqr.tasks.miniarc.MiniArc.parse`.
"""

from __future__ import annotations

import numpy as np

from eqr.settings import ProblemError, nearest
from eqr.tasks import miniarc_source as source
from eqr.tasks.miniarc_source import CELLS, SIDE

FIRST, TURN, NAME = 2, 12, 20  # tokens of colour 0, of the first orientation, of the first task
BLANK = "." * CELLS


def read_grid(where: str, text: str) -> np.ndarray:
    """Tokens (25,) of a grid; ``where`` begins the message of a ProblemError."""
    if len(text) != CELLS:
        raise ProblemError(f"{where} has {len(text)} characters; expected {CELLS} digits")
    for number, char in enumerate(text, 1):
        if not "0" <= char <= "9":
            raise ProblemError(f"{where}: character {number} is {char!r}; colours are 0 to 9")
    return np.array([int(char) + FIRST for char in text], np.uint8)


def read_demonstrations(words: list[str], most: int) -> np.ndarray:
    """Tokens (most · 50,) of demonstrations ``input>output``, or ``-`` for none."""
    cells = np.zeros((most, 2, CELLS), np.uint8)
    if not 1 <= len(words) <= most:
        raise ProblemError(
            f"{len(words)} demonstrations; this model takes 1 to {most}, each as input>output, and "
            "then the grid"
        )
    for number, word in enumerate(words, 1):
        halves, where = word.split(">"), f"demonstration {number}"
        if word == "-":
            continue
        if len(halves) != 2:
            raise ProblemError(f"{where} must be input>output, two grids of {CELLS} digits")
        cells[number - 1] = [read_grid(where, half) for half in halves]
    if not cells.any():
        raise ProblemError("no demonstration but '-': give at least one as input>output")
    return cells.ravel()


def read_name(words: list[str], tasks: int) -> np.ndarray:
    """The prefix (15,) of task, orientation and palette, the latter two optional."""
    if len(words) not in (1, 3):
        raise ProblemError(
            "give the task's name or number and the grid, or name, orientation, palette and grid"
        )
    name, turn, palette = words if len(words) == 3 else (*words, "0", "0123456789")
    known = [rule.name for rule in source.shipped()]
    begins = [i for i, other in enumerate(known) if other.startswith(name)]
    number = int(name) if name.isdecimal() else begins[0] if len(begins) == 1 else -1
    if not 0 <= number < tasks:
        mend = f"numbers go from 0 to {tasks - 1}"
        if not name.isdecimal():
            near = nearest(name, known)
            mend = near if near.startswith("did") else f"{mend}, names are in {source.SHIPPED.name}"
        if len(begins) > 1:
            mend = f"so begin {', '.join(known[i] for i in begins[:3])}; say more"
        raise ProblemError(f"task {name!r} is not known; {mend}")
    if turn not in list("01234567"):
        raise ProblemError(f"orientation {turn!r} must be a number from 0 to 7")
    if sorted(palette) != list("0123456789"):
        raise ProblemError(f"palette {palette!r} must hold each digit once")
    cells = [NAME + number, TURN + int(turn), 0, 0, 0, *(FIRST + int(c) for c in palette)]
    return np.array(cells, np.uint8)


def digits(tokens: np.ndarray) -> str:
    """A digit a colour, '.' for padding and '?' for anything else."""
    return "".join(
        str(t - FIRST) if FIRST <= t < TURN else "?" if t else "." for t in tokens.tolist()
    )


def line(tokens: np.ndarray, grid: int) -> str:
    """Tokens (S,) with the grid from cell ``grid`` on, as the line that is read back."""
    if grid % (2 * CELLS):  # a prefix, no pairs
        name, turn = int(tokens[0]) - NAME, int(tokens[1]) - TURN
        told = [str(name) if name >= 0 else "?", str(turn) if 0 <= turn < 8 else "?"]
        told.append(digits(tokens[SIDE:grid]))
    else:
        halves = [(digits(a), digits(b)) for a, b in tokens[:grid].reshape(-1, 2, CELLS)]
        told = ["-" if half == (BLANK, BLANK) else ">".join(half) for half in halves]
    return " ".join([*told, digits(tokens[grid:])])


def board(tokens: np.ndarray, grid: int) -> str:
    """The same in several lines, a row of cells each."""

    def row(cells: np.ndarray) -> str:
        return " ".join(digits(cells))

    if grid % (2 * CELLS):
        lines = [line(tokens, grid).rpartition(" ")[0], ""]
    else:
        lines = []
        for pair in tokens[:grid].reshape(-1, 2, SIDE, SIDE):
            if pair.any():
                lines += [f"{row(a)} > {row(b)}" for a, b in zip(*pair, strict=True)] + [""]
    return "\n".join(lines + [row(cells) for cells in tokens[grid:].reshape(SIDE, SIDE)])
