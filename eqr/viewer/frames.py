"""Trajectories recorded as they are computed, and as the JSON that the viewer's script reads.

Serves the chapters *Settling* and *Explore in Jupyter*. A
:class:`Trajectory` turns a puzzle and :class:`Settings` into :class:`Frame` after :class:`Frame`,
those of :func:`eqr.rollout.rollout` with the same seed, since they come from it. The script
(``static/viewer.mjs``) documents the JSON.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eqr.analysis.dynamics import pca
from eqr.optim import probabilities
from eqr.rollout import Iteration, rollout
from eqr.task import Task, task_to_dict

FOREVER = 10**9  # iterations that a rollout is asked for; whoever records says when to stop
FITTED = 128  # states that a plane is fitted to: enough for two axes, and milliseconds
LEVELS = 35  # steps in which a probability is stored: one character


@dataclass(frozen=True, slots=True)
class Settings:
    """What the controls say; ``depth`` limits the trajectories, the rest makes other ones."""

    depth: int = 16
    breadth: int = 8
    noise: float = 0.0  # β
    damping: float | None = None  # λ; None: the model's own
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """All that there is to show after one outer iteration of B restarts."""

    answer: np.ndarray  # (B, S) uint8 decoded tokens
    confidence: np.ndarray  # (B, S) probability that the model gives its token in each cell
    residual: np.ndarray  # (B,) root-mean-square change of the latents in this iteration
    settled: np.ndarray  # (B,) its mean over the last iterations, which selects a restart
    margin: np.ndarray  # (B,) smallest gap between a token's best and second logit
    halt: np.ndarray  # (B,) logit of the halting head
    right: np.ndarray  # (B,) bool: valid by the rules, which no model and no selection sees

    def packed(self) -> dict[str, Any]:
        """The frame as JSON: a token is a digit in base 36, a probability one of 36 levels."""
        shares = (LEVELS * self.confidence).round().astype(int)
        return {
            "answers": [in_base_36(row) for row in self.answer.tolist()],
            "confidence": [in_base_36(row) for row in shares.tolist()],
            "right": self.right.astype(int).tolist(),
            **{name: short(getattr(self, name)) for name in ("residual", "margin", "halt")},
        }


def in_base_36(values: list[int]) -> str:
    """Numbers from 0 to 35 as one character each.

    >>> in_base_36([1, 10, 35])
    '1az'
    """
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[value] for value in values)


def short(values: np.ndarray) -> list[float]:
    """Floats with four digits, which is more than a picture shows."""
    return [float(f"{value:.4g}") for value in values.tolist()]


class Plane:
    """The plane of the states' principal axes.

    Each fit is turned within its plane so that the states already there move least: principal axes
    have no sign, and pictures of them would flip from one fit to the next. The states are stored as
    float16, which is 7 MB for 64 iterations of 16 restarts of a small model.
    """

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []  # (B, N) of each iteration
        self.points = np.zeros((0, 0, 2))  # (depth, B, 2) at the last fit

    def add(self, states: np.ndarray) -> None:
        """Take in the states (B, N) of one more iteration."""
        self.states.append(states.astype(np.float16))

    def fit(self) -> np.ndarray:
        """Where the states lie, (depth, B, 2); all in one point if they are equal."""
        before, rows = self.points.reshape(-1, 2), [row for states in self.states for row in states]
        sample = np.stack(rows[:: -(-len(rows) // FITTED)]).astype(np.float32)
        self.points = np.zeros((len(self.states), len(self.states[0]), 2))
        if np.ptp(sample, axis=0).max() > 0:
            plane = pca(sample)
            self.points[:] = [plane.project(states.astype(np.float32)) for states in self.states]
            if len(before):
                new = self.points.reshape(-1, 2)[: len(before)]
                self.points = self.points @ turning(new - new.mean(0), before - before.mean(0))
        return self.points

    def packed(self) -> list:
        """The points in thousandths of the largest coordinate, in lists."""
        points = self.fit()
        return (1000 * points / max(np.abs(points).max(), 1e-12)).round().astype(int).tolist()


def turning(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rotation or reflection R (2, 2) for which ``points @ R`` is nearest to ``wanted`` (M, 2).

    >>> turning(np.array([[1.0, 0], [0, 2]]), np.array([[-1.0, 0], [0, 2]])).round(6).tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """
    left, _, right = np.linalg.svd(points.T @ wanted)
    return left @ right


class Trajectory:
    """The restarts of one model on one puzzle, iteration by iteration.

    The model gets the puzzle and nothing else; ``task`` checks what it decodes.

    Attributes:
        frames: one for each iteration done.
        plane: where the restarts' states lie in the plane that shows most of them.
    """

    def __init__(self, model: Any, task: Task, inputs: np.ndarray, settings: Settings) -> None:
        self.task, self.inputs, self.settings = task, np.asarray(inputs), settings
        self._normalisation = model.normalisation
        self.frames: list[Frame] = []
        self.plane = Plane()
        self._iterations: Iterator[Iteration] = rollout(
            model,
            torch.as_tensor(self.inputs)[None],
            depth=FOREVER,
            breadth=settings.breadth,
            noise=settings.noise,
            damping=settings.damping,
            seed=settings.seed,
            rows=settings.breadth,  # one chunk, or the second would begin when the first has ended
        )

    def advance(self) -> Frame:
        """Compute one more iteration and record it."""
        it = next(self._iterations)
        answer = it.answer.cpu().numpy().astype(np.uint8)
        sure = probabilities(it.step.logits, self._normalisation).amax(-1)
        self.plane.add(it.step.state.flat().float().cpu().numpy())
        frame = Frame(
            answer=answer,
            confidence=sure.float().cpu().numpy(),
            residual=it.residual.cpu().numpy(),
            settled=it.recent.cpu().numpy(),
            margin=it.step.margin.float().cpu().numpy(),
            halt=it.step.halt.float().cpu().numpy(),
            right=self.task.check(np.repeat(self.inputs[None], len(answer), 0), answer),
        )
        self.frames.append(frame)
        return frame

    def record(self, depth: int, seconds: float = float("inf")) -> None:
        """Compute here and now, up to ``depth`` iterations or for some ``seconds``."""
        until = time.monotonic() + seconds
        while len(self.frames) < depth and time.monotonic() < until:
            self.advance()

    @property
    def residuals(self) -> np.ndarray:
        """(depth, B) of all iterations so far."""
        return np.stack([frame.residual for frame in self.frames])

    @property
    def selected(self) -> int:
        """The restart with the smallest mean residual, as :func:`eqr.select.converged`."""
        return int(self.frames[-1].settled.argmin())

    def packed(self) -> list[dict[str, Any]]:
        """All frames as JSON, each with its points in the plane."""
        points = self.plane.packed()
        return [f.packed() | {"plane": p} for f, p in zip(self.frames, points, strict=True)]


def board_of(task: Task) -> dict[str, Any]:
    """What the viewer's script wants to know of a task: its fields, height and width, and the
    character of each token (``?`` where it has none)."""
    rows = np.repeat(np.arange(task.vocab_size, dtype=np.uint8)[:, None], task.seq_len, 1)
    symbols = "".join(task.format(row)[0] for row in rows)
    size = {"height": task.height, "width": task.width}
    return task_to_dict(task) | size | {"symbols": symbols}
