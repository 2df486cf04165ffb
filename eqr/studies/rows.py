"""The studies as data: which rows, with which settings, beside which figures of the paper.

A row is a recipe with some settings replaced, and the evaluations it needs; nothing here runs. The
paper's figures are exact accuracies in per cent at its own scale (9×9 Sudoku-Extreme, 5 M
parameters): they stand beside a row for the order of the rows, not as a target for their values.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eqr.config import EvalConfig
from eqr.settings import ConfigError, nearest
from eqr.studies.campaign import CAMPAIGN, TUNING
from eqr.studies.rows_shift import AMBIGUITY, MINIARC, SHIFT, SOURCES_STUDY, VARIANCE
from eqr.studies.shift_again import SHIFT_AGAIN
from eqr.studies.study import (
    DEPTHS,
    FEEDFORWARD,
    NO_HALTING,
    ONE_PASS,
    RULES,
    Evaluation,
    Published,
    Row,
    Study,
)


def study(name: str) -> Study:
    """A study by name; ConfigError with the near miss where there is none."""
    if name not in STUDIES:
        raise ConfigError(f"study {name!r} is not known; {nearest(name, STUDIES)}")
    return STUDIES[name]


# ----------------------------------------------------------------------------------- construction

DEPTH = Evaluation("depth", EvalConfig(DEPTHS))
ONE_LATENT = {"model.hierarchical": False, "model.grad_cycles": 2, "model.low_cycles": 3}
# Sixteen outer iterations a step on a sixteenth of the batch: steps, layers and puzzles are equal.
# (A quarter of the batch with a quarter of the steps had learned nothing in its 500 steps.)
UNROLLED = ONE_LATENT | NO_HALTING | {"train.unroll": 16}


def _step(name: str, title: str, overrides: dict, *paper: tuple[str, float], **rest: Any) -> Row:
    published = tuple(Published(*one) for one in paper)
    return Row(name, title, "headroom-trm", (DEPTH,), overrides, paper=published, **rest)


def _unrolled(name: str, title: str, first: int, value: float) -> Row:
    overrides = UNROLLED | {"train.supervise_from": first}
    return _step(name, title, overrides, ("Table 7", value), scale={"train.batch": 1 / 16})


CONSTRUCTION = Study(
    "construction",
    "The construction path: from a feedforward network to the TRM-style baseline",
    "Tables 2, 6–9",
    "Every row takes the same number of optimizer steps and evaluates the same number of layers "
    "forward in training (steps × batch × unrolled iterations × layers of an outer iteration): the "
    "unrolled rows have a sixteenth of the batch, and so see as many puzzles as the segmented ones "
    "without halting. Backward passes are not matched: rows whose gradient passes all cycles cost "
    "more, see train_flops. Fixed start, no damping, no noise.",
    (
        _step(
            "feedforward",
            "Feedforward: 6 blocks, one pass",
            FEEDFORWARD,
            ("Table 2", 2.6),
            depth=1,
            seeds=5,
        ),
        _step(
            "weight-tied",
            "Weight-tied: one block 6 times",
            ONE_PASS,
            ("Table 2", 32.6),
            depth=1,
            seeds=5,
        ),
        _step(
            "deeper",
            "Weight-tied, twice as deep: one block 12 times, half the batch",
            ONE_PASS | {"model.low_cycles": 12},
            ("Table 8", 51.3),
            depth=1,
            scale={"train.batch": 1 / 2},
        ),
        _unrolled("terminal", "Unrolled ×16, loss on the last iteration", 16, 51.8),
        _unrolled("all-anchors", "Unrolled ×16, loss on all iterations", 1, 47.1),
        _unrolled("late-8", "Unrolled ×16, loss on iterations 8–16", 8, 51.4),
        _unrolled("late-12", "Unrolled ×16, loss on iterations 12–16", 12, 57.5),
        _step(
            "segmented",
            "Segmented online training ×16, no halting, single latent",
            ONE_LATENT | NO_HALTING,
            ("Table 2", 74.7),
            ("Table 8", 74.7),
            seeds=5,
        ),
        _step(
            "segmented-cut",
            "… gradient through the last cycle only",
            ONE_LATENT | NO_HALTING | {"model.grad_cycles": 1},
            ("Table 8", 67.2),
        ),
        _step(
            "hierarchy",
            "Two latents, gradient through all cycles, no halting",
            NO_HALTING | {"model.grad_cycles": 2},
            ("Table 8", 69.8),
        ),
        _step(
            "hierarchy-cut",
            "… gradient through the last cycle only",
            NO_HALTING,
            ("Table 8", 75.4),
            ("Table 2", 76.5),
            seeds=5,
        ),
        _step(
            "act",
            "ACT: samples leave when the halting head says so (the TRM-style baseline)",
            {},
            ("Table 2", 84.8),
            ("Table 8", 84.8),
            seeds=5,
        ),
        _step("oracle", "Samples leave when exactly right", {"train.halting": "oracle"},
              ("Table 8", 13.6)),
        _step("head", "Halting head trained, nobody leaves early", {"train.halting": "limit"}),
        _step(
            "act-single",
            "ACT, single latent, gradient through the last cycle only",
            ONE_LATENT | {"model.grad_cycles": 1},
            ("Table 8", 73.9),
        ),
    ),
)  # fmt: skip

# ---------------------------------------------------------------------------------------- shaping

RESTARTS = EvalConfig((4, 16), breadth=8, problems=256)
SHAPED = (
    DEPTH,
    Evaluation("breadth", RESTARTS, (1, 2, 4, 8), RULES),
    Evaluation("breadth-noisy", replace(RESTARTS, noise=0.1), (1, 2, 4, 8), RULES),
)


def _shape(name: str, title: str, recipe: str, overrides: dict | None = None, **rest: Any) -> Row:
    paper = tuple(Published(*one) for one in rest.pop("paper", ()))
    return Row(name, title, recipe, SHAPED, overrides or {}, paper=paper, **rest)


def _spread(high: float, low: float, paper: tuple = ()) -> Row:
    overrides = {"model.init_std_high": high, "model.init_std_low": low}
    title = f"RI with σ_H = {high:g}, σ_L = {low:g}"
    return _shape(f"sigma-{high:g}-{low:g}", title, "headroom-ri", overrides, paper=paper)


ATTENTION = {"model.mixer": "attention", "model.heads": 2, "model.rope": "2d"}

SHAPING = Study(
    "shaping",
    "Attractor shaping: random starts, noise, and their settings",
    "Tables 3, 10–13; A.5 (attention); A.6 (seeds)",
    "Optimizer steps, batch, data and size of the model. σ varies under RI alone, β and λ under "
    "RI and NI together.",
    (
        _shape("trm", "TRM-style baseline: fixed start, no damping, no noise", "headroom-trm",
               paper=(("Table 3", 84.8), ("Tables 10–12", 84.06), ("A.6", 84.33)), seeds=5),
        _shape("ri", "Random start (RI)", "headroom-ri",
               paper=(("Table 3", 86.0), ("Tables 10–12", 86.03)), seeds=5),
        _shape("ni", "Damping and noise (NI)", "headroom-ni", seeds=5),
        _shape("ri-ni", "Both (EqR)", "headroom",
               paper=(("Table 3", 86.4), ("A.6", 86.18)), seeds=5),
        _spread(0.25, 0.25),
        _spread(4, 4),
        _spread(1, 8, (("Tables 10–12", 87.30),)),
        _spread(8, 1),
        _shape("beta-0", "RI and damping, no noise", "headroom", {"model.noise": 0.0}),
        _shape("beta-0.1", "RI and NI with β = 0.1", "headroom", {"model.noise": 0.1}),
        _shape("beta-0.5", "RI and NI with β = 0.5", "headroom", {"model.noise": 0.5}),
        _shape("lambda-0", "RI and noise, no damping", "headroom", {"model.damping": 0.0}),
        _shape("lambda-0.2", "RI and NI with λ = 0.2", "headroom", {"model.damping": 0.2}),
        _shape("lambda-0.5", "RI and NI with λ = 0.5", "headroom", {"model.damping": 0.5}),
        _shape("learned-start", "Learned start, no damping, no noise", "headroom-trm",
               {"model.init": "learned"}, paper=(("Tables 10–12", 83.99),)),
        _shape("learned-noise", "RI and NI, learned gain of the noise", "headroom",
               {"model.learn_noise": True}),
        _shape("attention-trm", "Attention: TRM-style baseline", "headroom-trm", ATTENTION,
               paper=(("A.5", 72.0),)),
        _shape("attention-ri", "Attention: RI", "headroom-ri", ATTENTION, paper=(("A.5", 74.7),)),
        _shape("attention-ri-ni", "Attention: RI and NI", "headroom", ATTENTION,
               paper=(("A.5", 95.9),)),
    ),
)  # fmt: skip

# ------------------------------------------------------------------------------------------- fast

# What others report to train such models faster, each alone and then together. Rates are the best
# of some short trainings with two other seeds (see the lab log): a normalised SwiGLU bears higher
# ones, under AdamW too, so Muon has to be compared with AdamW at a rate chosen as carefully.
COSINE = {"train.schedule": "cosine", "train.final_lr": 0.01}
NORMED = {"model.norm_swiglu": True}
HIGHER = {"train.lr": 0.006}
HIGHER_NORMED = NORMED | {"train.lr": 0.012}
MUON = {"train.optimizer": "muon", "train.muon_lr": 0.012}
MUON_NORMED = MUON | NORMED | {"train.muon_lr": 0.05, "train.lr": 0.006}
SHORT_EARLY = {"train.short_until": 0.25, "train.short_high_cycles": 1, "train.short_low_cycles": 1}


def _fast(name: str, title: str, overrides: dict, **rest: Any) -> Row:
    return Row(name, title, "headroom", (DEPTH,), overrides, **rest)


FAST = Study(
    "fast",
    "Training in fewer operations: rate, schedule, optimizer, operator and starts",
    "none of the paper's; ways that others report",
    "Data, optimizer steps, size of the model, and trajectories in a batch: with four starts to a "
    "sample there are a quarter as many samples. So layer evaluations forward in training are "
    "equal, save where the operator is short at first: what that row saves is in train_layers and "
    "train_flops. Rates are not matched: that of the baseline is the recipe's, the others have "
    "their own, hence the rows with AdamW at a higher one.",
    (
        _fast("baseline", "EqR: AdamW, constant rate", {}),
        _fast("rate", "AdamW at a higher rate", HIGHER),
        _fast("cosine", "Rate falls as a cosine to 1 %", COSINE),
        _fast("rate-cosine", "AdamW at a higher rate, cosine", HIGHER | COSINE),
        _fast("muon", "Muon for the matrices of the blocks", MUON),
        _fast("muon-cosine", "Muon, cosine", MUON | COSINE),
        _fast("norm-swiglu", "Normalised SwiGLU", NORMED),
        _fast("rate-norm", "Normalised SwiGLU, AdamW at the rate it bears", HIGHER_NORMED),
        _fast("muon-norm", "Normalised SwiGLU, Muon at the rate it bears", MUON_NORMED),
        _fast("winner", "Winner takes all: 4 starts a sample, a quarter of the samples",
              {"train.starts": 4}, scale={"train.batch": 1 / 4}),
        _fast("short-early", "One cycle of one update in the first quarter of the steps",
              SHORT_EARLY),
        _fast("rate-norm-cosine", "Normalised SwiGLU, AdamW at that rate, cosine",
              HIGHER_NORMED | COSINE),
        _fast("muon-norm-cosine", "Normalised SwiGLU, Muon at that rate, cosine",
              MUON_NORMED | COSINE),
    ),
)  # fmt: skip

# ------------------------------------------------------------------------------------ paper-scale

FAR = EvalConfig((*DEPTHS, 128, 256, 512, 1024), problems=256)
LARGE = (
    Evaluation("depth", FAR),
    Evaluation(
        "grid",
        EvalConfig(DEPTHS, breadth=128, problems=64),
        (1, 2, 4, 8, 16, 32, 64, 128),
        (*RULES, "halt"),
    ),
    Evaluation(
        "noisy",
        EvalConfig((16,), breadth=16, noise=0.1, problems=128),
        (1, 2, 4, 8, 16),
        (*RULES, "halt"),
    ),
)
MAZE = "Maze-Unique"
# The public collections that Sudoku-Extreme was assembled from, harder than its mix.
HARD = {"data.source": "data/cache/sudoku-hard"}


def _large(name: str, title: str, recipe: str, *paper: tuple, **rest: Any) -> Row:
    published = tuple(Published(*one) for one in paper)
    # With a fixed start and no noise all restarts are one trajectory: no map of breadth for those.
    kinds = [e for e in LARGE if e.name != "grid" or not ("trm" in name or "feedforward" in name)]
    return Row(name, title, recipe, tuple(kinds), paper=published, seeds=1, **rest)


PAPER_SCALE = Study(
    "paper-scale",
    "The paper's scale: 9×9 Sudoku and 30×30 mazes",
    "Tables 1, 4; Figures 1, 3, 8",
    "Rows of one kind (fast, or the paper's own settings) share optimizer steps, batch, data, "
    "width and layers of an outer iteration; a feedforward network has that many blocks. The fast "
    "recipes are ours; the chapter lists in what they differ from the paper's. “Hard” rows are "
    "trained on 1,000 and tested on other puzzles of the public collections behind "
    "Sudoku-Extreme, which are harder than its mix: their accuracies are not the paper's.",
    (
        _large("sudoku9-fast-hard", "Sudoku, hard: EqR, fast recipe", "sudoku9-fast",
               overrides=HARD),
        _large("sudoku9-fast-trm-hard", "Sudoku, hard: TRM-style, fast recipe", "sudoku9-fast-trm",
               overrides=HARD),
        _large("sudoku9-fast-feedforward-hard", "Sudoku, hard: feedforward, fast recipe",
               "sudoku9-fast-feedforward", overrides=HARD, depth=1),
        _large("maze30-fast", "Maze: EqR, fast recipe", "maze30-fast", ("Table 4", 82.2, MAZE)),
        _large("maze30-fast-trm", "Maze: TRM-style, fast recipe", "maze30-fast-trm",
               ("Table 4", 44.9, MAZE)),
        _large("maze30-fast-feedforward", "Maze: feedforward, fast recipe",
               "maze30-fast-feedforward", ("Table 4", 0.0, MAZE), depth=1),
        _large("sudoku9-fast", "Sudoku-Extreme: EqR, fast recipe", "sudoku9-fast",
               ("Table 4", 86.4)),
        _large("sudoku9-fast-trm", "Sudoku-Extreme: TRM-style, fast recipe", "sudoku9-fast-trm",
               ("Table 4", 84.8)),
        _large("sudoku9-feedforward", "Sudoku-Extreme: feedforward, the paper's settings",
               "sudoku9-feedforward", ("Table 4", 2.6), depth=1),
        _large("sudoku9", "Sudoku-Extreme: EqR, the paper's settings", "sudoku9",
               ("Table 4", 86.4)),
        _large("sudoku9-trm", "Sudoku-Extreme: TRM-style, the paper's settings", "sudoku9-trm",
               ("Table 4", 84.8)),
        _large("maze30", "Maze: EqR, the paper's settings", "maze30", ("Table 4", 82.2, MAZE)),
        _large("maze30-feedforward", "Maze: feedforward, the paper's settings",
               "maze30-feedforward", ("Table 4", 0.0, MAZE), depth=1),
        _large("maze30-trm", "Maze: TRM-style, the paper's settings", "maze30-trm",
               ("Table 4", 44.9, MAZE)),
    ),
    profiles=("paper",),
)  # fmt: skip

NIGHT = Study(
    "night",
    "Between the scales: what one core trains without a GPU",
    "none of the paper's; an honest point between its scale and the laptop's",
    "One row: 9×9 Sudoku of 30 to 36 clues.",
    (
        Row("sudoku9-night", "9×9 Sudoku of 30–36 clues, two blocks of 192 channels",
            "sudoku9-night",
            (Evaluation("depth", EvalConfig(DEPTHS, problems=256)),
             Evaluation("breadth", EvalConfig((16,), breadth=4, problems=256), (1, 2, 4),
                        (*RULES, "halt"))), seeds=1),
    ),
    profiles=("paper",),
)  # fmt: skip

#: All studies by name; those of the preregistration and of Mini-ARC are in
#: :mod:`eqr.studies.rows_shift`.
STUDIES = {
    one.name: one
    for one in (
        *(CAMPAIGN, TUNING),
        *(CONSTRUCTION, SHAPING, FAST),
        *(SHIFT, SHIFT_AGAIN, AMBIGUITY, VARIANCE),
        MINIARC,
        *(PAPER_SCALE, NIGHT, SOURCES_STUDY),
    )
}


def studies_of(profile: str) -> list[Study]:
    """The studies that are run in a profile."""
    return [one for one in STUDIES.values() if profile in one.profiles]
