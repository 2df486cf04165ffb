"""Measure accuracy against depth and breadth (paper §4).

:func:`records` runs the trajectories once, at the largest depth and breadth, and keeps a few
numbers for each (depth, problem, restart); :func:`eqr.experiments.table` turns them into one tidy
table for any selection rule and any smaller breadth (the first b restarts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from eqr.config import EvalConfig
from eqr.model import Reasoner
from eqr.parallel import ALONE, World
from eqr.rollout import Iteration, record, rollout
from eqr.select import DTYPES, Outcomes
from eqr.settings import ConfigError, require_memory
from eqr.streams import stream
from eqr.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Records(Outcomes):
    """Outcomes at K depths: every array is (K, P, B)."""

    depths: np.ndarray  # (K,)
    checked: np.ndarray | None = None  # bool, whether the rules accept; None: not asked for

    def at(self, depth: int) -> Outcomes:
        """The outcomes at one of the recorded depths."""
        at = np.flatnonzero(self.depths == depth)
        if not len(at):
            raise ConfigError(f"depth {depth} was not recorded; recorded: {self.depths.tolist()}")
        return Outcomes(**{f.name: getattr(self, f.name)[at[0]] for f in fields(Outcomes)})


def answer_hash(answer: torch.Tensor) -> torch.Tensor:
    """One int64 a row for decoded tokens (R, S): equal answers, equal numbers."""
    draw = stream(0, "answer hash")
    # A random linear form: two different answers collide with probability 2^-62 or so.
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
    depths, shape = list(config.depths), (len(config.depths), len(inputs), config.breadth)
    dtypes = DTYPES | ({"checked": bool} if config.checked else {})
    require_memory(40 * np.prod(shape, dtype=float), "the records", "lower breadth or depths")
    arrays = {name: np.zeros(shape, dtype) for name, dtype in dtypes.items()}
    # On the device once: comparing there moves a bit a row instead of all tokens.
    truth = torch.as_tensor(labels, device=model.device).long()

    def keep(it: Iteration) -> dict[str, torch.Tensor | np.ndarray]:
        values = measures(it, truth)
        if config.checked:
            values["checked"] = task.check(inputs[it.problem], it.answer.cpu().numpy())
        return values

    iterations = rollout(
        model,
        torch.as_tensor(inputs),
        **sampling(config),
        rows=rows,
        part=world.rank,
        parts=world.world_size,
        symmetries_of=task if config.symmetry else None,
        branches=config.branches,
        branch_at=config.branch_at,
        progress=progress,
    )
    record(iterations, arrays, keep, depths)
    for array in arrays.values():
        world.add_(array)  # zero where another process has run the trajectory
    return Records(depths=np.asarray(depths), **arrays)


def sampling(config: EvalConfig) -> dict[str, Any]:
    """How trajectories are drawn, as arguments of a rollout or a queue."""
    shared = {name: getattr(config, name) for name in ("breadth", "noise", "seed", "window")}
    return {"depth": config.depths[-1], **shared}


def measures(it: Iteration, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """The values of :class:`eqr.select.Outcomes` for an iteration's rows, by name, (R,) each.

    Args:
        truth: (P, S) the right tokens of all problems.
    """
    answer = it.answer  # decoded once: it undoes a symmetry
    # What is not a number is the worst of its kind: a rule would take a NaN for the smallest.
    right = answer == truth[torch.from_numpy(it.problem).to(truth.device)]
    return {
        "residual": it.recent.nan_to_num(torch.inf),
        "logit_change": it.logit_change.nan_to_num(torch.inf),
        "answer": answer_hash(answer),
        "margin": it.step.margin.nan_to_num(-torch.inf),
        "halt": it.step.halt.nan_to_num(-torch.inf),
        "halted_at": it.halted_at,
        "exact": right.all(1),
        "token": right.float().mean(1),
    }
