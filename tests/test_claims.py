"""Claims: the verdict follows from interval and bounds; intervals cover what they should."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from eqr.settings import ConfigError
from eqr.stats import seeds_for_difference, seeds_for_equivalence
from eqr.studies.claims import (
    MARGIN,
    Claim,
    Paired,
    claims_of,
    claims_table,
    conclude,
    decide,
)


def told(low, high, **bounds):
    return Claim("x", (low + high) / 2, low, high, 9, **bounds).verdict


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "across"),
    [
        ({"at_least": 0.5}, (0.5, 0.7), (0.1, 0.49), (0.4, 0.6)),
        ({"at_most": 0.5}, (0.1, 0.5), (0.51, 0.6), (0.4, 0.6)),
        ({"at_least": -0.1, "at_most": 0.1}, (-0.1, 0.1), (0.2, 0.3), (0.0, 0.2)),
    ],
)
def test_the_verdict_follows_from_the_interval(bounds, inside, outside, across):
    assert told(*inside, **bounds) == "reproduced"
    assert told(*outside, **bounds) == "not reproduced"
    assert told(*across, **bounds) == "undecided"
    below = (-0.9, -0.8)
    held = "reproduced" if "at_least" not in bounds else "not reproduced"
    assert told(*below, **bounds) == held


def test_what_was_not_measured_is_not_run_and_needs_a_bound():
    assert Claim("x", None, None, None, 0, at_least=0).verdict == "not run"
    assert Claim.of_mean("x", [0.3], at_least=0).verdict == "not run"
    with pytest.raises(ValueError, match="set at_least, at_most or both"):
        Claim("x", 1.0, 0.9, 1.1, 3)


def test_shares_of_any_shape_and_means():
    grid = np.array([[True, False], [True, True]])
    claim = Claim.of_share("x", grid, at_least=0)
    assert (claim.value, claim.n) == (0.75, 4)
    mean = Claim.of_mean("x", [0.8, 0.9, 1.0], at_least=0)
    assert (round(mean.low, 3), round(mean.high, 3)) == (0.652, 1.148)


def test_a_ratio_of_means_has_a_covering_interval():
    hits = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        other = draw.gamma(2, 5, 200)  # mean 10
        found = Claim.of_ratio("x", np.full(200, 100.0), other, at_least=1)
        assert found.value == pytest.approx(100 / other.mean())
        hits += found.low <= 10 <= found.high
    assert hits >= 50


def test_the_table_names_what_a_claim_was_made_from():
    made = {"seeds": 2, "noise": 0.1, "run": "eval-1"}
    claim = Claim("x", 0.9, 0.8, 0.95, 100, at_least=0.7, at_most=1, **made)
    row = claims_table([claim], "laptop").loc["x"]
    assert row["bound"] == "0.7 to 1" and row["n"] == 100
    assert row["made from"] == "laptop, 2 seeds, β = 0.1, eval-1"


def test_a_value_that_lies_on_its_bound_with_no_width_decides_nothing():
    """Two models that solve nothing differ by exactly zero, which shows neither direction."""
    zero = {"value": 0.0, "low": 0.0, "high": 0.0, "n": 9}
    assert Claim("x", **zero, at_least=0.0).verdict == "undecided"
    assert Claim("x", **zero, at_most=0.0).verdict == "undecided"
    assert Claim("x", **zero, at_most=0.1).verdict == "reproduced"


def test_a_page_quotes_the_sentence_that_goes_with_the_verdict():
    gap = np.array([0.02, 0.05, 0.03, 0.06])
    says = {"holds": "Depth pays", "fails": "Depth costs", "undecided": "Depth is open"}
    about = {"kind": "ours", "unit": "points", "seeds": 4, "answers": says}
    claim = Claim.of_mean("depth", gap, at_least=0.0, **about)
    assert claim.answer == "Depth pays (+4.0 points [+1.1, +6.9], 4 seeds)." and not claim.needed
    assert Claim.of_mean("depth", -gap, at_least=0.0, **about).answer.startswith(
        "Depth costs (-4.0"
    )
    small = Claim.of_mean("depth", gap - 0.035, at_least=0.0, **about)
    needed = seeds_for_difference(gap.std(ddof=1), 0.005)
    assert small.needed == needed and f"about {needed:,} seeds would decide" in small.answer
    assert Claim("x", None, None, None, 0, at_least=0).answer == "x: not run."
    with pytest.raises(ValueError, match="no verdict reproduced"):
        Claim("x", 1.0, 0.9, 1.1, 3, at_least=0, kind="ours", answers={"reproduced": ""})


def test_the_book_collects_the_claims_of_its_chapters(tmp_path):
    one = Claim("x", 0.9, 0.8, 0.95, 100, at_least=0.7, id="x")
    data = conclude("depth", [one], "smoke")._repr_mimebundle_()
    assert "<table" in data["text/html"]
    path = tmp_path / "depth.ipynb"
    path.write_text(json.dumps({"cells": [{"outputs": [{"data": data}]}, {"source": ""}]}))
    (claim,) = claims_of([path])
    assert (claim["id"], claim["chapter"], claim["verdict"]) == ("x", "depth", "reproduced")
    with pytest.raises(ConfigError, match=r"depth\.ipynb: the claim 'x' stands twice"):
        claims_of([path, path])


# -------------------------------------------------------------------------------- steps of a table


def simulated(effect: float, paper: float, seeds: int, sd: float, draws: int = 400, others=()):
    """Verdicts of ``draws`` simulated tables whose first step has the true ``effect``."""
    rng = np.random.default_rng(0)
    verdicts = Counter()
    for _ in range(draws):
        table = {}
        for number, size in enumerate((effect, *others)):
            base = 0.5 + rng.normal(0, 0.05, seeds)
            table[str(number)] = Paired(base + size + rng.normal(0, sd, seeds), base, 1, paper)
        verdicts[decide(table)["0"].verdict] += 1 / draws
    return verdicts


@pytest.mark.parametrize("effect", [-0.05, -0.02, 0.0, 0.02, 0.05])
def test_simulated_studies_are_decided_rightly(effect):
    """n from the power calculation decides at rate 0.9, and wrongly in at most 5 %."""
    sd, paper = 0.03, 0.1
    size = abs(effect) or None
    n = seeds_for_difference(sd, size) if size else seeds_for_equivalence(sd, MARGIN)
    verdicts = simulated(effect, paper, n, sd)
    right, wrong = "reproduced", "not reproduced"
    if effect <= 0:
        right, wrong = wrong, right
    assert verdicts[right] >= 0.86 and verdicts[wrong] <= 0.05, verdicts


def test_a_table_of_false_claims_is_not_called_reproduced():
    """The check that can fail: no true differences, eight steps, few seeds, small paper effects."""
    verdicts = simulated(0.0, 0.01, 8, 0.05, others=[0.0] * 7)
    assert verdicts["reproduced"] <= 0.05 and verdicts["undecided"] >= 0.9, verdicts
    opposite = simulated(-0.05, 0.3, 8, 0.02)
    assert opposite["not reproduced"] >= 0.9 and opposite["reproduced"] == 0


def test_an_undecided_step_says_how_many_seeds_would_decide_it():
    base = np.linspace(0.4, 0.6, 8)
    gap = 0.02 + 0.06 * np.tile([-1.0, 1.0], 4)
    decision = decide({"a": Paired(base + gap, base, 1, 0.1)})["a"]
    assert decision.verdict == "undecided" and decision.gap.mean == pytest.approx(0.02)
    assert decision.needed == seeds_for_difference(gap.std(ddof=1), 0.02)
    assert decide({"a": Paired(base[:2], base[:2], 1)})["a"].verdict == "not run"


def test_differences_near_the_ends_are_tested_on_logits():
    """99.9 against 99.0 per cent is a factor of ten in errors, and points hardly show it."""
    other = np.array([0.99, 0.985, 0.992, 0.97, 0.99, 0.988])
    ours = np.array([0.999, 0.9985, 0.9992, 0.997, 0.999, 0.9988])
    assert decide({"a": Paired(ours, other, 1)})["a"].p < 0.001
