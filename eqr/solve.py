"""Solve one problem and say how it went: what ``eqr solve`` prints (chapter *What is …*)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eqr.model import Reasoner
from eqr.rollout import rollout
from eqr.task import Task

WINDOW = 3  # iterations whose mean residual decides between restarts (paper §4)


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
        """For ``--json``."""
        return {
            "problem": task.format(self.inputs),
            "answer": task.format(self.answer),
            "converged": self.converged,
            "valid": self.valid,
            "restart": self.restart,
            "residuals": [float(f"{r:.6g}") for r in self.residuals],
        }

    def describe(self, task: Task) -> str:
        """Board, residuals and verdict as text for a terminal."""
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
    residual = np.zeros((depth, breadth), np.float32)
    finals = np.zeros((breadth, len(inputs)), np.uint8)
    best = 0
    kept: tuple[list, list] = ([], [])
    for it in rollout(
        model,
        torch.as_tensor(inputs)[None],
        depth=depth,
        breadth=breadth,
        noise=noise,
        seed=seed,
    ):
        if it.depth == 1:  # of a new chunk of restarts
            answers, confidence = [], []
        answers.append(it.step.answer.cpu().numpy().astype(np.uint8))
        confidence.append(it.step.logits.softmax(-1).amax(-1).cpu().numpy())
        residual[it.depth - 1, it.restart] = it.residual.cpu().numpy()
        if it.depth == depth:
            finals[it.restart] = answers[-1]
            settled = residual[-WINDOW:].mean(0)  # as top-1 converged, see eqr.select
            own = int(settled[it.restart].argmin())
            if not kept[0] or settled[it.restart[own]] < settled[best]:
                best = int(it.restart[own])
                kept = [a[own] for a in answers], [c[own] for c in confidence]
    path = np.stack(kept[0])  # (D, S)
    return Solution(
        inputs=np.asarray(inputs),
        answers=path,
        confidence=np.stack(kept[1]),
        residuals=residual[:, best],
        all_residuals=residual,
        finals=finals,
        restart=best,
        converged=bool(residual[-1, best] < tolerance),
        valid=bool(task.check(np.asarray(inputs)[None], path[-1][None])[0]),
    )
