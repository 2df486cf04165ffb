"""The study of Mini-ARC as data (chapter *Beyond one rule*; paper, A.5).

Two ways to tell the model the rule, two ways to hold out, each for EqR and the TRM-style baseline.
"""

from __future__ import annotations

from eqr.config import EvalConfig
from eqr.studies.study import Evaluation, Published, Row, Study

ARC = "Mini-ARC"
FIXED = {"model.init": "fixed", "model.damping": 0.0, "model.noise": 0.0}
RULES = ("average", "converged", "majority", "majority2", "oracle")
BREADTHS = (1, 2, 4, 8)
BETA = 0.1

#: What every model is asked: deeper; wider by noise; wider by symmetry; and where it comes to rest.
ASKED = (
    Evaluation("depth", EvalConfig((1, 2, 4, 8, 16, 32)), keep=("residual",)),
    Evaluation("noisy", EvalConfig((8,), breadth=8, noise=BETA), BREADTHS, RULES,
               keep=("residual", "answer")),
    Evaluation("symmetry", EvalConfig((8,), breadth=8, symmetry=True), BREADTHS, RULES,
               keep=("residual", "answer")),
    Evaluation("rest", EvalConfig((32,), breadth=4), (1, 2, 4), RULES,
               keep=("residual", "answer")),
)  # fmt: skip

#: Boards with demonstrations have three times as many cells: those are not asked with noise.
SHOWN = tuple(one for one in ASKED if one.name != "noisy")

WAYS = {
    "embedding": ("miniarc", "named by a trained vector, new queries", ASKED, 55.28, 48.35),
    "context": ("miniarc-context", "shown in context, new queries", SHOWN, None, None),
    "tasks": ("miniarc-tasks", "shown in context, new tasks", SHOWN, None, None),
}


def _rows(way: str, seeds: int) -> tuple[Row, Row]:
    recipe, title, asked, eqr, trm = WAYS[way]
    both = []
    for name, overrides, figure in (("eqr", {}, eqr), ("trm", FIXED, trm)):
        paper = (Published("A.5", figure, ARC),) if figure else ()
        kind = "EqR" if name == "eqr" else "TRM-style"
        both.append(
            Row(f"{way}-{name}", f"{kind}: rule {title}", recipe, asked, overrides, paper=paper,
                seeds=seeds)
        )  # fmt: skip
    return tuple(both)


MINIARC = Study(
    "miniarc",
    "Mini-ARC: many rules, told by name or by example",
    "A.5",
    "Rows of one way share data, optimizer steps, batch and size of the model. The paper's figures "
    "are for models of millions of parameters trained on a GPU.",
    (*_rows("embedding", 3), *_rows("context", 1), *_rows("tasks", 2)),
)
