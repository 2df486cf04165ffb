"""Basins whose borders and dimensions are known: wells, Newton's map, chessboard, Cantor's set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eqr.analysis.basins import (
    NEVER,
    basin_entropy,
    latent_slice,
    pca,
    settling_time,
    uncertainty_exponent,
)
from eqr.analysis.dynamics import Dynamics, MapModel
from eqr.config import ModelConfig
from eqr.model import Reasoner
from eqr.rollout import rollout
from eqr.streams import stream


def on(function, size: int, decode=None) -> Dynamics:
    """The map ``function`` of ``size`` numbers, for one row."""
    model = MapModel(function, decode)
    return Dynamics(model, torch.zeros(1, 1), model.start(torch.zeros(1, size).double()))


def states(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def newton(z: torch.Tensor) -> torch.Tensor:
    """Newton's method for z³ = 1 on the plane."""
    c = torch.view_as_complex(z.contiguous())
    return torch.view_as_real((2 * c**3 + 1) / (3 * c**2))


def nearest_root(z: torch.Tensor) -> torch.Tensor:
    """One token: which of the three roots is closest, (B, 1, 3)."""
    roots = torch.exp(2j * math.pi * torch.arange(3) / 3)
    return -(torch.view_as_complex(z.contiguous())[:, None] - roots).abs()[:, None]


PLANE = states([0, 0], [1, 0], [0, 1])  # u and v are the coordinates themselves


@pytest.fixture(scope="module")
def fractal():
    """Newton's basins on a square that does not touch the origin, where the map is singular."""
    return latent_slice(
        on(newton, 2, nearest_root), PLANE, depth=40, size=128, span=(-1.01, 1), rows=4096
    )


# ------------------------------------------------------------------------------------------ slices


def test_a_slice_knows_its_axes_answers_and_labels():
    """tanh(2z) sends each coordinate to the well of its sign, ±0.9575."""
    wells, corners = on(lambda z: torch.tanh(2 * z), 3), states([1, 0, -1], [1, 2, -1], [3, 0, -1])
    found = latent_slice(wells, corners, np.array([1, 1, 0]), depth=30, size=41, span=(-1.02, 1))
    v, u = np.meshgrid(found.v, found.u, indexing="ij")
    first, second = 1 + 2 * v > 0, 2 * u > 0  # the third coordinate stays negative
    np.testing.assert_array_equal(found.exact, first & second)
    basins = first * 2 + second
    names, counts = np.unique(basins, return_counts=True)
    for rank, basin in enumerate(names[np.argsort(-counts)]):
        np.testing.assert_array_equal(found.answer == rank, basins == basin)
    assert (found.residual < 1e-6).all() and (found.settled_at > 0).all()
    middle = found.settled_at[0, np.argmin(abs(found.u))], found.settled_at[0, -1]
    assert middle[0] > middle[1], "near the border it takes longer"
    plain = latent_slice(wells, corners, depth=30, size=41, span=(-1.02, 1), rows=100)
    np.testing.assert_array_equal(plain.answer, found.answer)
    np.testing.assert_array_equal(plain.settled_at, found.settled_at)
    assert not plain.exact.any()
    tall = latent_slice(wells, corners, depth=5, size=8, span=(-0.9, 0), span_v=(1, 3))
    assert tall.u[[0, -1]].tolist() == [-0.9, 0] and tall.v[[0, -1]].tolist() == [1, 3]
    assert (tall.answer == 0).all(), "u < 0 < v: one basin"


def test_half_planes_settle_when_they_should():
    """z ← z/2 along the border, and across it 1 + (z − 1)/2 or its mirror image: exact times."""

    def halves(z: torch.Tensor) -> torch.Tensor:
        across = z[:, 0] - z[:, 1]
        return torch.stack((across.sign() + (across - across.sign()) / 2, across * 0), 1)

    found = latent_slice(on(halves, 2), PLANE, depth=12, size=16, span=(-2, 2.5), tolerance=0.01)
    v, u = np.meshgrid(found.v, found.u, indexing="ij")
    off = abs(u - v) > 1e-9
    np.testing.assert_array_equal((found.answer == found.answer[0, -1])[off], (u > v)[off])
    gap = abs(abs(u - v) - 1)  # to ±1; halved by every iteration, RMS over two numbers
    later = gap[..., None] / 2.0 ** np.arange(2, 13) / math.sqrt(2)
    first = np.hypot(np.sign(u - v) * (1 + (abs(u - v) - 1) / 2) - u, v) / math.sqrt(2)
    moves = np.concatenate([first[..., None], later], -1)
    np.testing.assert_allclose(found.residual[off], moves[..., -1][off], rtol=1e-4, atol=1e-9)
    wanted = settling_time(np.moveaxis(moves, -1, 0), 0.01)
    np.testing.assert_array_equal(found.settled_at[off], wanted[off])
    assert len(np.unique(wanted[off])) > 4


def test_the_corners_of_a_slice_are_the_trajectories_of_a_rollout():
    config = ModelConfig(hidden=8, blocks=1, high_cycles=1, low_cycles=2, width_multiple=8)
    model = Reasoner(config, 2, 3, 4, stream(1, "init"))
    x = torch.tensor([[0, 1, 2, 3, 1, 2]])
    own = Dynamics.of(model, x, dtype=torch.float32)
    corners = torch.cat([own.starts(5, restart) for restart in range(3)])
    *_, last = rollout(model, x, depth=6, breadth=3, seed=5)
    found = latent_slice(own, corners, last.step.answer[1].numpy(), depth=6, size=2, span=(0, 1))
    at = ([0, 0, 1], [0, 1, 0])  # (0, 0), u = 1 and v = 1
    np.testing.assert_allclose(found.residual[at], last.residual, rtol=1e-4)
    assert found.exact[0, 1]
    same = (last.step.answer == last.step.answer[1]).all(1)
    np.testing.assert_array_equal(found.exact[at], same)


def test_settling_time_by_brute_force():
    draw = np.random.default_rng(0)
    trace = draw.choice([0.01, 0.02, 0.03], p=[0.8, 0.1, 0.1], size=(6, 8, 50))
    trace[:, 0, 0], trace[:, 0, 1] = 0.01, 0.03
    found = settling_time(trace, 0.02)
    for row in np.ndindex(8, 50):
        below = [r < 0.02 for r in trace[(slice(None), *row)]]
        wanted = next((t for t in range(1, 7) if all(below[t - 1 :])), NEVER)
        assert found[row] == wanted
    assert found[0, 0] == 1 and found[0, 1] == NEVER
    nan = np.array([[0.01, math.nan], [math.nan, 0.01]])
    assert settling_time(nan, 0.02).tolist() == [NEVER, 2], "a diverged trajectory has not settled"


# ----------------------------------------------------------------------------------- basin entropy


def chessboard(square: int, squares: int) -> np.ndarray:
    return np.kron(np.indices((squares, squares)).sum(0) % 2, np.ones((square, square), int))


def test_basin_entropy_of_a_chessboard():
    """Boxes of one square hold one basin; boxes of 2 × 2 squares, or offset ones, hold both."""
    board = chessboard(4, 6)
    alone, four = basin_entropy(board, 4), basin_entropy(board, 8)
    assert (alone.entropy, alone.mixed, alone.boxes) == (0, 0, 36)
    assert four.entropy == four.boundary == pytest.approx(math.log(2))
    assert (four.mixed, four.boxes) == (1, 9)
    offset = basin_entropy(board[2:-2, 2:-2], 4)
    assert offset.entropy == pytest.approx(math.log(2)) and offset.boxes == 25
    assert basin_entropy(np.pad(board, ((0, 7), (0, 3))), 8) == four, "a rest is left out"
    with pytest.raises(ValueError, match="no box of 25 × 25"):
        basin_entropy(board, 25)


def test_basin_entropy_of_a_straight_border_and_of_noise():
    labels = np.tile(np.arange(20) >= 7, (15, 1))  # cuts the second of four columns 2 : 3
    found = basin_entropy(labels, 5)
    wanted = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    assert found.boundary == pytest.approx(wanted) and found.entropy == pytest.approx(wanted / 4)
    assert found.mixed == 0.25
    speck = np.zeros((20, 20), int)
    speck[0, 0] = 1
    rare = basin_entropy(speck, 10)
    assert (rare.mixed, rare.boxes) == (0.25, 4), "one point in a hundred is a second basin"
    assert rare.boundary == pytest.approx(4 * rare.entropy) and rare.boundary < 0.1
    noise = np.random.default_rng(0).integers(0, 3, (200, 200))
    assert basin_entropy(noise, 20).entropy == pytest.approx(math.log(3), rel=0.01)
    assert basin_entropy(noise * 7 - 3, 20) == basin_entropy(noise, 20), "names do not matter"


def test_basin_entropy_tells_newton_s_basins_from_half_planes(fractal):
    """Where all three basins share the border, boxes on it hold more than the ln 2 of two."""
    masses = np.bincount(fractal.answer.ravel()) / fractal.answer.size
    assert len(masses) == 3 and (abs(masses - 1 / 3) < 0.01).all()
    v, u = np.meshgrid(fractal.v, fractal.u, indexing="ij")
    # At 8 points a box it comes out a little below: the criterion suffices, no more.
    tangled, smooth = basin_entropy(fractal.answer, 12), basin_entropy(2 * v > u + 0.1, 12)
    assert smooth.boundary < 0.6 < math.log(2) < tangled.boundary < math.log(3)
    assert smooth.entropy < tangled.entropy / 2


# ---------------------------------------------------------------------------- uncertainty exponent


def cantor(levels: int) -> np.ndarray:
    """Points of [0, 1) in 3^levels steps, each gap of the Cantor set a basin of its own."""
    x, first = np.arange(3**levels), np.full(3**levels, levels)
    for level in reversed(range(levels)):
        first = np.where(x // 3 ** (levels - 1 - level) % 3 == 1, level, first)
    return first * 3**levels + x // 3 ** (levels - first)  # the digits before the first 1


def test_uncertainty_exponent_of_smooth_borders_is_one():
    for size in (32, 64, 200):
        line = np.tile(np.arange(size) >= size // 2, (size, 1))
        found = uncertainty_exponent(line)
        assert found.alpha == pytest.approx(1), "a straight border, at any size of the slice"
        wanted = 2 * found.radii / (size - 16)
        np.testing.assert_allclose(found.uncertain, wanted)
        assert uncertainty_exponent(line.T).alpha == pytest.approx(1)
    v, u = np.indices((128, 128)) - 63.3
    circle = uncertainty_exponent(u**2 + v**2 < 32**2)
    assert circle.alpha == pytest.approx(1, abs=0.02)
    assert circle.low < circle.alpha < circle.high < 1.1


def test_uncertainty_exponent_of_a_cantor_set_is_its_codimension():
    """Stripes over a border of dimension ln 2 / ln 3: α = 1 − ln 2 / ln 3 = 0.369."""
    stripes = np.tile(cantor(7), (55, 1))
    found = uncertainty_exponent(stripes, (1, 3, 9, 27))
    assert found.alpha == pytest.approx(1 - math.log(2) / math.log(3), abs=0.01)
    assert found.high < 0.4


def test_uncertainty_exponent_of_newton_s_map_is_fractal(fractal):
    """On 2,048² points and radii up to 64 it is 0.557 (measured once); here on 128²."""
    found = uncertainty_exponent(fractal.answer)
    assert found.alpha == pytest.approx(0.557, abs=0.03) and found.high < 0.65


def test_uncertainty_exponent_where_nothing_can_be_fitted():
    flat = uncertainty_exponent(np.zeros((20, 20)))
    assert math.isnan(flat.alpha) and math.isnan(flat.low) and (flat.uncertain == 0).all()
    board = uncertainty_exponent(chessboard(1, 30), (1, 2, 3))  # certain at distance 2
    assert board.alpha == 0 and board.uncertain.tolist() == [1, 0, 1]
    assert math.isnan(board.low) and math.isnan(board.high), "two points give a line, no interval"
    with pytest.raises(ValueError, match="radius 8 does not fit"):
        uncertainty_exponent(np.zeros((16, 40)))


# --------------------------------------------------------------------------------------------- PCA


def test_pca_finds_a_plane():
    draw = np.random.default_rng(0)
    axes = np.linalg.qr(draw.normal(size=(7, 2)))[0].T
    flat = draw.normal(size=(500, 2)) * [3, 1]
    cloud = flat @ axes + 5
    found = pca(cloud, 3)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found.axes[:2] @ axes.T), math.sqrt(2), rtol=1e-9)
    np.testing.assert_allclose(found.explained.sum(), 1)
    assert found.explained[0] == pytest.approx(0.9, abs=0.02) and found.explained[2] < 1e-12
    np.testing.assert_allclose(found.mean, cloud.mean(0))
    places = pca(cloud).project(cloud.reshape(50, 10, 7))
    assert places.shape == (50, 10, 2)
    back = found.mean + places @ found.axes[:2]
    np.testing.assert_allclose(back.reshape(-1, 7), cloud, atol=1e-9)
