"""Solve one problem and say how it went: what ``eqr solve`` prints (chapter *Settling*)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eqr.model import Reasoner
from eqr.optim import probabilities
from eqr.rollout import Iteration, record, rollout
from eqr.settings import require_memory
from eqr.task import Task


@dataclass(frozen=True, slots=True)
class Solution:
    """The chosen trajectory of one problem."""

    inputs: np.ndarray  # (S,) the problem
    answers: np.ndarray  # (D, S) decoded tokens after each outer iteration
    confidence: np.ndarray  # (D, S) probability the model gives its token in each cell
    residuals: np.ndarray  # (D,) root-mean-square change of the latents in each iteration
    all_residuals: np.ndarray  # (D, B) of every restart
    finals: np.ndarray  # (B, S) decoded tokens of every restart after the last iteration
    restart: int  # which restart was chosen: the one with the smallest residual
    converged: bool  # its last residual is below the tolerance
    valid: bool  # the rule checker's verdict, unknown to the model

    @property
    def answer(self) -> np.ndarray:
        """The decoded tokens after the last iteration, (S,)."""
        return self.answers[-1]

    def to_dict(self, task: Task) -> dict[str, Any]:
        """JSON-ready."""
        values = {"problem": task.format(self.inputs), "answer": task.format(self.answer)}
        values |= {"converged": self.converged, "valid": self.valid, "restart": self.restart}
        return values | {"residuals": [float(f"{r:.6g}") for r in self.residuals]}

    def text(self, task: Task) -> str:
        """Board, residuals and both verdicts, for a terminal."""
        shown = "  ".join(f"{d}: {r:.4f}" for d, r in enumerate(self.residuals, 1))
        settled = "converged" if self.converged else "NOT converged"
        valid = "valid" if self.valid else "NOT valid"
        return (
            f"{task.render(self.answer)}\n"
            f"residual by iteration  {shown}\n"
            f"{settled} (residual {self.residuals[-1]:.4f}), answer {valid} {task.judged}\n"
            f"{task.format(self.answer)}"
        )


def solve(
    model: Reasoner,
    task: Task,
    inputs: np.ndarray,
    *,
    depth: int = 32,
    breadth: int = 1,
    noise: float = 0.0,
    tolerance: float = 0.02,
    seed: int = 0,
) -> Solution:
    """Run ``breadth`` trajectories of one problem (S,) and keep the one that settled best.

    Args:
        depth, breadth, noise, seed: of the rollouts.
        tolerance: residual below which a trajectory counts as converged.
    """
    inputs = np.asarray(inputs)
    each = (depth, 1, breadth)
    require_memory(5 * len(inputs) * depth * breadth, "their record", "lower depth or breadth")
    arrays = {
        "answer": np.zeros((*each, len(inputs)), np.uint8),
        "confidence": np.zeros((*each, len(inputs)), np.float32),
        "residual": np.zeros(each, np.float32),
        "recent": np.zeros(each, np.float32),
    }
    iterations = rollout(
        model, torch.as_tensor(inputs)[None], depth=depth, breadth=breadth, noise=noise, seed=seed
    )
    record(iterations, arrays, lambda it: trace(it, model.normalisation), range(1, depth + 1))
    answer, confidence, residual, recent = (values[:, 0] for values in arrays.values())
    best = int(recent[-1].argmin())  # top-1 converged, see eqr.select
    return Solution(
        inputs=inputs,
        answers=answer[:, best],
        confidence=confidence[:, best],
        residuals=residual[:, best],
        all_residuals=residual,
        finals=answer[-1],
        restart=best,
        converged=bool(residual[-1, best] < tolerance),
        valid=bool(task.check(inputs[None], answer[-1, best][None])[0]),
    )


def trace(it: Iteration, normalisation: str) -> dict[str, torch.Tensor]:
    """What a reader wants to see of each iteration, by name, (R, ...) each."""
    return {
        "answer": it.answer,
        "confidence": probabilities(it.step.logits, normalisation).amax(-1),
        "residual": it.residual,
        "recent": it.recent,
    }
