"""Sudoku of any box shape up to 16 symbols: solver, generator, symmetries, checker and drawing.

Serves the Sudoku experiments (paper, section 4). Tokens are those of Sudoku-Extreme's official
encoding: 0 padding, 1 blank, 2 .. side + 1 the digits. Inside the solver a digit is one bit and a
blank is 0, so that the candidates of a cell are a single ``and`` of three masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numba import njit

from eqr.task import (
    BLUE,
    INK,
    VERMILLION,
    ProblemError,
    Problems,
    Task,
    check_fields,
    check_rows,
    mix64,
    paint_cells,
    random_below,
    random_stream,
)

SYMBOLS = "123456789ABCDEFG"
BLANKS = ".0_"
# Fewest clues with one solution: proven for 4 (by enumeration), 6 and 9 (McGuire et al. 2012).
# Elsewhere side - 1: with two digits absent from the givens, swapping them gives a second solution.
FEWEST_CLUES = {(2, 2): 4, (2, 3): 8, (3, 2): 8, (3, 3): 17}
ATTEMPTS = 2_000  # grids tried for one puzzle before the request is called out of reach
DIG_BUDGET = 20_000  # guesses spent on one uniqueness test; the clue stays where they do not do
SOLVE_BUDGET = 2_000_000  # guesses before a user's puzzle is called undecided: seconds


# --- Solver: singles, then a guess at the cell with the fewest candidates -------------------------


@lru_cache
def _geometry(box_height: int, box_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells of each unit (3 side, side) and units of each cell (S, 3): rows, columns, boxes."""
    side = box_height * box_width
    row, column = np.divmod(np.arange(side * side), side)
    box = (row // box_height) * box_height + column // box_width
    unit_of = np.stack([row, side + column, 2 * side + box], axis=1)
    units = np.stack([np.flatnonzero((unit_of == unit).any(1)) for unit in range(3 * side)])
    return units, unit_of


@njit(cache=True)
def _candidates(cell, missing, unit_of):
    return missing[unit_of[cell, 0]] & missing[unit_of[cell, 1]] & missing[unit_of[cell, 2]]


@njit(cache=True)
def _place(cell, bit, cells, missing, unit_of):
    cells[cell] = bit
    for k in range(3):
        missing[unit_of[cell, k]] ^= bit


@njit(cache=True)
def _fill_singles(cells, missing, units, unit_of, trail, placed):
    """Place naked and hidden singles until none is left; cells placed go on the trail.

    Returns (length of the trail, False where a cell or a digit is left without a place).
    """
    progress = True
    while progress:
        progress = False
        for cell in range(cells.size):
            if cells[cell] == 0:
                options = _candidates(cell, missing, unit_of)
                if options == 0:
                    return placed, False
                if options & (options - 1) == 0:
                    _place(cell, options, cells, missing, unit_of)
                    trail[placed] = cell
                    placed += 1
                    progress = True
        if progress:
            continue  # naked singles are cheaper: exhaust them first
        for unit in range(units.shape[0]):
            once = twice = 0
            for j in range(units.shape[1]):
                if cells[units[unit, j]] == 0:
                    options = _candidates(units[unit, j], missing, unit_of)
                    twice |= once & options
                    once |= options
            if once != missing[unit]:
                return placed, False
            hidden = once & ~twice
            for j in range(units.shape[1]):
                cell = units[unit, j]
                if hidden != 0 and cells[cell] == 0:
                    bit = _candidates(cell, missing, unit_of) & hidden
                    if bit == 0:
                        continue
                    if bit & (bit - 1) != 0:  # two digits that only this cell could take
                        return placed, False
                    _place(cell, bit, cells, missing, unit_of)
                    trail[placed] = cell
                    placed += 1
                    hidden ^= bit
                    progress = True
    return placed, True


@njit(cache=True)
def _fewest_candidates(cells, missing, unit_of, stream, shuffle):
    """The blank cell with the fewest candidates (the first or any such), -1 if none is blank."""
    best, fewest, ties = -1, 99, 0
    for cell in range(cells.size):
        if cells[cell] == 0:
            options, count = _candidates(cell, missing, unit_of), 0
            while options != 0 and count <= fewest:
                options &= options - 1
                count += 1
            if count < fewest:
                best, fewest, ties = cell, count, 1
            elif shuffle and count == fewest:
                ties += 1
                if random_below(stream, ties) == 0:
                    best = cell
    return best


@njit(cache=True)
def _search(cells, units, unit_of, first, allowed, limit, budget, stream, shuffle, solution):
    """Depth-first search for up to ``limit`` solutions of ``cells`` (S,) bits, which it restores.

    ``first`` >= 0 branches at that cell first, among the bits ``allowed``. ``shuffle`` draws ties
    and values from ``stream``. Returns (solutions found, or -1 past the budget; values guessed),
    and leaves the first solution in ``solution`` (S,).
    """
    size, side = cells.size, units.shape[1]
    missing = np.full(3 * side, (1 << side) - 1, np.int64)
    for cell in range(size):
        if cells[cell] != 0:
            if _candidates(cell, missing, unit_of) & cells[cell] == 0:
                return 0, 0  # the givens contradict each other
            _place(cell, cells[cell], cells, missing, unit_of)
    trail, placed = np.empty(size, np.int64), 0
    branch_cell, branch_left = np.empty(size, np.int64), np.empty(size, np.int64)
    branch_placed = np.empty(size, np.int64)
    depth = found = guesses = 0
    cell, descend = first, first < 0
    if first >= 0:
        branch_cell[0], branch_placed[0], depth = first, 0, 1
        branch_left[0] = allowed & _candidates(first, missing, unit_of)
    while True:
        if descend:
            placed, sound = _fill_singles(cells, missing, units, unit_of, trail, placed)
            if sound:
                cell = _fewest_candidates(cells, missing, unit_of, stream, shuffle)
                if cell < 0:
                    if found == 0:
                        solution[:] = cells
                    found += 1
                else:
                    branch_cell[depth], branch_placed[depth] = cell, placed
                    branch_left[depth] = _candidates(cell, missing, unit_of)
                    depth += 1
        descend = True
        while depth > 0 and branch_left[depth - 1] == 0:
            depth -= 1
        over = guesses >= budget
        finished = depth == 0 or found == limit or over
        floor = 0 if finished else branch_placed[depth - 1]
        while placed > floor:  # take back what the last guess placed; at the end, everything
            placed -= 1
            _place(trail[placed], cells[trail[placed]], cells, missing, unit_of)
            cells[trail[placed]] = 0
        if finished:
            return (-1 if over and depth > 0 and found < limit else found), guesses
        cell, left = branch_cell[depth - 1], branch_left[depth - 1]
        bit = left & -left
        if shuffle:
            skip = 0
            for other in range(side):
                if left >> other & 1:
                    skip += 1
                    if random_below(stream, skip) == 0:
                        bit = 1 << other
        branch_left[depth - 1] ^= bit
        _place(cell, bit, cells, missing, unit_of)
        trail[placed] = cell
        placed += 1
        guesses += 1


@njit(cache=True)
def _ratings(puzzles, units, unit_of, budget):
    """Guesses spent on each puzzle (n, S) of bits until its solutions are exhausted."""
    ratings, scratch = np.empty(len(puzzles), np.int32), np.empty(puzzles.shape[1], np.int64)
    stream = np.zeros(1, np.uint64)
    for i in range(len(puzzles)):
        ratings[i] = _search(puzzles[i], units, unit_of, -1, 0, 2, budget, stream, False, scratch)[
            1
        ]
    return ratings


# --- Generator: a random full grid, then clues dug out while the solution stays unique ------------


@njit(cache=True)
def _generate(seed, index, units, unit_of, low, high, minimal, attempts, budget, puzzle, solution):
    """Fill ``puzzle`` and ``solution`` (S,) bits with problem ``index`` of ``seed``.

    Returns (clues left or 0 where no attempt reached low .. high, fewest and most clues met).
    """
    stream = random_stream(seed, index)
    size, side = puzzle.size, units.shape[1]
    target = 0 if minimal else low + random_below(stream, high - low + 1)
    order, scratch = np.arange(size), np.empty(size, np.int64)
    fewest, most = size, 0
    for _ in range(attempts):
        puzzle[:] = 0
        found = 0
        while found != 1:  # an unlucky start is dropped: rare, and only on 16 symbols
            found, _guesses = _search(
                puzzle, units, unit_of, -1, 0, 1, 4 * size, stream, True, solution
            )
        puzzle[:] = solution
        for i in range(size - 1, 0, -1):
            j = random_below(stream, i + 1)
            order[i], order[j] = order[j], order[i]
        clues, proven = size, True
        for cell in order:
            if clues == target:
                break
            puzzle[cell] = 0
            # A second solution would have to differ in this cell: look for one that does.
            others = ((1 << side) - 1) ^ solution[cell]
            found, _guesses = _search(
                puzzle, units, unit_of, cell, others, 1, budget, stream, False, scratch
            )
            if found == 0:
                clues -= 1
            else:
                puzzle[cell] = solution[cell]
                proven = proven and found == 1
        fewest, most = min(fewest, clues), max(most, clues)
        # Once through is enough for minimality: a clue needed among more clues is needed now.
        if (low <= clues <= high and proven) if minimal else clues == target:
            return clues, fewest, most
    return 0, fewest, most


# --- Symmetry invariant ---------------------------------------------------------------------------


@njit(cache=True)
def _cycle_type(top, bottom):
    """A hash of the cycle type of the permutation that takes row ``top`` (side,) to ``bottom``."""
    side = top.size
    image, seen, total = np.empty(side, np.int64), np.zeros(side, np.bool_), np.uint64(0)
    for j in range(side):
        image[top[j]] = bottom[j]
    for digit in range(side):
        length = 0
        while not seen[digit]:
            seen[digit] = True
            digit = image[digit]
            length += 1
        if length > 0:
            total += mix64(np.uint64(length))
    return mix64(total)


@njit(cache=True)
def _invariant(grid, given, box_height, box_width):
    """A uint64 that relabelling and the row and column symmetries of ``grid`` (side, side) keep.

    Colour refinement: a row starts from the cycle types between it and the others (within and
    across bands), and rows, columns, digits and boxes then collect the colours of their cells.
    Sums of hashes take the place of sorted multisets.
    """
    side, rounds = len(grid), 3
    colours = np.zeros((4, side), np.uint64)  # of rows, columns, digits, boxes
    types = np.zeros((2, side, side), np.uint64)
    for axis in range(2):
        lines = grid if axis == 0 else grid.T
        depth = box_height if axis == 0 else box_width
        for a in range(side):
            for b in range(a):
                near = np.uint64(1 + (a // depth == b // depth))
                types[axis, a, b] = mix64(_cycle_type(lines[a], lines[b]) + near)
                types[axis, b, a] = types[axis, a, b]
    key = np.uint64(0)
    for _ in range(rounds):
        new = np.zeros((4, side), np.uint64)
        key = np.uint64(0)
        for row in range(side):
            for column in range(side):
                box = (row // box_height) * box_height + column // box_width
                members = (row, column, grid[row, column], box)
                colour = np.uint64(given[row, column])
                for k in range(4):
                    colour = mix64(colour + mix64(colours[k, members[k]] + np.uint64(k)))
                key += colour
                for k in range(4):
                    new[k, members[k]] += colour
        for axis in range(2):
            for a in range(side):
                for b in range(side):
                    if a != b:
                        new[axis, a] += mix64(types[axis, a, b] ^ mix64(colours[axis, b]))
        for k in range(4):
            for a in range(side):
                colours[k, a] = mix64(colours[k, a] + mix64(new[k, a]))
                key += mix64(colours[k, a] + np.uint64(k))
    return mix64(key)


@njit(cache=True)
def _invariants(grids, given, box_height, box_width):
    """Invariants (n,) uint64 of grids (n, side, side) with digits from 0."""
    keys = np.empty(len(grids), np.uint64)
    for i in range(len(grids)):
        keys[i] = _invariant(grids[i], given[i], box_height, box_width)
        if box_height == box_width:  # transposing is a symmetry too
            keys[i] += _invariant(grids[i].T.copy(), given[i].T.copy(), box_height, box_width)
    return keys


# --- The task -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sudoku(Task):
    """Sudoku puzzles with one solution, boxes of box_height × box_width cells.

    Each puzzle's number of clues is drawn evenly from clues_min .. clues_max; with one end given
    that is the number, with none it is 4/9 of the cells (36 of 81), 5/9 beyond 9 symbols. With
    ``minimal``, digging goes on until no clue can be spared, and the ends only filter the outcome.
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

    def __post_init__(self) -> None:
        check_fields(self)
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

    def generate(self, n: int, seed: int, start: int = 0) -> Problems:
        """Puzzles start .. start + n - 1 of the list that ``seed`` names; see ``Task.generate``."""
        puzzles = np.zeros((n, self.seq_len), np.int64)
        solutions = np.zeros_like(puzzles)
        units, unit_of = _geometry(self.box_height, self.box_width)
        low, high = self.clue_range
        stream_seed = np.uint64(seed % 2**64)
        for i in range(n):  # one call a puzzle, so that Ctrl-C gets through
            index = np.uint64(start + i)
            rules = (low, high, self.minimal, ATTEMPTS, DIG_BUDGET)
            clues, fewest, most = _generate(
                stream_seed, index, units, unit_of, *rules, puzzles[i], solutions[i]
            )
            if clues == 0:
                raise ProblemError(
                    f"no {'minimal ' * self.minimal}puzzle with {low} to {high} clues in "
                    f"{ATTEMPTS:,} attempts (digging ended at {fewest} to {most}): "
                    "widen clues_min .. clues_max"
                )
        ratings = _ratings(puzzles, units, unit_of, SOLVE_BUDGET)
        return Problems(self._to_tokens(puzzles), self._to_tokens(solutions), ratings)

    def rating(self, inputs: np.ndarray) -> np.ndarray:
        """Difficulty (n,) int32 of inputs (n, S): guesses that a solver with naked and hidden
        singles makes until it has proved the solution unique; 0 where singles alone solve it.

        Searching to the end makes it independent of the digits' names and of lucky guesses.
        """
        (inputs,) = check_rows(self, inputs=inputs)
        units, unit_of = _geometry(self.box_height, self.box_width)
        return _ratings(self._to_bits(inputs), units, unit_of, SOLVE_BUDGET)

    def augment(
        self, inputs: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Digits relabelled, bands, stacks, rows in bands and columns in stacks permuted, and for
        square boxes half of the grids transposed; one draw per row of (B, S), on its generator's
        device."""
        batch, side = len(inputs), self.height

        def permutations(*shape: int) -> torch.Tensor:
            draws = torch.rand(batch, *shape, generator=generator, device=generator.device)
            return draws.argsort(-1)

        def lines(depth: int) -> torch.Tensor:  # (B, side), blocks of ``depth`` lines kept together
            blocks = permutations(side // depth)[:, :, None] * depth
            return (blocks + permutations(side // depth, depth)).flatten(1)

        rows, columns = lines(self.box_height), lines(self.box_width)
        source = rows[:, :, None] * side + columns[:, None, :]  # (B, side, side)
        if self.box_height == self.box_width:
            flip = permutations(2)[:, :1, None] == 1
            source = torch.where(flip, source.transpose(1, 2), source)
        relabel = torch.arange(2, device=source.device).expand(batch, 2)
        relabel = torch.cat([relabel, 2 + permutations(side)], dim=1)  # (B, vocab_size)
        source, relabel = source.flatten(1).to(inputs.device), relabel.to(inputs.device)
        moved = [relabel.gather(1, tokens.gather(1, source).long()) for tokens in (inputs, labels)]
        return moved[0].to(inputs.dtype), moved[1].to(labels.dtype)

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

    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) bool: every unit holds every digit once and the givens (n, S) stand."""
        inputs, answers = check_rows(self, inputs=inputs, answers=answers)
        units, _ = _geometry(self.box_height, self.box_width)
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
        units, _ = _geometry(self.box_height, self.box_width)
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
        """Givens bold and dark, answers blue, errors vermillion with a cross; see ``Task.draw``."""
        side, inputs = self.height, np.asarray(inputs)
        points = paint_cells(ax, np.ones((side, side, 3)), settled)
        answer = inputs if answer is None else np.asarray(answer)
        wrong = np.zeros(self.seq_len, bool) if label is None else answer != np.asarray(label)
        wrong &= answer is not inputs
        for cell, char in enumerate(self.format(np.where(inputs > 1, inputs, answer))):
            row, column = divmod(cell, side)
            given = inputs[cell] > 1
            if char != ".":
                ax.text(
                    column,
                    row,
                    char,
                    ha="center",
                    va="center_baseline",
                    fontsize=0.55 * points,
                    color=INK if given else VERMILLION if wrong[cell] else BLUE,
                    fontweight="bold" if given else "normal",
                )
            if wrong[cell]:
                place = ([column + 0.33], [row - 0.33])
                ax.plot(*place, "x", color=VERMILLION, ms=0.22 * points, mew=0.05 * points)
        for k in range(side + 1):
            heavy = {"color": INK, "lw": 0.05 * points}
            light = {"color": "0.6", "lw": 0.015 * points}
            ax.axhline(k - 0.5, **(light if k % self.box_height else heavy), clip_on=False)
            ax.axvline(k - 0.5, **(light if k % self.box_width else heavy), clip_on=False)

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
        units, unit_of = _geometry(self.box_height, self.box_width)
        solution, stream = np.zeros(self.seq_len, np.int64), np.zeros(1, np.uint64)
        rest = (limit, SOLVE_BUDGET, stream, False, solution)
        found, _ = _search(self._to_bits(tokens)[0], units, unit_of, -1, 0, *rest)
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
        keys = _invariants(grids, given.reshape(grids.shape), self.box_height, self.box_width)
        return [key.tobytes() for key in keys.astype(">u8")]
