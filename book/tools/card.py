"""The picture that stands for the book where a link to it is shown: `book/_static/card.png`.

It is drawn from the stored 6×6 model of the laptop profile and is part of the repository, since a
smoke build has no model that has learned anything. To draw it again: ``python -m book.tools.card``.
"""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from book.tools import BOOK
from eqr.analysis import figures
from eqr.experiments import train_or_load
from eqr.solve import solve
from eqr.store import replace_file

OUT = BOOK / "_static" / "card.png"
SIZE = (1200, 630)  # pixels, the shape that link previews have
DEPTHS = (1, 2, 4, 16)


def draw() -> str:
    """Draw the card: a test puzzle that is wrong for three iterations and right after the last.

    Returns the id of the training whose model it shows.
    """
    model = train_or_load("sudoku6")
    test, task = model.data.test, model.recipe.task
    for inputs, label in zip(test.inputs, test.labels, strict=True):
        solution = solve(model.model, task, inputs, depth=DEPTHS[-1], seed=0)
        right = (solution.answers == label).all(1)
        if right[-1] and not right[:3].any():
            break
    figures.set_style()
    fig = plt.figure(figsize=np.array(SIZE) / 100, dpi=100, facecolor="#fbfaf7", layout="none")
    fig.text(0.05, 0.83, "Equilibrium Reasoners", fontsize=44, weight="bold", color="#1c2b38")
    fig.text(0.05, 0.735, "a reproducibility book", fontsize=26, color="#b4511d")
    for k, depth in enumerate(DEPTHS):
        ax = fig.add_axes((0.05 + 0.2317 * k, 0.17, 0.205, 0.205 * SIZE[0] / SIZE[1]))
        at = depth - 1
        task.draw(ax, inputs, solution.answers[at], label, solution.confidence[at])
        times = f"{depth} iteration{'s' * (depth > 1)}"
        ax.set_title(times, fontsize=17, color="#1c2b38", pad=10)
    words = "One small operator, repeated until its state settles."
    fig.text(0.05, 0.06, words, fontsize=19, color="#1c2b38")
    fig.text(0.95, 0.025, model.run.id, fontsize=9, color="0.45", ha="right")
    drawn, content = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png")
    # 128 colours are enough for it, and a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(128).save(content, format="png", optimize=True)
    replace_file(OUT, content.getvalue())
    return model.run.id


if __name__ == "__main__":
    print(f"{OUT}, from {draw()}")
