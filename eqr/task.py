"""What a problem is: checked settings, the interface that every task offers, and its registry
(paper, section 4: Sudoku and mazes).

A task is a frozen dataclass whose fields *are* the problem distribution: two equal tasks and two
equal seeds give equal problems. The model sees token arrays only, never ``check`` or ``solve``.

A task of your own is a subclass of :class:`Task` in a file of yours; a recipe names it as
``kind = "my_task.py:MyTask"``. Code is loaded only where you name it so: data sets and models hold
the plain kind, and reading one never runs anything.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

import numpy as np
import pydantic.dataclasses
from pydantic import ConfigDict, ValidationError

if TYPE_CHECKING:  # torch is imported where it is used: settings are read without it
    import torch
    from torch import Tensor

    from eqr.streams import Generators

INK, BLUE, VERMILLION, AMBER = "#222222", "#0072B2", "#D55E00", (0.90, 0.62, 0.0)  # Okabe-Ito

T = TypeVar("T")


# --- Settings -------------------------------------------------------------------------------------


class ProblemError(ValueError):
    """Bad input or an impossible request, in one line that suggests a fix."""


class ConfigError(ProblemError):
    """A setting that cannot be used; the message names it and suggests a fix.

    ``field`` is the setting's name where the message begins with it, so that whoever reads it from
    a file can say in which section it stands.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


@dataclass_transform(frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose fields pydantic checks: no unknown name, no text for a
    number, no infinity. Whatever is wrong is a :class:`ConfigError` of one line.

    A class may name its ``section``, with which messages begin.
    """
    strict = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    cls = pydantic.dataclasses.dataclass(frozen=True, config=strict)(cls)
    checked = cls.__init__

    @functools.wraps(checked)
    def __init__(self, *values: Any, **named: Any) -> None:
        try:
            checked(self, *values, **named)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, getattr(cls, "section", ""))) from None

    cls.__init__ = __init__
    return cls


def require(condition: bool, field: str, rule: str) -> None:
    """Raise ConfigError ``"field rule"`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{field} {rule}", field)


def explain(error: ValidationError, cls: type, where: str) -> str:
    """The first thing that is wrong with settings of ``cls``: its dotted name, and a fix."""
    names = [field.name for field in fields(cls)]
    # A misspelt name often leaves another one missing: then the spelling is what to say.
    first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
    place = [names[k] if type(k) is int and not i else str(k) for i, k in enumerate(first["loc"])]
    path, value = ".".join(filter(None, [where, *place])), f"{first['input']!r:.60}"
    match first["type"]:
        case "unexpected_keyword_argument":
            return f"{path} is not a known setting; {nearest(place[-1], names)}"
        case "missing":
            return f"{path} is missing; add it"
        case "value_error":
            cause = first["ctx"]["error"]
            return f"{path}.{cause}" if path and getattr(cause, "field", "") else str(cause)
        case "literal_error":
            expected = first["ctx"]["expected"]
            near = difflib.get_close_matches(str(first["input"]), expected.split("'"), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"{path} = {value} must be one of {expected}{hint}"
    return f"{path} = {value} {first['msg'].replace('Input should', 'must')}"


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build settings from a mapping; messages name them as ``where.key``.

    Raises:
        ConfigError: an unknown, missing or unusable setting.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r:.60} must be a section of settings")
    made = object.__new__(cls)
    try:
        cls.__init__.__wrapped__(made, **values)  # by pydantic, to name the place ourselves
    except ValidationError as error:
        raise ConfigError(explain(error, cls, where)) from None
    return made


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of an error message: the near miss, or all that is known."""
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


# --- Problems and their symmetries ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problems:
    """Problems as tokens: inputs (n, S) uint8, labels (n, S) uint8, rating (n,) int32."""

    inputs: np.ndarray
    labels: np.ndarray
    rating: np.ndarray

    def __len__(self) -> int:
        return len(self.inputs)


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
        place = self.place.where(rows, unmoved(self.place))
        if self.names is None:
            return Symmetry(place)
        return Symmetry(place, self.names.where(rows, unmoved(self.names)))


def renamed(tokens: Tensor, names: Tensor) -> Tensor:
    """Tokens (n, S) under their new names (n, V), in the tokens' dtype."""
    return names.to(tokens.device).gather(1, tokens.long()).to(tokens.dtype)


def unmoved(permutation: Tensor) -> Tensor:
    """The identities (n, K) beside permutations (n, K) of 0 .. K - 1."""
    return permutation.new_ones(permutation.shape).cumsum(1) - 1


def inverse(permutation: Tensor) -> Tensor:
    """The inverses (n, K) of permutations (n, K) of 0 .. K - 1."""
    return permutation.new_empty(permutation.shape).scatter_(1, permutation, unmoved(permutation))


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

    def solve(self, tokens: np.ndarray) -> np.ndarray | None:
        """The answer (S,) by the rules, or None: a reference that the model never sees."""
        return None

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
        inputs = np.asarray(inputs)
        points = paint_cells(ax, np.ones((self.height, self.width, 3)), settled)
        answer, wrong = answer_and_errors(inputs, answer, label)
        given = inputs > 1
        for cell, char in enumerate(self.format(np.where(given, inputs, answer))):
            colour = INK if given[cell] else VERMILLION if wrong[cell] else BLUE
            if char != self.symbols[1]:
                write_cell(ax, divmod(cell, self.width), char, 0.55 * points, colour, given[cell])
            if wrong[cell]:
                row, column = divmod(cell, self.width)
                place = ([column + 0.33], [row - 0.33])
                ax.plot(*place, "x", color=VERMILLION, ms=0.22 * points, mew=0.05 * points)
        self.draw_lines(ax, points)

    def draw_lines(self, ax, points: float) -> None:
        """The lines between the cells, each ``points`` wide."""
        for axis, count in ((ax.axhline, self.height), (ax.axvline, self.width)):
            for k in range(count + 1):
                axis(k - 0.5, color="0.6", lw=0.015 * points, clip_on=False)


def check_rows(task: Task, **arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays as NumPy arrays; ProblemError where one is not (n, S) or they differ in n."""
    rows = [np.asarray(array) for array in arrays.values()]
    for name, array in zip(arrays, rows, strict=True):
        if array.ndim != 2 or array.shape != (len(rows[0]), task.seq_len):
            raise ProblemError(
                f"{name} has shape {array.shape}; expected ({len(rows[0])}, {task.seq_len})"
            )
    return rows


# --- Drawing --------------------------------------------------------------------------------------


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


def write_cell(ax, place, text: str, size: float, colour, bold: bool = False, **style) -> None:
    """Write ``text`` into the cell at ``place`` (row, column), ``size`` points high."""
    style = {"ha": "center", "va": "center_baseline", "fontsize": size, "color": colour} | style
    ax.text(place[1], place[0], text, fontweight="bold" if bold else "normal", **style)


def answer_and_errors(inputs, answer, label) -> tuple[np.ndarray, np.ndarray]:
    """The answer (S,), the problem itself where there is none, and where it is wrong (S,) bool."""
    if answer is None:
        return inputs, np.zeros(len(inputs), bool)
    answer = np.asarray(answer)
    wrong = np.zeros(len(inputs), bool) if label is None else answer != np.asarray(label)
    return answer, wrong


# --- The registry ---------------------------------------------------------------------------------

#: Tasks by kind, as "module:class"; the package's own are imported only when asked for.
_tasks = {
    "sudoku": "eqr.tasks.sudoku:Sudoku",
    "maze": "eqr.tasks.maze:Maze",
    "miniarc": "eqr.tasks.miniarc:MiniArc",
}


def load_task(reference: str, folder: Path) -> type[Task]:
    """Run the user's own code: ``"my_task.py:MyTask"`` (from ``folder``) or ``"module:MyTask"``.

    Call it only with what the user has typed, or a recipe that the user has named.

    Raises:
        ConfigError: no such file, module or task in it.
    """
    place, _, name = reference.rpartition(":")
    if place.endswith(".py"):
        path = (folder / place).resolve()
        if not path.is_file():
            raise ConfigError(f"task.kind = {reference!r}: {path} is not a file; correct the path")
        place = f"eqr_task_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
        if place not in sys.modules:
            spec = importlib.util.spec_from_file_location(place, path)
            sys.modules[place] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[place])
            except BaseException:
                del sys.modules[place]
                raise
    try:
        task = getattr(importlib.import_module(place), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"task.kind = {reference!r}: {error}; install it") from error
    if not (isinstance(task, type) and issubclass(task, Task) and task.kind):
        raise ConfigError(f"task.kind = {reference!r}: no task {name!r} there; correct the name")
    task.source = hashlib.sha256(Path(sys.modules[place].__file__).read_bytes()).hexdigest()
    return task


def task_from_dict(values: Mapping[str, Any], where: str = "task") -> Task:
    """The task of ``{"kind": "sudoku", ...}``; runs nobody's code, see :func:`load_task`.

    Raises:
        ConfigError: an unknown kind, or an unknown or unusable setting.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r:.60} must be a section of settings")
    kind = values.get("kind")
    if kind not in _tasks:
        raise ConfigError(
            f"{where}.kind = {kind!r} is not a known task; {nearest(kind, _tasks)} (or a task of "
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
