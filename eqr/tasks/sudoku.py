"""Sudoku of any box shape up to 16 symbols: rules, generation, symmetries, checker and drawing.

Serves the Sudoku experiments (paper, section 4). Tokens are those of Sudoku-Extreme's official
encoding: 0 padding, 1 blank, 2 .. side + 1 the digits.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from eqr.settings import ProblemError, settings
from eqr.streams import Generators, draw_rows
from eqr.task import Problems, Task, check_rows
from eqr.tasks import sudoku_solver as solver
from eqr.tasks.drawing import draw_board
from eqr.tasks.kernel_random import mix64
from eqr.tasks.symmetry import Symmetry

SYMBOLS = "123456789ABCDEFG"
BLANKS = ".0_"
# Fewest clues with one solution: proven for 4 (by enumeration), 6 and 9 (McGuire et al. 2012).
# Elsewhere side - 1: with two digits absent from the givens, swapping them gives a second solution.
FEWEST_CLUES = {(2, 2): 4, (2, 3): 8, (3, 2): 8, (3, 3): 17}
ATTEMPTS = 2_000  # grids tried for one puzzle before the request is called out of reach
DIG_BUDGET = 20_000  # guesses spent on one uniqueness test; the clue stays where they do not do
SOLVE_BUDGET = 2_000_000  # guesses before a user's puzzle is called undecided: seconds


# --- The task -------------------------------------------------------------------------------------


@settings
class Sudoku(Task):
    """Sudoku puzzles with one solution, boxes of box_height × box_width cells.

    Each puzzle's number of clues is drawn evenly from clues_min .. clues_max; with one end given
    that is the number, with none it is 4/9 of the cells (36 of 81), 5/9 beyond 9 symbols. With
    ``minimal``, digging goes on until no clue can be spared, and the ends only filter the outcome.
    For shifts: ``layout`` puts the givens point-symmetrically ("symmetric") or near one cell
    ("clustered"), and only puzzles with a rating of rating_min .. rating_max are kept.
    Raises ProblemError for numbers of clues that no puzzle can have.

    >>> task = Sudoku(2, 2)
    >>> task.format(task.solve(task.parse("......4212......")))
    '2413314212344321'
    """

    kind: ClassVar[str] = "sudoku"
    box_height: int = 3
    box_width: int = 3
    clues_min: int | None = None
    clues_max: int | None = None
    minimal: bool = False
    _: KW_ONLY
    layout: Literal["any", "symmetric", "clustered"] = "any"
    rating_min: Annotated[int, Field(ge=0)] | None = None
    rating_max: Annotated[int, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if min(self.box_height, self.box_width) < 2 or self.box_height * self.box_width > 16:
            raise ProblemError(
                f"boxes of {self.box_height}x{self.box_width}: choose sides of at least 2 with "
                f"at most {len(SYMBOLS)} cells a box"
            )
        fewest = FEWEST_CLUES.get((self.box_height, self.box_width), self.height - 1)
        for name in ("clues_min", "clues_max"):
            clues = getattr(self, name)
            if clues is not None and not fewest <= clues <= self.seq_len:
                raise ProblemError(
                    f"{name}={clues}: a {self.height}x{self.height} Sudoku with one solution has "
                    f"{fewest} to {self.seq_len} clues"
                )
        if None not in (self.clues_min, self.clues_max) and self.clues_min > self.clues_max:
            raise ProblemError(f"clues_min={self.clues_min} exceeds clues_max={self.clues_max}")
        if self.layout == "symmetric" and self.minimal:
            raise ProblemError(
                "layout='symmetric' with minimal=true: hardly any minimal puzzle is symmetric; "
                "give clues_min and clues_max instead"
            )
        low, high = self.rating_range
        if low > high:
            raise ProblemError(f"rating_min={low} exceeds rating_max={high}")

    @property
    def height(self) -> int:
        return self.box_height * self.box_width

    @property
    def width(self) -> int:
        return self.box_height * self.box_width

    @property
    def vocab_size(self) -> int:
        return self.height + 2

    @property
    def clue_range(self) -> tuple[int, int]:
        """The range of clues in force, its defaults filled in."""
        if self.minimal:
            return self.clues_min or 0, self.clues_max or self.seq_len
        usual = round(self.seq_len * (4 if self.height <= 9 else 5) / 9)
        ends = [end for end in (self.clues_min, self.clues_max) if end is not None] or [usual]
        return ends[0], ends[-1]

    @property
    def rating_range(self) -> tuple[int, int]:
        """The range of ratings in force, None filled in."""
        most = np.iinfo(np.int32).max if self.rating_max is None else self.rating_max
        return self.rating_min or 0, most

    def generate(self, n: int, seed: int, start: int = 0) -> Problems:
        """Puzzles start .. start + n - 1 of the list that ``seed`` names; see ``Task.generate``."""
        puzzles = np.zeros((n, self.seq_len), np.int64)
        solutions = np.zeros_like(puzzles)
        units, unit_of = solver.geometry(self.box_height, self.box_width)
        ratings = np.zeros(n, np.int32)
        for i in range(n):
            ratings[i] = self._generate(seed, start + i, units, unit_of, puzzles[i], solutions[i])
        return Problems(self._to_tokens(puzzles), self._to_tokens(solutions), ratings)

    def rating(self, inputs: np.ndarray) -> np.ndarray:
        """Difficulty (n,) int32 of inputs (n, S): guesses that a solver with naked and hidden
        singles makes until it has proved the solution unique; 0 where singles alone solve it.

        Searching to the end makes it independent of the digits' names and of lucky guesses.
        """
        (inputs,) = check_rows(self, inputs=inputs)
        units, unit_of = solver.geometry(self.box_height, self.box_width)
        return solver.ratings(self._to_bits(inputs), units, unit_of, SOLVE_BUDGET)

    def symmetries(self, n: int, generator: Generators) -> Symmetry:
        """Digits relabelled, bands, stacks, rows in bands and columns in stacks permuted, and for
        square boxes half of the grids transposed; see ``Task.symmetries``."""
        side = self.height

        def permutations(*shape: int) -> torch.Tensor:
            def uniform(rows: int, own: torch.Generator) -> torch.Tensor:
                return torch.rand(rows, *shape, generator=own, device=own.device)

            return draw_rows(n, generator, uniform).argsort(-1)

        def lines(depth: int) -> torch.Tensor:  # (n, side), blocks of ``depth`` lines kept together
            blocks = permutations(side // depth)[:, :, None] * depth
            return (blocks + permutations(side // depth, depth)).flatten(1)

        rows, columns = lines(self.box_height), lines(self.box_width)
        place = rows[:, :, None] * side + columns[:, None, :]  # (n, side, side)
        if self.box_height == self.box_width:
            flip = permutations(2)[:, :1, None] == 1
            place = torch.where(flip, place.transpose(1, 2), place)
        unmoved = torch.arange(2, device=place.device).expand(n, 2)  # padding and blank
        return Symmetry(place.flatten(1), torch.cat([unmoved, 2 + permutations(side)], dim=1))

    def symmetry_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """Keys of the solution grids (n, S): all puzzles of a grid and of its images share one.

        An invariant: unequal keys prove two grids inequivalent. Note how few classes small boards
        have (4×4: 2; 6×6: 49, of which 40 are told apart): split those by ``problem_key``.
        """
        labels = self._solutions(inputs, labels)
        return self._keys(labels, np.zeros(labels.shape, np.bool_))

    def problem_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """Keys of the puzzles: solution grid and place of the givens together."""
        labels = self._solutions(inputs, labels)
        return self._keys(labels, np.asarray(inputs) > 1)

    def same_board(self, other: Task) -> bool:
        """As for any task, and boxes of the same shape."""
        boxes = self.box_height, self.box_width
        return isinstance(other, Sudoku) and boxes == (other.box_height, other.box_width)

    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) bool: every unit holds every digit once and the givens (n, S) stand."""
        inputs, answers = check_rows(self, inputs=inputs, answers=answers)
        units, _ = solver.geometry(self.box_height, self.box_width)
        bits, full = self._to_bits(answers), (1 << self.height) - 1
        valid = ((inputs == 1) | (inputs == answers)).all(1)
        for cells in units:
            valid &= np.bitwise_or.reduce(bits[:, cells], axis=1) == full
        return valid

    def count_solutions(self, tokens: np.ndarray, limit: int = 2) -> int:
        """Number of solutions of tokens (S,), counted up to ``limit``.

        Raises ProblemError where 2 million guesses do not decide it (empty 16×16 boards may).
        """
        return self._find(tokens, limit)[0]

    def ambiguous(self, inputs: np.ndarray) -> int:
        """How many of the inputs (n, S) have not exactly one solution; see ``count_solutions``."""
        return sum(self.count_solutions(row) != 1 for row in inputs)

    def solve(self, tokens: np.ndarray) -> np.ndarray | None:
        """The solution (S,) of tokens (S,), the first found if there are several, or None."""
        found, solution = self._find(tokens, 1)
        return solution if found else None

    def parse(self, text: str) -> np.ndarray:
        """Tokens (S,) of a puzzle written row by row: '.', '0' or '_' for a blank, A to G for 10 to
        16; white space is skipped. Raises ProblemError for anything but one solution."""
        text, side = "".join(text.split()).upper(), self.height
        known = SYMBOLS[:side]
        for i, char in enumerate(text):
            if char not in known + BLANKS:
                raise ProblemError(
                    f"character {i + 1} is {char!r}; a {side}x{side} Sudoku has "
                    f"{known[0]} to {known[-1]}, and '.', '0' or '_' for a blank"
                )
        if len(text) != self.seq_len:
            raise ProblemError(f"{len(text)} characters; expected {self.seq_len} ({side}x{side})")
        tokens = np.array([known.find(char) + 2 for char in text], np.uint8)
        units, _ = solver.geometry(self.box_height, self.box_width)
        for unit, cells in enumerate(units):
            for token in range(2, side + 2):
                twice = cells[tokens[cells] == token]
                if len(twice) > 1:
                    name = f"{('row', 'column', 'box')[unit // side]} {unit % side + 1}"
                    at = " and ".join(f"r{c // side + 1}c{c % side + 1}" for c in twice[:2])
                    raise ProblemError(f"{name} holds {known[token - 2]} twice, at {at}")
        found = self.count_solutions(tokens)
        if found != 1:
            raise ProblemError(
                "several solutions: add givens until one is left"
                if found
                else "no solution: a given must be wrong"
            )
        return tokens

    def format(self, tokens: np.ndarray) -> str:
        """One line of S characters, '.' for a blank and '?' for what is no token of the board."""
        alphabet = "?." + SYMBOLS[: self.height]
        tokens = np.asarray(tokens).reshape(self.seq_len)
        return "".join(alphabet[t] if t < len(alphabet) else "?" for t in tokens.tolist())

    def render(self, tokens: np.ndarray) -> str:
        """The board with its box lines, one row a line."""
        text, side, wide = self.format(tokens), self.height, self.box_width
        lines = []
        for row in range(side):
            if row and row % self.box_height == 0:
                lines.append("+".join(["-" * (2 * wide + 1)] * (side // wide))[1:-1])
            cells = text[row * side : (row + 1) * side]
            boxes = [" ".join(cells[k : k + wide]) for k in range(0, side, wide)]
            lines.append(" | ".join(boxes))
        return "\n".join(lines)

    def draw(self, ax, inputs, answer=None, label=None, settled=None) -> None:
        """As every board of symbols, with heavy lines around the boxes."""
        block = (self.box_height, self.box_width)
        draw_board(self, ax, inputs, answer, label, settled, block)

    def _generate(self, seed, index, units, unit_of, puzzle, solution) -> int:
        """Fill ``puzzle`` and ``solution`` (S,) with problem ``index``; returns its rating.

        Candidates come from the stream of (seed, index), and if their rating will not do from
        others derived from it, so that a problem depends on nothing but these two.
        """
        (low, high), (least, most) = self.clue_range, self.rating_range
        rules = (low, high, self.minimal, solver.LAYOUTS.index(self.layout), ATTEMPTS, DIG_BUDGET)
        met: list[int] = []
        for attempt in range(ATTEMPTS):  # one call a puzzle, so that Ctrl-C gets through
            own = np.uint64(seed % 2**64) ^ np.uint64(mix64(np.uint64(attempt)))  # 0 leaves it
            clues, fewest, largest = solver.generate(
                own, np.uint64(index), units, unit_of, *rules, puzzle, solution
            )
            if clues == 0:
                kind = "minimal " * self.minimal + f"{self.layout} " * (self.layout != "any")
                raise ProblemError(
                    f"no {kind}puzzle with {low} to {high} clues in "
                    f"{ATTEMPTS:,} attempts (digging ended at {fewest} to {largest}): "
                    "widen clues_min .. clues_max"
                )
            rating = int(solver.ratings(puzzle[None], units, unit_of, SOLVE_BUDGET)[0])
            if least <= rating <= most:
                return rating
            met.append(rating)
        raise ProblemError(
            f"no puzzle with a rating of {least} to {most} in {ATTEMPTS:,} tries (met: "
            f"{min(met)} to {max(met)}): widen rating_min .. rating_max"
        )

    def _to_bits(self, tokens: np.ndarray) -> np.ndarray:
        """One bit a digit, 0 for a blank and for what is no token of the board."""
        tokens = np.asarray(tokens).astype(np.int64)
        digit = (tokens >= 2) & (tokens < self.vocab_size)
        return np.where(digit, 1 << np.where(digit, tokens - 2, 0), 0)

    def _to_tokens(self, bits: np.ndarray) -> np.ndarray:
        return np.where(bits == 0, 1, np.log2(np.maximum(bits, 1)) + 2).astype(np.uint8)

    def _find(self, tokens: np.ndarray, limit: int) -> tuple[int, np.ndarray]:
        """(solutions found up to ``limit``, the first of them as tokens)."""
        (tokens,) = check_rows(self, tokens=np.asarray(tokens)[None])
        units, unit_of = solver.geometry(self.box_height, self.box_width)
        solution, stream = np.zeros(self.seq_len, np.int64), np.zeros(1, np.uint64)
        rest = (limit, SOLVE_BUDGET, stream, False, solution)
        found, _ = solver.search(self._to_bits(tokens)[0], units, unit_of, -1, 0, *rest)
        if found < 0:
            raise ProblemError(f"undecided after {SOLVE_BUDGET:,} guesses: add givens")
        return found, self._to_tokens(solution)

    def _solutions(self, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Labels as digits from 0 (n, side, side); ProblemError where a cell holds no digit."""
        _, labels = check_rows(self, inputs=inputs, labels=labels)
        if labels.size and (labels.min() < 2 or labels.max() >= self.vocab_size):
            raise ProblemError("labels must be full grids: a cell holds no digit")
        return labels.astype(np.int64).reshape(-1, self.height, self.width) - 2

    def _keys(self, grids: np.ndarray, given: np.ndarray) -> list[bytes]:
        keys = solver.invariants(grids, given.reshape(grids.shape), self.box_height, self.box_width)
        return [key.tobytes() for key in keys.astype(">u8")]
