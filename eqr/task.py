"""What a problem is: the interface that every task offers, the registry of tasks, and the one
random stream that their generators draw from (paper, section 4: Sudoku and mazes).

A task is a frozen dataclass whose fields *are* the problem distribution: two equal tasks and two
equal seeds give equal problems. The model sees token arrays only, never ``check`` or ``solve``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numba import njit
from torch import Tensor

INK, BLUE, VERMILLION, AMBER = "#222222", "#0072B2", "#D55E00", (0.90, 0.62, 0.0)  # Okabe-Ito
_KINDS = {  # imported only when asked for
    "sudoku": "eqr.tasks.sudoku:Sudoku",
    "maze": "eqr.tasks.maze:Maze",
    "miniarc": "eqr.tasks.miniarc:MiniArc",
}
#: Marks a field that came after the first published data: ``task_to_dict`` leaves it out at its
#: default, so that older data sets and runs keep their hashes (as ``ADDED`` in eqr.config, which
#: imports this module).
LATER = types.MappingProxyType({"added": True})

# Random stream of the generators: SplitMix64 (Steele et al. 2014), one per (seed, index), so that
# problem i does not depend on how many are made or in which chunks. Numba's cache does not notice
# a change here in the modules that call it: delete __pycache__ after editing these functions.
_GOLDEN, _MIX_A, _MIX_B = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


@njit(cache=True)
def mix64(x):
    """Scramble a uint64: every input bit reaches every output bit. Also serves as a hash."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_A
    x = (x ^ (x >> np.uint64(27))) * _MIX_B
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def random_stream(seed, index):
    """The stream of problem ``index`` under ``seed`` (both uint64): a one-element state array."""
    return np.array([mix64(mix64(seed + _GOLDEN) + mix64(~index))], dtype=np.uint64)


@njit(cache=True)
def random_below(stream, n):
    """A whole number from 0 to n - 1; the bias is below n / 2**32."""
    stream[0] += _GOLDEN
    return np.int64(((mix64(stream[0]) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@njit(cache=True)
def random_unit(stream):
    """A float from [0, 1) in steps of 2**-53."""
    stream[0] += _GOLDEN
    return np.float64(mix64(stream[0]) >> np.uint64(11)) / 2.0**53


class ProblemError(ValueError):
    """Bad input or an impossible request, in one line that says how to mend it."""


@dataclass(frozen=True, slots=True)
class Problems:
    """Problems as tokens: inputs (n, S) uint8, labels (n, S) uint8, rating (n,) int32."""

    inputs: np.ndarray
    labels: np.ndarray
    rating: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


#: One generator for all rows, or one for each row (then a row's draws do not depend on its batch).
RowGenerators = torch.Generator | Sequence[torch.Generator]


def drawn(
    rows: int, generator: RowGenerators, draw: Callable[[int, torch.Generator], Tensor]
) -> Tensor:
    """``draw(rows, generator)``, or one row from each of ``rows`` generators, as with one row."""
    if isinstance(generator, torch.Generator):
        return draw(rows, generator)
    if len(generator) != rows:
        raise ValueError(f"{len(generator)} generators for {rows} rows: give one, or one a row")
    return torch.cat([draw(1, own) for own in generator])


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One symmetry of a task a row: its cells moved, and for some tasks its tokens renamed.

    ``apply`` puts ``names[old[place[c]]]`` into cell c; ``undo`` is its inverse.
    """

    place: Tensor  # (n, S) the cell that each cell takes its token from: a permutation
    names: Tensor | None = None  # (n, V) the new name of each token: a permutation; None: the old

    def apply(self, tokens: Tensor) -> Tensor:
        """The image of tokens (n, S), in their dtype and on their device."""
        moved = tokens.gather(1, self.place.to(tokens.device))
        return moved if self.names is None else renamed(moved, self.names)

    def undo(self, tokens: Tensor) -> Tensor:
        """The tokens (n, S) whose image these are: an answer, read in the problem's own terms."""
        old = tokens if self.names is None else renamed(tokens, inverse(self.names))
        return old.gather(1, inverse(self.place).to(tokens.device))

    def only(self, rows: Tensor) -> Symmetry:
        """The same where ``rows`` (n,) is true; the identity elsewhere."""
        rows = rows.to(self.place.device)[:, None]
        place = torch.where(rows, self.place, unmoved(self.place))
        if self.names is None:
            return Symmetry(place)
        return Symmetry(place, torch.where(rows, self.names, unmoved(self.names)))


def renamed(tokens: Tensor, names: Tensor) -> Tensor:
    """Tokens (n, S) under their new names (n, V), in the tokens' dtype."""
    return names.to(tokens.device).gather(1, tokens.long()).to(tokens.dtype)


def unmoved(permutation: Tensor) -> Tensor:
    """The identities (n, K) beside permutations (n, K) of 0 .. K - 1."""
    return torch.arange(permutation.shape[1], device=permutation.device).expand_as(permutation)


def inverse(permutation: Tensor) -> Tensor:
    """The inverses (n, K) of permutations (n, K) of 0 .. K - 1."""
    return torch.empty_like(permutation).scatter_(1, permutation, unmoved(permutation))


class Task(ABC):
    """A problem distribution on a height × width board, S = height · width tokens."""

    __slots__ = ()
    kind: ClassVar[str]
    judged: ClassVar[str] = "by the rules"  # what ``check`` says of an answer that it calls valid

    @property
    @abstractmethod
    def height(self) -> int: ...

    @property
    @abstractmethod
    def width(self) -> int: ...

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens, the padding token 0 included."""

    @property
    def seq_len(self) -> int:
        return self.height * self.width

    @abstractmethod
    def generate(self, n: int, seed: int, start: int = 0) -> Problems:
        """Problems start .. start + n - 1 of the endless list that ``seed`` names.

        Raises ProblemError where the configured range cannot be met in a bounded number of tries.
        """

    def read(self, path: Path) -> dict[str, Problems] | None:
        """Training and test problems of files in a form of the task's own; None: it has none.

        Raises ProblemError for malformed files: it names the file, the field and the mend.
        """
        return None

    @abstractmethod
    def symmetries(self, n: int, generator: RowGenerators) -> Symmetry:
        """A random symmetry for each of n rows, drawn on the generator's device."""

    def augment(
        self, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A random symmetry per row, applied to inputs and labels (B, S) alike; keeps dtypes."""
        symmetry = self.symmetries(len(inputs), generator)
        return symmetry.apply(inputs), symmetry.apply(labels)

    @abstractmethod
    def symmetry_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """One key a row of (n, S): problems that a symmetry maps onto each other share it."""

    def problem_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """As ``symmetry_key``, and as fine as the task can make it: it may look at the givens."""
        return self.symmetry_key(inputs, labels)

    def same_board(self, other: Task) -> bool:
        """Whether a model of this task can be asked the problems of ``other``."""
        return (self.kind, self.height, self.width) == (other.kind, other.height, other.width)

    @abstractmethod
    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) bool: is each answer (n, S) a valid answer, any valid one, to its input (n, S)?"""

    @abstractmethod
    def parse(self, text: str) -> np.ndarray:
        """Tokens (S,) uint8 of a problem string; ProblemError says what is wrong with it."""

    @abstractmethod
    def format(self, tokens: np.ndarray) -> str:
        """One-line string of tokens (S,), which ``parse`` reads back."""

    @abstractmethod
    def render(self, tokens: np.ndarray) -> str:
        """The board of tokens (S,) in several lines, for a terminal."""

    @abstractmethod
    def solve(self, tokens: np.ndarray) -> np.ndarray | None:
        """The answer (S,) by the rules, or None: a reference that the model never sees."""

    @abstractmethod
    def draw(self, ax, inputs, answer=None, label=None, settled=None) -> None:
        """Draw a problem (S,) on matplotlib axes, with an answer (S,) and its errors against the
        label (S,); cells with ``settled`` (S,) below 1 are tinted amber, 0 the most."""


def paint_cells(ax, colours: np.ndarray, settled: np.ndarray | None) -> float:
    """Fill the cells with colours (height, width, 3); return the points that one cell spans.

    The amber tint changes a cell's lightness, not its hue only, so it survives colour blindness.
    """
    if settled is not None:
        tint = 0.45 * (1 - np.clip(np.asarray(settled, float), 0, 1)).reshape(*colours.shape[:2], 1)
        colours = (1 - tint) * colours + tint * np.array(AMBER)
    ax.imshow(colours, interpolation="nearest")
    ax.set(xticks=[], yticks=[], aspect="equal")
    extent = ax.get_window_extent()
    points = 72 * min(extent.width, extent.height) / ax.figure.dpi
    return points / max(colours.shape[:2])


def check_fields(task: Task) -> None:
    """Refuse a task whose fields are not of the declared kind: int, int | None, bool or str; a str
    is one of the ``choices`` in the field's metadata."""
    for field in dataclasses.fields(task):
        value, kinds = getattr(task, field.name), {"bool": bool, "str": str}
        optional = field.default is None and value is None
        if not optional and type(value) is not kinds.get(field.type, int):
            raise ProblemError(f"{field.name} must be of type {field.type}, not {value!r}")
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            known = nearest(value, list(choices))
            raise ProblemError(f"{field.name}={value!r} is not known; {known}")


def check_rows(task: Task, **arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as NumPy arrays; ProblemError where one is not (n, S) or they differ in n."""
    rows = [np.asarray(array) for array in arrays.values()]
    for name, array in zip(arrays, rows, strict=True):
        if array.ndim != 2 or array.shape != (len(rows[0]), task.seq_len):
            raise ProblemError(
                f"{name} has shape {array.shape}; expected ({len(rows[0])}, {task.seq_len})"
            )
    return rows


def nearest(word: str, known: list[str]) -> str:
    """The tail of an error message: the near miss, or all that is known."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def task_from_dict(fields: dict) -> Task:
    """The task of ``{"kind": "sudoku", ...}``; ProblemError (a ValueError) names a misspelt key."""
    kind, known = fields.get("kind"), list(_KINDS)
    if kind not in _KINDS:
        raise ProblemError(f"unknown task kind {kind!r}; {nearest(kind, known)}")
    module, name = _KINDS[kind].split(":")
    task_type = getattr(importlib.import_module(module), name)
    names = [field.name for field in dataclasses.fields(task_type)]
    for key in fields:
        if key != "kind" and key not in names:
            raise ProblemError(f"unknown key {key!r} for {kind}; {nearest(key, names)}")
    return task_type(**{key: value for key, value in fields.items() if key != "kind"})


def task_to_dict(task: Task) -> dict:
    """The inverse of ``task_from_dict``: ints, bools, strings and None only; without the fields
    marked ``LATER`` that have their default."""
    values = dataclasses.asdict(task)
    for field in dataclasses.fields(task):
        if "added" in field.metadata and values[field.name] == field.default:
            del values[field.name]
    return {"kind": task.kind, **values}
