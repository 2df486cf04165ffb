"""Adaptive compute: a queue of fixed size that settled rows leave and new ones enter (paper §4,
Table 5 and Fig. 7; chapter *Adaptive compute*).

:func:`rollout` gives every (problem, restart) the same depth. :func:`adaptive` runs the same
trajectories, each for as long as a halting rule of :mod:`eqr.halting` asks: a row that has settled
makes room for the next pair, so that the batch stays full until the pairs run out, and shrinks
then. :func:`halting_records` does it on labelled problems, and :func:`halting_table` puts accuracy,
compute and wall time of several rules side by side.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eqr.config import ConfigError, EvalConfig
from eqr.evaluate import NEVER, answer_hash, selected
from eqr.halting import Rule, Signs
from eqr.model import Reasoner, State, residual
from eqr.select import Outcomes, check_selections
from eqr.stats import wilson
from eqr.streams import stream


@dataclass(frozen=True, slots=True)
class Finished:
    """Trajectories that left the queue in the same iteration (K of them)."""

    problem: np.ndarray  # (K,) index into the inputs
    restart: np.ndarray  # (K,) which of the B starts of its problem
    depth: np.ndarray  # (K,) outer iterations run, its NFE
    settled: np.ndarray  # (K,) bool: the rule let it go; False: the depth limit
    answer: Tensor  # (K, S) decoded tokens
    residual: Tensor  # (K,) mean over the last `window` iterations
    margin: Tensor  # (K,) smallest gap between a token's best and second logit
    halt: Tensor  # (K,) logit of the halting head
    state: State  # latents after the last iteration


@dataclass(slots=True)
class _Rows:
    """The rows in flight (R of them); every field is indexed by row."""

    problem: Tensor  # (R,)
    restart: Tensor  # (R,)
    depth: Tensor  # (R,) iterations done
    held: Tensor  # (R,) iterations on end in which the rule's condition held
    recent: Tensor  # (R, window) the latest residuals, NaN where there was no iteration yet
    answer: Tensor  # (R, S) decoded in the latest iteration, -1 before the first
    x: Tensor  # (R, S)
    z_high: Tensor  # (R, S, H)
    z_low: Tensor  # (R, S, H), or (R, 0, H)
    own: list[torch.Generator]  # R streams

    def __len__(self) -> int:
        return len(self.own)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "own"}

    def pick(self, index: Tensor) -> _Rows:
        """The rows at ``index`` (K,)."""
        own = [self.own[row] for row in index.tolist()]
        return _Rows(**{name: value[index] for name, value in self.tensors().items()}, own=own)

    def join(self, other: _Rows) -> _Rows:
        """These rows and then the others."""
        both = {k: torch.cat((v, getattr(other, k))) for k, v in self.tensors().items()}
        return _Rows(**both, own=self.own + other.own)


def _enter(
    model: Reasoner, inputs: Tensor, pairs: list[tuple[int, int]], seed: int, window: int
) -> _Rows:
    """New rows at the start of their trajectories, as :func:`eqr.rollout.rollout` starts them."""
    problem, restart = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    x = inputs[problem].to(model.device)
    own = [stream(seed, "evaluation", p, r) for p, r in pairs]
    state = model.initial_state(len(pairs), own)
    count = torch.zeros(len(pairs), dtype=torch.long, device=model.device)
    return _Rows(
        problem=problem.to(model.device),
        restart=restart.to(model.device),
        depth=count,
        held=count,
        recent=torch.full((len(pairs), window), torch.nan, device=model.device),
        answer=torch.full_like(x, -1, dtype=torch.long),
        x=x,
        z_high=state.z_high,
        z_low=state.z_low,
        own=own,
    )


@torch.no_grad()
def adaptive(
    model: Reasoner,
    inputs: Tensor,
    *,
    depth: int,
    halting: Rule,
    breadth: int = 1,
    noise: float = 0.0,
    damping: float | None = None,
    seed: int = 0,
    rows: int = 256,
    window: int = 3,
    first_settled: float | None = None,
) -> Iterator[Finished]:
    """Run ``breadth`` trajectories of every problem, each until ``halting`` or ``depth`` ends it.

    A trajectory is that of :func:`eqr.rollout.rollout` with the same ``seed``, cut at its own
    depth: its start and noise come from the stream of (seed, index in ``inputs``, restart), so it
    does not depend on ``rows`` or on its neighbours (up to the rounding of matrix products of
    another size). Memory grows with ``rows`` only. First restarts come first.

    Args:
        model, inputs, breadth, noise, damping, seed: as for :func:`eqr.rollout.rollout`.
        depth: the limit D at which a row leaves unsettled.
        halting: the rule, see :func:`eqr.halting.parse_rule`.
        rows: the most (problem, restart) pairs in flight.
        window: iterations that the reported residual averages.
        first_settled: a confidence tolerance. The restarts of a problem then run one after the
            other, and the next one starts only if no earlier one settled with a (mean) residual
            below it. So what is run does not depend on ``rows`` either. None runs all restarts.

    Yields:
        The rows that left, after every iteration in which some did; in all, every pair that was
        started, once.

    Raises:
        ValueError: ``depth``, ``breadth``, ``rows`` or ``window`` below 1.
    """
    if min(depth, breadth, rows, window) < 1:
        raise ValueError("depth, breadth, rows and window must be at least 1")
    inputs = torch.as_tensor(inputs)
    starts = 1 if first_settled is not None else breadth
    fresh = ((p, r) for r in range(starts) for p in range(len(inputs)))
    again: deque[tuple[int, int]] = deque()  # next restarts of problems not yet settled

    def take(room: int) -> list[tuple[int, int]]:
        """The pairs to start next; the longest chains of restarts go first."""
        taken = [again.popleft() for _ in range(min(room, len(again)))]
        return taken + list(islice(fresh, room - len(taken)))

    flight = _enter(model, inputs, take(rows), seed, window)
    while len(flight):
        before = State(flight.z_high, flight.z_low)
        step = model.step(before, flight.x, noise=noise, generator=flight.own, damping=damping)
        change, answer = residual(before, step.state), step.answer
        signs = Signs(step.halt, change, (answer == flight.answer).all(1))
        flight = replace(
            flight,
            depth=flight.depth + 1,
            held=torch.where(halting.holds(signs), flight.held + 1, 0),
            recent=torch.cat((flight.recent[:, 1:], change[:, None]), dim=1),
            answer=answer,
            z_high=step.state.z_high,
            z_low=step.state.z_low,
        )
        settled = (flight.held >= halting.patience) & (flight.depth >= halting.min_depth)
        leaves = settled | (flight.depth >= depth)
        gone = leaves.nonzero().squeeze(1)
        if not len(gone):
            continue
        left = flight.pick(gone)
        done = Finished(
            problem=left.problem.cpu().numpy(),
            restart=left.restart.cpu().numpy(),
            depth=left.depth.cpu().numpy(),
            settled=settled[gone].cpu().numpy(),
            answer=left.answer,
            residual=left.recent.nanmean(1),
            margin=step.margin[gone],
            halt=step.halt[gone],
            state=State(left.z_high, left.z_low),
        )
        yield done
        if first_settled is not None:
            confident = done.settled & (done.residual < first_settled).cpu().numpy()
            on = ~confident & (done.restart + 1 < breadth)
            again.extend(
                zip(done.problem[on].tolist(), (done.restart[on] + 1).tolist(), strict=True)
            )
        flight = flight.pick((~leaves).nonzero().squeeze(1))
        if pairs := take(rows - len(flight)):
            flight = flight.join(_enter(model, inputs, pairs, seed, window))


@dataclass(frozen=True, slots=True)
class Halted:
    """What one rule did on P labelled problems × B restarts."""

    outcomes: Outcomes  # (P, B) each; `halted_at` is the depth at which the rule let a row go
    depth: np.ndarray  # (P, B) int32, iterations run: the NFE; 0 where the restart never started
    seconds: float  # wall time of the whole queue
    cpu_seconds: float  # processor time of this process meanwhile: steadier where others compute

    @property
    def nfe(self) -> np.ndarray:
        """Outer iterations spent on each problem, all its restarts together, (P,)."""
        return self.depth.sum(1)


def halting_records(
    model: Reasoner,
    inputs: np.ndarray,
    labels: np.ndarray,
    config: EvalConfig,
    halting: Rule,
    *,
    first_settled: float | None = None,
    rows: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Halted:
    """Run the queue on labelled problems and record how each trajectory ended.

    A restart that never started has an infinite residual, an answer of its own, and is not exact,
    so that no selection rule takes it.

    Args:
        inputs, labels: (P, S) tokens; ``config.problems`` keeps the first so many.
        config: its largest depth is the limit.
        halting, first_settled, rows: as for :func:`adaptive`.
        progress: called with (trajectories finished, of at most).

    Raises:
        ConfigError: symmetry restarts, which the queue does not run.
    """
    if config.symmetry:
        raise ConfigError("halting rules do not run with eval.symmetry: leave one of them out")
    began, cpu_began = time.perf_counter(), time.process_time()
    inputs, labels = inputs[: config.problems], labels[: config.problems]
    shape = (len(inputs), config.breadth)
    kept = Outcomes(
        residual=np.full(shape, np.inf, np.float32),
        answer=np.arange(-len(inputs) * config.breadth, 0).reshape(shape),
        margin=np.full(shape, -np.inf, np.float32),
        halt=np.full(shape, -np.inf, np.float32),
        halted_at=np.full(shape, NEVER, np.int32),
        exact=np.zeros(shape, bool),
        token=np.zeros(shape, np.float32),
    )
    depth = np.zeros(shape, np.int32)
    truth = torch.as_tensor(labels, device=model.device).long()
    finished = 0
    for done in adaptive(
        model,
        torch.as_tensor(inputs),
        depth=config.depths[-1],
        halting=halting,
        breadth=config.breadth,
        noise=config.noise,
        seed=config.seed,
        rows=rows,
        window=config.window,
        first_settled=first_settled,
    ):
        where = (done.problem, done.restart)
        right = done.answer == truth[torch.from_numpy(done.problem).to(model.device)]
        depth[where] = done.depth
        kept.halted_at[where] = np.where(done.settled, done.depth, NEVER)
        values = {
            "residual": done.residual,
            "answer": answer_hash(done.answer),
            "margin": done.margin,
            "halt": done.halt,
            "exact": right.all(1),
            "token": right.float().mean(1),
        }
        for name, value in values.items():
            getattr(kept, name)[where] = value.cpu().numpy()
        finished += len(done.problem)
        if progress:
            progress(finished, depth.size)
    return Halted(kept, depth, time.perf_counter() - began, time.process_time() - cpu_began)


def halting_table(
    kept: Mapping[str, Halted],
    *,
    select: Sequence[str],
    limit: int,
    noise: float,
) -> pd.DataFrame:
    """One row for each halting rule and selection rule.

    Columns: ``halting`` (the rule), ``depth`` (its limit), ``breadth, select, noise, n``
    (problems), ``exact`` with its 95 % Wilson interval ``low, high`` (see
    :func:`eqr.evaluate.table`), ``settled`` (share of the trajectories run that the rule let go),
    ``nfe`` (mean a problem), ``saving`` (the fixed budget D·B over it), ``seconds`` (wall time) and
    ``cpu_seconds``.

    Args:
        kept: by the text of the rule; the rows of ``fixed`` are the fixed budget.
        limit: the depth limit D of them all.

    Raises:
        ConfigError: an unknown selection rule.
    """
    check_selections(select)
    rows = []
    for rule, run in kept.items():
        ran, breadth = run.depth > 0, run.depth.shape[1]
        nfe = float(run.nfe.mean())
        for name in select:
            if name == "average":  # over the restarts that were started
                exact = run.outcomes.exact.sum(1) / ran.sum(1)
            else:
                exact = selected(run.outcomes, name)[0]
            low, high = wilson(float(exact.sum()), len(exact))
            rows.append(
                {
                    "halting": rule,
                    "depth": limit,
                    "breadth": breadth,
                    "select": name,
                    "noise": noise,
                    "n": len(exact),
                    "exact": float(exact.mean()),
                    "low": low,
                    "high": high,
                    "settled": float((run.outcomes.halted_at[ran] < NEVER).mean()),
                    "nfe": nfe,
                    "saving": limit * breadth / nfe,
                    "seconds": run.seconds,
                    "cpu_seconds": run.cpu_seconds,
                }
            )
    return pd.DataFrame(rows)
