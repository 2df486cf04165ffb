"""What a problem is: the interface that every task offers, and the registry (paper, section 4).

A task is a frozen dataclass whose fields *are* the problem distribution: two equal tasks and two
equal seeds give equal problems. The model sees token arrays only, never ``check`` or ``solve``.

A task of your own is a subclass of :class:`Task` in a file of yours; a recipe names it as
``kind = "my_task.py:MyTask"``. Code is loaded only where you name it so: data sets and models hold
the plain kind, and reading one never runs anything.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from eqr.settings import ConfigError, ProblemError, from_dict, nearest

if TYPE_CHECKING:  # torch is imported where it is used: settings are read without it
    import torch
    from torch import Tensor

    from eqr.streams import Generators
    from eqr.tasks.symmetry import Symmetry


@dataclass(frozen=True, slots=True)
class Problems:
    """Problems as tokens: inputs (n, S) uint8, labels (n, S) uint8, rating (n,) int32."""

    inputs: np.ndarray
    labels: np.ndarray
    rating: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


# --- The interface of a task ----------------------------------------------------------------------


class Task(ABC):
    """A problem distribution on a height × width board, S = height · width tokens.

    What a task must say itself is abstract. The rest suits a board on which every token is one
    character of ``symbols`` and 1 stands for a cell to be filled in, without symmetries.
    """

    section: ClassVar[str] = "task"
    kind: ClassVar[str]  # its name in recipes, data sets and models
    source: ClassVar[str] = ""  # sha256 of the user's file that defines it; the package's own: ""
    judged: ClassVar[str] = "by the rules"  # what ``check`` says of an answer that it calls valid

    def __init_subclass__(cls) -> None:
        """Enter the class under its kind, so that importing a task is enough to use it."""
        kind, name = cls.__dict__.get("kind"), f"{cls.__module__}:{cls.__qualname__}"
        if kind and _tasks.setdefault(kind, name) != name:
            raise ConfigError(f"{name}: there is a task of kind {kind!r}; choose another kind")

    @property
    @abstractmethod
    def height(self) -> int: ...

    @property
    @abstractmethod
    def width(self) -> int: ...

    @property
    def symbols(self) -> str:
        """A character for each token, that of the padding token 0 first, then 1, …"""
        raise NotImplementedError(f"{self.kind}: define symbols, or format, render and draw")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the padding token 0 included."""
        return len(self.symbols)

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

        Raises ProblemError for malformed files: it names the file and the field, and suggests a
        fix.
        """
        return None

    def symmetries(self, n: int, generator: Generators) -> Symmetry:
        """A random symmetry for each of n rows, drawn on the generator's device."""
        import torch

        from eqr.tasks.symmetry import Symmetry

        device = generator.device if isinstance(generator, torch.Generator) else "cpu"
        return Symmetry(torch.arange(self.seq_len, device=device).repeat(n, 1))

    def augment(
        self, inputs: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A random symmetry per row, applied to inputs and labels (B, S) alike; keeps dtypes."""
        symmetry = self.symmetries(len(inputs), generator)
        return symmetry.apply(inputs), symmetry.apply(labels)

    def symmetry_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """One key a row of (n, S): problems that a symmetry maps onto each other share it."""
        _, labels = check_rows(self, inputs=inputs, labels=labels)
        return [label.tobytes() for label in labels.astype(np.uint8)]

    def problem_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """As ``symmetry_key``, and as fine as the task can make it: it may look at the givens."""
        return self.symmetry_key(inputs, labels)

    def same_board(self, other: Task) -> bool:
        """Whether a model of this task can be asked the problems of ``other``."""
        return (self.kind, self.height, self.width) == (other.kind, other.height, other.width)

    @abstractmethod
    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) bool: is each answer (n, S) a valid answer, any valid one, to its input (n, S)?"""

    def rate(self, labels: np.ndarray) -> np.ndarray:
        """(n,) int32: the ratings of imported labels (n, S); 0 where a label does not say it."""
        return np.zeros(len(labels), np.int32)

    def solve(self, tokens: np.ndarray) -> np.ndarray | None:
        """The answer (S,) by the rules, or None: a reference that the model never sees."""
        return None

    def ambiguous(self, inputs: np.ndarray) -> int:
        """How many of the inputs (n, S) have several answers, where each should have one."""
        return 0

    def remarks(self, splits: Mapping[str, Problems]) -> dict[str, int]:
        """What to say of a data set that is no fault: counts, by what they count."""
        return {}

    def parse(self, text: str) -> np.ndarray:
        """Tokens (S,) uint8 of a problem string; ProblemError says what is wrong with it."""
        return self.read_symbols("".join(text.split()), self.symbols[1:])

    def read_symbols(self, text: str, known: str, hint: str = "") -> np.ndarray:
        """Tokens (S,) uint8 of S characters, each of them one of ``known``."""
        for number, char in enumerate(text, 1):
            if char not in known:
                hint = hint or f"known: {' '.join(known)}"
                raise ProblemError(f"character {number} is {char!r}; {hint}")
        if len(text) != self.seq_len:
            size = f"{self.seq_len} ({self.height}x{self.width})"
            raise ProblemError(f"{len(text)} characters; expected {size}")
        return np.array([self.symbols.find(char) for char in text], np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        """One-line string of tokens (S,), which ``parse`` reads back; '?' for what is no token."""
        tokens = np.asarray(tokens).reshape(self.seq_len)
        return "".join(self.symbols[t] if t < self.vocab_size else "?" for t in tokens.tolist())

    def render(self, tokens: np.ndarray) -> str:
        """The board of tokens (S,) in several lines, for a terminal."""
        text, wide = self.format(tokens), self.width
        return "\n".join(" ".join(text[k : k + wide]) for k in range(0, len(text), wide))

    def draw(self, ax, inputs, answer=None, label=None, settled=None) -> None:
        """Draw a problem (S,) on matplotlib axes, with an answer (S,) and its errors against the
        label (S,); cells with ``settled`` (S,) below 1 are tinted amber, 0 the most.

        Givens are bold and dark, answers blue, errors vermillion with a cross.
        """
        from eqr.tasks.drawing import draw_board

        draw_board(self, ax, inputs, answer, label, settled)


def check_rows(task: Task, **arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as NumPy arrays; ProblemError where one is not (n, S) or they differ in n."""
    rows = [np.asarray(array) for array in arrays.values()]
    for name, array in zip(arrays, rows, strict=True):
        if array.ndim != 2 or array.shape != (len(rows[0]), task.seq_len):
            raise ProblemError(
                f"{name} has shape {array.shape}; expected ({len(rows[0])}, {task.seq_len})"
            )
    return rows


# --- The registry ---------------------------------------------------------------------------------

#: Tasks by kind, as "module:class"; the package's own are imported only when asked for.
_tasks = {
    "sudoku": "eqr.tasks.sudoku:Sudoku",
    "maze": "eqr.tasks.maze:Maze",
    "miniarc": "eqr.tasks.miniarc:MiniArc",
}


def task_from_dict(values: Mapping[str, Any], where: str = "task") -> Task:
    """The task of ``{"kind": "sudoku", ...}``; runs nobody's code.

    Raises:
        ConfigError: an unknown kind, or an unknown or unusable setting.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r:.60} must be a section of settings")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _tasks:
        raise ConfigError(
            f"{where}.kind = {kind!r:.60} is not known; {nearest(kind, _tasks)} (or a task of "
            "your own: name its file, as in --task my_task.py:MyTask)"
        )
    module, name = _tasks[kind].split(":")
    task = getattr(importlib.import_module(module), name)
    return from_dict(task, {k: v for k, v in values.items() if k != "kind"}, where)


def task_to_dict(task: Task) -> dict[str, Any]:
    """The inverse of ``task_from_dict``: kind and fields, save keyword-only ones at their default.

    So a task declares as keyword-only what it got after data sets were published: what was made
    before keeps its name.
    """
    options = {f.name for f in fields(task) if f.kw_only and getattr(task, f.name) == f.default}
    return {"kind": task.kind} | {k: v for k, v in asdict(task).items() if k not in options}
