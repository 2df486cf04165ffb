"""Mini-ARC as a task: 149 unwritten rules on 5×5 grids, each known by a few pairs of grids only.

Serves the chapter *Several answers, unknown rule?* (paper, A.5). Tokens are those of the official
ARC encoding: 0 padding, 1 unused, 2 .. 11 the colours 0 to 9. The grid to be changed stands on the
board, and the answer takes its cells. Which rule it is, the board tells in one of two ways:

==============  ================================================================================
``in_context``  (input, output) of ``demonstrations`` solved examples stand above the grid: the
                rule must be inferred, and a task that nobody has trained on can be posed
``embedding``   a token of its own names the task, hence a trained vector does, as in HRM and TRM;
                one more names the orientation, and a palette of ten cells the colours: what an
                augmentation does to the task is told, and needs no vector of its own
==============  ================================================================================

Nothing can check an answer but its label: the rules are not written down anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from eqr.settings import ProblemError, settings
from eqr.streams import Generators, draw_rows
from eqr.task import Problems, Task, check_rows
from eqr.tasks import drawing, miniarc_source as source
from eqr.tasks.miniarc_source import CELLS, COLOURS, COMPOSED, FIRST, NAME, SIDE, TURN, TURNS
from eqr.tasks.symmetry import Symmetry

PREFIX = 3 * SIDE  # cells above the grid that name the task: name, orientation, padding; palette
MOST_TASKS = 256 - NAME  # tokens are bytes
SUBSETS = 3  # choices of demonstrations for one training query, at most


@settings
class MiniArc(Task):
    """Grids of Mini-ARC with their rule told by ``mode``; ``split`` says what is held out.

    ``split="queries"``: every task is trained on its demonstrations and tested on its test pairs,
    the paper's way. ``split="tasks"``: ``held_out`` per cent of the tasks, chosen by a hash of
    their names, are tested on (each of their pairs in turn, with the others as demonstrations),
    and training never sees them. ``tasks`` bounds the number of names for mode ``embedding``.
    Without ``recolour`` the symmetries leave the colours alone: fewer of them, and easier to
    learn. Problems from ``generate`` are of the shipped tasks; :meth:`read` takes others.

    >>> task = MiniArc(demonstrations=1)
    >>> task.format(task.parse("0000100000000000000000000>1000000000000000000000000 " + "2" * 25))
    '0000100000000000000000000>1000000000000000000000000 2222222222222222222222222'
    """

    kind: ClassVar[str] = "miniarc"
    judged: ClassVar[str] = "in form; only its label could say whether it is right"
    mode: Literal["in_context", "embedding"] = "in_context"
    split: Literal["queries", "tasks"] = "queries"
    demonstrations: Annotated[int, Field(ge=1, le=8)] = 3
    held_out: Annotated[int, Field(ge=1, le=99)] = 30
    tasks: Annotated[int, Field(ge=1, le=MOST_TASKS)] = 149
    recolour: bool = True

    def __post_init__(self) -> None:
        if self.mode == "embedding" and self.split == "tasks":
            raise ProblemError(
                'split="tasks" with mode="embedding": a task not trained on has no vector; '
                'choose mode="in_context" or split="queries"'
            )

    @property
    def in_context(self) -> bool:
        return self.mode == "in_context"

    @property
    def grid(self) -> int:
        """The first cell of the grid that becomes the answer; it ends the board."""
        return 2 * CELLS * self.demonstrations if self.in_context else PREFIX

    @property
    def height(self) -> int:
        return (self.grid + CELLS) // SIDE

    @property
    def width(self) -> int:
        return SIDE

    @property
    def vocab_size(self) -> int:
        return TURN if self.in_context else NAME + self.tasks

    def same_board(self, other: Task) -> bool:
        """As for any task, and the same way to tell the rule."""
        like = isinstance(other, MiniArc) and self.mode == other.mode
        return like and (self.height, self.vocab_size) == (other.height, other.vocab_size)

    # ------------------------------------------------------------------------------------ problems

    def generate(self, n: int, seed: int, start: int = 0) -> Problems:
        """Shipped pairs, each with demonstrations and a symmetry drawn for it; ``Task.generate``.

        All pairs of all tasks come up: it is the caller who deals them out by ``symmetry_key``.
        """
        rules, rows, own = source.shipped(), [], []
        if not self.in_context and len(rules) > self.tasks:
            raise ProblemError(f"tasks={self.tasks}: the shipped tasks are {len(rules)}; raise it")
        for index in range(start, start + n):
            draw = np.random.default_rng(np.random.SeedSequence((seed % 2**64, index)))
            name = int(draw.integers(len(rules)))
            pairs = rules[name].pairs
            query, *others = draw.permutation(len(pairs))
            rows.append(self._board(name, pairs[query], pairs[others[: self.demonstrations]]))
            own.append(torch.Generator().manual_seed(int(draw.integers(2**63))))
        problems = _joined(rows, self.seq_len)
        images = self.symmetries(n, own) if n else None
        arrays = (problems.inputs, problems.labels)
        moved = [images.apply(torch.from_numpy(a)).numpy() if images else a for a in arrays]
        return Problems(*moved, problems.rating)

    def read(self, path: Path) -> dict[str, Problems] | None:
        """Training and test problems of a JSON file of tasks, or of a folder of such files.

        A training query gets up to ``SUBSETS`` different sets of demonstrations, the first ones in
        the order of the file; a test query the first ones. The rating of a problem is the number
        of cells that its answer changes.

        Raises:
            ProblemError: malformed tasks (file, task, field and mend), or too many of them.
        """
        path = Path(path)
        if path.suffix != ".json" and not source.files_in(path):
            return None
        rules = source.read_rules(path)
        if not self.in_context and len(rules) > self.tasks:
            raise ProblemError(
                f"{path}: holds {len(rules)} tasks; say -s tasks={len(rules)} (at most "
                f"{MOST_TASKS} in this mode)"
            )
        family, rows = source.families(rules), {"train": [], "test": []}
        for name, rule in enumerate(rules):
            if self.split == "queries":
                rows["train"] += self._trained(name, rule.train)
                rows["test"] += [self._board(name, pair, rule.train) for pair in rule.test]
            elif source.held_out(family[rule.name], self.held_out):
                pairs = rule.pairs
                for query in reversed(range(len(pairs))):  # the task's own test pair first
                    rest = np.delete(pairs, query, axis=0)
                    rows["test"].append(self._board(name, pairs[query], rest))
            else:
                rows["train"] += self._trained(name, rule.pairs)
        for split, found in rows.items():
            if not found:
                raise ProblemError(f"{path}: no {split} problems; change held_out={self.held_out}")
        return {split: _joined(found, self.seq_len) for split, found in rows.items()}

    def _trained(self, name: int, pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every pair as the query, with others as demonstrations."""
        for query in range(len(pairs)):
            others = [i for i in range(len(pairs)) if i != query]
            count = min(self.demonstrations, len(others))
            sets = itertools.combinations(others, count) if self.in_context else [others]
            for chosen in itertools.islice(sets, SUBSETS):
                yield self._board(name, pairs[query], pairs[list(chosen)])

    def _board(self, name: int, pair: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Inputs and labels (S,) of the pair (2, 25), the rule told by the first of ``pairs``."""
        board = np.zeros(self.seq_len, np.uint8)
        if self.in_context:
            told = (pairs[: self.demonstrations] + FIRST).ravel()
            board[: len(told)] = told
        else:
            board[:2], board[SIDE:PREFIX] = (NAME + name, TURN), np.arange(COLOURS) + FIRST
        label = board.copy()
        board[self.grid :], label[self.grid :] = pair + FIRST
        return board, label

    # ---------------------------------------------------------------------------------- symmetries

    def symmetries(self, n: int, generator: Generators) -> Symmetry:
        """A turn or mirror image of all grids, the colours 1 to 9 renamed in all of them (with
        ``recolour``), and the demonstrations in another order; the orientation is renamed along;
        ``Task.symmetries``."""
        count = self.demonstrations if self.in_context else 0

        def uniform(rows: int, own: torch.Generator) -> torch.Tensor:
            return torch.rand(rows, COLOURS + count, generator=own, device=own.device)

        draws = draw_rows(n, generator, uniform)
        device = draws.device
        turn = (draws[:, 0] * 8).long()
        names = torch.arange(self.vocab_size, device=device).repeat(n, 1)
        if self.recolour:
            names[:, FIRST + 1 : TURN] = FIRST + 1 + draws[:, 1:COLOURS].argsort(1)
        place = torch.arange(self.seq_len, device=device).repeat(n, 1)
        moved = torch.as_tensor(TURNS.copy(), device=device)[turn]  # (n, 25)
        place[:, self.grid :] = self.grid + moved
        if self.in_context:
            order = draws[:, COLOURS:].argsort(1)[:, :, None, None] * 2 * CELLS  # of the pairs
            halves = torch.tensor([0, CELLS], device=device)[:, None]
            place[:, : self.grid] = (order + halves + moved[:, None, None]).flatten(1)
        else:
            composed = torch.as_tensor(COMPOSED, device=device)[turn]  # (n, 8)
            names[:, TURN:NAME] = TURN + composed
        return Symmetry(place, names)

    def symmetry_key(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """Keys of problems (n, S): of split ``tasks`` all of one task share one.

        There it is the family of the shipped tasks that the query pair belongs to (tasks that
        share a pair are one family); a pair that is not shipped stands for itself. With split
        ``queries`` the key is that of the whole problem, what tells the rule included.
        """
        inputs, labels = check_rows(self, inputs=inputs, labels=labels)
        if not self.in_context:
            return self._raw(inputs, labels)
        grids = np.stack([inputs[:, self.grid :], labels[:, self.grid :]], axis=1)
        if grids.size and (grids.min() < FIRST or grids.max() >= TURN):
            raise ProblemError("grid and label must be full of colours: a cell holds none")
        if self.split == "tasks":
            known = source.known_pairs()
            keys = map(source.pair_key, grids - FIRST)
            return [known[key].encode() if key in known else key for key in keys]
        told = inputs[:, : self.grid].reshape(len(inputs), -1, 2, CELLS)
        boards = np.concatenate([told, grids[:, None]], axis=1)
        return [_board_key(board) for board in boards]

    def _raw(self, inputs: np.ndarray, labels: np.ndarray) -> list[bytes]:
        """Name and pair of each problem, turned and coloured back as its prefix tells."""
        turn, palette = inputs[:, 1].astype(int) - TURN, inputs[:, SIDE:PREFIX]
        wanted = np.arange(FIRST, TURN)
        if not ((turn >= 0) & (turn < 8)).all() or (np.sort(palette, 1) != wanted).any():
            raise ProblemError("cells 2 and 6 to 15 must hold an orientation and ten colours")
        names = np.tile(np.arange(self.vocab_size), (len(inputs), 1))
        names[:, FIRST:TURN] = palette
        back = Symmetry(torch.from_numpy(TURNS[turn]), torch.from_numpy(names))
        pairs = [back.undo(torch.from_numpy(a[:, self.grid :].copy())) for a in (inputs, labels)]
        rows = np.concatenate([inputs[:, :1], *(p.numpy() for p in pairs)], axis=1)
        return [row.tobytes() for row in rows]

    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """(n,) bool: has each answer (n, S) the *form* of one: the rest unchanged, and a grid full
        of colours? Whether it is right, only its label tells: no rule is written down."""
        inputs, answers = check_rows(self, inputs=inputs, answers=answers)
        told = (inputs == answers)[:, : self.grid].all(1)
        colours = answers[:, self.grid :]
        return told & ((colours >= FIRST) & (colours < TURN)).all(1)

    def images(self, splits: Mapping[str, Problems]) -> np.ndarray:
        """(n,) bool: is the pair of each test problem a turned, mirrored or recoloured image of a
        training pair? Of the shipped 149, 21 are: their answer can be had without the rule."""
        keys = {}
        for split in ("train", "test"):
            arrays = (splits[split].inputs, splits[split].labels)
            grids = np.stack([array[:, self.grid :] for array in arrays], axis=1)
            keys[split] = [source.pair_key(pair) for pair in grids - FIRST]
        known = {*keys["train"]}
        return np.array([key in known for key in keys["test"]], bool)

    def remarks(self, splits: Mapping[str, Problems]) -> dict[str, int]:
        """How many test pairs are :meth:`images`; ``Task.remarks``."""
        return {"test pairs are images of training pairs": int(self.images(splits).sum())}

    def solve(self, tokens: np.ndarray) -> None:
        """None: no rule is written down by which to solve."""
        return None

    # ------------------------------------------------------------------------------- text, drawing

    def parse(self, text: str) -> np.ndarray:
        """Tokens (S,) of a problem in one line; a grid is 25 digits, row by row.

        In context: ``input>output`` of each demonstration, ``-`` for none, and the grid, with
        spaces between. By embedding: the task's name, as far as it takes, or number, then, if they
        are not ``0`` and ``0123456789``, orientation and palette, then the grid.

        Raises:
            ProblemError: says which word is wrong and what is wanted.
        """
        words = text.split()
        if not words:
            raise ProblemError("nothing there: give what tells the rule, then a grid of 25 digits")
        told, last = words[:-1], words[-1]
        if self.in_context:
            prefix = source.read_demonstrations(told, self.demonstrations)
        else:
            prefix = source.read_name(told, self.tasks)
        return np.concatenate([prefix, source.read_grid("the grid", last)])

    def format(self, tokens: np.ndarray) -> str:
        """The line that ``parse`` reads; '.' for padding and '?' for other tokens in a grid."""
        return source.line(np.asarray(tokens).reshape(self.seq_len), self.grid)

    def render(self, tokens: np.ndarray) -> str:
        """Demonstrations as ``input > output``, a row of cells a line, then the grid."""
        return source.board(np.asarray(tokens).reshape(self.seq_len), self.grid)

    def draw(self, ax, inputs, answer=None, label=None, settled=None) -> None:
        """All pairs side by side, input above output, the problem last; see ``Task.draw``.

        The answer's wrong cells are crossed out. By embedding only the problem is drawn.
        """
        inputs = np.asarray(inputs).reshape(self.seq_len)
        told = inputs[: self.grid].reshape(-1, 2, CELLS) if self.in_context else []
        grids = [
            None if tokens is None else np.asarray(tokens).reshape(self.seq_len)[self.grid :]
            for tokens in (inputs, answer, label, settled)
        ]
        pairs = [pair.astype(int) - FIRST for pair in told if pair.any()]
        shift = [None if g is None else g.astype(int) - FIRST for g in grids[:3]]
        drawing.draw_pairs(ax, pairs, *shift, grids[3])


def _joined(rows: Iterable[tuple[np.ndarray, np.ndarray]], cells: int) -> Problems:
    """The boards as arrays; the rating counts the cells that change."""
    pairs = np.array(list(rows), np.uint8).reshape(-1, 2, cells)
    inputs, labels = pairs[:, 0].copy(), pairs[:, 1].copy()
    return Problems(inputs, labels, (inputs != labels).sum(1).astype(np.int32))


def _board_key(board: np.ndarray) -> bytes:
    """A key of pairs (k + 1, 2, 25) of tokens, the last the problem, that no symmetry changes."""
    there = [pair for pair in board[:-1] if pair.any()]
    orders = list(itertools.permutations(there))
    ordered = np.array([[board[-1], *order] for order in orders]) - FIRST  # (o, k + 1, 2, 25)
    images = ordered[..., TURNS]  # (o, k + 1, 2, 8, 25)
    rows = np.moveaxis(images, 3, 1).reshape(8 * len(orders), -1)
    return min(row.tobytes() for row in source.in_order(rows))
