"""Boards that move in a page: recorded trajectories, and models that the browser runs itself.

Serves the chapter *Play with the attractor* and the home page. Three layers, each usable alone: a
static figure (:mod:`eqr.analysis.figures`), a replay (:func:`replay`: plain JavaScript over JSON,
both in the page, so that it works from a file too), and a solver (:func:`solver`: an exported
iteration, :mod:`eqr.viewer.onnx`, in a Web Worker, which wants a page from a web server). The
scripts are in the folder ``static`` beside this module.
"""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eqr.experiments import Trained
from eqr.model import Reasoner, parameter_count
from eqr.pages import EXTRA
from eqr.task import Task
from eqr.viewer import onnx as export
from eqr.viewer.frames import Settings, Trajectory

SCRIPTS = Path(__file__).parent / "static"
MODULES = ("live.mjs", "worker.mjs", "rules.mjs", "numbers.mjs")

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

LEVELS = 35  # steps in which a probability is stored: one character


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
    def of(cls, name: str, found: Trained, profile: str) -> PageModel:
        """The trained model of the recipe ``name``, under its title in :data:`LIVE`."""
        return cls(LIVE.get(name, name), found.model, found.recipe.task, found.run.id, profile)

    @property
    def file(self) -> str:
        """The ONNX file's name: that of the training, so that a browser keeps no older one."""
        return f"{self.run}.onnx"

    def facts(self) -> dict[str, Any]:
        """What the replay says about it."""
        return {"name": self.title, "run": self.run, "profile": self.profile}


def record(
    model: PageModel,
    inputs: np.ndarray,
    label: np.ndarray | None = None,
    *,
    depth: int = 32,
    breadth: int = 8,
    noise: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Trajectories of one problem (S,), ready for :func:`replay`.

    Tokens are written as one base-36 digit each, probabilities as one of 36 levels, residuals with
    three digits. The plane is that of :class:`eqr.viewer.frames.Plane`, its coordinates in
    thousandths of the largest.

    Args:
        label: the answer (S,), so that errors are marked.
        depth, breadth, noise, seed: of the trajectories (:class:`eqr.viewer.frames.Settings`).
    """
    run = Trajectory(model.model, inputs, Settings(depth, breadth, noise, seed=seed))
    run.record(depth)
    plane = run.frames[-1].plane  # (D, B, 2)
    plane = (1000 * plane / max(np.abs(plane).max(), 1e-12)).round().astype(int)
    frames = [
        {
            "answers": [in_base_36(row) for row in frame.answer.tolist()],
            "confidence": [in_base_36(row) for row in levels(frame.confidence)],
            "residual": [float(f"{value:.3g}") for value in frame.residuals[-1].tolist()],
            "plane": points.tolist(),
        }
        for frame, points in zip(run.frames, plane, strict=True)
    ]
    return {
        "task": export.board_of(model.task),
        "inputs": in_base_36(np.asarray(inputs).tolist()),
        "label": None if label is None else in_base_36(np.asarray(label).tolist()),
        "model": model.facts(),
        "breadth": breadth,
        "noise": noise,
        "seed": seed,
        "frames": frames,
    }


def levels(shares: np.ndarray) -> list:
    """Shares from 0 to 1 as whole numbers from 0 to ``LEVELS``, in lists."""
    return (LEVELS * shares).round().astype(int).tolist()


def in_base_36(values: Sequence[int]) -> str:
    """Numbers from 0 to 35 as one character each.

    >>> in_base_36([1, 10, 35])
    '1az'
    """
    return "".join("0123456789abcdefghijklmnopqrstuvwxyz"[value] for value in values)


def replay(items: Sequence[tuple[str, Sequence[dict]]], *, small: bool = False) -> Html:
    """Recordings to play, with one choice for each of ``items``: (title, recordings side by side).

    ``small`` leaves the plane out and starts by itself, unless the reader prefers less motion.
    """
    stored = {"items": [{"title": t, "recordings": list(r)} for t, r in items], "small": small}
    wait = "The replay needs JavaScript; the figure shows the same at fixed depths."
    return Html(scripted('<div class="eqr-replay eqr-live">', stored, wait))


def solver(models: Sequence[PageModel], puzzles: Sequence[dict[str, Any]]) -> Html:
    """Controls around models that the browser iterates.

    Args:
        models: those of :func:`install`.
        puzzles: each a dict of ``title``, ``text`` (as the task formats it) and ``model``, the
            title of the first of ``models`` that it belongs to.
    """
    facts = [export.describe(model.model, model.task) for model in models]
    # Models that can be asked the same problems share a number.
    boards = [
        next(i for i, other in enumerate(models) if other.task.same_board(model.task))
        for model in models
    ]
    own = {model.title: board for model, board in zip(models, boards, strict=True)}
    stored = {
        "title": "Live solver",
        "models": [
            {"title": m.title, "file": m.file, "facts": fact, "board": board}
            | {"run": m.run, "profile": m.profile}
            for m, fact, board in zip(models, facts, boards, strict=True)
        ],
        "puzzles": [
            {"title": puzzle["title"], "text": puzzle["text"], "board": own[puzzle["model"]]}
            for puzzle in puzzles
        ],
    }
    module = f"../{PLACE.as_posix()}/live.mjs"
    opening = f'<div class="eqr-solver eqr-live" data-module="{module}">'
    return Html(scripted(opening, stored, "The solver needs JavaScript."))


def scripted(opening: str, stored: dict[str, Any], wait: str) -> str:
    """The element ``opening`` with its data, a line for readers without scripts, and the player.

    ``</`` is written as ``<\\/`` in the JSON, so that no text in it can end the script.
    """
    data = json.dumps(stored, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    style, script = ((SCRIPTS / f"player.{end}").read_text("utf-8") for end in ("css", "js"))
    return (
        f"<style>{style}</style>{opening}"
        f'<script type="application/json">{data}</script>'
        f'<p class="eqr-wait">{html.escape(wait)}</p></div><script>{script}</script>'
    )


def install(source: Path, models: Mapping[str, Trained], profile: str) -> None:
    """Put modules, exported models and the home page's board into the book's source tree.

    Args:
        source: the tree of :func:`eqr.book.assemble`.
        models: by the name of their recipe; each is exported to ONNX, of about half a megabyte. The
            first one solves its first test problem on the home page.

    Raises:
        eqr.viewer.onnx.ExportError: a model cannot be exported.
    """
    place = source / EXTRA / PLACE
    place.mkdir(parents=True, exist_ok=True)
    for name in MODULES:
        shutil.copy(SCRIPTS / name, place / name)
    page = [PageModel.of(name, found, profile) for name, found in models.items()]
    for model in page:
        export.export(model.model, place / model.file, {"run": model.run, "title": model.title})
    test = next(iter(models.values())).data.test
    (source / HOME).parent.mkdir(parents=True, exist_ok=True)
    home = home_board(page[0], test.inputs[0], test.labels[0])
    (source / HOME).write_text(home.text, encoding="utf-8")


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
