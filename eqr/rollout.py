"""Iterate the operator: depth, breadth and noise (paper §4).

Memory grows with the rows in flight, never with the depth: :func:`rollout` yields one outer
iteration after the other and keeps only the latest state. Breadth runs in chunks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqr.model import Reasoner, State, Step, residual
from eqr.streams import stream
from eqr.task import Symmetry, Task


@dataclass(frozen=True, slots=True)
class Iteration:
    """One outer iteration of the rows in flight (R of them)."""

    problem: np.ndarray  # (R,) index into the inputs
    restart: np.ndarray  # (R,) which of the B starts of its problem
    depth: int  # outer iterations done, from 1
    step: Step
    residual: Tensor  # (R,) root-mean-square change of the latents in this iteration
    symmetry: Symmetry | None = None  # under which each row was solved; None: as it is

    @property
    def answer(self) -> Tensor:
        """The decoded tokens (R, S), any symmetry undone."""
        return self.symmetry.undo(self.step.answer) if self.symmetry else self.step.answer


def restart_symmetries(task: Task, seed: int, problem: np.ndarray, restart: np.ndarray) -> Symmetry:
    """The symmetries under which symmetry restarts solve pairs of problem and restart, (R,) each.

    Each is a function of (seed, problem, restart), from a stream of its own; restart 0 has the
    identity, so that it is the trajectory that one gets without symmetry restarts.
    """
    own = [stream(seed, "symmetry", p, r) for p, r in zip(problem, restart, strict=True)]
    return task.symmetries(len(own), own).only(torch.from_numpy(restart > 0))


def branched(state: State, branches: int) -> State:
    """Every row ``branches`` times over, copies side by side."""
    return State(
        state.z_high.repeat_interleave(branches, 0), state.z_low.repeat_interleave(branches, 0)
    )


@torch.no_grad()
def rollout(
    model: Reasoner,
    inputs: Tensor,
    *,
    depth: int,
    breadth: int = 1,
    noise: float = 0.0,
    damping: float | None = None,
    seed: int = 0,
    rows: int = 256,
    part: int = 0,
    parts: int = 1,
    symmetries_of: Task | None = None,
    branches: int = 1,
    branch_at: int = 0,
) -> Iterator[Iteration]:
    """Run ``breadth`` trajectories of every problem for ``depth`` outer iterations.

    Each (index in ``inputs``, restart) owns a random stream for its start and its noise: a
    trajectory does not depend on ``rows``, on ``breadth``, or on the problems that follow it (up to
    the rounding of matrix products of another size).

    Args:
        model: the operator.
        inputs: (N, S) problem tokens.
        depth, breadth: the D and B of the paper; NFE a problem is their product.
        noise: β while iterating; 0 leaves the start as the only source of variety.
        damping: λ; None takes the model's own.
        seed: of the evaluation stream.
        rows: the most (problem, restart) pairs in flight.
        part, parts: run only every ``parts``-th chunk of rows, from the ``part``-th.
        symmetries_of: a task; every restart but the first then solves the problem under a random
            symmetry of it (see :func:`restart_symmetries`), which ``Iteration.answer`` undoes.
            Starts and noise are drawn as without.
        branches: trajectories that leave each start, each with noise of its own from depth
            ``branch_at`` on; before it they are one, and computed once. ``breadth`` counts all of
            them, restart r being path ``r % branches`` of start ``r // branches``.

    Yields:
        Every iteration 1..depth of the first chunk of rows, then of the next chunk.
    """
    inputs = torch.as_tensor(inputs)
    starts = np.arange(0, breadth, branches)
    pairs = np.stack(np.meshgrid(np.arange(len(inputs)), starts, indexing="ij"), -1).reshape(-1, 2)
    chunk = max(1, rows // branches)
    for first in range(part * chunk, len(pairs), parts * chunk):
        problem, restart = pairs[first : first + chunk].T
        x = inputs[torch.from_numpy(problem)].to(model.device)
        symmetry = None
        if symmetries_of:
            symmetry = restart_symmetries(symmetries_of, seed, problem, restart)
            x = symmetry.apply(x)
        start = restart // branches
        own = [stream(seed, "evaluation", p, s) for p, s in zip(problem, start, strict=True)]
        state = model.initial_state(len(problem), own)
        for done in range(1, depth + 1):
            if branches > 1 and done == branch_at + 1:
                problem = problem.repeat(branches)
                restart = restart.repeat(branches) + np.tile(np.arange(branches), len(restart))
                x, state = x.repeat_interleave(branches, 0), branched(state, branches)
                own = [stream(seed, "branch", p, r) for p, r in zip(problem, restart, strict=True)]
            step = model.step(state, x, noise=noise, generator=own, damping=damping)
            change = residual(state, step.state)
            yield Iteration(problem, restart, done, step, change, symmetry)
            state = step.state
