"""The picture that stands for the book where a link to it is shown: `book/_static/card.png`.

Serves every page's head. It is drawn from the stored 6×6 model of the laptop profile, and kept in
the repository, since a smoke build has no model that has learned anything. To draw it again:
``python -m eqr.card``.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from eqr.data import PROJECT
from eqr.store import replace_file

OUT = PROJECT / "book" / "_static" / "card.png"
SIZE = (1200, 630)  # pixels, the shape that link previews have
DEPTHS = (1, 2, 4, 16)
RECIPE = "sudoku6"


def draw(out: Path = OUT, problem: int | None = None) -> str:
    """Draw the card, one trajectory of a test puzzle; returns the id of the run it shows.

    Args:
        out: the PNG, which appears complete or not at all.
        problem: index of the test puzzle; None takes the first that is wrong for three
            iterations and right after the last.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    from eqr.analysis import figures
    from eqr.experiments import trained
    from eqr.solve import solve

    model = trained(RECIPE)
    test, task = model.data.test, model.recipe.task
    for index in range(len(test.inputs)) if problem is None else (problem,):
        found = solve(model.model, task, test.inputs[index], depth=DEPTHS[-1], seed=0)
        right = (found.answers == test.labels[index]).all(1)
        if problem is not None or (right[-1] and not right[:3].any()):
            break
    figures.set_style()
    with plt.rc_context({"figure.constrained_layout.use": False}):
        fig = plt.figure(figsize=np.array(SIZE) / 100, dpi=100, facecolor="#fbfaf7")
        fig.text(0.05, 0.83, "Equilibrium Reasoners", fontsize=44, weight="bold", color="#1c2b38")
        fig.text(0.05, 0.735, "a reproducibility book", fontsize=26, color="#b4511d")
        for k, depth in enumerate(DEPTHS):
            ax = fig.add_axes((0.05 + 0.2317 * k, 0.17, 0.205, 0.205 * SIZE[0] / SIZE[1]))
            task.draw(
                ax,
                found.inputs,
                answer=found.answers[depth - 1],
                label=test.labels[index],
                settled=found.confidence[depth - 1],
            )
            times = f"{depth} iteration{'s' * (depth > 1)}"
            ax.set_title(times, fontsize=17, color="#1c2b38", pad=10)
        fig.text(
            0.05,
            0.06,
            "One small operator, repeated until its state settles.",
            fontsize=19,
            color="#1c2b38",
        )
        fig.text(0.95, 0.025, model.run.id, fontsize=9, color="0.45", ha="right")
        fig.canvas.draw()
        picture = Image.fromarray(np.asarray(fig.canvas.buffer_rgba())).convert("RGB")
        plt.close(fig)
    content = io.BytesIO()
    # 128 colours are enough for it, and a third of the bytes.
    picture.quantize(128).save(content, format="png", optimize=True)
    replace_file(out, content.getvalue())
    return model.run.id


if __name__ == "__main__":
    print(f"{OUT}, from {draw()}")
