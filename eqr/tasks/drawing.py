"""Boards on matplotlib axes: the colours and the cells that all tasks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from eqr.task import Task

INK, BLUE, VERMILLION, AMBER = "#222222", "#0072B2", "#D55E00", (0.90, 0.62, 0.0)  # Okabe-Ito


def draw_board(task: Task, ax, inputs, answer=None, label=None, settled=None, block=(0, 0)) -> None:
    """Draw a board of symbols, as :meth:`eqr.task.Task.draw` says.

    Args:
        block: rows and columns between two heavy lines; 0 draws none.
    """
    inputs = np.asarray(inputs)
    points = paint_cells(ax, np.ones((task.height, task.width, 3)), settled)
    answer, wrong = answer_and_errors(inputs, answer, label)
    given, blank = inputs > 1, task.format(np.ones_like(inputs))[0]
    for cell, char in enumerate(task.format(np.where(given, inputs, answer))):
        row, column = divmod(cell, task.width)
        colour = INK if given[cell] else VERMILLION if wrong[cell] else BLUE
        if char != blank:
            write_cell(ax, (row, column), char, 0.55 * points, colour, given[cell])
        if wrong[cell]:
            place = ([column + 0.33], [row - 0.33])
            ax.plot(*place, "x", color=VERMILLION, ms=0.22 * points, mew=0.05 * points)
    heavy, light = {"color": INK, "lw": 0.05 * points}, {"color": "0.6", "lw": 0.015 * points}
    lines = ((ax.axhline, task.height, block[0]), (ax.axvline, task.width, block[1]))
    for draw, count, every in lines:
        for k in range(count + 1):
            draw(k - 0.5, clip_on=False, **(heavy if every and k % every == 0 else light))


def paint_cells(ax, colours: np.ndarray, settled: np.ndarray | None) -> float:
    """Fill the cells with colours (height, width, 3); return the points that one cell spans.

    The amber tint changes a cell's lightness, not its hue only, so it survives colour blindness.
    """
    if settled is not None:
        tint = 0.45 * (1 - np.clip(np.asarray(settled, float), 0, 1)).reshape(*colours.shape[:2], 1)
        colours = (1 - tint) * colours + tint * np.array(AMBER)
    ax.imshow(colours, interpolation="nearest")
    ax.set(xticks=[], yticks=[], aspect="equal")
    extent = ax.get_window_extent()
    points = 72 * min(extent.width, extent.height) / ax.figure.dpi
    return points / max(colours.shape[:2])


def write_cell(ax, place, text: str, size: float, colour, bold: bool = False, **style) -> None:
    """Write ``text`` into the cell at ``place`` (row, column), ``size`` points high."""
    style = {"ha": "center", "va": "center_baseline", "fontsize": size, "color": colour} | style
    ax.text(place[1], place[0], text, fontweight="bold" if bold else "normal", **style)


def answer_and_errors(inputs, answer, label) -> tuple[np.ndarray, np.ndarray]:
    """The answer (S,), the problem itself where there is none, and where it is wrong (S,) bool."""
    if answer is None:
        return inputs, np.zeros(len(inputs), bool)
    answer = np.asarray(answer)
    wrong = np.zeros(len(inputs), bool) if label is None else answer != np.asarray(label)
    return answer, wrong
