"""The campaign's steps: which seeds, which rows, and that tuning reads no test problem."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eqr.studies import contrasts
from eqr.studies.campaign import LEARNING_RATE, PATH, PILOTS, RATES, TUNING
from eqr.studies.cells import StudyError
from eqr.studies.results import Pick, shipped


class Known:
    """Results whose accuracies are given: ``values`` by row, one a seed."""

    def __init__(self, values: dict[str, list[float]]) -> None:
        self.values, self.study, self.missing = values, TUNING, []

    def seeds(self, row: str, evaluation: str = "depth") -> list[int]:
        return list(range(len(self.values[row])))

    id = "known"

    @property
    def meta(self):
        return {"evaluations": {kind: {"noise": 0.1} for kind in ("depth", "breadth")}}

    def problems(self, evaluation: str) -> int:
        return 10

    def outcomes(self, pick: Pick, seed: int) -> np.ndarray:
        return np.full(10, self.values[pick.row][seed])


def test_no_tuning_reads_the_test_problems():
    for row in TUNING.rows:
        assert {e.config.split for e in row.evaluations("laptop")} == {"validation"}, row.name
        assert row.build("laptop", 0).data.validation > 0  # read while training, then
        assert row.seeds == 2
    assert len(TUNING.rows) == len(PATH) * len(RATES), "the same budget for every row"


def test_the_best_rate_is_that_of_the_tuning_budget_alone():
    values = {f"{one.name}-{rate:g}": [rate, rate] for one in PATH for rate in RATES}
    values["ri-0.003"] = [0.5, 0.4, 0.0]  # the third seed is a pilot of the chosen rate
    best = contrasts.best_rates(Known(values))
    assert best.pop("ri") == 0.003 and set(best.values()) == {RATES[-1]}


def test_a_rate_is_not_chosen_while_a_cell_is_missing():
    pilots = Known({})
    pilots.missing = [("ri-0.003", 1), ("ri-0.006", 1)]
    with pytest.raises(StudyError, match=r"tuning lacks 2 cells \(ri-0.003 seed 1, .*study run"):
        contrasts.best_rates(pilots)


def curves(values: dict[str, list[float]]) -> Known:
    """Results whose accuracy on the validation problems is given."""
    known = Known(values)
    lines = [
        {
            "row": row,
            "seed": seed,
            "step": step,
            "exact_1": value * share,
            "exact_16": value * share,
        }
        for row, own in values.items()
        for seed, value in enumerate(own)
        for step, share in ((10, 0.5), (20, 1.0))
    ]
    known.curves = pd.DataFrame(lines)
    return known


def test_the_plan_has_the_seeds_that_the_paired_spread_asks_for():
    luck = [0.0, 0.03, -0.02, 0.01]  # of a seed, shared by all rows: pairing removes it
    own = {one.name: np.array([0.01, -0.01, 0.02, -0.02]) * k for k, one in enumerate(PATH)}
    values = {name: list(0.5 + np.array(luck) + own[name]) for name in own}
    plan = contrasts.planned(curves(values)).set_index("step")
    spread = np.std([0.01, -0.01, 0.02, -0.02], ddof=1)
    # EqR is two rows behind RI in the path, the others one behind the row they are compared with.
    assert plan.sd.tolist() == pytest.approx([spread] * 5 + [2 * spread])
    assert plan.pilot["halting"] == pytest.approx(0.0)
    assert plan.effect["halting"] == pytest.approx(0.083) and plan.effect["random start"] == 0.05
    assert (plan.seeds == contrasts.LEAST).all(), "never fewer, however small the spread"
    unsteady = [*np.add(values["ri"], [0.2, -0.2, 0.2, -0.2]), 0.0]
    plan = contrasts.planned(curves(values | {"ri": unsteady})).set_index("step")
    assert plan.seeds["random start"] == contrasts.MOST < plan["for power 0.9"]["random start"]
    assert (plan.pilots == PILOTS).all(), "a fifth seed does not count"


def test_steps_become_claims_that_are_judged_by_table():
    rows = {one.name: [0.1 * k + 0.01 * s for s in range(6)] for k, one in enumerate(PATH)}
    rows["ri-ni"] = [0.9, 0.1, 0.8, 0.2, 0.7, 0.3]  # against RI: no knowing
    lines = {one.id: one for one in contrasts.claims(Known(rows), "Table 2", "Table 3", "Table 4")}
    one = lines["table-2-segments"]
    assert (one.verdict, one.seeds) == ("reproduced", 6) and one.value == pytest.approx(0.1)
    unclear = lines["table-3-damping-and-noise"]
    assert unclear.verdict == "undecided" and unclear.needed > 6
    # Breadth and depth change nothing there.
    assert "ri-ni, D = 16, B = 32, converged" in lines["table-4-breadth"].name


def test_the_rates_are_those_that_the_shipped_tuning_chose():
    tuning = shipped("tuning")
    assert ({} if tuning.missing else contrasts.best_rates(tuning)) == LEARNING_RATE


def test_a_campaign_that_has_begun_is_shown_without_a_verdict():
    rows = {one.name: [] for one in PATH} | {"feedforward": [0.1], "weight-tied": [0.3]}
    lines = {one.id: one for one in contrasts.claims(Known(rows), *contrasts.TABLES)}
    assert {one.verdict for one in lines.values()} == {"not run"}
    one = lines["table-2-weight-tying"]
    assert one.value is None and one.judged.gap.mean == pytest.approx(0.2)
