"""Does a stalled trajectory search on or age? Re-rolls of the stalled state.

A puzzle is unsolved after some depth. Its state is turned a little, ``K`` times, in directions that
the answer does not show, and each copy runs on. If reasoning is memoryless, a copy that did not
succeed in the first half of the extra depth is as likely to in the second; if it ages, less so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eqr.analysis.landscape import TOLERANCE
from eqr.model import Reasoner, State
from eqr.rollout import NEVER, rollout
from eqr.stats import Difference, bootstrap
from eqr.streams import stream

ANGLE = 0.05  # radians, about, by which a state is turned
STABLE = 8  # iterations without a change of the answer: stalled


@dataclass(frozen=True, slots=True)
class Followed:
    """How single trajectories of P problems went; ``vars`` of it can be stored."""

    first_solved: np.ndarray  # (P,) int: the first iteration with the right answer, or NEVER
    last_changed: np.ndarray  # (P,) int: the last one that changed the answer
    solved: np.ndarray  # (P,) bool: at the end
    residual: np.ndarray  # (K, P) at the depths asked for
    logit_change: np.ndarray  # (K, P)

    @property
    def settled(self) -> np.ndarray:
        """(P,) bool: at rest at the end, by the residual."""
        return self.residual[-1] < TOLERANCE


def follow(
    model: Reasoner,
    inputs: Tensor,
    labels: Tensor,
    depths: Sequence[int],
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> Followed:
    """Run problems (P, S) to the last of the depths and see what became of them."""
    count = len(inputs)
    seen = Followed(
        np.full(count, NEVER), np.zeros(count, int), np.zeros(count, bool),
        *np.zeros((2, len(depths), count), np.float32),
    )  # fmt: skip
    before = torch.empty(0)
    for it in rollout(model, inputs, depth=depths[-1], noise=noise, seed=seed):
        rows, answer = it.problem, it.answer
        right = (answer == labels[torch.from_numpy(rows)]).all(1).numpy()
        if it.depth > 1:  # of the same chunk of rows
            seen.last_changed[rows[(answer != before).any(1).numpy()]] = it.depth
        before = answer
        new = right & (seen.first_solved[rows] == NEVER)
        seen.first_solved[rows[new]] = it.depth
        seen.solved[rows] = right
        if it.depth in depths:
            at = list(depths).index(it.depth), rows
            seen.residual[at], seen.logit_change[at] = it.recent, it.logit_change
    return seen


@dataclass(frozen=True, slots=True)
class ReRolls:
    """What became of N unsolved puzzles, each re-rolled K times."""

    early: np.ndarray  # (N,) copies that were first right in the first half of the extra depth
    late: np.ndarray  # (N,) in the second half
    stalled: np.ndarray  # (N,) bool: the answer had not changed in the last STABLE iterations
    copies: int  # K

    def ratio(self) -> Difference:
        """R over the stalled puzzles, see :func:`memory_ratio`."""
        return memory_ratio(self.early[self.stalled], self.late[self.stalled], self.copies)


def memory_ratio(early: np.ndarray, late: np.ndarray, copies: int) -> Difference:
    """R: late successes over those that a memoryless process would have, with a 95 % interval.

    ``R = Σ late / Σ (K − early) early / (K − 1)``: 1 is memoryless and below 1 ages, however much
    the puzzles differ, since the denominator is unbiased for each. The interval resamples puzzles;
    without an early success there is no R.

    Args:
        early, late: (N,) how many of a puzzle's copies succeeded first in either half.
        copies: K, at least 2.

    >>> memory_ratio(np.array([4, 2, 0]), np.array([2, 1, 0]), 8).mean
    0.75
    """
    early, late = np.asarray(early, float), np.asarray(late, float)
    expected = (copies - early) * early / (copies - 1)

    def of(rows: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            below = expected[rows].sum(-1)
            return np.where(below > 0, late[rows].sum(-1) / below, np.nan)

    if not expected.sum():
        return Difference(np.nan, np.nan, np.nan, len(early))
    low, high = bootstrap(of, len(early))
    return Difference(float(of(np.arange(len(early)))), float(low), float(high), len(early))


def hidden_directions(model: Reasoner) -> Tensor:
    """An orthonormal basis (H, N) of the directions that neither head of the model reads."""
    seen = torch.cat((model.lm_head.weight, model.halt_head.weight)).double()
    _, values, basis = torch.linalg.svd(seen)
    rank = int((values > 1e-9 * values[0]).sum())
    return basis[rank:].T.to(model.lm_head.weight)


def turned(state: State, basis: Tensor, generator: torch.Generator, angle: float = ANGLE) -> State:
    """The state with both latents turned by about ``angle`` within the span of ``basis``.

    Each row has a rotation of its own, the same for all its tokens; what the heads read of the
    state, and the length of every latent vector, stay as they are.
    """
    size, rows = basis.shape[1], len(state.z_high)
    draw = torch.randn(rows, size, size, generator=generator)
    # A rotation by the exponential of a skew matrix, whose rows then have a length of about 1.
    skew = (draw - draw.mT) / (2 * size) ** 0.5
    change = torch.linalg.matrix_exp(angle * skew) - torch.eye(size)

    def turn(z: Tensor) -> Tensor:
        return z + (z @ basis) @ change @ basis.T

    return State(turn(state.z_high), turn(state.z_low))


@torch.no_grad()
def re_roll(
    model: Reasoner,
    inputs: Tensor,
    labels: Tensor,
    *,
    depth: int,
    extra: int,
    copies: int = 8,
    noise: float = 0.0,
    seed: int = 0,
) -> ReRolls:
    """Run problems (P, S) to ``depth``, then ``copies`` of each unsolved one for ``extra`` more.

    A copy succeeds at the first iteration after which its answer is exactly ``labels`` (P, S).
    """
    draw, constant, answer = stream(seed, "re-roll"), 0, torch.full(inputs.shape, -1)
    for it in rollout(model, inputs, depth=depth, noise=noise, seed=seed, rows=len(inputs)):
        constant = (constant + 1) * (it.answer == answer).all(1).long()
        state, answer = it.step.state, it.answer
    left = (answer != labels).any(1)
    x, y = (values[left].repeat_interleave(copies, 0) for values in (inputs, labels))
    copied = State(*(z[left].repeat_interleave(copies, 0) for z in (state.z_high, state.z_low)))
    copied = turned(copied, hidden_directions(model), draw)
    first = torch.full((len(x),), extra + 1)
    for at in range(1, extra + 1):
        step = model.step(copied, x, noise=noise, generator=draw)
        right = (step.answer == y).all(1) & (first > extra)
        first, copied = torch.where(right, at, first), step.state
    first = first.view(-1, copies)
    early = (first <= extra // 2).sum(1)
    late = (first <= extra).sum(1) - early
    stalled = (constant >= STABLE)[left]
    return ReRolls(early.numpy(), late.numpy(), stalled.numpy(), copies)
