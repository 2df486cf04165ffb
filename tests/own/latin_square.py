"""Latin squares: a task of one's own in one file.

A recipe names it as ``kind = "latin_square.py:LatinSquare"``, and a command that reads a model of
it as ``--task latin_square.py:LatinSquare``.
"""

from typing import ClassVar

import numpy as np

from eqr.settings import settings
from eqr.task import Problems, Task


@settings
class LatinSquare(Task):
    """Fill a board so that each symbol stands once in every row and every column."""

    kind: ClassVar[str] = "latin-square"
    side: int = 4
    blanks: int = 6

    @property
    def height(self) -> int:
        return self.side

    @property
    def width(self) -> int:
        return self.side

    @property
    def symbols(self) -> str:
        return "?." + "123456789"[: self.side]  # token 0 is padding, 1 a cell to be filled in

    def generate(self, n: int, seed: int, start: int = 0) -> Problems:
        labels = np.empty((n, self.seq_len), np.uint8)
        inputs = np.empty_like(labels)
        for row in range(n):
            draw = np.random.default_rng((seed, start + row))  # a problem depends on its number
            rows, columns, names = (draw.permutation(self.side) for _ in range(3))
            square = names[(rows[:, None] + columns) % self.side] + 2
            labels[row] = inputs[row] = square.ravel()
            inputs[row, draw.choice(self.seq_len, self.blanks, replace=False)] = 1
        return Problems(inputs, labels, np.full(n, self.blanks, np.int32))

    def check(self, inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
        boards = np.asarray(answers).reshape(-1, self.side, self.side)
        every = np.arange(2, self.side + 2)
        lines = (np.sort(boards, 1) == every[:, None]).all((1, 2))
        lines &= (np.sort(boards, 2) == every).all((1, 2))
        return lines & ((inputs == 1) | (inputs == answers)).all(1)
