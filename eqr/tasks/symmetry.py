"""Symmetries of a task's problems: cells moved, tokens renamed; and how to undo them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqr.streams import stream
from eqr.task import Task


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


def restart_symmetries(task: Task, seed: int, problem: np.ndarray, restart: np.ndarray) -> Symmetry:
    """The symmetries under which symmetry restarts solve pairs of problem and restart, (R,) each.

    Each is a function of (seed, problem, restart), from a stream of its own; restart 0 has the
    identity, so that it is the trajectory that one gets without symmetry restarts.
    """
    own = [stream(seed, "symmetry", p, r) for p, r in zip(problem, restart, strict=True)]
    return task.symmetries(len(own), own).only(torch.from_numpy(restart > 0))
