"""Derivatives, norms and exponents, on maps whose answers are known and against differences."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from eqr.analysis import dynamics as dyn
from eqr.analysis.dynamics import Dynamics, MapModel
from eqr.config import ModelConfig
from eqr.model import Reasoner, Step
from eqr.rollout import rollout
from eqr.streams import stream

TURN = 0.9 * np.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
SHEAR = np.array([[1.0, 2.0], [0.0, 1.0]])
LINEAR = {
    "symmetric": np.diag([0.8, -0.5, 0.1]),
    "non-normal": np.array([[0.5, 10.0, 0.0], [0.0, 0.45, 3.0], [0.0, 0.0, -0.2]]),
    "complex pair": TURN,
    "skewed complex pair": SHEAR @ TURN @ np.linalg.inv(SHEAR),
    "expanding": np.array([[2.0, 1.0], [0.0, 0.5]]),
}
linear_maps = pytest.mark.parametrize("matrix", LINEAR.values(), ids=LINEAR.keys())

ATTENTION = {"mixer": "attention", "heads": 2}
REASONERS = {
    "mlp": {},
    "attention": ATTENTION,
    "attention, rope 1d": ATTENTION | {"rope": "1d"},
    "attention, rope 2d": ATTENTION | {"rope": "2d"},
    "single latent": {"hierarchical": False},
}


def on(function, z: torch.Tensor) -> Dynamics:
    """The map ``function`` for the rows of ``z``."""
    model = MapModel(function)
    return Dynamics(model, torch.zeros(len(z), 1), model.start(z))


def linear(matrix: np.ndarray, rows: int = 3) -> tuple[Dynamics, torch.Tensor]:
    """``z ← A z`` and some states."""
    a = torch.from_numpy(matrix)
    z = torch.randn(rows, len(a), generator=stream(0, "test"), dtype=torch.float64)
    return on(lambda z: z @ a.T, z), z


def reasoner(**settings) -> Reasoner:
    """A random operator on boards of 2 × 3 tokens; two cycles, the last with a gradient."""
    sizes = {"hidden": 8, "blocks": 1, "high_cycles": 2, "low_cycles": 2, "width_multiple": 8}
    return Reasoner(ModelConfig(**(sizes | settings)), 2, 3, 4, stream(1, "init"))


X = torch.tensor([[0, 1, 2, 3, 1, 2], [3, 3, 1, 0, 2, 1]])


# ----------------------------------------------------------------------- a reasoner as a flat map


@pytest.mark.parametrize("settings", REASONERS.values(), ids=REASONERS.keys())
def test_jvp_and_vjp_are_adjoint_and_agree_with_finite_differences(settings):
    own = Dynamics.of(reasoner(**settings), X)
    z = own.starts(0)
    v, w = (torch.randn(z.shape, generator=stream(k, "test"), dtype=z.dtype) for k in (0, 1))
    image, forward = own.jvp(z, v)
    back = own.vjp(z, w)
    torch.testing.assert_close(image, own(z))
    torch.testing.assert_close((w * forward).sum(1), (back * v).sum(1), rtol=1e-9, atol=1e-9)
    h = 1e-6
    change = (own(z + h * v) - own(z - h * v)) / (2 * h)
    torch.testing.assert_close(forward, change, rtol=1e-6, atol=1e-6)
    with torch.no_grad():  # as inside a measurement
        torch.testing.assert_close(own.jvp(z, v)[1], forward)
        torch.testing.assert_close(own.vjp(z, w), back)


def test_the_jacobian_is_that_of_all_cycles_and_training_s_own_is_not():
    """Every entry of Jᵀ against differences; the model's own gradient does not reach the start."""
    model = reasoner(hidden=4)
    own = Dynamics.of(model, X[:1])
    z = own.starts(0)
    size = z.shape[1]
    each = Dynamics.of(model, X[:1].repeat(size, 1))
    many, basis, h = z.repeat(size, 1), torch.eye(size, dtype=z.dtype), 1e-6
    columns = (each(many + h * basis) - each(many - h * basis)) / (2 * h)  # row k: ∂f/∂z_k
    torch.testing.assert_close(each.vjp(many, basis).T, columns, rtol=1e-5, atol=1e-6)
    cut = Dynamics(model.to(torch.float64), X[:1], own.like)
    torch.testing.assert_close(cut(z), own(z))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        cut.vjp(z, z)


def test_the_model_itself_stays_as_it_was():
    model = reasoner()
    twin = Dynamics.of(model, X).model
    assert twin.config.grad_cycles == 2 and model.config.grad_cycles == 1
    assert {p.dtype for p in twin.parameters()} == {torch.float64}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in twin.parameters())


def test_rows_and_states_keep_their_places():
    own = Dynamics.of(reasoner(), X)
    z = own.starts(0)
    torch.testing.assert_close(own.state(z).flat(), z, rtol=0, atol=0)
    torch.testing.assert_close(own.rows([1])(z[1:]), own(z)[1:])
    step = own.step(z)
    torch.testing.assert_close(step.logits, own.model.lm_head(step.state.z_high))
    third = list(own.iterate(z, 3))[2]
    torch.testing.assert_close(third, own(own(own(z))))


def test_damping_mixes_the_state_with_its_update():
    """λ z + (1 − λ) f(z), for a function and for a reasoner of one update an iteration."""
    z = torch.randn(4, 3, generator=stream(0, "test"), dtype=torch.float64)
    line = on(torch.tanh, z)
    damped = Dynamics(line.model, line.x, line.like, damping=0.25)
    torch.testing.assert_close(damped(z), 0.25 * z + 0.75 * torch.tanh(z))
    once = reasoner(hierarchical=False, high_cycles=1, low_cycles=1, damping=0.05)
    bare, half, own = (Dynamics.of(once, X, damping=rate) for rate in (0.0, 0.5, None))
    z = bare.starts(0)
    torch.testing.assert_close(half(z), 0.5 * z + 0.5 * bare(z))
    torch.testing.assert_close(own(z), 0.05 * z + 0.95 * bare(z))


@pytest.mark.parametrize("init", ["random", "fixed", "learned"])
@pytest.mark.parametrize("hierarchical", [True, False])
def test_starts_and_orbits_are_those_of_a_rollout(init, hierarchical):
    model = reasoner(init=init, hierarchical=hierarchical)
    own = Dynamics.of(model, X, dtype=torch.float32)
    starts = own.starts(3, restart=1)
    wanted = [it for it in rollout(model, X, depth=3, breadth=2, seed=3) if it.restart[1] == 1]
    for it, z in zip(wanted, own.iterate(starts, 3), strict=True):
        torch.testing.assert_close(z, it.step.state.flat()[it.restart == 1])
    later = Dynamics.of(model, X[1:], dtype=torch.float32)
    torch.testing.assert_close(later.starts(3, 1, first=1), starts[1:], rtol=0, atol=0)
    double = Dynamics.of(model, X).starts(3, 1)
    torch.testing.assert_close(double, starts.double(), rtol=0, atol=0)
    assert not double.requires_grad and (init != "random") == bool(
        torch.equal(starts, own.starts(4, restart=1))
    )


# ------------------------------------------------------------------------------- norms and spectra


@linear_maps
def test_spectrum_and_norms_of_a_linear_map(matrix):
    own, z = linear(matrix)
    norm = np.linalg.norm(matrix, 2)
    found = dyn.jacobian_norm(own, z, iterations=25)
    np.testing.assert_allclose(found, norm, rtol=1e-6)
    assert (found <= norm * (1 + 1e-9)).all(), "power iteration converges from below"
    several = np.linalg.norm(np.linalg.matrix_power(matrix, 5), 2)
    np.testing.assert_allclose(
        dyn.jacobian_norm(own, z, power=5, iterations=10), several, rtol=1e-6
    )
    # A skewed complex pair leaves the mean growth off by its condition number over 50 steps.
    radius = abs(np.linalg.eigvals(matrix)).max()
    np.testing.assert_allclose(dyn.spectral_radius(own, z), radius, rtol=0.03)


@linear_maps
def test_lyapunov_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues(matrix):
    own, z = linear(matrix)
    wanted = np.sort(np.log(abs(np.linalg.eigvals(matrix))))[::-1]
    found = dyn.lyapunov(own, 0 * z, 80, skip=60, exponents=len(matrix))
    np.testing.assert_allclose(found, np.tile(wanted, (len(z), 1)), atol=0.02)
    np.testing.assert_allclose(dyn.lyapunov(own, 0 * z, 40, skip=40), wanted[0], atol=0.03)
    # Together they are the growth of volumes, exactly and at any depth.
    volume = dyn.lyapunov(own, z, 3, exponents=len(matrix)).sum(1)
    np.testing.assert_allclose(volume, np.linalg.slogdet(matrix)[1], atol=1e-12)


def test_lyapunov_exponent_of_the_logistic_map():
    """ln 2 at r = 4; half the logarithm of the multiplier 4 + 2r − r² on the 2-cycle."""
    z = torch.rand(64, 1, generator=stream(0, "test"), dtype=torch.float64)
    chaos = dyn.lyapunov(on(lambda z: 4 * z * (1 - z), z), z, 250, skip=10)
    assert float(chaos.mean()) == pytest.approx(math.log(2), abs=0.005)
    np.testing.assert_allclose(chaos, math.log(2), atol=0.1)
    r = 3.2
    cycle = dyn.lyapunov(on(lambda z: r * z * (1 - z), z), z, 50, skip=100)
    np.testing.assert_allclose(cycle, math.log(abs(4 + 2 * r - r * r)) / 2, atol=1e-9)


def test_derivatives_belong_to_their_own_row():
    """f = z²/2 has the Jacobian diag(z): another norm in every row."""
    z = torch.tensor([[0.1, -2.0, 0.5, 1.0], [3.0, 1.0, 0.2, 1.5]], dtype=torch.float64)
    own, largest = on(lambda z: z.square() / 2, z), torch.tensor([2.0, 3.0], dtype=z.dtype)
    torch.testing.assert_close(dyn.jacobian_norm(own, z), largest)
    torch.testing.assert_close(dyn.spectral_radius(own, z), largest)
    # Of f² the derivative is that along the orbit, z · f(z), and not J(z)² at z itself.
    twice = (z * z.square() / 2).abs().amax(1)
    torch.testing.assert_close(dyn.jacobian_norm(own, z, power=2, iterations=40), twice)


def test_a_constant_map_has_no_derivative_to_trip_over():
    z = torch.ones(2, 3, dtype=torch.float64)
    own = on(lambda z: 0 * z + 1, z)
    assert dyn.jacobian_norm(own, z).tolist() == [0, 0]
    assert (dyn.spectral_radius(own, z) < 1e-100).all()
    assert (dyn.lyapunov(own, z, 3) < -100).all()


# -------------------------------------------------------------------- fixed points and certificates


def test_iteration_finds_fixed_points_and_says_when_there_is_none():
    z = torch.rand(3, 1, generator=stream(0, "test"), dtype=torch.float64)
    found = dyn.fixed_point(on(torch.cos, z), z)
    np.testing.assert_allclose(found.z, 0.7390851332151607, atol=1e-8)
    assert found.settled.all() and found.iterations < 100 and (found.residual < 1e-9).all()
    flip = dyn.fixed_point(on(lambda z: 1 - z, z), z, limit=20)
    assert not flip.settled.any() and flip.iterations == 20
    np.testing.assert_allclose(flip.residual, (1 - 2 * z[:, 0]).abs())
    parts = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    mixed = dyn.fixed_point(on(lambda z: parts * z, z[:2]), z[:2], limit=60)
    assert mixed.settled.tolist() == [True, False], "each row has its own verdict"


def test_margin_and_answer_radius_by_brute_force():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(6, 5, 4))

    def smallest(answers: np.ndarray) -> list[float]:
        gaps = []
        for row, own in zip(logits, answers, strict=True):
            rivals = [(i, a) for i, a in product(range(5), range(4)) if a != own[i]]
            gaps.append(min(row[i, own[i]] - row[i, a] for i, a in rivals))
        return gaps

    scores = torch.from_numpy(logits)
    margin = Step(None, scores, None).margin
    np.testing.assert_allclose(margin, smallest(logits.argmax(-1)))
    assert (margin > 0).all()

    head = torch.nn.Linear(3, 4, bias=False, dtype=torch.float64)
    states = torch.from_numpy(draw.normal(size=(6, 5, 3)))
    scores = head(states).detach()
    radius = dyn.answer_radius(scores, head.weight)
    moves = torch.from_numpy(draw.normal(size=(4000, 6, 5, 3)))
    moves *= radius[:, None, None] / moves.flatten(2).norm(dim=2)[..., None, None]
    answers = scores.argmax(-1)
    assert (head(states + 0.999 * moves).argmax(-1) == answers).all(), "no move so short changes it"
    # The shortest one that does is along the difference of two rows of the head.
    rows = head.weight.detach()
    for row, (z, own) in enumerate(zip(states, answers, strict=True)):
        reached = []
        for i, a in product(range(5), range(4)):
            if a != own[i]:
                step = (rows[a] - rows[own[i]]) / (rows[a] - rows[own[i]]).norm()
                there = z.clone()
                there[i] += 1.001 * radius[row] * step
                reached.append(bool(head(there).argmax(-1)[i] != own[i]))
        assert any(reached)


def test_what_the_residual_certifies_is_right():
    """‖R(z)‖ < (1 − L) δ implies the answer of the fixed point, and some states qualify."""
    draw = stream(3, "test")
    matrix = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    matrix *= 0.4 / torch.linalg.matrix_norm(matrix, 2)
    rest, weight = (torch.randn(n, m, generator=draw, dtype=torch.float64) for n, m in
                    ((1, 6), (3, 2)))  # fmt: skip

    def decode(z: torch.Tensor) -> torch.Tensor:  # three tokens of two channels each
        return z.unflatten(1, (3, 2)) @ weight.T

    spread = 10.0 ** torch.linspace(-4, 0.5, 400, dtype=torch.float64)[:, None]
    z = rest + spread * torch.randn(400, 6, generator=draw, dtype=torch.float64)
    own = on(lambda z: rest + (z - rest) @ matrix.T, z)
    residual, lip = dyn.norm(own(z) - z), float(dyn.jacobian_norm(own, z[:1], iterations=200))
    assert (dyn.norm(z - rest) <= residual / (1 - lip) * (1 + 1e-9)).all()
    truth = decode(rest).argmax(-1)
    bound = (1 - lip) * dyn.answer_radius(decode(z), weight)
    certified, right = residual < bound, (decode(z).argmax(-1) == truth).all(1)
    assert right[certified].all()
    assert 40 < certified.sum() < right.sum() < 400


def test_adjoint_solve_agrees_with_a_dense_solve():
    matrix = torch.from_numpy(LINEAR["non-normal"])
    own, z = linear(LINEAR["non-normal"])
    g = torch.randn(z.shape, generator=stream(1, "test"), dtype=z.dtype)
    eye = torch.eye(3, dtype=z.dtype)
    torch.testing.assert_close(
        dyn.adjoint_solve(own, z, g), torch.linalg.solve(eye - matrix.T, g.T).T
    )
    curved = on(lambda z: torch.tanh(z @ matrix.T), z)  # here every row has its own Jacobian
    for row, w in enumerate(dyn.adjoint_solve(curved, z, g)):
        jacobian = (1 - torch.tanh(matrix @ z[row]).square())[:, None] * matrix
        torch.testing.assert_close(w, torch.linalg.solve(eye - jacobian.T, g[row]))
    with pytest.raises(ArithmeticError, match=r"row 0: .* singular"):
        dyn.adjoint_solve(on(lambda z: 1 * z, z), z, g)


def test_adjoint_solve_of_a_reasoner():
    own = Dynamics.of(reasoner(hidden=4), X[:1])
    z = own.starts(0)
    g = torch.randn(z.shape, generator=stream(1, "test"), dtype=z.dtype)
    w = dyn.adjoint_solve(own, z, g)
    torch.testing.assert_close(w - own.vjp(z, w), g, rtol=1e-7, atol=1e-7)


def test_pca_finds_a_plane():
    draw = np.random.default_rng(0)
    axes = np.linalg.qr(draw.normal(size=(7, 2)))[0].T
    flat = draw.normal(size=(500, 2)) * [3, 1]
    cloud = flat @ axes + 5
    found = dyn.pca(cloud, 3)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(found.axes[:2] @ axes.T), math.sqrt(2), rtol=1e-9)
    np.testing.assert_allclose(found.explained.sum(), 1)
    assert found.explained[0] == pytest.approx(0.9, abs=0.02) and found.explained[2] < 1e-12
    np.testing.assert_allclose(found.mean, cloud.mean(0))
    places = dyn.pca(cloud).project(cloud.reshape(50, 10, 7))
    assert places.shape == (50, 10, 2)
    back = found.mean + places @ found.axes[:2]
    np.testing.assert_allclose(back.reshape(-1, 7), cloud, atol=1e-9)
