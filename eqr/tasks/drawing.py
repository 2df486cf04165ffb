"""Boards on matplotlib axes: the colours and the cells that all tasks share."""

from __future__ import annotations

from collections.abc import Sequence
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


# --- Mini-ARC -------------------------------------------------------------------------------------

# ARC's ten colours were not chosen for colour-blind readers, so every cell also bears its digit.
GRID = 5  # cells a side
#: ARC's colours 0 to 9: black, blue, red, green, yellow, grey, magenta, orange, sky blue, maroon.
ARC = (
    "#111111", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
    "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25",
)  # fmt: skip
RGB = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in ARC])
DARK = RGB @ [0.299, 0.587, 0.114] < 0.5  # these bear white digits


def draw_pairs(
    ax,
    pairs: Sequence[np.ndarray],
    grid: np.ndarray,
    answer: np.ndarray | None,
    label: np.ndarray | None,
    settled: np.ndarray | None,
) -> None:
    """Columns of input above output; the problem last, with its answer, or room for one.

    Args:
        ax: matplotlib axes.
        pairs: demonstrations, (2, 25) colours each.
        grid: (25,) colours of the problem; ``answer`` and ``label`` likewise, or None.
        settled: (25,) between 0 and 1 for the answer's cells: 0 is tinted the most.
    """
    columns = [*pairs, np.stack([grid, grid if answer is None else answer])]
    height, width = 2 * GRID + 1, (GRID + 1) * len(columns) - 1
    colours, tint = np.ones((height, width, 3)), np.ones((height, width))
    cells = []  # row, column, colour, is it wrong
    for column, pair in enumerate(columns):
        last = column == len(columns) - 1
        for half in range(2):
            if last and half and answer is None:
                continue
            for cell, colour in enumerate(pair[half].tolist()):
                row = half * (GRID + 1) + cell // GRID
                place = row, column * (GRID + 1) + cell % GRID
                known = 0 <= colour < len(ARC)
                colours[place] = RGB[colour] if known else 1.0
                answered = last and half == 1
                if answered and settled is not None:
                    tint[place] = settled[cell]
                wrong = answered and label is not None and colour != label[cell]
                cells.append((*place, colour if known else None, wrong))
    points = paint_cells(ax, colours, tint if settled is not None else None)
    for row, column, colour, wrong in cells:
        light = colour is not None and DARK[colour]
        text = "?" if colour is None else str(colour)
        ink = "white" if light else INK
        style = {"ha": "center", "va": "center_baseline", "fontsize": 0.55 * points}
        ax.text(column, row, text, color=ink, alpha=0.85, **style)
        if wrong:
            edge = {"color": "white", "ms": 0.8 * points, "mew": 0.16 * points}
            ax.plot([column], [row], "x", **edge)
            ax.plot([column], [row], "x", **(edge | {"color": VERMILLION, "mew": 0.08 * points}))
    for column in range(len(columns)):
        for half in range(2):
            x, y = column * (GRID + 1) - 0.5, half * (GRID + 1) - 0.5
            for k in range(GRID + 1):
                line = {"color": "0.45", "lw": 0.02 * points, "clip_on": False}
                ax.plot([x, x + GRID], [y + k, y + k], **line)
                ax.plot([x + k, x + k], [y, y + GRID], **line)
        ax.text(column * (GRID + 1) + 2, GRID, "↓", ha="center", va="center", fontsize=0.6 * points)
    ax.set_xlim(-1.5, width + 0.5)  # room between two problems side by side
    for side in ax.spines.values():
        side.set_visible(False)
