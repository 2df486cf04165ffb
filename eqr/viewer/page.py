"""Boards that move in a page: recorded trajectories, and models that the browser runs itself.

Serves the chapter *Play with the attractor* and the home page. Three layers, each usable alone: a
static figure (:mod:`eqr.analysis.figures`), a replay (:func:`replay`: the viewer's script and its
JSON, both in the page, so that it works from a file too), and a solver (:func:`solver`: an exported
iteration, :mod:`eqr.viewer.onnx`, in a Web Worker, which wants a page from a web server). The
scripts are in the folder ``static`` beside this module.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eqr.experiments import Trained
from eqr.layers import parameter_count
from eqr.model import Reasoner
from eqr.task import Task
from eqr.viewer import onnx as export
from eqr.viewer.frames import Settings, Trajectory, board_of, in_base_36

SCRIPTS = Path(__file__).parent / "static"

#: What the browser loads when a reader starts the solver, beside the models.
MODULES = ("worker.mjs", "rules.mjs", "numbers.mjs")

#: Where the modules and models lie in the built book, from its root.
PLACE = Path("_static/play")

#: The file with the home page's board, from the root of the book's source.
HOME = Path("_generated/home_board.html")

#: Recipes that the page can run, and what it calls them.
LIVE = {
    "sudoku6": "EqR, 6×6 Sudoku",
    "headroom": "EqR, minimal 6×6 Sudoku",
    "headroom-trm": "TRM-style baseline, minimal 6×6 Sudoku",
    "maze9": "EqR, 9×9 mazes",
}


@dataclass(frozen=True, slots=True)
class Html:
    """A piece of a page; notebooks show it as such."""

    text: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class PageModel:
    """A model as the page speaks of it."""

    title: str
    model: Reasoner
    task: Task
    run: str  # id of its training
    profile: str

    @classmethod
    def of(cls, name: str, trained: Trained, profile: str) -> PageModel:
        """The trained model of the recipe ``name``, under its title in :data:`LIVE`."""
        task, run = trained.recipe.task, trained.run.id
        return cls(LIVE.get(name, name), trained.model, task, run, profile)

    @property
    def file(self) -> str:
        """The ONNX file's name: that of the training, so that a browser keeps no older one."""
        return f"{self.run}.onnx"

    def facts(self) -> dict[str, Any]:
        """What the replay says about it."""
        return {"name": self.title, "run": self.run, "profile": self.profile}


def record(
    model: PageModel, inputs: np.ndarray, label: np.ndarray | None = None, **settings: Any
) -> dict[str, Any]:
    """Trajectories of one problem (S,), ready for :func:`replay`.

    Args:
        label: the answer (S,), so that errors are marked.
        settings: fields of :class:`eqr.viewer.frames.Settings`.
    """
    run = Trajectory(model.model, model.task, inputs, Settings(**settings))
    run.record(run.settings.depth)
    return recording(run, model.facts(), label)


def recording(
    run: Trajectory, facts: Mapping[str, Any], label: np.ndarray | None = None
) -> dict[str, Any]:
    """A trajectory as the JSON that ``static/viewer.mjs`` shows; ``facts`` are of the model."""
    return {
        "task": board_of(run.task),
        "inputs": in_base_36(run.inputs.tolist()),
        "label": None if label is None else in_base_36(np.asarray(label).tolist()),
        "model": dict(facts),
        **asdict(run.settings),
        "frames": run.packed(),
    }


def replay(items: Sequence[tuple[str, Sequence[dict]]], *, small: bool = False) -> Html:
    """Recordings to play, with one choice for each of ``items``: (title, recordings side by side).

    ``small`` leaves the plane out and starts by itself, unless the reader prefers less motion.
    """
    stored = {"items": [{"title": t, "recordings": list(r)} for t, r in items], "small": small}
    wait = "The replay needs JavaScript; the figure shows the same at fixed depths."
    return Html(scripted('<div class="eqr-viewer eqr-replay eqr-live">', stored, wait))


def solver(models: Sequence[PageModel], puzzles: Sequence[Mapping[str, Any]]) -> Html:
    """Controls around models that the browser iterates.

    Args:
        models: those of :func:`install`.
        puzzles: each a ``title``, the ``text`` of a problem and the title of its ``model``; and, of
            one that was measured, the ``depth``, ``breadth`` and ``noise`` that it opens with.
    """
    facts = [
        export.describe(one.model, one.task)
        | {"title": one.title, "file": one.file, "run": one.run, "profile": one.profile}
        for one in models
    ]
    titles = [one.title for one in models]
    listed = []
    for puzzle in puzzles:
        index = titles.index(puzzle["model"])
        inputs = in_base_36(models[index].task.parse(puzzle["text"]).tolist())
        settings = {k: v for k, v in puzzle.items() if k not in ("title", "text", "model")}
        listed.append({"title": puzzle["title"], "inputs": inputs, "model": index, **settings})
    stored = {
        "title": "Live solver",
        "models": numbered(facts, [one.task for one in models]),
        "puzzles": listed,
        "settings": {"depth": 24, "breadth": 8, "noise": 0, "damping": None, "seed": 0},
        "wait": "Loading the solver (14 MB, once) …",
    }
    opening = (
        '<div class="eqr-viewer eqr-solver eqr-live" '
        f'data-worker="../{PLACE.as_posix()}/worker.mjs">'
    )
    return Html(scripted(opening, stored, "The solver needs JavaScript."))


def numbered(facts: Sequence[dict], tasks: Sequence[Task]) -> list[dict]:
    """The facts of models with a ``board``: those that can be asked the same problems share it."""
    firsts = [next(i for i, one in enumerate(tasks) if one.same_board(task)) for task in tasks]
    return [fact | {"board": first} for fact, first in zip(facts, firsts, strict=True)]


def scripted(opening: str, stored: dict[str, Any], wait: str) -> str:
    """The element ``opening`` with its data, a line for readers without scripts, and the viewer.

    ``</`` is written as ``<\\/`` in the JSON, so that no text in it can end the script.
    """
    data = json.dumps(stored, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    style, script = ((SCRIPTS / f"viewer.{end}").read_text("utf-8") for end in ("css", "mjs"))
    return (
        f"<style>{style}</style>{opening}"
        f'<script type="application/json">{data}</script>'
        f'<p class="eqr-wait">{html.escape(wait)}</p></div>'
        f'<script type="module">{script}</script>'
    )


def install(place: Path, home: Path, models: Mapping[str, Trained], profile: str) -> None:
    """Put modules, exported models and the home page's board where the book wants them.

    Args:
        place: folder that becomes :data:`PLACE` of the pages.
        home: file for the home page's board (:data:`HOME` of the book's source).
        models: by the name of their recipe; each is exported to ONNX, of about half a megabyte. The
            first one solves its first test problem on the home page.

    Raises:
        eqr.viewer.onnx.ExportError: a model cannot be exported.
    """
    place.mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        shutil.copy(SCRIPTS / name, place / name)
    page = [PageModel.of(name, trained, profile) for name, trained in models.items()]
    for model in page:
        export.export(model.model, place / model.file, {"run": model.run, "title": model.title})
    test = next(iter(models.values())).data.test
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text(home_board(page[0], test.inputs[0], test.labels[0]).text, encoding="utf-8")


def home_board(model: PageModel, inputs: np.ndarray, label: np.ndarray) -> Html:
    """The board that solves itself on the first page, with what it is underneath."""
    made = replay([("", [record(model, inputs, label, depth=16, breadth=8)])], small=True)
    facts = (
        f"A model of {parameter_count(model.model):,} weights, trained when this book was built, "
        "at work on a test puzzle: what it decodes after each outer iteration, from the one of 8 "
        f"restarts that settles best. Amber: not sure yet. Profile {model.profile}, β 0, seed 0, "
        f"{model.run}."
    )
    return Html(f'{made.text}<p class="eqr-home-note eqr-live">{html.escape(facts)}</p>')
