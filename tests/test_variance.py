"""Nested variances: recovered, unbiased, predictive of groups, and well spent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eqr.analysis import variance
from eqr.analysis.variance import Components
from eqr.config import EvalConfig

TRUE = Components(0.5, 0.3, 0.8)


def draw(parts: Components, shape: tuple[int, int, int], seed: int = 0, times: int = 1):
    """Gaussian values (times, P, I, J) with known variances."""
    rng, (problems, starts, paths) = np.random.default_rng(seed), shape
    puzzle = rng.normal(0, math.sqrt(parts.puzzle), (times, problems, 1, 1))
    start = rng.normal(0, math.sqrt(parts.start), (times, problems, starts, 1))
    return puzzle + start + rng.normal(0, math.sqrt(parts.path), (times, problems, starts, paths))


def each(found: Components) -> list[float]:
    return [found.puzzle, found.start, found.path]


@pytest.mark.parametrize("parts", [TRUE, Components(0.2, 0.0, 1.0), Components(0.0, 0.0, 0.5)])
def test_components_are_unbiased_down_to_zero(parts):
    found = np.array([each(variance.components(v)) for v in draw(parts, (10, 3, 2), 1, 4000)])
    error = found.std(0) / math.sqrt(len(found))
    assert (np.abs(found.mean(0) - each(parts)) < 4 * error).all()
    if parts.start == 0:
        assert (found[:, 1] < 0).mean() > 0.3, "estimates of zero fall on both sides of it"


def test_components_of_many_values_are_the_true_ones():
    found = variance.components(draw(TRUE, (4000, 5, 5), 2)[0])
    assert each(found) == pytest.approx(each(TRUE), rel=0.06)
    assert found.within == found.start + found.path
    assert found.share == pytest.approx(0.3 / 1.1, rel=0.06)


def test_components_of_zeros_and_ones_are_those_of_their_probabilities():
    """p = m ± g by start: the start's variance is g², the path's the mean of p (1 − p)."""
    rng = np.random.default_rng(3)
    share = np.where(rng.random((4000, 4, 1)) < 0.5, 0.2, 0.8)
    found = variance.components(rng.random((4000, 4, 4)) < share)
    assert found.start == pytest.approx(0.09, rel=0.05)
    assert found.path == pytest.approx(0.16, rel=0.05)
    assert abs(found.puzzle) < 0.005


@pytest.mark.parametrize(("starts", "paths"), [(1, 1), (1, 4), (3, 2)])
def test_predicted_variance_of_groups_is_that_of_many_groups(starts, paths):
    within = Components(0.0, TRUE.start, TRUE.path)
    means = draw(within, (1, starts, paths), 5, 20_000).mean((1, 2, 3))
    group = variance.group(TRUE, starts, paths, part_at=3, depth=9)
    assert means.var() == pytest.approx(group.variance, rel=0.05)
    assert group.nfe == starts * (3 + paths * 6)


def test_nfe_is_that_of_an_evaluation():
    config = EvalConfig((16,), breadth=12, noise=0.1, branches=3, branch_at=8)
    assert variance.nfe(4, 3, 8, 16) == config.nfe(16, 12) == 128
    assert variance.nfe(8, 1, 5, 16) == 8 * 16


def test_held_out_groups():
    values = draw(TRUE, (4000, 8, 4), 7)[0]
    for paths in (1, 2, 4):
        predicted, measured = variance.held_out(values, paths)
        assert predicted / measured == pytest.approx(1.0, abs=0.08)
    second = np.roll(values, 4, axis=1)  # halves swapped: with all paths it is an identity
    assert variance.held_out(values, 4)[0] == pytest.approx(variance.held_out(second, 4)[1])
    assert variance.held_out(np.ones((3, 4, 2)), 2) == (0, 0)


@pytest.mark.parametrize("part_at", [0, 1, 8, 12, 15])
@pytest.mark.parametrize("parts", [TRUE, Components(0, 0.05, 0.5), Components(0, 0.9, 0.1)])
def test_best_number_of_paths_beats_the_others(parts, part_at):
    found = variance.allocation(parts, part_at=part_at, depth=16)
    products = [
        variance.group(parts, 3, j, part_at=part_at, depth=16).product for j in range(1, 65)
    ]
    assert found.product == pytest.approx(min(products)), "whatever the number of starts"
    assert products[found.paths - 1] == pytest.approx(min(products))
    assert found.paths in (max(1, math.floor(found.ideal)), max(1, math.ceil(found.ideal)))
    near = [
        variance.group(parts, 1, j, part_at=part_at, depth=16).product
        for j in (found.ideal * 0.99, found.ideal, found.ideal * 1.01)
        if j >= 1
    ]
    assert len(near) < 3 or near[1] == min(near)
    assert found.saved == pytest.approx(1 - found.product / (parts.within * 16))


@pytest.mark.parametrize("part_at", [1, 4, 8, 12, 15])
def test_sharing_pays_below_the_border(part_at):
    """Two paths beat one exactly where the start's share is below d / (2 D − d)."""
    border = part_at / (32 - part_at)
    for share, pays in ((border - 0.01, True), (border + 0.01, False)):
        parts = Components(0.0, share, 1 - share)
        assert (variance.allocation(parts, part_at=part_at, depth=16).paths > 1) == pays


def test_limits_of_the_allocation():
    only_path, only_start = Components(0.3, -0.01, 0.5), Components(0.3, 0.5, -0.01)
    found = variance.allocation(only_path, part_at=8, depth=16, most=9)
    assert (found.paths, found.ideal) == (9, math.inf)
    assert variance.allocation(only_path, part_at=0, depth=16).paths == 1
    assert variance.allocation(only_start, part_at=8, depth=16).paths == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 4)), "puzzles, starts, paths"),
        (np.ones((1, 4, 4)), "1 puzzles"),
        (np.ones((3, 1, 4)), "1 starts"),
        (np.ones((3, 4, 1)), "1 paths"),
        (np.full((3, 4, 4), np.nan), "finite"),
    ],
)
def test_values_that_have_no_components(values, message):
    with pytest.raises(ValueError, match=message):
        variance.components(values)


def test_groups_that_cannot_be():
    with pytest.raises(ValueError, match="2 starts"):
        variance.held_out(np.ones((3, 2, 4)), 2)
    with pytest.raises(ValueError, match="2 paths"):
        variance.held_out(np.ones((3, 4, 2)), 3)
    with pytest.raises(ValueError, match="not at 17"):
        variance.nfe(1, 1, 17, 16)
    with pytest.raises(ValueError, match="one start"):
        variance.nfe(0, 1, 8, 16)
    with pytest.raises(ValueError, match="below 16"):
        variance.allocation(TRUE, part_at=16, depth=16)
    with pytest.raises(ValueError, match="no variance"):
        variance.allocation(Components(0.1, 0.0, 0.0), part_at=8, depth=16)
