"""Every interval against SciPy, against worked examples, or against how often it is right."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eqr.stats import (
    auroc,
    clustered,
    mean_interval,
    over_seeds,
    paired_difference,
    power_law,
    resampled,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (1, 7), (10, 20), (511, 512)])
def test_wilson_is_scipys(successes, n):
    wanted = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    low, high = wilson(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize(
    ("p", "q", "shared"), [(0.9, 0.8, 0.0), (0.9, 0.8, 0.7), (0.95, 0.95, 0.5)]
)
def test_paired_difference_covers_the_truth_about_as_often_as_it_says(p, q, shared):
    """200 problems; ``shared``: how often both methods meet the same luck."""
    draw, inside, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):
        u = draw.random(200)
        v = np.where(draw.random(200) < shared, u, draw.random(200))
        actual = paired_difference(u < p, v < q)
        inside += actual.low <= p - q <= actual.high
        assert actual.mean == pytest.approx((u < p).mean() - (v < q).mean())
    assert 0.92 <= inside / runs <= 0.99


def test_paired_difference_is_never_certain_antisymmetric_and_wants_pairs():
    same = paired_difference(np.ones(50), np.ones(50))
    assert same.mean == 0 and same.low < 0 < same.high and same.n == 50
    one, other = np.random.default_rng(0).random((2, 50)) < 0.6
    ours, theirs = paired_difference(one, other), paired_difference(other, one)
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low))
    with pytest.raises(ValueError, match="alike"):
        paired_difference(np.ones(5), np.ones(6))


def test_the_interval_over_seeds_is_students():
    values = [0.8, 0.85, 0.7, 0.9, 0.81]
    ours = mean_interval(values)
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert np.isnan(mean_interval([0.5]).low) and mean_interval([]).n == 0
    assert over_seeds([0.8, np.nan, 0.9]) == mean_interval([0.8, 0.9])


def test_a_power_law_is_the_slope_and_its_students_interval():
    draw = np.random.default_rng(3)
    x = np.arange(1, 13)
    inside = 0
    for _ in range(300):
        exponent, low, high = power_law(x, x**1.5 * np.exp(0.1 * draw.normal(size=12)))
        assert low < exponent < high
        inside += low <= 1.5 <= high
    assert 0.91 < inside / 300 < 0.99
    assert np.isnan(power_law([1, 2], [1, 4])[1:]).all(), "two points have no spread"


def test_auroc_counts_the_pairs_that_the_residual_orders_rightly():
    draw = np.random.default_rng(5)
    residual, right = draw.integers(0, 9, 60).astype(float), draw.random(60) < 0.4
    pairs = [
        1.0 if good < bad else 0.5 if good == bad else 0.0
        for good in residual[right]
        for bad in residual[~right]
    ]
    area, low, high = auroc(residual, right)
    assert area == pytest.approx(np.mean(pairs))
    assert low < area < high
    flipped = auroc(-residual, right)
    np.testing.assert_allclose(flipped, (1 - area, 1 - high, 1 - low))
    assert np.isnan(auroc(residual, np.ones(60, bool))).all()


def test_the_interval_of_auroc_covers_the_truth_about_as_often_as_it_says():
    draw, hits = np.random.default_rng(6), 0
    for _ in range(300):
        right = np.arange(100) < 50
        residual = draw.normal(np.where(right, 0.0, 1.0))  # the true area is Φ(1/√2) = 0.7602
        _, low, high = auroc(residual, right)
        hits += low <= 0.7602 <= high
    assert 0.90 < hits / 300 < 0.99


def test_problems_of_one_task_count_as_what_they_are_worth():
    draw = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    alike = np.repeat(draw.random(40) < 0.3, 5)
    apart = draw.random(200) < 0.3
    mean, low, high = clustered(alike, groups)
    assert (low, high) == pytest.approx(wilson(40 * mean, 40), abs=0.01)
    single = wilson(apart.sum(), 200)
    assert clustered(apart, groups)[1:] == pytest.approx(single, abs=0.03)


def test_resampling_whole_groups_widens_and_pairs_weigh_groups_alike():
    draw = np.random.default_rng(1)
    groups = np.repeat(np.arange(30), 4).tolist()
    right = np.repeat(draw.random(30) < 0.4, 4)
    whole = resampled(lambda rows: right[rows].mean(), groups, 300)
    apart = resampled(lambda rows: right[rows].mean(), list(range(120)), 300)
    assert whole.low < apart.low < whole.mean == apart.mean < apart.high < whole.high
    assert (whole.n, apart.n) == (30, 120)
    rare = np.arange(120) == 0
    actual = resampled(lambda rows: auroc(right[rows] * 1.0, rare[rows])[0], groups, 100)
    assert not np.isnan(actual.mean)
    gap = paired_difference(np.array([1, 1, 1, 0]), np.zeros(4), ["a", "a", "a", "b"])
    assert (gap.mean, gap.n) == (0.5, 2)
