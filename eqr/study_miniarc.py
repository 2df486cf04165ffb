"""The study of Mini-ARC as data (chapter *Beyond one rule*; paper, A.5).

Two ways to tell the model the rule, two ways to hold out, each for EqR and the TRM-style baseline.
"""

from __future__ import annotations

from eqr.config import EvalConfig
from eqr.study import Evaluation, Published, Row, Study

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

WAYS = {
    "embedding": ("miniarc", "named by a trained vector, new queries", 55.28, 48.35),
    "context": ("miniarc-context", "told in context, new queries", None, None),
    "tasks": ("miniarc-tasks", "told in context, new tasks", None, None),
}


def _rows(way: str, seeds: int) -> tuple[Row, Row]:
    recipe, title, eqr, trm = WAYS[way]
    both = []
    for name, overrides, figure in (("eqr", {}, eqr), ("trm", FIXED, trm)):
        paper = (Published("A.5", figure, ARC),) if figure else ()
        kind = "EqR" if name == "eqr" else "TRM-style"
        both.append(
            Row(f"{way}-{name}", f"{kind}: rule {title}", recipe, ASKED, overrides, paper=paper,
                seeds=seeds)
        )  # fmt: skip
    return tuple(both)


MINIARC = Study(
    "miniarc",
    "Mini-ARC: many rules, told by name or by example",
    "A.5",
    "Rows of one way share data, optimizer steps, batch and size of the model. The paper's figures "
    "are for models of millions of parameters trained on a GPU.",
    (*_rows("embedding", 3), *_rows("context", 3), *_rows("tasks", 3)),
)
