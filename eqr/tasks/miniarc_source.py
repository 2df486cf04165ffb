"""The tasks of Mini-ARC as files, their symmetries and their splits (chapter *Beyond one rule*).

A file holds all tasks, ``{name: {"train": [{"input": grid, "output": grid}, …], "test": […]}}``, or
a folder holds one task a file, as the public repository does; a grid is five rows of five colours,
0 to 9. Mini-ARC is by S. Kim et al. (2022), Apache-2.0; ``data/miniarc/tasks.json`` is a copy.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import eqr
from eqr.settings import ProblemError, nearest

SIDE, CELLS, COLOURS = 5, 25, 10
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
    """The tasks of a JSON file, or of a folder with one JSON file a task, sorted by name.

    Raises:
        ProblemError: a file that is absent or malformed; names file, task, field and the mend.
    """
    source = Path(source)
    if source.is_dir():
        files = sorted(source.glob("*.json"))
        if not files:
            raise ProblemError(f"{source}: holds no .json file; name the folder of the tasks")
        return [_rule(path, path.stem, _json(path)) for path in files]
    found = _json(source)
    if not isinstance(found, dict) or not found:
        raise ProblemError(f'{source}: must be an object of tasks, {{"name": {{"train": …}}}}')
    if set(found) == {"train", "test"}:
        raise ProblemError(f"{source}: is one task; name the folder that holds all of them")
    return sorted((_rule(source, *item) for item in found.items()), key=lambda rule: rule.name)


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
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(f"{path}: not valid JSON ({error}); restore it") from error


def _rule(path: Path, name: str, found: Any) -> Rule:
    where = f"{path}: task {name!r}"
    if not isinstance(found, dict):
        raise ProblemError(f"{where} must be an object with train and test")
    for key in found:
        if key not in ("train", "test"):
            near = nearest(key, ["train", "test"])
            raise ProblemError(f"{where}: field {key!r} is not known; {near}")
    parts = []
    for key, least in (("train", 2), ("test", 1)):
        pairs = found.get(key)
        if not isinstance(pairs, list) or len(pairs) < least:
            raise ProblemError(f"{where}: {key} must be a list of at least {least} pairs; add them")
        parts.append(np.stack([_pair(f"{where}, {key}[{i}]", p) for i, p in enumerate(pairs)]))
    return Rule(name, *parts)


def _pair(where: str, pair: Any) -> np.ndarray:
    if not isinstance(pair, dict) or set(pair) != {"input", "output"}:
        raise ProblemError(f"{where} must have input and output, and nothing else; mend it")
    return np.stack([_grid(f"{where}.{side}", pair[side]) for side in ("input", "output")])


def _grid(where: str, rows: Any) -> np.ndarray:
    if not isinstance(rows, list) or len(rows) != SIDE:
        count = f"{len(rows)} rows" if isinstance(rows, list) else f"{rows!r:.20}"
        raise ProblemError(f"{where} has {count}; give {SIDE} rows of {SIDE} colours")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != SIDE:
            count = f"{len(row)} cells" if isinstance(row, list) else f"{row!r:.20}"
            raise ProblemError(f"{where}: row {number} has {count}; give {SIDE} colours")
        for colour in row:
            if type(colour) is not int or not 0 <= colour < COLOURS:
                raise ProblemError(
                    f"{where}: row {number} holds {colour!r:.20}; colours are whole numbers from 0 "
                    f"to {COLOURS - 1}"
                )
    return np.array(rows, np.uint8).reshape(CELLS)


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
