"""Accuracy against depth and breadth, with intervals (paper §4).

:func:`records` runs the trajectories once, at the largest depth and breadth, and keeps a few
numbers for each (depth, problem, restart); :func:`table` turns them into one tidy table for any
selection rule and any smaller breadth (the first b restarts).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch

from eqr.config import ConfigError, EvalConfig
from eqr.model import Reasoner
from eqr.parallel import ALONE, World
from eqr.rollout import Iteration, record, rollout
from eqr.select import RULES, Outcomes, check_selections, runner_up
from eqr.stats import wilson
from eqr.streams import stream
from eqr.task import Task


@dataclass(frozen=True, slots=True)
class Records:
    """Numbers of K depths × P problems × B restarts; all arrays are (K, P, B)."""

    depths: np.ndarray  # (K,)
    residual: np.ndarray  # float32, mean over the last `window` iterations
    answer: np.ndarray  # int64, a hash of the decoded tokens
    margin: np.ndarray  # float32
    halt: np.ndarray  # float32
    halted_at: np.ndarray  # int32
    exact: np.ndarray  # bool
    token: np.ndarray  # float32
    checked: np.ndarray | None = None  # bool, whether the rules accept; None: not asked for

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that there are, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def at(self, depth: int) -> Outcomes:
        """The outcomes at one of the recorded depths."""
        found = np.flatnonzero(self.depths == depth)
        if not len(found):
            raise ConfigError(f"depth {depth} was not recorded; recorded: {self.depths.tolist()}")
        return Outcomes(**{f.name: getattr(self, f.name)[found[0]] for f in fields(Outcomes)})


def answer_hash(answer: torch.Tensor) -> torch.Tensor:
    """One int64 a row for decoded tokens (R, S): equal answers, equal numbers."""
    draw = stream(0, "answer hash")
    code = torch.randint(-(2**62), 2**62, (answer.shape[1],), generator=draw)
    return (answer * code.to(answer.device)).sum(1)


def records(
    model: Reasoner,
    inputs: np.ndarray,
    labels: np.ndarray,
    config: EvalConfig,
    *,
    task: Task | None = None,
    rows: int = 256,
    progress: Callable[[int, int], None] | None = None,
    world: World = ALONE,
) -> Records:
    """Run ``config.breadth`` trajectories of every problem and record them at ``config.depths``.

    Args:
        inputs, labels: (P, S) tokens; ``config.problems`` keeps the first so many.
        task: of the problems; needed for ``config.symmetry`` and ``config.checked``. Answers are
            recorded, compared and checked with the symmetry undone.
        rows: trajectories in flight at a time; bounds the memory, and changes results by the
            rounding of matrix products of another size only.
        progress: called with (row-iterations done, of).
        world: processes that share the work by chunks of ``rows``; each gets all records.

    Raises:
        ConfigError: symmetry restarts, or a check of the answers, without a task.
    """
    for name in ("symmetry", "checked"):
        if getattr(config, name) and task is None:
            raise ConfigError(f"eval.{name} needs to know the rules: pass task=")
    inputs, labels = inputs[: config.problems], labels[: config.problems]
    depths = list(config.depths)
    shape = (len(depths), len(inputs), config.breadth)
    empty = Records(
        depths=np.asarray(depths),
        residual=np.zeros(shape, np.float32),
        answer=np.zeros(shape, np.int64),
        margin=np.zeros(shape, np.float32),
        halt=np.zeros(shape, np.float32),
        halted_at=np.zeros(shape, np.int32),
        exact=np.zeros(shape, bool),
        token=np.zeros(shape, np.float32),
        checked=np.zeros(shape, bool) if config.checked else None,
    )
    truth = torch.as_tensor(labels, device=model.device).long()

    def keep(it: Iteration) -> dict[str, torch.Tensor | np.ndarray]:
        values = measures(it, truth)
        if config.checked:
            answer = it.answer.cpu().numpy()
            values["checked"] = task.check(inputs[it.problem], answer)
        return values

    iterations = rollout(
        model,
        torch.as_tensor(inputs),
        depth=depths[-1],
        breadth=config.breadth,
        noise=config.noise,
        seed=config.seed,
        window=config.window,
        rows=rows,
        part=world.rank,
        parts=world.world_size,
        symmetries_of=task if config.symmetry else None,
        branches=config.branches,
        branch_at=config.branch_at,
        progress=progress,
    )
    arrays = record(iterations, empty.arrays(), keep, depths)
    for name, array in arrays.items():
        if name != "depths":
            world.add_(array)  # zero where another process has run the trajectory
    return Records(**arrays)


def measures(it: Iteration, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """The values of :class:`eqr.select.Outcomes` for an iteration's rows, by name, (R,) each.

    Args:
        truth: (P, S) the right tokens of all problems.
    """
    answer = it.answer
    right = answer == truth[torch.from_numpy(it.problem).to(truth.device)]
    return {
        "residual": it.recent,
        "answer": answer_hash(answer),
        "margin": it.step.margin,
        "halt": it.step.halt,
        "halted_at": it.halted_at,
        "exact": right.all(1),
        "token": right.float().mean(1),
    }


def table(
    kept: Records,
    *,
    breadths: Sequence[int],
    select: Sequence[str],
    layers: int,
    noise: float,
    symmetry: bool = False,
    nfe: Callable[[int, int], int] = operator.mul,
) -> pd.DataFrame:
    """One row for each depth, breadth and selection rule.

    Columns: ``depth, breadth, select, noise, symmetry`` (of the restarts), ``n`` (problems),
    ``exact`` with its 95 % Wilson interval ``low, high``, ``token``, ``residual`` (mean of the
    chosen trajectories), ``nfe`` (of depth and breadth, see :meth:`eqr.config.EvalConfig.nfe`) and
    ``layers`` a problem. For the average over restarts the
    interval treats a problem, not a restart, as the unit (restarts of one problem are not
    independent): it errs on the wide side.

    Raises:
        ConfigError: an unknown rule, or a breadth that was not run.
    """
    check_selections(select)
    run = kept.exact.shape[2]
    for breadth in breadths:
        if not 1 <= breadth <= run:
            raise ConfigError(f"breadth {breadth} was not run; at most {run}")
    rows = []
    for depth in kept.depths.tolist():
        for breadth in breadths:
            outcomes = kept.at(depth).first(breadth)
            for name in select:
                exact, token, residual = selected(outcomes, name)
                low, high = wilson(float(exact.sum()), len(exact))
                rows.append(
                    {
                        "depth": depth,
                        "breadth": breadth,
                        "select": name,
                        "noise": noise,
                        "symmetry": symmetry,
                        "n": len(exact),
                        "exact": float(exact.mean()),
                        "low": low,
                        "high": high,
                        "token": float(token.mean()),
                        "residual": float(residual.mean()),
                        "nfe": nfe(depth, breadth),
                        "layers": nfe(depth, breadth) * layers,
                    }
                )
    return pd.DataFrame(rows)


def selected(outcomes: Outcomes, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact and token accuracy and residual of each problem under a selection, each (P,)."""
    if name == "average":
        return outcomes.exact.mean(1), outcomes.token.mean(1), outcomes.residual.mean(1)
    if name == "oracle":
        chosen = outcomes.token.argmax(1)  # an exact answer if there is one
    elif name == "majority2":
        both = np.stack([RULES["majority"](outcomes), runner_up(outcomes)], axis=1)  # (P, 2)
        better = np.take_along_axis(outcomes.token, both, 1).argmax(1)
        chosen = both[np.arange(len(both)), better]
    else:
        chosen = RULES[name](outcomes)
    row = np.arange(len(chosen))
    return tuple(getattr(outcomes, k)[row, chosen] for k in ("exact", "token", "residual"))
