"""The campaign: one table of trained models, from which the claims are read.

``tuning`` runs every row at three rates with two seeds and reads the validation problems only;
``campaign`` trains every row at its best rate with many seeds and reads the test problems; what it
reports while it trains is of the validation problems too. Seed s
has the same data order and the same evaluation in every row, so differences are taken within seeds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from eqr.config import EvalConfig
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

RATES = (0.003, 0.006, 0.012)
#: Of each row, from the records of ``tuning``: the best on the validation problems.
LEARNING_RATE: dict[str, float] = {}
#: The pilots of `eqr study plan`; then what it asks for.
SEEDS = 4
#: Twice those of the tuning, whose last tenth still brought several points.
STEPS = {"train.steps": 8000, "train.eval_every": 800}
FIXED = {"model.init": "fixed", "model.damping": 0.0, "model.noise": 0.0}
SINGLE = {"model.hierarchical": False, "model.grad_cycles": 2, "model.low_cycles": 3}

HELD = EvalConfig((1, 2, 4, 8, 16, 64), split="validation")
TUNED = Evaluation("depth", HELD)
# A fixed start without noise is one trajectory, whatever the breadth.
TUNED_WIDE = Evaluation(
    "breadth",
    replace(HELD, depths=(8,), breadth=8, noise=0.1),
    (1, 8),
    (*RULES, "logits"),
)

DEEP = Evaluation("depth", EvalConfig(DEPTHS))
FAR = Evaluation("far", EvalConfig((64, 256, 1024), problems=256))
WIDE = Evaluation(
    "breadth",
    EvalConfig((4, 8, 16), breadth=32, noise=0.1, problems=512),
    (1, 2, 4, 8, 16, 32),
    (*RULES, "logits", "margin", "halt", "first_to_halt"),
    keep=("residual", "answer"),
)
STILL = replace(WIDE, name="breadth-still", config=replace(WIDE.config, noise=0.0))

#: Name, title, settings and the paper's figures of each row, each step after the one before it.
PATH: tuple[tuple[str, str, dict[str, Any], tuple[Published, ...], int], ...] = (
    ("feedforward", "Feedforward: 6 blocks, one pass", FEEDFORWARD | FIXED,
     (Published("Table 2", 2.6),), 1),
    ("weight-tied", "Weight-tied: one block 6 times", ONE_PASS | FIXED,
     (Published("Table 2", 32.6),), 1),
    ("segmented", "Segmented online training, single latent", SINGLE | NO_HALTING | FIXED,
     (Published("Table 2", 74.7),), 16),
    ("hierarchy", "Two latents", NO_HALTING | FIXED, (Published("Table 2", 76.5),), 16),
    ("halting", "Learned halting: the TRM-style baseline", FIXED,
     (Published("Table 2", 84.8), Published("Table 3", 84.8)), 16),
    ("ri", "Random start (RI)", {"model.damping": 0.0, "model.noise": 0.0},
     (Published("Table 3", 86.0),), 16),
    ("ni", "Damping and noise (NI)", {"model.init": "fixed"}, (), 16),
    ("ri-ni", "Both (EqR)", {}, (Published("Table 3", 86.4), Published("Table 4", 86.4)), 16),
)  # fmt: skip


def _tuned(name: str, title: str, settings: dict, rate: float, depth: int) -> Row:
    wide = (TUNED_WIDE,) if name in ("ri", "ni", "ri-ni") else ()
    return Row(
        f"{name}-{rate:g}",
        f"{title}; rate {rate:g}",
        "minimal6",
        (TUNED, *wide),
        settings | {"train.lr": rate},
        depth=depth,
        seeds=2,
    )


TUNING = Study(
    "tuning",
    "The rate of each row of the campaign, chosen on validation problems",
    "none: what the campaign's rows are trained with",
    "Every row has the same three rates, two seeds, steps, schedule, clipping and data. No "
    "evaluation reads the test problems.",
    tuple(
        _tuned(name, title, settings, rate, depth)
        for name, title, settings, _, depth in PATH
        for rate in RATES
    ),
    profiles=("laptop",),
)


def _row(name: str, title: str, settings: dict, paper: tuple[Published, ...], depth: int) -> Row:
    """A row of the campaign; without a chosen rate it has that of the recipe."""
    rate = LEARNING_RATE.get(name.removesuffix("-prefix"))
    kinds = [DEEP] if depth == 1 else [DEEP, FAR, WIDE]
    if settings.get("model.init") != "fixed":
        kinds.append(STILL)  # a fixed start without noise is one trajectory
    overrides = settings | STEPS | ({"train.lr": rate} if rate else {})
    title = f"{title}, setting S6"  # beside rows of other settings in *Paper against ours*
    return Row(
        name, title, "minimal6", tuple(kinds), overrides, paper=paper, depth=depth, seeds=SEEDS
    )


CAMPAIGN = Study(
    "campaign",
    "The construction path and what shapes the attractors, each row tuned alike",
    "Tables 2–4, Figures 3, 8",
    "Optimizer steps, batch, data and size of the model; each row has the best of three rates on "
    "the validation problems, with two seeds.",
    tuple(
        _row(*one)
        for one in (
            *PATH,
            ("ri-ni-prefix", "EqR with a prefix of 16 tokens", {"model.prefix": 16}, (), 16),
        )
    ),
    profiles=("laptop",),
)
