"""Studies away from training as data: the preregistered ones (shift, ambiguity, variance: page
*Preregistration*), other sources of 9×9 Sudoku, and Mini-ARC.

Trajectories have β = 0.1 in all of them unless a level is about β or the study says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eqr.config import EvalConfig
from eqr.studies.study import (
    DEPTHS,
    FEEDFORWARD,
    FIXED,
    RULES,
    Evaluation,
    Published,
    Row,
    Study,
)
from eqr.tasks.shift import Level

SINGLE = {"model.hierarchical": False, "model.low_cycles": 3}
BETA = 0.1
BASES = (8, 16)  # depths from which an axis may grow
FACTOR = 8  # by how much: depth 8 D, or D with so many restarts

# ------------------------------------------------------------------------------------------ levels

EASY = {"minimal": False, "clues_min": 11, "clues_max": 11}


def _clues(count: int, **rest: Any) -> dict[str, Any]:
    return {"minimal": False, "clues_min": count, "clues_max": count, **rest}


def _path(low: int, high: int) -> dict[str, Any]:
    return {"path_min": low, "path_max": high}


MINIMAL = {"minimal": True, "clues_min": None, "clues_max": None}
LEVELS = {
    level.name: level
    for level in (
        *(Level(f"clues-{n}", _clues(n), title=f"{n} clues") for n in (10, 12, 14, 18)),
        *(Level(f"fewer-{n}", _clues(n), title=f"{n} clues") for n in (10, 9)),
        Level("fewer-8", MINIMAL | {"clues_min": 8, "clues_max": 8}, title="8 clues"),
        Level("harder-1", MINIMAL | {"rating_min": 1}, title="rating ≥ 1"),
        Level("harder-3", MINIMAL | {"rating_min": 3}, title="rating ≥ 3"),
        Level("easier", EASY | {"rating_max": 0}, title="11 clues, rating 0"),
        Level("rating-1", {"rating_min": 1}, title="rating ≥ 1"),
        Level("rating-3", {"rating_min": 3}, title="rating ≥ 3"),
        Level("symmetric", _clues(12, layout="symmetric"), title="symmetric"),
        Level("clustered", _clues(12, layout="clustered"), title="clustered"),
        *(Level(f"several-{n}", spoil=f"several:{n}", title=f"{n} taken") for n in (1, 2, 4)),
        Level("unsolvable", spoil="unsolvable", title="none"),
        Level("path-16", _path(16, 18), title="16–18"),
        Level("path-20", _path(20, 22), title="20–22"),
        Level("path-24", _path(24, 28), title="24–28"),
        Level("kruskal", {"carving": "kruskal"}, title="Kruskal"),
        Level("wilson", {"carving": "wilson"}, title="Wilson"),
        Level("prim", {"carving": "prim"}, title="Prim"),
        Level("division", {"carving": "division"}, title="division"),
        *(Level(f"loops-{n}", {"loops": n, "unique": True}, title=f"{n}") for n in (1, 2, 4)),
        *(Level(f"flips-{n}", {"flips": n}, title=f"{n}") for n in (1, 2, 4)),
        Level("size-9", {"height": 9, "width": 9}, title="9×9"),
        Level("size-11", {"height": 11, "width": 11}, title="11×11"),
    )
}
#: Levels that change the dynamics instead of the problems.
DYNAMICS: dict[str, dict[str, Any]] = {
    "beta-0": {"noise": 0.0},
    "beta-0.2": {"noise": 0.2},
    "beta-0.4": {"noise": 0.4},
    "beta-0.8": {"noise": 0.8},
    "weights-1": {"weight_noise": 0.01},
    "weights-3": {"weight_noise": 0.03},
    "weights-10": {"weight_noise": 0.1},
    "bfloat16": {"dtype": "bfloat16"},
}


@dataclass(frozen=True, slots=True)
class Family:
    """Levels of one kind of shift, for the models that were trained on one kind of problem."""

    name: str
    trained: str  # a key of GROUPS
    levels: tuple[str, ...]  # by rising severity
    far: str  # the level that the verdicts are about
    ordered: bool = True  # whether severity rises from each to the next


FAMILIES = (
    Family("more clues", "minimal", ("clues-10", "clues-12", "clues-14", "clues-18"), "clues-18"),
    Family("fewer clues", "easy", ("fewer-10", "fewer-9", "fewer-8"), "fewer-8"),
    Family("difficulty, easy → hard", "easy", ("harder-1", "harder-3"), "harder-3"),
    Family("difficulty, hard → easy", "minimal", ("easier",), "easier"),
    Family("difficulty, within", "minimal", ("rating-1", "rating-3"), "rating-3"),
    Family("layout", "minimal", ("clues-12", "symmetric", "clustered"), "clustered",
           ordered=False),
    Family("path length", "perfect", ("path-16", "path-20", "path-24"), "path-24"),
    Family("generator", "perfect", ("kruskal", "wilson", "prim", "division"), "division",
           ordered=False),
    Family("loops", "perfect", ("loops-1", "loops-2", "loops-4"), "loops-4"),
    Family("wall noise", "perfect", ("flips-1", "flips-2", "flips-4"), "flips-4"),
    Family("grid size", "seven", ("size-9", "size-11"), "size-11"),
    Family("noise", "minimal", ("beta-0.2", "beta-0.4", "beta-0.8"), "beta-0.4"),
    Family("weights", "minimal", ("weights-1", "weights-3", "weights-10"), "weights-10"),
    Family("precision", "minimal", ("bfloat16",), "bfloat16"),
)  # fmt: skip
#: Puzzles that have several solutions or none: described, and judged by what is answered.
INVALID = ("several-1", "several-2", "several-4", "unsolvable")

#: What a group of models was trained on -> problems at each of its levels.
GROUPS = {
    "minimal": 256,
    "easy": 256,
    "perfect": 128,
    "seven": 128,
}


def levels_of(group: str) -> list[str]:
    """The levels that the models of a group are asked, each once."""
    names = [name for family in FAMILIES if family.trained == group for name in family.levels]
    extra = ["beta-0", *INVALID] if group == "minimal" else []
    return list(dict.fromkeys(names + extra))


def _asked(name: str, group: str) -> tuple[Evaluation, Evaluation]:
    """One level (or the group's own problems) asked deep and wide."""
    deep = EvalConfig((*BASES, *(FACTOR * d for d in BASES)), noise=BETA, problems=GROUPS[group])
    wide = replace(deep, depths=BASES, breadth=FACTOR)
    if name in DYNAMICS:
        deep, wide = (replace(one, **DYNAMICS[name]) for one in (deep, wide))
    keep: tuple[str, ...] = ("residual",)
    if name.startswith("several"):
        deep, wide = (replace(one, checked=True) for one in (deep, wide))
        keep = ("residual", "checked")
    level = LEVELS.get(name)
    return (
        Evaluation(f"{name}.deep", deep, level=level, keep=keep),
        Evaluation(
            f"{name}.wide",
            wide,
            (FACTOR,),
            RULES,
            level=level,
            keep=keep,
        ),
    )


def _once(name: str, group: str) -> Evaluation:
    """A level asked of a model that has one iteration only."""
    config = EvalConfig((1,), problems=GROUPS[group])
    if name in DYNAMICS:
        rest = {key: value for key, value in DYNAMICS[name].items() if key != "noise"}
        config = replace(config, **rest)
    if name.startswith("several"):
        config = replace(config, checked=True)
    return Evaluation(f"{name}.once", config, level=LEVELS.get(name))


SUMMARY = Evaluation("depth", EvalConfig((1, 4, 16), problems=256))


def _iterated(group: str) -> tuple[Evaluation, ...]:
    pairs = [_asked(name, group) for name in (group, *levels_of(group))]
    return (SUMMARY, *(one for pair in pairs for one in pair))


def _single_pass(group: str) -> tuple[Evaluation, ...]:
    names = [n for n in (group, *levels_of(group)) if not n.startswith("beta")]
    return (SUMMARY, *(_once(name, group) for name in names))


def _models(group: str, recipe: str, fixed: dict, title: str) -> tuple[Row, ...]:
    """EqR, TRM-style, single latent and feedforward on one kind of problems."""
    return (
        Row(f"{group}-eqr", f"{title}: EqR", recipe, _iterated(group)),
        Row(f"{group}-trm", f"{title}: TRM-style", recipe, _iterated(group), fixed),
        Row(f"{group}-single", f"{title}: single latent", recipe, _iterated(group), SINGLE),
        Row(f"{group}-feedforward", f"{title}: feedforward", recipe, _single_pass(group),
            FIXED | FEEDFORWARD, depth=1),
    )  # fmt: skip


SHIFT = Study(
    "shift",
    "Distribution shift: what depth and breadth are worth away from training",
    "none of the paper's; the prediction that nobody had tested",
    "Problems of a level, NFE of the two axes (8 D), β. Models of one kind of problem share data "
    "and optimizer steps.",
    (
        Row("minimal-eqr", "Minimal Sudoku: EqR", "headroom", _iterated("minimal"), seeds=5),
        Row("minimal-trm", "Minimal Sudoku: TRM-style", "headroom-trm", _iterated("minimal"),
            seeds=5),
        Row("minimal-single", "Minimal Sudoku: single latent", "headroom", _iterated("minimal"),
            SINGLE),
        Row("minimal-feedforward", "Minimal Sudoku: feedforward", "headroom-trm",
            _single_pass("minimal"), FEEDFORWARD, depth=1),
        *_models("easy", "headroom-easy", FIXED, "11 clues"),
        *_models("perfect", "maze9-small", FIXED, "9×9 mazes"),
        Row("seven-eqr", "7×7 mazes: EqR with attention", "maze7-attention", _iterated("seven")),
        Row("seven-trm", "7×7 mazes: TRM-style with attention", "maze7-attention",
            _iterated("seven"), FIXED),
    ),
)  # fmt: skip

# --------------------------------------------------------------------------------------- ambiguity

LOOPS = {"task.loops": 3}
AMBIGUOUS = (
    Evaluation("depth", EvalConfig(DEPTHS, problems=256, checked=True),
               keep=("checked",)),
    Evaluation("wide", EvalConfig((4, 16, 64), breadth=8, problems=256, checked=True),
               (1, 2, 4, 8), RULES,
               keep=("residual", "checked", "answer")),
)  # fmt: skip

AMBIGUITY = Study(
    "ambiguity",
    "One label where several answers are right",
    "C.2",
    "Size of the mazes, number of walls opened, lengths of paths, model and optimizer steps; only "
    "the number of shortest paths differs.",
    (
        Row("unique", "One shortest path", "maze9-small", AMBIGUOUS,
            LOOPS | {"task.unique": True}),
        Row("ambiguous", "Several shortest paths, one label", "maze9-small", AMBIGUOUS, LOOPS),
    ),
)  # fmt: skip

# ---------------------------------------------------------------------------------------- variance


def _nested(name: str, starts: int, paths: int, at: int, problems: int | None = 128) -> Evaluation:
    config = EvalConfig(
        (16,),
        breadth=starts * paths,
        noise=BETA,
        problems=problems,
        branches=paths,
        branch_at=at,
    )
    return Evaluation(name, config, (starts * paths,), RULES, keep=("residual",))


#: Depths at which the paths of one start part.
PARTINGS = (0, 4, 8, 12)
#: 128 iterations a problem: eight restarts, or four starts that part at depth 8 into three paths.
INDEPENDENT = Evaluation(
    "independent", EvalConfig((16,), breadth=8, noise=BETA), (1, 8),
    RULES, keep=("residual",),
)  # fmt: skip

VARIANCE = Study(
    "variance",
    "Repeated trajectories as nested Monte Carlo: problem, start, path of the noise",
    "none of the paper's",
    "Problems, depth 16, β = 0.1; 32 trajectories a problem in four groupings, and 128 iterations "
    "a problem in two.",
    (
        Row("eqr", "EqR", "headroom",
            (Evaluation("depth", EvalConfig((16,), noise=BETA)),
             *(_nested(f"part-{at}", 8, 4, at) for at in PARTINGS),
             INDEPENDENT,
             _nested("shared", 4, 3, 8, problems=None))),
    ),
)  # fmt: skip

# ----------------------------------------------------------------------------------------- sources

#: Single sources of hard 9×9 Sudoku, imported as *Run it again* says; not shipped.
SOURCES = tuple(
    Level(name, title=title, source=f"data/cache/sudoku-{folder}", pin=pin)
    for name, title, folder, pin in (
        ("17-clue", "17 clues", "17-clue", "9a271cc23478201e"),
        ("top1465", "magictour", "magictour-top1465", "c5d94a584a773e81"),
        ("forum", "forum 11+", "forum-hardest-1106", "2eda567cac0ce082"),
    )
)
NEARER = tuple(Level(f"clues-{n}", _clues(n), title=f"{n} clues") for n in (28, 26, 24))
ASKED = EvalConfig((4, 16, 64), problems=64)

SOURCES_STUDY = Study(
    "sources",
    "Nine by nine: fewer clues, and puzzles of other sources",
    "none of the paper's",
    "The model of the study night (30 to 36 clues), 64 problems a level, β = 0.",
    (
        Row(
            "sudoku9-night",
            "9×9 Sudoku of 30–36 clues, two blocks of 192 channels",
            "sudoku9-night",
            (
                Evaluation("depth", ASKED, keep=("residual",)),
                *(Evaluation(level.name, ASKED, level=level, keep=("residual",))
                  for level in (*NEARER, *SOURCES)),
            ),
            seeds=1,
        ),
    ),
    profiles=("paper",),
)  # fmt: skip

# ---------------------------------------------------------------------------------------- Mini-ARC

# Two ways to tell the model the rule, two ways to hold out, each for EqR and the TRM-style baseline
# (chapter *Several answers, unknown rule?*; paper, A.5).
ARC = "Mini-ARC"
VOTES = ("average", "converged", "majority", "majority2", "oracle")
BREADTHS = (1, 2, 4, 8)

#: What every model is asked: deeper; wider by noise; wider by symmetry; and where it comes to rest.
POSED = (
    Evaluation("depth", EvalConfig((1, 2, 4, 8, 16, 32)), keep=("residual",)),
    Evaluation("noisy", EvalConfig((8,), breadth=8, noise=BETA), BREADTHS, VOTES,
               keep=("residual", "answer")),
    Evaluation("symmetry", EvalConfig((8,), breadth=8, symmetry=True), BREADTHS, VOTES,
               keep=("residual", "answer")),
    Evaluation("rest", EvalConfig((32,), breadth=4), (1, 2, 4), VOTES,
               keep=("residual", "answer")),
)  # fmt: skip

#: Boards with demonstrations have three times as many cells: those are not asked with noise.
SHOWN = tuple(one for one in POSED if one.name != "noisy")

WAYS = {
    "embedding": ("miniarc", "named by a trained vector, new queries", POSED, 55.28, 48.35),
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
