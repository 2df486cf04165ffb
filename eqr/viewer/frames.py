"""Trajectories recorded as they are computed, on a thread of their own (*Explore in Jupyter*).

No widget is in here. A :class:`Trajectory` turns a puzzle and :class:`Settings` into
:class:`Frame` after :class:`Frame`; an :class:`Engine` computes the frames of one or several models
on its worker thread and calls ``paint`` from a second one. Three things hold whatever the model:

- While anything is under way ``paint`` is called every ``pulse`` seconds (half of the 100 ms that
  the explorer promises). The painter waits for no step: the worker holds no lock while it computes,
  and PyTorch gives the interpreter away inside its operations.
- ``pose`` and ``cancel`` return at once. The step in flight ends in an object that nobody reads any
  more, and no ``paint`` begins afterwards until something new is posed.
- Frames are those of :func:`eqr.rollout.rollout` with the same seed, since they come from it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eqr.analysis.dynamics import Pca, pca
from eqr.rollout import Iteration, rollout

FOREVER = 10**9  # iterations that a rollout is asked for; the engine says when to stop
IDLE = 10.0  # seconds after which a thread with nothing to do ends; the next ``aim`` starts another
FITTED = 128  # states that a plane is fitted to: enough for two axes, and milliseconds


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
    """All that there is to show after an outer iteration of B restarts."""

    depth: int  # outer iterations done, from 1
    answer: np.ndarray  # (B, S) uint8 decoded tokens
    confidence: np.ndarray  # (B, S) probability that the model gives its token in each cell
    unchanged: np.ndarray  # (B, S) iterations for which the token has stayed, from 0
    residuals: np.ndarray  # (depth, B) of all iterations so far
    settled: np.ndarray  # (B,) mean residual of the last iterations, which selects a restart
    plane: np.ndarray  # (depth, B, 2) the states in the plane of their principal axes
    explained: float  # share of the states' variance that lies in the plane
    seconds: float  # that the iteration took

    @property
    def selected(self) -> int:
        """The restart with the smallest mean residual, as :func:`eqr.select.converged`."""
        return int(self.settled.argmin())

    @property
    def agree(self) -> np.ndarray:
        """(B,) bool: does a restart have the answer of the selected one?"""
        return (self.answer == self.answer[self.selected]).all(1)


class Plane:
    """The plane of the states' principal axes, fitted again whenever their number has doubled.

    A new fit is turned within its plane so that the states already there move least: principal
    axes have no sign, and pictures of them would flip from one fit to the next. The states are
    kept as float16, which is 7 MB for 64 iterations of 16 restarts of a small model.
    """

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []  # (B, N) each
        self.points = np.zeros((0, 0, 2))  # (depth, B, 2)
        self.fit: Pca | None = None

    def add(self, states: np.ndarray) -> None:
        """Take in the states (B, N) of one more iteration."""
        self.states.append(states.astype(np.float16))
        count = len(self.states)
        if count & (count - 1) == 0:
            self._fit()
        else:
            self.points = np.concatenate((self.points, self._project(states)[None]))

    @property
    def explained(self) -> float:
        """Share of the variance in the plane, at the last fit."""
        return float(self.fit.explained.sum()) if self.fit else 1.0

    def _project(self, states: np.ndarray) -> np.ndarray:
        if self.fit is None:
            return np.zeros((len(states), 2))
        return self.fit.project(states.astype(np.float32))

    def _fit(self) -> None:
        before = self.points
        rows = [(k, b) for k in range(len(self.states)) for b in range(len(self.states[0]))]
        rows = rows[:: -(-len(rows) // FITTED)]
        sample = np.stack([self.states[k][b] for k, b in rows]).astype(np.float32)
        spread = float(np.abs(sample - sample[0]).max())
        self.fit = pca(sample) if len(sample) > 1 and spread > 0 else None
        self.points = np.stack([self._project(states) for states in self.states])
        if self.fit and len(before):
            new = self.points[: len(before)].reshape(-1, 2)
            turn = turning(new - new.mean(0), before.reshape(-1, 2) - before.mean((0, 1)))
            self.fit = Pca(self.fit.mean, turn.T @ self.fit.axes, self.fit.explained)
            self.points = self.points @ turn


def turning(points: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rotation or reflection R (2, 2) for which ``points @ R`` is nearest to ``wanted`` (M, 2).

    >>> turning(np.array([[1.0, 0], [0, 2]]), np.array([[-1.0, 0], [0, 2]])).round(6).tolist()
    [[-1.0, 0.0], [0.0, 1.0]]
    """
    left, _, right = np.linalg.svd(points.T @ wanted)
    return left @ right


class Trajectory:
    """The restarts of one model on one puzzle, iteration by iteration.

    ``frames`` only ever grows, so one thread may append while another reads. The model gets the
    puzzle and nothing else. One that is not ``drawn`` has no points in the plane.
    """

    def __init__(
        self, model: Any, inputs: np.ndarray, settings: Settings, drawn: bool = True
    ) -> None:
        self.frames: list[Frame] = []
        self._plane = Plane() if drawn else None
        self._iterations: Iterator[Iteration] = rollout(
            model,
            torch.as_tensor(np.asarray(inputs))[None],
            depth=FOREVER,
            breadth=settings.breadth,
            noise=settings.noise,
            damping=settings.damping,
            seed=settings.seed,
            rows=settings.breadth,  # one chunk, or the second would begin when the first has ended
        )

    def advance(self) -> Frame:
        """Compute one more iteration and record it."""
        began = time.perf_counter()
        it = next(self._iterations)
        last = self.frames[-1] if self.frames else None
        answer = it.answer.cpu().numpy().astype(np.uint8)
        stays = np.zeros(answer.shape, int)
        if last:
            stays = np.where(answer == last.answer, last.unchanged + 1, 0)
        gaps = it.residual.cpu().numpy()[None]
        if self._plane:
            self._plane.add(it.step.state.flat().float().cpu().numpy())
        frame = Frame(
            depth=it.depth,
            answer=answer,
            confidence=it.step.confidence.cpu().numpy(),
            unchanged=stays,
            residuals=np.concatenate((last.residuals, gaps)) if last else gaps,
            settled=it.recent.cpu().numpy(),
            plane=self._plane.points if self._plane else np.zeros((0, len(answer), 2)),
            explained=self._plane.explained if self._plane else 0.0,
            seconds=time.perf_counter() - began,
        )
        self.frames.append(frame)
        return frame

    def record(self, depth: int, seconds: float = float("inf")) -> None:
        """Compute here and now, up to ``depth`` iterations or for some ``seconds``."""
        until = time.monotonic() + seconds
        while len(self.frames) < depth and time.monotonic() < until:
            self.advance()


def survey(
    model: Any, inputs: np.ndarray, settings: Settings, depths: Sequence[int]
) -> dict[str, np.ndarray]:
    """What the explorer shows of several puzzles (P, S) after each of ``depths`` (D of them).

    Returns:
        ``answer`` (P, D, S) of the selected restart, ``agree`` (P, D) restarts with that answer,
        ``residual`` (P, D) of the selected restart, the mean of the last iterations.
    """
    found: dict[str, list] = {"answer": [], "agree": [], "residual": []}
    for puzzle in inputs:
        run = Trajectory(model, puzzle, settings, drawn=False)
        run.record(max(depths))
        shown = [run.frames[depth - 1] for depth in depths]
        found["answer"].append([frame.answer[frame.selected] for frame in shown])
        found["agree"].append([int(frame.agree.sum()) for frame in shown])
        found["residual"].append([float(frame.settled.min()) for frame in shown])
    return {name: np.array(values) for name, values in found.items()}


class Engine:
    """Computes frames on one thread and calls ``paint`` on another; both wait while idle.

    Args:
        paint: shows what there is; called with ``quiet`` held, and must not block.
        pace: seconds from one iteration to the next while there is no hurry: time to look.
        pulse: seconds between two calls of ``paint`` while anything is under way.

    Attributes:
        quiet: hold it to keep ``paint`` out; callers that change what is painted do.
    """

    def __init__(
        self, paint: Callable[[], None], *, pace: float = 0.12, pulse: float = 0.05
    ) -> None:
        self.paint, self.pace, self.pulse = paint, pace, pulse
        self.quiet = threading.RLock()
        self.fault: Exception | None = None  # what a step raised
        self._change = threading.Condition()  # guards what follows; taken after ``quiet``
        self._runs: tuple[Trajectory, ...] = ()
        self._target = 0  # iterations wanted
        self._since: float | None = None  # when the step in flight began
        self._stale = False  # something happened since the last ``paint``
        self._closed = False
        self._threads: dict[str, threading.Thread] = {}

    # What the interface asks for

    def pose(self, runs: Sequence[Trajectory]) -> None:
        """Drop what was under way and have ``runs`` instead, from where they are, at rest."""
        with self.quiet, self._change:
            self._runs, self.fault = tuple(runs), None
            self._target = self.done
            self._stale = bool(self._runs)
            self._change.notify_all()

    def cancel(self) -> None:
        """Drop what is under way; nothing is painted until something new is posed."""
        self.pose(())

    def aim(self, depth: int) -> None:
        """Iterate until ``depth``; at or below what is done: stop after the step in flight."""
        with self.quiet, self._change:
            self._target, self._stale = depth, bool(self._runs)
            for name in ("compute", "repaint") if self._runs and not self._closed else ():
                if name not in self._threads:
                    work = threading.Thread(target=getattr(self, f"_{name}"), daemon=True)
                    self._threads[name] = work
                    work.start()
            self._change.notify_all()

    def pause(self) -> None:
        """Stop after the step in flight."""
        self.aim(self.done)

    def close(self) -> None:
        """Cancel, and end both threads: within one step, which cannot be interrupted."""
        self.cancel()
        with self._change:
            self._closed = True
            threads = tuple(self._threads.values())
            self._change.notify_all()
        for thread in threads:
            thread.join()

    # What the interface reads

    @property
    def done(self) -> int:
        """Iterations that all runs have."""
        return min((len(run.frames) for run in self._runs), default=0)

    @property
    def playing(self) -> bool:
        """More iterations are wanted than are done."""
        return self.fault is None and self.done < self._target

    @property
    def busy(self) -> bool:
        """A step is in flight, or more are wanted."""
        return self.playing or self._since is not None

    @property
    def waiting(self) -> float:
        """Seconds since the step in flight began; 0 where there is none."""
        since = self._since
        return time.monotonic() - since if since else 0.0

    # The two threads

    def _due(self) -> Trajectory | None:
        """The run that is furthest behind, if more iterations are wanted."""
        return min(self._runs, key=lambda run: len(run.frames)) if self.playing else None

    def _to_paint(self) -> bool:
        """Something is under way, or has happened since the last ``paint``."""
        return bool(self._runs) and (self._stale or self.busy)

    def _compute(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._due(), IDLE)
                if self._closed or not self._due():
                    del self._threads["compute"]
                    return
                run, runs, begun = self._due(), self._runs, self.done
                self._since = began = time.monotonic()
            try:
                run.advance()
                fault = None
            except Exception as error:  # a thread has no caller: the status line shows it
                fault = error
            with self._change:
                self._since, self._stale = None, bool(self._runs)
                if runs is not self._runs:
                    continue  # of a puzzle or setting that is gone
                self.fault = fault
                if self.done > begun and self.playing:
                    rest = self.pace - (time.monotonic() - began)
                    self._change.wait_for(lambda r=runs: self._closed or self._runs is not r, rest)

    def _repaint(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._to_paint(), IDLE)
                if self._closed or not self._to_paint():
                    del self._threads["repaint"]
                    return
            began = time.monotonic()
            with self.quiet:
                if self._runs:  # they may have been cancelled since
                    self._stale = False
                    self.paint()
            time.sleep(max(0.005, self.pulse - (time.monotonic() - began)))
