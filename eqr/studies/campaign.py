"""The campaign: one table of trained models, from which the claims are read.

``tuning`` runs every row at three rates with two seeds and reads the validation problems only;
``campaign`` trains every row at its best rate with many seeds and reads the test problems. What it
reports while it trains is of the validation problems too. Seed s has the same data order and the
same evaluation in every row, so differences are taken within seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from eqr.config import EvalConfig
from eqr.studies.study import (
    DEPTHS,
    FEEDFORWARD,
    FIXED,
    NO_HALTING,
    ONE_PASS,
    RULES,
    Evaluation,
    Published,
    Row,
    Study,
)

SETTING = "minimal 6×6 with a guess"  # tells its rows from those of other settings on a page
RATES = (0.003, 0.006, 0.012)
#: Of each row, from the records of ``tuning``: the best on the validation problems.
LEARNING_RATE = {
    **dict.fromkeys(("feedforward", "segmented", "hierarchy"), 0.012),
    **dict.fromkeys(("weight-tied", "halting", "ri", "ni", "ri-ni"), 0.006),
}
PILOTS = 4  # seeds of a row whose spread says how many are needed, see eqr.studies.contrasts
SEEDS = PILOTS  # until it is known
#: Half the recipe's. Their last tenth still brought several points, so it has twice as many.
TUNED_STEPS = {"train.steps": 4000, "train.eval_every": 400}
SINGLE = {"model.hierarchical": False, "model.grad_cycles": 2, "model.low_cycles": 3}

HELD = EvalConfig((1, 2, 4, 8, 16, 64), split="validation")
TUNED = Evaluation("depth", HELD)
# Of the rows that differ in the parts of EqR.
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


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the campaign, whatever its rate."""

    name: str
    title: str
    settings: dict[str, Any]  # over those of the recipe
    paper: dict[str, float] = field(default_factory=dict)  # exact accuracy in per cent, by table
    depth: int = 16  # the paper's for this row


#: Each after the one that it is one step away from.
PATH = (
    Variant("feedforward", "Feedforward: 6 blocks, one pass", FEEDFORWARD | FIXED,
            {"Table 2": 2.6}, depth=1),
    Variant("weight-tied", "Weight-tied: one block 6 times", ONE_PASS | FIXED,
            {"Table 2": 32.6}, depth=1),
    Variant("segmented", "Segmented online training, single latent", SINGLE | NO_HALTING | FIXED,
            {"Table 2": 74.7}),
    Variant("hierarchy", "Two latents", NO_HALTING | FIXED, {"Table 2": 76.5}),
    Variant("halting", "Learned halting: the TRM-style baseline", FIXED,
            {"Table 2": 84.8, "Table 3": 84.8}),
    Variant("ri", "Random start (RI)", {"model.damping": 0.0, "model.noise": 0.0},
            {"Table 3": 86.0}),
    Variant("ni", "Damping and noise (NI)", {"model.init": "fixed"}),
    Variant("ri-ni", "Both (EqR)", {}, {"Table 3": 86.4, "Table 4": 86.4}),
)  # fmt: skip
PREFIX = Variant("ri-ni-prefix", "EqR with a prefix of 16 tokens", {"model.prefix": 16})


def _tuned(one: Variant, rate: float) -> Row:
    wide = (TUNED_WIDE,) if one.name in ("ri", "ni", "ri-ni") else ()
    return Row(
        f"{one.name}-{rate:g}",
        f"{one.title}; rate {rate:g}",
        "minimal6",
        (TUNED, *wide),
        one.settings | TUNED_STEPS | {"train.lr": rate},
        depth=one.depth,
        seeds=2,
    )


def _chosen(one: Variant) -> Row:
    kinds = [DEEP] if one.depth == 1 else [DEEP, FAR, WIDE]
    if one.settings.get("model.init") != "fixed":
        kinds.append(STILL)  # a fixed start without noise is one trajectory
    rate = LEARNING_RATE[one.name.removesuffix("-prefix")]
    return Row(
        one.name,
        f"{one.title}, {SETTING}",
        "minimal6",
        tuple(kinds),
        one.settings | {"train.lr": rate},
        paper=tuple(Published(*figure) for figure in one.paper.items()),
        depth=one.depth,
        seeds=SEEDS,
    )


TUNING = Study(
    "tuning",
    "The rate of each row of the campaign, chosen on validation problems",
    "none: what the campaign's rows are trained with",
    "Every row has the same three rates, two seeds, steps, schedule, clipping and data. No "
    "evaluation reads the test problems.",
    tuple(_tuned(one, rate) for one in PATH for rate in RATES),
    profiles=("laptop",),
)

CAMPAIGN = Study(
    "campaign",
    "The construction path and what shapes the attractors, each row tuned alike",
    "Tables 2–4, Figures 3, 8",
    "Optimizer steps, batch, data and size of the model. Each row has the best of three rates on "
    "the validation problems, with two seeds; the row with a prefix has EqR's.",
    tuple(map(_chosen, (*PATH, PREFIX))),
    profiles=("laptop",),
)
