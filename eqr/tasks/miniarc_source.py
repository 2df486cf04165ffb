"""The tasks of Mini-ARC as files, their symmetries and splits, and their boards as text.

A file holds all tasks, ``{name: {"train": [{"input": grid, "output": grid}, …], "test": […]}}``, or
a folder holds one task a file, as the public repository does; a grid is five rows of five colours,
0 to 9. Mini-ARC is by S. Kim et al. (2022), Apache-2.0; ``data/miniarc/tasks.json`` is a copy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

import eqr
from eqr.files import ours, read_json, shipped_file
from eqr.settings import ProblemError, from_dict, nearest, settings

SIDE, CELLS, COLOURS = 5, 25, 10
FIRST, TURN, NAME = 2, 12, 20  # tokens of colour 0, of the first orientation, of the first task
SHIPPED = eqr.SHIPPED / "miniarc" / "tasks.json"


@dataclass(frozen=True, slots=True)
class Rule:
    """One task of Mini-ARC: pairs of grids that follow one rule, which nobody has written down."""

    name: str
    train: np.ndarray  # (m, 2, 25) uint8 colours: input and output of each demonstration
    test: np.ndarray  # (t, 2, 25)

    @property
    def pairs(self) -> np.ndarray:
        """All pairs (m + t, 2, 25)."""
        return np.concatenate([self.train, self.test])


# ----------------------------------------------------------------------------------------- reading


def read_rules(source: Path) -> list[Rule]:
    """The tasks of a JSON file, or of a folder (or folders in it) with one JSON file a task, sorted
    by name.

    Raises:
        ProblemError: a file that is absent or malformed; names file, task, field and the mend.
    """
    source = Path(source)
    if source.is_dir():
        files = {path.stem: path for path in reversed(files_in(source))}
        if not files:
            raise ProblemError(f"{source}: holds no .json file; name the folder of the tasks")
        for path in files_in(source):
            if files[path.stem] != path:
                raise ProblemError(f"{files[path.stem]}: {path} is a task of that name; rename one")
        return [_rule(path, name, _json(path)) for name, path in sorted(files.items())]
    found = _json(source)
    if not isinstance(found, dict) or not found:
        raise ProblemError(f'{source}: must be an object of tasks, {{"name": {{"train": …}}}}')
    if set(found) == {"train", "test"}:
        raise ProblemError(f"{source}: is one task; name the folder that holds all of them")
    return sorted((_rule(source, *item) for item in found.items()), key=lambda rule: rule.name)


def files_in(folder: Path) -> list[Path]:
    """The JSON files of a folder and those below it (ARC's are ``training`` and ``evaluation``)."""
    return sorted(path for path in folder.rglob("*.json") if ours(path, folder))


def _json(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ProblemError(f"{path}: {twice!r} stands there twice; rename or remove one")
        return found

    if not path.is_file():
        raise ProblemError(f"{path}: no such file; give the JSON of the tasks or their folder")
    if path.samefile(SHIPPED):
        shipped_file(SHIPPED)
    return read_json(path, object_pairs_hook=once)


Five = Field(min_length=SIDE, max_length=SIDE)
Colour = Annotated[int, Field(strict=True, ge=0, lt=COLOURS)]
Grid = Annotated[list[Annotated[list[Colour], Five]], Five]


class GridPair(TypedDict):
    """A pair as its file has it."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    input: Grid
    output: Grid


@settings
class RuleFile:
    """A task as its file has it."""

    train: Annotated[list[GridPair], Field(min_length=2)]
    test: Annotated[list[GridPair], Field(min_length=1)]


def _rule(path: Path, name: str, values: Any) -> Rule:
    stored = from_dict(RuleFile, values, f"{path}: task {name!r}")
    parts = (
        [[np.ravel(pair["input"]), np.ravel(pair["output"])] for pair in pairs]
        for pairs in (stored.train, stored.test)
    )
    return Rule(name, *(np.array(part, np.uint8) for part in parts))


@functools.cache
def shipped() -> tuple[Rule, ...]:
    """The 149 tasks that lie in ``data/miniarc``, by name."""
    return tuple(read_rules(SHIPPED))


# -------------------------------------------------------------------------------------- symmetries


def _turns() -> np.ndarray:
    grid = np.arange(CELLS).reshape(SIDE, SIDE)
    images = [np.rot90(side, turns) for side in (grid, grid.T) for turns in range(4)]
    return np.stack(images).reshape(8, CELLS)


#: The eight symmetries of the square: the image of a grid (25,) under the g-th is grid[TURNS[g]].
TURNS = _turns()
#: COMPOSED[g, h]: which of them it is to take the image under g of the image under h.
COMPOSED = np.array(
    [[(TURNS[h][TURNS[g]] == TURNS).all(1).argmax() for h in range(8)] for g in range(8)]
)


def in_order(colours: np.ndarray) -> np.ndarray:
    """Rows (n, L) with the colours 1 .. 9 renamed in the order in which they first appear."""
    places = colours[:, :, None] == np.arange(1, COLOURS)  # (n, L, 9)
    first = np.where(places.any(1), places.argmax(1), colours.shape[1])
    names = np.argsort(np.argsort(first, axis=1, kind="stable"), axis=1)
    names = np.concatenate([np.zeros((len(colours), 1), np.int64), names + 1], axis=1)
    return np.take_along_axis(names, colours.astype(np.int64), axis=1).astype(np.uint8)


def pair_key(pair: np.ndarray) -> bytes:
    """A key of a pair (2, 25): equal for its images under turns and colours, and only for those.

    Colour 0 is the background and stays.
    """
    images = pair[:, TURNS].transpose(1, 0, 2).reshape(8, 2 * CELLS)
    return min(row.tobytes() for row in in_order(images))


def families(rules: Iterable[Rule]) -> dict[str, str]:
    """Each task's family by name: tasks that share a pair, up to symmetry, belong together.

    The first of a family, by name, stands for it.
    """
    family: dict[str, str] = {}
    owner: dict[bytes, str] = {}
    for rule in sorted(rules, key=lambda rule: rule.name):
        family[rule.name] = rule.name
        for key in map(pair_key, rule.pairs):
            ours, theirs = family[rule.name], family[owner.setdefault(key, rule.name)]
            first = min(ours, theirs)
            family |= {name: first for name, root in family.items() if root in (ours, theirs)}
    return family


@functools.cache
def known_pairs() -> dict[bytes, str]:
    """The family of every shipped pair by its :func:`pair_key`."""
    family = families(shipped())
    return {pair_key(pair): family[rule.name] for rule in shipped() for pair in rule.pairs}


def held_out(family: str, percent: int) -> bool:
    """Whether the tasks of a family are kept from training: by a hash of its name alone."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:4]) % 100 < percent


# ---------------------------------------------------------------------------------------- as text

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
    known = [rule.name for rule in shipped()]
    begins = [i for i, other in enumerate(known) if other.startswith(name)]
    number = int(name) if name.isdecimal() else begins[0] if len(begins) == 1 else -1
    if not 0 <= number < tasks:
        mend = f"numbers go from 0 to {tasks - 1}"
        if not name.isdecimal():
            near = nearest(name, known)
            mend = near if near.startswith("did") else f"{mend}, names are in {SHIPPED.name}"
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
