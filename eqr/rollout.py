"""Iterate the operator: depth, breadth and noise (paper §4), and record what was seen.

Memory grows with the rows in flight, never with the depth: :func:`rollout` yields one outer
iteration after the other and keeps only the latest state. Breadth runs in chunks of rows.
:func:`record` fills arrays from whatever it, or the queue of :mod:`eqr.halting`, yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqr.layers import require_rows
from eqr.model import Reasoner, State, Step, logit_change, residual
from eqr.streams import stream
from eqr.task import Task
from eqr.tasks.symmetry import Symmetry, restart_symmetries

WINDOW = 3  # iterations whose mean residual decides between restarts (paper §4)
NEVER = 2**31 - 1  # `halted_at` of a trajectory that has not halted; int32's largest sorts last


@dataclass(frozen=True, slots=True)
class Iteration:
    """One outer iteration of R trajectories, each tagged with what it is a trajectory of."""

    problem: np.ndarray  # (R,) index into the inputs
    restart: np.ndarray  # (R,) which of the B starts of its problem
    depth: int | np.ndarray  # outer iterations done, from 1; (R,) of rows that leave a queue
    step: Step
    residual: Tensor  # (R,) root-mean-square change of the latents in this iteration
    recent: Tensor  # (R,) its mean over the last `window` iterations
    logit_change: Tensor  # (R,) eqr.model.logit_change, in the mean over the same
    halted_at: Tensor  # (R,) first depth with a positive halting logit, or NEVER
    chunk: int = 0  # which chunk of rows this is, from 0
    symmetry: Symmetry | None = None  # under which each row was solved; None: as it is

    @property
    def answer(self) -> Tensor:
        """The decoded tokens (R, S), any symmetry undone."""
        return self.symmetry.undo(self.step.answer) if self.symmetry else self.step.answer


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
    window: int = WINDOW,
    rows: int = 256,
    part: int = 0,
    parts: int = 1,
    symmetries_of: Task | None = None,
    branches: int = 1,
    branch_at: int = 0,
    progress: Callable[[int, int], None] | None = None,
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
        window: iterations that ``Iteration.recent`` averages.
        rows: the most (problem, restart) pairs in flight.
        part, parts: run only every ``parts``-th chunk of rows, from the ``part``-th.
        symmetries_of: a task; every restart but the first then solves the problem under a random
            symmetry of it (:func:`eqr.tasks.symmetry.restart_symmetries`), which
            ``Iteration.answer`` undoes. Starts and noise are drawn as without.
        branches: trajectories that leave each start, each with noise of its own from depth
            ``branch_at`` on; before it they are one, and computed once. ``breadth`` counts all of
            them, restart r being path ``r % branches`` of start ``r // branches``.
        progress: called after each iteration with (row-iterations done, of).

    Yields:
        Every iteration 1..depth of the first chunk of rows, then of the next chunk.
    """
    inputs = torch.as_tensor(inputs)
    require_rows(model, rows, len(inputs) * breadth)
    starts = np.arange(0, breadth, branches)
    pairs = np.stack(np.meshgrid(np.arange(len(inputs)), starts, indexing="ij"), -1).reshape(-1, 2)
    size = max(1, rows // branches)
    chunks = [pairs[first : first + size] for first in range(0, len(pairs), size)][part::parts]
    work = sum(map(len, chunks)) * (branch_at + branches * (depth - branch_at))
    done = 0
    for chunk, own_pairs in enumerate(chunks):
        problem, restart = own_pairs.T
        x = inputs[torch.from_numpy(problem)].to(model.device)
        symmetry = None
        if symmetries_of:
            symmetry = restart_symmetries(symmetries_of, seed, problem, restart)
            x = symmetry.apply(x)
        start = restart // branches
        own = [stream(seed, "evaluation", p, s) for p, s in zip(problem, start, strict=True)]
        state = model.initial_state(len(problem), own)
        logits = model.read_logits(state.z_high)  # of depth 0: the first iteration changes them
        # Of each of the last iterations: how far latents and logits moved, (2, R).
        moved: deque[Tensor] = deque(maxlen=window)
        halted_at = torch.full((len(problem),), NEVER, device=model.device)
        for at in range(1, depth + 1):
            if branches > 1 and at == branch_at + 1:  # each row becomes `branches` rows
                problem = problem.repeat(branches)
                restart = restart.repeat(branches) + np.tile(np.arange(branches), len(restart))
                x, halted_at, logits, high, low = (
                    value.repeat_interleave(branches, 0)
                    for value in (x, halted_at, logits, state.z_high, state.z_low)
                )
                state = State(high, low)
                moved = deque((past.repeat_interleave(branches, 1) for past in moved), window)
                own = [stream(seed, "branch", p, r) for p, r in zip(problem, restart, strict=True)]
            step = model.step(state, x, noise=noise, generator=own, damping=damping)
            change = residual(state, step.state)
            moved.append(torch.stack((change, logit_change(logits, step.logits).to(change))))
            recent, logits_moved = torch.stack(tuple(moved)).mean(0)
            fired = (step.halt > 0) & (halted_at == NEVER)
            halted_at = torch.where(fired, at, halted_at)
            done += len(problem)
            if progress:
                progress(done, work)
            yield Iteration(
                problem, restart, at, step, change, recent, logits_moved, halted_at, chunk, symmetry
            )
            state, logits = step.state, step.logits


def record(
    iterations: Iterable[Iteration],
    arrays: Mapping[str, np.ndarray],
    keep: Callable[[Iteration], Mapping[str, Tensor | np.ndarray]],
    depths: Sequence[int] | None = None,
) -> Mapping[str, np.ndarray]:
    """Fill arrays from a rollout or a queue; returns them.

    Args:
        arrays: by name, each (K, P, B, ...) for the K ``depths``, P problems and B restarts, or
            (P, B, ...) without ``depths``. What no iteration reaches keeps its value.
        keep: the values of an iteration's rows by name, (R, ...) each.
        depths: record these only; None records every iteration, one over the other.
    """
    for it in iterations:
        if depths is not None and it.depth not in depths:
            continue
        where = (it.problem, it.restart)
        if depths is not None:
            where = (depths.index(it.depth), *where)
        for name, value in keep(it).items():
            if isinstance(value, Tensor):  # NumPy has no bfloat16
                value = (value.float() if value.is_floating_point() else value).cpu().numpy()
            arrays[name][where] = value
    return arrays
