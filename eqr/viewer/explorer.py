"""The explorer: a trained reasoner to play with in Jupyter (chapter *Explore in Jupyter*).

:func:`explore` takes a model or two, on any task. What is computed, on which thread, and why the
interface never waits for it is in :mod:`eqr.viewer.frames`; the pictures are in
:mod:`eqr.viewer.views`. JupyterLab may run the callbacks of controls on a thread of their own
(a subshell), so each of them holds ``engine.quiet``, as painting does.

Where no kernel answers, in a page of the book or a notebook on a web site, the explorer is the
picture of its trajectories at the depth it was opened with.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Sequence
from operator import is_not
from pathlib import Path
from typing import Any

import numpy as np

from eqr.checkpoint import Checkpoint, load_model
from eqr.experiments import Trained
from eqr.settings import ProblemError
from eqr.task import Task
from eqr.viewer.controls import OWN, Controls
from eqr.viewer.frames import Engine, Frame, Settings, Trajectory
from eqr.viewer.views import View, pictures

PATIENCE = 5.0  # seconds that opening an explorer may compute; a large model goes on when played
BEAT = "◐◓◑◒"


def explore(
    model: Trained | Checkpoint | Path | str,
    other: Trained | Checkpoint | Path | str | None = None,
    *,
    titles: Sequence[str] = (),
    problems: np.ndarray | None = None,
    puzzle: int = 0,
    settings: Settings | None = None,
) -> Explorer:
    """An explorer of one model, or of two on the same puzzle; shown when it ends a cell.

    Args:
        model, other: what :func:`eqr.experiments.trained` returns, a loaded checkpoint, or the path
            of a ``model.safetensors``.
        titles: names of the models; by default of their recipes.
        problems: (n, S) puzzles to choose from; by default the test set, or for a bare checkpoint
            some of its task.
        puzzle: which of them is opened.
        settings: where the controls stand at first.

    Raises:
        CheckpointError: a path that is no model.
        ProblemError: the models' boards differ, there is no such puzzle, two titles are equal, or
            the task's text has not one character a cell.
    """
    found = [m if isinstance(m, Trained) else opened(m) for m in (model, other) if m is not None]
    task = task_of(found[0])
    for one in found[1:]:
        if not task.same_board(task_of(one)):
            raise ProblemError(f"the models' boards differ: {task} and {task_of(one)}")
    if problems is None:
        first = found[0]
        problems = first.data.test.inputs if isinstance(first, Trained) else None
        problems = task.generate(20, 0).inputs if problems is None else problems
    if len(task.format(problems[0])) != task.seq_len:
        raise ProblemError(
            f"the explorer draws boards with one character a cell, which {task.kind} has not: "
            "look at its answers with eqr.solve"
        )
    names = [m.recipe.name if isinstance(m, Trained) else f"model {k}" for k, m in enumerate(found)]
    names = list(titles) or names
    if len(names) != len(found) or len(set(names)) < len(names):
        raise ProblemError(f"titles {names}: give each model one of its own")
    models = dict(zip(names, (m.model for m in found), strict=True))
    made = Explorer(models, task, np.asarray(problems), puzzle, settings or Settings())
    origins = [m.run.id if isinstance(m, Trained) else f"weights {m.sha256[:12]}" for m in found]
    made.origins = dict(zip(names, origins, strict=True))
    return made


def opened(model: Checkpoint | Path | str) -> Checkpoint:
    """The checkpoint of a path, or the one it is."""
    return model if isinstance(model, Checkpoint) else load_model(model)


def task_of(model: Trained | Checkpoint) -> Task:
    """The task that a model was trained on."""
    return model.recipe.task if isinstance(model, Trained) else model.task


def held(method: Callable) -> Callable:
    """A callback of a control: nothing is painted while it runs."""

    @functools.wraps(method)
    def call(self: Explorer, *event: Any) -> None:
        with self.engine.quiet:
            if not self._busy:  # a change that the explorer made itself
                method(self)

    return call


class Explorer:
    """Controls, an engine and a picture; :func:`explore` makes one.

    Attributes:
        inputs: (S,) the puzzle that is posed.
        runs: a :class:`eqr.viewer.frames.Trajectory` for each model.
        engine: what computes them.
        widget: all of it, for ``display`` and for a larger layout.
    """

    def __init__(
        self,
        models: dict[str, Any],
        task: Task,
        problems: np.ndarray,
        puzzle: int = 0,
        settings: Settings | None = None,
    ) -> None:
        if not 0 <= puzzle < len(problems):
            raise ProblemError(f"no puzzle {puzzle}: there are 0 to {len(problems) - 1}")
        self.models, self.task, self.problems = models, task, problems
        self.inputs = np.asarray(problems[puzzle])
        self.engine = Engine(self.paint)
        self.origins: dict[str, str] = {}  # by title: the run or the weights of a model
        self._busy = False  # the explorer itself is moving a control
        self._painted: list[Any] = []  # what the picture shows
        self._beats = 0
        self.controls = c = Controls(task, self.problems, puzzle, settings or Settings())
        self.widget = c.arranged()
        for control in (c.breadth, c.noise, c.damping, c.seed):
            control.observe(self._restart, "value")
        for control, work in ((c.depth, self._deepen), (c.puzzle, self._choose)):
            control.observe(work, "value")
        c.text.observe(self._edit, "value")
        for button, work in ((c.put, self._put), (c.play, self._play)):
            button.on_click(work)
        c.step.on_click(self._step)
        c.reset.on_click(self._reset)
        self._pose()
        self.paint()

    # --- what the controls do ---------------------------------------------------------------------

    def _pose(self) -> None:
        """New trajectories of the puzzle under the present settings, at iteration 0."""
        settings = self.controls.settings
        self.runs = [Trajectory(m, self.inputs, settings) for m in self.models.values()]
        self.engine.pose(self.runs)

    @held
    def _restart(self) -> None:
        self._pose()
        self.engine.aim(self.controls.depth.value)
        self.paint()

    @held
    def _deepen(self) -> None:
        self.engine.aim(self.controls.depth.value)
        self.paint()

    @held
    def _play(self) -> None:
        if self.engine.playing:
            self.engine.pause()
        else:
            if self.engine.done >= self.controls.depth.value or self.engine.fault:
                self._pose()
            self.engine.aim(self.controls.depth.value)
        self.paint()

    @held
    def _step(self) -> None:
        depth = self.controls.depth
        wanted = min(min(self.engine.done, depth.value) + 1, depth.max)
        self._quietly(depth, max(wanted, depth.value))
        self.engine.aim(wanted)
        self.paint()

    @held
    def _reset(self) -> None:
        self._pose()
        self.paint()

    @held
    def _choose(self) -> None:
        if self.controls.puzzle.value != OWN:
            self._use(np.asarray(self.problems[self.controls.puzzle.value]))
            self._quietly(self.controls.text, self.controls.rows_of(self.inputs))

    @held
    def _edit(self) -> None:
        try:
            inputs = self.task.parse(self.controls.text.value)
        except ProblemError as error:
            self._say(f"Not used: {error}. The board keeps the puzzle before.")
            return
        if (inputs != self.inputs).any():
            self._quietly(self.controls.puzzle, OWN)
            self._use(inputs)
        self._say("")

    @held
    def _put(self) -> None:
        c, task = self.controls, self.task
        rows = c.text.value.strip("\r\n").splitlines()
        if [len(row) for row in rows] != [task.width] * task.height:
            rows = c.rows_of(self.inputs).splitlines()
        old, at = rows[c.row.value - 1], c.column.value
        rows[c.row.value - 1] = old[: at - 1] + c.symbol.value + old[at:]
        self._quietly(c.text, "\n".join(rows))
        self._edit()

    def _use(self, inputs: np.ndarray) -> None:
        """Pose another puzzle and play it."""
        self.inputs = inputs
        self._say("")
        self._restart()

    def _quietly(self, control: Any, value: Any) -> None:
        """Move a control without its callback."""
        self._busy, control.value = True, value
        self._busy = False

    def _say(self, words: str) -> None:
        """A line beside the board."""
        mark = '<b style="color:#b3261e">!</b> ' if words else ""
        self.controls.message.value = f'<div role="alert">{mark}{html.escape(words)}</div>'

    # --- what is shown ----------------------------------------------------------------------------

    def frames(self) -> list[Frame | None]:
        """The frame of each model at the depth of the slider, or the last one on the way there."""
        depth = self.controls.depth.value
        return [(run.frames[:depth] or [None])[-1] for run in self.runs]

    def views(self) -> list[View]:
        """What the picture shows of each model."""
        common, limit = (self.task, self.inputs), self.controls.depth.value
        return [
            View(t, *common, frame, limit, self._verdict(frame), self.origins.get(t, ""))
            for t, frame in zip(self.models, self.frames(), strict=True)
        ]

    def _verdict(self, frame: Frame | None) -> str:
        """The rule checker's word on the answers, in ours."""
        if frame is None:
            return ""
        inputs = np.repeat(self.inputs[None], len(frame.answer), 0)
        valid = self.task.check(inputs, frame.answer)
        chosen = "valid" if valid[frame.selected] else "not valid"
        return f"{chosen}; {int(valid.sum())} of {len(valid)} restarts valid"

    def paint(self) -> None:
        """Show what there is. Called by the engine every 50 ms while anything is under way, and by
        each control; takes some milliseconds, since only the pulse changes every time."""
        now = [*self.frames(), self.inputs, self.controls.depth.value]
        if len(now) != len(self._painted) or any(map(is_not, now, self._painted)):
            self._painted, self.controls.figure.value = now, pictures(self.views())
        self.controls.status.value, self.controls.pulse.value = self._state(), self._pulse()
        word = "Pause" if self.engine.playing else "Play"
        self.controls.play.description, self.controls.play.icon = word, word.lower()

    def _state(self) -> str:
        """How far the trajectories are: a region that screen readers follow, so it is only written
        when the words change."""
        done, depth = self.engine.done, self.controls.depth.value
        if self.engine.fault:
            words = f"stopped by an error: {self.engine.fault}"
        elif self.engine.playing:
            words = f"iteration {done} of {depth}"
        else:
            words = "finished" if done >= depth else "paused" if done else "ready"
            words += f" at iteration {min(done, depth)} of {depth}"
        return f'<span role="status">{html.escape(words)}</span>'

    def _pulse(self) -> str:
        """A sign that something is under way, another one each time; nothing at rest."""
        if not self.engine.busy:
            return ""
        self._beats += 1
        waiting = self.engine.waiting
        words = BEAT[self._beats % len(BEAT)] + (f" {waiting:.1f} s" if waiting >= 0.2 else "")
        return f'<span aria-hidden="true" style="font-variant-numeric:tabular-nums">{words}</span>'

    def close(self) -> None:
        """End the threads, and take the controls from the page."""
        self.engine.close()
        self.widget.close()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget; for readers without a kernel the picture, computed here and now."""
        with self.engine.quiet:
            if not self.engine.busy:  # or the worker would be at the same trajectories
                for run in self.runs:
                    run.record(self.controls.depth.value, PATIENCE)
            self.paint()
            data = dict(self.widget._repr_mimebundle_())
            return {**data, "text/plain": self._plain(), "image/svg+xml": pictures(self.views())}

    def _plain(self) -> str:
        """The answers for a terminal."""
        parts = []
        for view in self.views():
            tokens = view.frame.answer[view.frame.selected] if view.frame else view.inputs
            parts.append(f"{view.title}\n{self.task.render(tokens)}\nby the rules: {view.verdict}")
        return "\n\n".join(parts)
