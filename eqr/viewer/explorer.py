"""The explorer: a trained reasoner to play with in Jupyter (chapter *Explore in Jupyter*).

:func:`explore` takes a model or two, on any task. The interface is the viewer's script
(``static/viewer.mjs``, by anywidget), which lives in the browser and therefore never waits; it asks
the kernel for one iteration at a time (:meth:`Explorer.answer`), so that a change takes effect
after the iteration in flight.

Where no kernel answers, in a page of the book or a notebook on a web site, the explorer is a
picture of its trajectories at the depth it was opened with.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from eqr.checkpoint import Checkpoint, load_model
from eqr.experiments import Trained
from eqr.settings import ProblemError
from eqr.tasks.drawing import INK
from eqr.viewer.frames import Settings, Trajectory, in_base_36
from eqr.viewer.page import SCRIPTS, PageModel, controls, recording

PATIENCE = 5.0  # seconds that opening an explorer may compute; a large model goes on when played
LISTED = 50  # puzzles in the list


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
        model, other: what :func:`eqr.experiments.train_or_load` returns, a loaded checkpoint, or
            the path of a ``model.safetensors``.
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
    loaded = [
        one if isinstance(one, Trained | Checkpoint) else load_model(one)
        for one in (model, other)
        if one is not None
    ]
    task = loaded[0].task
    for one in loaded[1:]:
        if not task.same_board(one.task):
            raise ProblemError(f"the models' boards differ: {task} and {one.task}")
    if problems is None and isinstance(loaded[0], Trained):
        problems = loaded[0].data.test.inputs
    problems = task.generate(20, 0).inputs if problems is None else np.asarray(problems)
    if len(task.format(problems[0])) != task.seq_len:
        raise ProblemError(
            f"the explorer draws boards with one character a cell, which {task.kind} has not: "
            "look at its answers with eqr.solve"
        )
    if not 0 <= puzzle < len(problems):
        raise ProblemError(f"no puzzle {puzzle}: there are 0 to {len(problems) - 1}")
    names, origins = [], []
    for k, one in enumerate(loaded):
        own = isinstance(one, Trained)
        names.append(one.recipe.name if own else f"model {k}")
        origins.append(one.run.id if own else f"weights {one.sha256[:12]}")
    names = list(titles) or names
    if len(names) != len(loaded) or len(set(names)) < len(names):
        raise ProblemError(f"titles {names}: give each model one of its own")
    models = [
        PageModel(name, one.model, one.task, origin)
        for name, one, origin in zip(names, loaded, origins, strict=True)
    ]
    return Explorer(models, problems, puzzle, settings or Settings())


class Explorer(anywidget.AnyWidget):
    """The viewer as a widget of ipywidgets, a model or two behind it; :func:`explore` makes one.

    Args:
        models: on the same board.
        problems: (n, S) puzzles; the first ``LISTED`` can be chosen, and ``puzzle``, which is open.

    Attributes:
        opened: a trajectory of each model, which the viewer shows first.
    """

    _esm = SCRIPTS / "viewer.mjs"
    _css = SCRIPTS / "viewer.css"
    stored = traitlets.Dict().tag(sync=True)

    def __init__(
        self, models: Sequence[PageModel], problems: np.ndarray, puzzle: int, settings: Settings
    ) -> None:
        self.task, self.models = models[0].task, models
        self._lock = threading.Lock()  # JupyterLab may deliver messages on threads of their own
        self._runs: dict[str, list[Trajectory]] = {}  # by the view that asked for them
        self.opened = [Trajectory(m.model, m.task, problems[puzzle], settings) for m in models]
        for run in self.opened:
            run.record(settings.depth, PATIENCE / len(models))
        listed = [puzzle, *(k for k in range(min(LISTED, len(problems))) if k != puzzle)]
        puzzles = [
            {
                "title": f"{k}: {self.task.format(problems[k])[:30]}",
                "inputs": in_base_36(problems[k].tolist()),
            }
            for k in listed
        ]
        shown = [recording(*pair) for pair in zip(models, self.opened, strict=True)]
        more = {"title": "Explorer", "recordings": shown, "eager": True}
        super().__init__(stored=controls(models, puzzles, settings, **more))
        self.on_msg(lambda _, message, __: self.send(self.answer(message)))

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to one message of the viewer; its calls are described at its ``Channel``."""
        reply = {name: message[name] for name in ("id", "view")}
        try:
            with self._lock:
                return reply | {"result": self._compute(**message)}
        except Exception as error:  # a message has no caller to raise to: the viewer shows it
            return reply | {"error": f"{error}" or type(error).__name__}

    def _compute(self, call: str, view: str, **words: Any) -> Any:
        if call == "read":
            try:
                return {"inputs": self.task.parse(words["text"]).tolist(), "note": ""}
            except ProblemError as error:
                return {"fault": str(error)}
        if call == "begin":
            self._runs[view] = [self._begin(**run) for run in words["runs"]]
            return True
        return [
            run.advance().packed() | {"depth": len(run.frames), "plane": run.plane.packed()}
            for run in self._runs[view]
        ]

    def _begin(self, model: int, inputs: list[int], **settings: Any) -> Trajectory:
        tokens = np.array(inputs, np.uint8)
        return Trajectory(self.models[model].model, self.task, tokens, Settings(**settings))

    def _repr_mimebundle_(self, **more: Any) -> dict[str, Any]:
        """The widget; for readers without a kernel the picture."""
        data, about = super()._repr_mimebundle_(**more)
        return {**data, "text/plain": self.describe(), "image/png": self.picture()}, about

    def describe(self) -> str:
        """The answers for a terminal."""
        parts = []
        for model, run in zip(self.models, self.opened, strict=True):
            frame, best = run.frames[-1], run.selected
            verdict = "valid" if frame.right[best] else "not valid"
            count = f"{int(frame.right.sum())} of {len(frame.right)} restarts valid"
            board = self.task.render(frame.answer[best])
            parts.append(f"{model.title}\n{board}\nby the rules: {verdict}; {count}")
        return "\n\n".join(parts)

    def picture(self) -> bytes:
        """Board, residuals and plane of each model in a row, as PNG; black is the restart that the
        board shows, the one with the smallest residual."""
        from matplotlib.figure import Figure

        from eqr.analysis import figures

        figure = Figure(figsize=(10, 3.6 * len(self.opened)), layout="constrained")
        rows = figure.subplots(len(self.opened), 3, squeeze=False)
        for (board, traces, plane), run, model in zip(rows, self.opened, self.models, strict=True):
            frame, best = run.frames[-1], run.selected
            given = np.array(list(self.task.format(run.inputs))) != "."
            sure = np.where(given, 1.0, frame.confidence[best])
            self.task.draw(board, run.inputs, frame.answer[best], settled=sure)
            count = f"{int(frame.right.sum())} of {len(frame.right)} restarts right by the rules"
            board.set_title(f"{model.title}, D = {len(run.frames)}: {count}", fontsize=9)
            board.set_xlabel(model.run, fontsize=7)
            points, selected = np.array(run.plane.packed()), {"color": INK, "linewidth": 2.4}
            figures.residual_traces(traces, run.residuals, frame.right)
            traces.plot(range(1, len(points) + 1), run.residuals[:, best], **selected)
            figures.latent_paths(plane, points, frame.right)
            plane.plot(*points[:, best].T, **selected)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
