"""Mazes: perfect ones with one path (Maze-Unique), or with loops and several shortest paths, in
several textures (the carvings of :mod:`eqr.tasks.maze_carving`).

Serves the maze experiments and the ambiguity study (paper, section 4 and C.2, where several
shortest paths but one label break the attractor landscape). Tokens are those of the official data:
0 padding, 1 wall ``#``, 2 open, 3 start ``S``, 4 goal ``G``, 5 path ``o``.

A maze cell stands on odd coordinates and the wall or passage between two cells takes a token of
its own. On an even-sized board the last row or column is wall, so 30×30 holds a maze of 29×29
tokens, 14×14 cells. A path's *length* is its number of steps from S to G, which is one more than
its number of ``o`` tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch

from eqr.settings import ProblemError, settings
from eqr.streams import Generators, draw_rows
from eqr.task import Problems, Task, check_rows
from eqr.tasks.drawing import BLUE, INK, VERMILLION, paint_cells
from eqr.tasks.kernel_random import kernel, random_below, random_stream, random_unit
from eqr.tasks.maze_carving import CARVINGS, OPEN, WALL, carve, carve_numpy, flip_cells, open_walls
from eqr.tasks.symmetry import Symmetry

START, GOAL, PATH = 3, 4, 5
ATTEMPTS = 2_000  # mazes carved for one problem before the request is called out of reach
STARTS = 8  # start cells tried in one maze
PATIENCE = 50  # mazes carved for one path length before another length is drawn


# --- Paths ----------------------------------------------------------------------------------------


@kernel
def _neighbour(cell, side, height, width):
    """The cell above, left, right or below (side 0 .. 3), -1 beyond the edge."""
    row, column = cell // width, cell % width
    if side == 0:
        return cell - width if row > 0 else -1
    if side == 1:
        return cell - 1 if column > 0 else -1
    if side == 2:
        return cell + 1 if column < width - 1 else -1
    return cell + width if row < height - 1 else -1


@kernel
def _flood(passable, height, width, source, steps, paths):
    """Breadth first from ``source`` over ``passable`` (S,) bool: fills steps (S,), -1 where out of
    reach, and paths (S,), the number of shortest paths (float: exact up to 2**53)."""
    queue, head, tail = np.empty(passable.size, np.int64), 0, 1
    steps[:], paths[:] = -1, 0
    queue[0], steps[source], paths[source] = source, 0, 1
    while head < tail:
        cell = queue[head]
        head += 1
        for side in range(4):
            other = _neighbour(cell, side, height, width)
            if other < 0 or not passable[other]:
                continue
            if steps[other] < 0:
                steps[other] = steps[cell] + 1
                queue[tail] = other
                tail += 1
            if steps[other] == steps[cell] + 1:
                paths[other] += paths[cell]


@kernel
def _trace(height, width, goal, steps, paths, stream, label):
    """Write PATH into ``label`` (S,) from ``goal`` back along a shortest path, each equally likely.

    ``steps`` and ``paths`` are those of ``_flood`` from the start.
    """
    cell = goal
    while steps[cell] > 1:
        draw, chosen = random_unit(stream) * paths[cell], -1
        for side in range(4):
            other = _neighbour(cell, side, height, width)
            if other >= 0 and steps[other] == steps[cell] - 1 and (chosen < 0 or draw >= 0):
                chosen = other
                draw -= paths[other]
        cell = chosen
        label[cell] = PATH


# --- Generator ------------------------------------------------------------------------------------


@kernel
def _generate(
    seed, index, height, width, low, high, even, carving, loops, flips, several, tokens, label
):
    """Fill ``tokens`` and ``label`` (S,) with problem ``index`` of ``seed``.

    ``even``: the path length is drawn evenly from low .. high before anything else; otherwise it is
    that of a random goal in the range. ``several``: there must be several shortest paths, else one.
    Returns (path length, or 0 where no attempt reached low .. high; shortest, longest met).
    """
    stream = random_stream(seed, index)
    steps, paths = np.empty(tokens.size, np.int64), np.empty(tokens.size, np.float64)
    goals = np.empty(tokens.size, np.int64)
    shortest, longest = tokens.size, 0
    least, most = low, high
    for attempt in range(ATTEMPTS):
        if even and attempt % PATIENCE == 0:
            least = most = low + random_below(stream, high - low + 1)
        carve(carving, height, width, stream, tokens)
        open_walls(height, width, loops, stream, tokens)
        flipped = flip_cells(height, width, flips, stream, tokens)
        free = np.flatnonzero((tokens == OPEN) & ~flipped)
        if free.size < 2:
            continue
        for _start in range(STARTS):
            start, found = free[random_below(stream, free.size)], 0
            _flood(tokens == OPEN, height, width, start, steps, paths)
            for cell in free:
                if cell != start and (paths[cell] > 1 if several else paths[cell] == 1):
                    shortest = min(shortest, steps[cell])
                    longest = max(longest, steps[cell])
                    if least <= steps[cell] <= most:
                        goals[found] = cell
                        found += 1
            if found > 0:
                goal = goals[random_below(stream, found)]
                tokens[start], tokens[goal] = START, GOAL
                label[:] = tokens
                _trace(height, width, goal, steps, paths, stream, label)
                return steps[goal], shortest, longest
    return 0, shortest, longest


@kernel
def _check(inputs, answers, height, width):
    """(n,) bool, see ``Maze.check``."""
    valid = np.zeros(len(inputs), np.bool_)
    steps, paths = np.empty(inputs.shape[1], np.int64), np.empty(inputs.shape[1], np.float64)
    for i in range(len(inputs)):
        maze, answer = inputs[i], answers[i]
        if (maze == START).sum() != 1 or (maze == GOAL).sum() != 1:
            continue
        path = answer == PATH
        if not ((answer == maze) | (path & (maze == OPEN))).all():
            continue
        start, goal = np.argmax(maze == START), np.argmax(maze == GOAL)
        _flood(maze >= OPEN, height, width, start, steps, paths)
        length = steps[goal]
        path[goal] = True
        _flood(path, height, width, start, steps, paths)
        # As many path cells as a shortest path has, and they connect S to G: no path through
        # fewer exists, so they are that path and nothing else.
        valid[i] = length > 0 and steps[goal] == length and path.sum() == length
    return valid


@lru_cache
def _symmetries(height: int, width: int) -> np.ndarray:
    """(8 or 4, S): the source cell of each cell, for each symmetry of the board."""
    board = np.arange(height * width).reshape(height, width)
    images = [board, board[::-1], board[:, ::-1], board[::-1, ::-1]]
    if height == width:
        images += [image.T for image in images]
    return np.stack([image.ravel() for image in images])


# --- The task -------------------------------------------------------------------------------------


@settings
class Maze(Task):
    """Mazes whose shortest path from S to G takes path_min .. path_max steps (None: any number).

    S and G stand on any open cells. Where ``path_max`` is given, the length of the path is drawn
    evenly from the range, as in the official data; otherwise a goal is drawn from those far enough.
    ``loops`` = 0 makes perfect mazes, where every path is unique. ``loops`` > 0 opens that many
    more walls, keeps only problems with several shortest paths, and labels each with one of them,
    drawn evenly. Maze-Unique is ``Maze(30, 30, 100, 140)``. Raises ProblemError for ranges that no
    maze of this size can meet.

    For shifts: ``carving`` names the algorithm of the perfect maze (one of ``CARVINGS``); with
    ``unique``, loops keep only problems with one shortest path instead; ``flips`` cells within the
    border, posts among them, then turn from wall to open or back, never S or G, and the label is
    the shortest path thereafter, the only one. Flips may leave cells that S does not reach.
    """

    kind: ClassVar[str] = "maze"
    height: int = 30
    width: int = 30
    path_min: int | None = None
    path_max: int | None = None
    loops: int = 0
    _: KW_ONLY
    carving: Literal[CARVINGS] = "depth-first"
    unique: bool = False
    flips: int = 0

    def __post_init__(self) -> None:
        rows, columns = (self.height - 1) // 2, (self.width - 1) // 2
        if min(rows, columns) < 1 or rows * columns < 2:
            raise ProblemError(f"{self.height}x{self.width} holds no two cells: use 3x5 or more")
        low, high = self.path_range
        longest = 2 * (rows * columns - 1)
        if low > high or low > longest or low < 1:
            wanted = f"{low} to {high}" if self.path_max is not None else f"{low} or more"
            raise ProblemError(
                f"no path of {wanted} steps: on {self.height}x{self.width} they have 1 to {longest}"
            )
        spare = (rows - 1) * (columns - 1)
        if not 0 <= self.loops <= spare:
            raise ProblemError(
                f"loops={self.loops}: {self.height}x{self.width} has 0 to {spare} spare walls"
            )
        inner = (2 * rows - 1) * (2 * columns - 1) - 2
        if not 0 <= self.flips <= inner:
            raise ProblemError(
                f"flips={self.flips}: {self.height}x{self.width} has 0 to {inner} cells to flip, "
                "without S, G and the border"
            )
        if self.flips and self.several_paths:
            raise ProblemError(
                f"flips={self.flips} keep one shortest path, loops={self.loops} several: "
                "set unique=true"
            )

    @property
    def vocab_size(self) -> int:
        return 6

    @property
    def path_range(self) -> tuple[int, int]:
        """The range of path lengths in force, None filled in."""
        high = self.seq_len if self.path_max is None else self.path_max
        return (2 if self.path_min is None else self.path_min), high

    @property
    def several_paths(self) -> bool:
        """Whether every problem has several shortest paths; otherwise every one has one."""
        return self.loops > 0 and not self.unique

    def generate(self, n: int, seed: int, start: int = 0) -> Problems:
        """Mazes start .. start + n - 1 of the list that ``seed`` names; the rating is the path
        length. See ``Task.generate``."""
        inputs = np.zeros((n, self.seq_len), np.uint8)
        labels, lengths = np.zeros_like(inputs), np.zeros(n, np.int32)
        low, high = self.path_range
        even = self.path_max is not None
        change = (CARVINGS.index(self.carving), self.loops, self.flips, self.several_paths)
        rules = (self.height, self.width, low, high, even, *change)
        for i in range(n):  # one call a maze, so that Ctrl-C gets through
            stream = (np.uint64(seed % 2**64), np.uint64(start + i))
            lengths[i], shortest, longest = _generate(*stream, *rules, inputs[i], labels[i])
            if lengths[i] == 0:
                raise ProblemError(
                    f"no maze with a path of {low} to {high} steps in {ATTEMPTS:,} attempts "
                    f"(met: {f'{shortest} to {longest}' if longest else 'none'}): "
                    f"widen path_min .. path_max{', or lower flips' * (self.flips > 0)}"
                )
        return Problems(inputs, labels, lengths)

    def generate_official(self, n: int, seed: int) -> Problems:
        """The first n mazes, perfect and without repeats, of Maze-Unique's official builder.

        One NumPy generator draws all: a length, a maze, then up to 200 cells for S until one has
        cells for G at that length, else another maze; ProblemError where 200 have none."""
        rng, (low, high), made = np.random.default_rng(seed), self.path_range, {}
        steps, paths = np.empty(self.seq_len, np.int64), np.empty(self.seq_len)
        while len(made) < n:
            length = rng.integers(low, high + 1)
            for attempt in range(200 * 200):
                if attempt % 200 == 0:
                    tokens = carve_numpy(self.height, self.width, rng)
                    passable = tokens == OPEN
                start = rng.choice(np.flatnonzero(passable))
                _flood(passable, self.height, self.width, start, steps, paths)
                if (goals := np.flatnonzero(steps == length)).size:
                    break
            else:
                raise ProblemError(f"no path of {length} steps in 200 mazes: change path_min")
            tokens[start], tokens[rng.choice(goals)] = START, GOAL
            made.setdefault(tokens.tobytes(), tokens)
        inputs = np.stack(list(made.values()))
        labels = np.stack([self.solve(maze) for maze in inputs])
        return Problems(inputs, labels, self.rate(labels))

    def rate(self, labels: np.ndarray) -> np.ndarray:
        return (labels == PATH).sum(1, dtype=np.int32) + np.int32(1)  # the path lengths

    def symmetries(self, n: int, generator: Generators) -> Symmetry:
        """Flips and rotations: 8 on square boards, 4 on others; see ``Task.symmetries``."""
        table = torch.from_numpy(_symmetries(self.height, self.width))

        def number(rows: int, own: torch.Generator) -> torch.Tensor:
            return torch.randint(len(table), (rows,), generator=own, device=own.device)

        which = draw_rows(n, generator, number)
        return Symmetry(table.to(which.device)[which])

    def symmetry_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """Keys of the walls alone: equal exactly where a flip or rotation maps one layout onto the
        other (up to chance collisions of a 128-bit hash), wherever S and G stand."""
        inputs, _ = check_rows(self, inputs=inputs, labels=labels)
        symmetries = _symmetries(self.height, self.width)
        mazes = (inputs == WALL).astype(np.uint8)
        least = (min(image.tobytes() for image in maze[symmetries]) for maze in mazes)
        return [hashlib.blake2b(image, digest_size=16).digest() for image in least]

    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) bool: walls, S and G stand; the ``o`` cells are one shortest path from S to G."""
        inputs, answers = check_rows(self, inputs=inputs, answers=answers)
        # One dtype and owned memory for the kernel: it is compiled once, for maps of files too.
        inputs, answers = inputs.astype(np.int16), answers.astype(np.int16)
        return _check(inputs, answers, self.height, self.width)

    def count_shortest_paths(self, tokens: np.ndarray) -> int:
        """Number of shortest paths of tokens (S,), 0 if G is out of reach; exact up to 2**53."""
        return int(self._flood(tokens)[2])

    def solve(self, tokens: np.ndarray) -> np.ndarray | None:
        """Tokens (S,) with a shortest path drawn (always the same one), None if there is none."""
        goal, steps, count, paths = self._flood(tokens)
        if not count:
            return None
        answer = np.where(np.asarray(tokens) == PATH, OPEN, tokens).astype(np.uint8)
        stream = np.zeros(1, np.uint64)
        _trace(self.height, self.width, goal, steps, paths, stream, answer)
        return answer

    def parse(self, text: str) -> np.ndarray:
        """Tokens (S,) of a maze written row by row, the rows run together or parted by '/' or new
        lines; a space or '.' is open. Quote it in a shell, where ``#`` may begin a comment.

        Raises ProblemError for anything but one S, one G and a way between them, and for several
        shortest paths unless the task has them. 'o' is refused: the path belongs to the answer.
        """
        rows = text.strip("\r\n").replace("\r", "").replace("\n", "/").split("/")
        if len(rows) > 1:
            if len(rows) != self.height:
                raise ProblemError(f"{len(rows)} rows; expected {self.height}")
            for i, row in enumerate(rows):
                if len(row) != self.width:
                    raise ProblemError(
                        f"row {i + 1} has {len(row)} characters; expected {self.width}"
                    )
        cells = "".join(rows)
        for i, char in enumerate(cells):
            if char not in "#. SG":
                why = "the path is for the answer: write '.'" if char == "o" else "use # . S G"
                raise ProblemError(f"character {i + 1} is {char!r}; {why}")
        if len(cells) != self.seq_len:
            raise ProblemError(
                f"{len(cells)} characters; expected {self.seq_len} ({self.height}x{self.width})"
            )
        for char, name in (("S", "start"), ("G", "goal")):
            if cells.count(char) != 1:
                raise ProblemError(f"{cells.count(char)} cells are {char}; a maze has one {name}")
        tokens = np.array(["#.SG".find(char) + 1 for char in cells.replace(" ", ".")], np.uint8)
        count = self.count_shortest_paths(tokens)
        if count == 0:
            raise ProblemError("no way leads from S to G: open a wall")
        if count > 1 and not self.several_paths:
            mend = "set loops above 0" if self.loops == 0 else "set unique=false"
            raise ProblemError(f"{count} shortest paths: close all but one, or {mend}")
        return tokens

    def format(self, tokens: np.ndarray) -> str:
        """One line of S characters, row by row, '.' for open and '?' for what is no token."""
        tokens = np.asarray(tokens).reshape(self.seq_len)
        return "".join("?#.SGo"[t] if t < self.vocab_size else "?" for t in tokens.tolist())

    def render(self, tokens: np.ndarray) -> str:
        """The board, one row a line, a space for open."""
        cells = self.format(tokens).replace(".", " ")
        return "\n".join(cells[k : k + self.width] for k in range(0, self.seq_len, self.width))

    def draw(self, ax, inputs, answer=None, label=None, settled=None) -> None:
        """Walls dark, S and G bold, the answer's path blue dots, errors crossed in vermillion; see
        ``Task.draw``."""
        inputs = np.asarray(inputs)
        answer = inputs if answer is None else np.asarray(answer)
        grey = np.where(inputs == WALL, 0.25, 1.0).reshape(self.height, self.width, 1)
        points = paint_cells(ax, np.repeat(grey, 3, axis=2), settled)
        for token, name in ((START, "S"), (GOAL, "G")):
            for cell in np.flatnonzero(inputs == token):
                row, column = divmod(int(cell), self.width)
                ax.text(
                    column,
                    row,
                    name,
                    ha="center",
                    va="center_baseline",
                    fontsize=0.75 * points,
                    color=INK,
                    fontweight="bold",
                )
        wrong = np.zeros(self.seq_len, bool) if label is None else answer != np.asarray(label)
        wrong &= answer is not inputs
        rows, columns = np.divmod(np.flatnonzero(answer == PATH), self.width)
        ax.plot(columns, rows, "o", color=BLUE, ms=0.45 * points, mew=0)
        rows, columns = np.divmod(np.flatnonzero(wrong), self.width)
        ax.plot(columns, rows, "x", color=VERMILLION, ms=0.6 * points, mew=0.12 * points)

    def _flood(self, tokens: np.ndarray) -> tuple[int, np.ndarray, float, np.ndarray]:
        """(goal, steps from S (S,), shortest paths to G, the same to each cell (S,))."""
        (tokens,) = check_rows(self, tokens=np.asarray(tokens)[None])
        tokens = tokens[0]
        steps, paths = np.zeros(self.seq_len, np.int64), np.zeros(self.seq_len)
        if (tokens == START).sum() != 1 or (tokens == GOAL).sum() != 1:
            return 0, steps, 0.0, paths
        goal = int(np.argmax(tokens == GOAL))
        start = int(np.argmax(tokens == START))
        _flood(tokens >= OPEN, self.height, self.width, start, steps, paths)
        return goal, steps, float(paths[goal]), paths
