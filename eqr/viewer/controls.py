"""The explorer's controls and how they are arranged (chapter *Explore in Jupyter*)."""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np

from eqr.task import Task
from eqr.viewer.frames import Settings

DEPTHS, BREADTHS = 64, (1, 2, 4, 8, 16)  # the most iterations; restarts to choose from
NOISES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
UNCHANGED = -1.0  # on the slider of λ: each model's own (a widget cannot have the value None)
DAMPINGS = (UNCHANGED, 0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8)
LISTED = 50  # puzzles in the list
OWN = -1  # the list's entry for a puzzle that is not from it

#: The board as text is evenly spaced, and a control that has the keyboard shows it.
CSS = """<style>
.eqr-text textarea { font-family: var(--jp-code-font-family, monospace); letter-spacing: .2em;
  line-height: 1.3; resize: none; }
.eqr-explore button:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2);
  outline-offset: 1px; }
</style>"""


def slider(values: tuple[float, ...], value: float, name: str) -> widgets.SelectionSlider:
    """A slider over ``values`` and the present one."""
    known = sorted({*values, value})
    options = [("own" if x == UNCHANGED else f"{x:g}", x) for x in known]
    return widgets.SelectionSlider(options=options, value=value, description=name, **wide())


def wide() -> dict:
    """What the sliders have in common: aligned names; a value counts when it is let go."""
    style = {"description_width": "5.5em"}
    return {"continuous_update": False, "style": style, "layout": {"width": "auto"}}


def button(name: str, tooltip: str, width: str = "6.5em") -> widgets.Button:
    """A button with a word on it."""
    return widgets.Button(description=name, tooltip=tooltip, layout={"width": width})


class Controls:
    """Every widget of the explorer, each with a name beside it; none does anything yet."""

    def __init__(self, task: Task, problems: np.ndarray, puzzle: int, settings: Settings) -> None:
        self.task = task
        self._make_puzzle(problems, puzzle)
        depths, seeds = max(DEPTHS, settings.depth), max(31, settings.seed)
        self.depth = widgets.IntSlider(settings.depth, 1, depths, description="depth D", **wide())
        self.breadth = slider(BREADTHS, settings.breadth, "breadth B")
        self.noise = slider(NOISES, settings.noise, "noise β")
        damping = UNCHANGED if settings.damping is None else settings.damping
        self.damping = slider(DAMPINGS, damping, "damping λ")
        self.seed = widgets.IntSlider(settings.seed, 0, seeds, description="seed", **wide())
        self.play = button("Play", "Play or pause")
        self.step = button("Step", "One more iteration")
        self.reset = button("Reset", "Back to iteration 0")
        self.status, self.pulse = widgets.HTML(layout={"margin": "2px 1em"}), widgets.HTML()
        self.figure = widgets.HTML(layout={"width": "100%"})

    def _make_puzzle(self, problems: np.ndarray, puzzle: int) -> None:
        task, listed = self.task, list(range(min(LISTED, len(problems))))
        listed += [puzzle] if puzzle not in listed else []
        names = [(f"{k}: {task.format(problems[k])[:30]}", k) for k in listed]
        self.puzzle = widgets.Dropdown(
            options=[*names, ("your own", OWN)],
            value=puzzle,
            description="puzzle",
            style={"description_width": "5.5em"},
            layout={"width": "auto"},
        )
        self.text = widgets.Textarea(
            value=self.rows_of(problems[puzzle]),
            description="as text",
            rows=min(task.height + 1, 12),
            continuous_update=False,  # or each keystroke would be read, and refused, aloud
            style={"description_width": "4em"},
            layout={"width": f"{8 + max(6, task.width):.0f}em", "height": "auto"},
        )
        self.text.add_class("eqr-text")
        small = {"style": {"description_width": "5.5em"}, "min": 1, "value": 1}
        self.row = widgets.BoundedIntText(
            max=task.height, description="row", layout={"width": "9em"}, **small
        )
        small["style"] = {"description_width": "4em"}
        self.column = widgets.BoundedIntText(
            max=task.width, description="column", layout={"width": "7.5em"}, **small
        )
        self.symbol = widgets.Dropdown(
            options=sorted(set("".join(map(task.format, problems[:LISTED])))),
            description="gets",
            style={"description_width": "3em"},
            layout={"width": "7em"},
        )
        self.put = button("Put", "Put the symbol into the cell", "4em")
        self.message = widgets.HTML(layout={"min_height": "2em", "margin": "2px 2px 2px 5.8em"})

    def arranged(self) -> widgets.Widget:
        """All of them: the puzzle, the sliders, the buttons, the picture."""
        cell = widgets.HBox([self.row, self.column, self.symbol, self.put])
        cell.layout.flex_flow = "row wrap"
        sliders = [self.depth, self.breadth, self.noise, self.damping, self.seed]
        columns = "repeat(auto-fill, minmax(17em, 1fr))"
        grid = widgets.GridBox(sliders, layout={"grid_template_columns": columns, "width": "auto"})
        grid.layout.align_items = "center"
        left = widgets.VBox([self.puzzle, cell, self.message, grid], layout={"flex": "1 1 20em"})
        top = widgets.HBox([left, self.text], layout={"flex_flow": "row wrap"})
        buttons = widgets.HBox([self.play, self.step, self.reset, self.status, self.pulse])
        buttons.layout.flex_flow, buttons.layout.align_items = "row wrap", "center"
        css = widgets.HTML(CSS, layout={"display": "none"})
        parts = [css, top, buttons, self.figure]
        whole = widgets.VBox(parts, layout={"width": "100%", "max_width": "62em"})
        whole.add_class("eqr-explore")
        return whole

    @property
    def settings(self) -> Settings:
        """What the sliders say."""
        damping = None if self.damping.value == UNCHANGED else self.damping.value
        return Settings(
            self.depth.value, self.breadth.value, self.noise.value, damping, self.seed.value
        )

    def rows_of(self, tokens: np.ndarray) -> str:
        """A puzzle as text, a row a line."""
        text, width = self.task.format(tokens), self.task.width
        return "\n".join(text[k : k + width] for k in range(0, len(text), width))
