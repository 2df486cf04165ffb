"""Claims: the verdict follows from interval and bounds; intervals cover what they should."""

from __future__ import annotations

import numpy as np
import pytest

from eqr.studies.claims import Claim, claims_table


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
