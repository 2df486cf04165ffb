"""Grids of Mini-ARC drawn in ARC's colours (chapter *Beyond one rule*).

ARC's ten colours were not chosen for colour-blind readers, so every cell also bears its digit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eqr.tasks.drawing import INK, VERMILLION, paint_cells

SIDE = 5
#: ARC's colours 0 to 9: black, blue, red, green, yellow, grey, magenta, orange, sky blue, maroon.
COLOURS = (
    "#111111", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00",
    "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25",
)  # fmt: skip
RGB = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS])
DARK = RGB @ [0.299, 0.587, 0.114] < 0.5  # these bear white digits


def draw(
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
    height, width = 2 * SIDE + 1, (SIDE + 1) * len(columns) - 1
    colours, tint = np.ones((height, width, 3)), np.ones((height, width))
    cells = []  # row, column, colour, is it wrong
    for column, pair in enumerate(columns):
        last = column == len(columns) - 1
        for half in range(2):
            if last and half and answer is None:
                continue
            for cell, colour in enumerate(pair[half].tolist()):
                row = half * (SIDE + 1) + cell // SIDE
                place = row, column * (SIDE + 1) + cell % SIDE
                known = 0 <= colour < len(COLOURS)
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
            x, y = column * (SIDE + 1) - 0.5, half * (SIDE + 1) - 0.5
            for k in range(SIDE + 1):
                line = {"color": "0.45", "lw": 0.02 * points, "clip_on": False}
                ax.plot([x, x + SIDE], [y + k, y + k], **line)
                ax.plot([x + k, x + k], [y, y + SIDE], **line)
        ax.text(column * (SIDE + 1) + 2, SIDE, "↓", ha="center", va="center", fontsize=0.6 * points)
    ax.set_xlim(-1.5, width + 0.5)  # room between two problems side by side
    for side in ax.spines.values():
        side.set_visible(False)
