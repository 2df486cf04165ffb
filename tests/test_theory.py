"""Gradients, tracking, noise and breadth against closed forms, enumeration and simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from eqr.analysis import theory
from eqr.analysis.dynamics import Dynamics, MapModel, fixed_point
from eqr.config import ModelConfig
from eqr.model import Reasoner, State, Step
from eqr.streams import stream

SKEW = torch.tensor([[0.5, 2.0], [0.0, -0.4]], dtype=torch.float64)  # ‖·‖ > 2, eigenvalues < 1
X = torch.tensor([[0, 1, 2, 3, 1, 2], [3, 3, 1, 0, 2, 1]])
LABELS = np.array([[1, 1, 2, 3, 3, 2], [3, 3, 1, 1, 2, 2]])


def on(function, z: Tensor, damping: float | None = None) -> Dynamics:
    """The map ``function`` for the rows of ``z``."""
    model = MapModel(function)
    return Dynamics(model, torch.zeros(len(z), 1), model.start(z), damping)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed, "test"), dtype=torch.float64)


@pytest.fixture
def contraction() -> tuple[Dynamics, Tensor]:
    """A reasoner whose loud embedding makes it contract, and its fixed points."""
    config = ModelConfig(hidden=4, blocks=1, high_cycles=2, low_cycles=2, width_multiple=8)
    model = Reasoner(config, 2, 3, 4, stream(1, "init"))
    model.embed.weight.data *= 30
    own = Dynamics.of(model, X)
    rest = fixed_point(own, own.starts(0), tolerance=1e-12, limit=200)
    assert rest.settled.all()
    return own, rest.z


# --------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("a", [0.9, 0.2, -0.7])
def test_gradients_of_a_line_have_their_closed_forms(a):
    """f = a z + θ: z* = θ/(1 − a); depth d keeps 1 − a^d of its derivative, one step 1 − a."""
    theta = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    rest = torch.full((2, 1), 0.3 / (1 - a), dtype=torch.float64)
    line = on(lambda z: a * z + theta, rest)
    whole = theory.implicit_gradient(line, rest, torch.sum, [theta])
    assert whole.tolist() == pytest.approx([2 / (1 - a)]), "two rows share θ"
    for depth in (1, 2, 7):
        part = theory.unrolled_gradient(line, rest, torch.sum, [theta], depth)
        assert float(part / whole) == pytest.approx(1 - a**depth)
    assert theory.truncated(line) is line


def test_implicit_gradient_of_a_linear_system():
    """z* = (I − A)⁻¹ B θ, so the gradient is Bᵀ (I − A)⁻ᵀ ∂ℓ/∂z; several parameters, in order."""
    b, c = normal(2, 3), normal(2, seed=1)
    theta, shift = normal(3, seed=2).requires_grad_(True), c.clone().requires_grad_(True)
    inverse = torch.linalg.inv(torch.eye(2, dtype=b.dtype) - SKEW)
    rest = (inverse @ (b @ theta + shift)).detach()[None]
    own = on(lambda z: z @ SKEW.T + b @ theta + shift, rest)
    goal = normal(1, 2, seed=3)
    found = theory.implicit_gradient(own, rest, lambda z: (z - goal).square().sum(), [theta, shift])
    outer = inverse.T @ (2 * (rest - goal)[0])
    torch.testing.assert_close(found, torch.cat([b.T @ outer, outer]))


def test_implicit_gradient_is_the_limit_of_unrolling():
    weight = 0.8 * torch.linalg.qr(normal(4, 4))[0]
    theta = normal(4, seed=1).requires_grad_(True)
    own = on(lambda z: torch.tanh(z @ weight.T + theta), normal(3, 4, seed=2))
    rest = fixed_point(own, normal(3, 4, seed=2), tolerance=1e-13).z
    loss = lambda z: z.square().sum() + z[:, 0].prod()  # noqa: E731
    whole = theory.implicit_gradient(own, rest, loss, [theta])
    gaps = []
    for depth in (1, 4, 16, 100):
        part = theory.unrolled_gradient(own, rest, loss, [theta], depth)
        gaps.append(float((part - whole).norm() / whole.norm()))
    assert gaps[0] > 0.05 and gaps[0] > gaps[1] > gaps[2] > gaps[3] < 1e-8


def test_gradients_of_a_reasoner_at_its_fixed_point(contraction):
    """Implicit, unrolled, and differences of the fixed point itself; every weight of the map."""
    own, rest = contraction
    loss, weights = theory.answer_loss(own, LABELS), theory.operator_parameters(own)
    assert sum(w.numel() for w in weights) == sum(
        p.numel() for name, p in own.model.named_parameters() if "head" not in name
    )
    whole = theory.implicit_gradient(own, rest, loss, weights)
    long = theory.unrolled_gradient(own, rest, loss, weights, 30)
    assert float((long - whole).norm() / whole.norm()) < 1e-6
    one = theory.unrolled_gradient(own, rest, loss, weights, 1)
    assert float((one - whole).norm() / whole.norm()) > 0.01, "one iteration is not enough"

    middle, ends = parameters_to_vector(weights).detach(), []
    for h in (1e-5, -1e-5):
        vector_to_parameters(middle + h * whole / whole.norm(), weights)
        ends.append(loss(fixed_point(own, rest, tolerance=1e-13).z).item())
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(whole.norm()), rel=1e-5)


def test_truncated_is_the_gradient_that_training_uses(contraction):
    own, rest = contraction
    loss, weights = theory.answer_loss(own, LABELS), theory.operator_parameters(own)
    short = theory.truncated(own)
    assert short.model.config.grad_cycles == 1 and own.model.config.grad_cycles == 2
    pairs = zip(short.model.parameters(), own.model.parameters(), strict=True)
    assert all(a is b for a, b in pairs), "the weights are shared"
    found = theory.unrolled_gradient(short, rest, loss, weights, 1)
    # By hand: the first cycle is a constant, the second is differentiated.
    model, state = own.model, own.state(rest)
    emb = model.embed(X) * 2.0
    high, low = state.z_high, state.z_low
    for cycle in range(2):
        with torch.set_grad_enabled(cycle == 1):
            for _ in range(2):
                low = model(low, high + emb, 0.05)
            high = model(high, low, 0.05)
    scores = torch.log_softmax(model.lm_head(high), -1)
    picked = scores.gather(-1, torch.from_numpy(LABELS)[..., None])
    assert loss(rest).item() == pytest.approx(-picked.mean().item())
    wanted = torch.autograd.grad(-picked.mean(), weights)
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in wanted]))
    whole = theory.unrolled_gradient(theory.truncated(own, 2), rest, loss, weights, 1)
    torch.testing.assert_close(whole, theory.unrolled_gradient(own, rest, loss, weights, 1))
    assert not torch.allclose(whole, found)


# ---------------------------------------------------------------------------------------- tracking


class Drifting(nn.Module):
    """``z ← A z + θ`` with a trainable θ, the same for every row."""

    device = torch.device("cpu")

    def __init__(self, matrix: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.theta = nn.Parameter(theta)

    def step(self, state, x, *, noise=0.0, generator=None, damping=None) -> Step:
        z = state.z_high[..., 0] @ self.matrix.T + self.theta
        return Step(State(z[..., None], state.z_low), z[..., None], z[:, 0])

    def dynamics(self, z: Tensor) -> Dynamics:
        like = State(z[..., None], z.new_zeros(len(z), 0, 1))
        return Dynamics(self, torch.zeros(len(z), 1), like)


def test_tracking_a_linear_map_obeys_its_bound():
    """e_{s+1} ≤ ϱ_s e_s + the move of z*, and no ϱ_s is above ‖A‖."""
    model = Drifting(SKEW, normal(2))
    z, goal = normal(5, 2, seed=1), normal(5, 2, seed=2)
    first = model.theta.detach().clone()
    found = theory.track(
        model.dynamics(z), z, lambda z: (z - goal).square().sum(), [model.theta], lr=0.05, steps=6
    )
    assert found.error.shape == found.settled.shape == (7, 5) and found.settled.all()
    assert found.moved.shape == found.rho.shape == (6, 5) and (found.moved > 0.01).all()
    assert (found.rho <= torch.linalg.matrix_norm(SKEW, 2).item() * (1 + 1e-6)).all()
    assert (found.error[1:] <= (found.rho * found.error[:-1] + found.moved) * (1 + 1e-6)).all()
    inverse = torch.linalg.inv(torch.eye(2, dtype=z.dtype) - SKEW)
    np.testing.assert_allclose(found.error[0], (z - inverse @ first).norm(dim=1), rtol=1e-4)
    assert not torch.equal(model.theta, first), "the parameters are trained in place"


def test_tracking_at_constant_speed_lags_by_its_closed_form():
    """Adam under a constant gradient moves θ by lr a step: the lag tends to lr / (1 − a)²."""
    a, lr = 0.6, 0.01
    model = Drifting(torch.tensor([[a]], dtype=torch.float64), torch.zeros(1).double())
    z = torch.zeros(2, 1, dtype=torch.float64)
    found = theory.track(model.dynamics(z), z, torch.sum, [model.theta], lr=lr, steps=12)
    np.testing.assert_allclose(found.moved, lr / (1 - a), rtol=1e-3)
    wanted = lr / (1 - a) ** 2 * (1 - a ** np.arange(13))
    np.testing.assert_allclose(found.error, np.stack([wanted] * 2, 1), rtol=1e-3, atol=1e-6)
    bound = found.rho * found.error[:-1] + found.moved
    np.testing.assert_allclose(found.error[1:], bound, rtol=1e-3)  # tight: no slack to lose


# ------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("a", [0.9, -0.5, 0.0])
def test_stationary_spread_on_a_line(a):
    """β² / (1 − a²), by the linear formula and by simulation."""
    rest = torch.full((4000, 1), 0.7, dtype=torch.float64)
    line = on(lambda z: a * (z - 0.7) + 0.7, rest)
    wanted = 0.02**2 / (1 - a * a)
    predicted = theory.linear_spread(line, rest, 0.02, draws=1).square().mean()
    assert float(predicted) == pytest.approx(wanted, rel=0.06)
    seen = theory.simulated_spread(line, rest, 0.02, iterations=60, skip=40).square().mean()
    assert float(seen) == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("damping", [None, 0.5])
def test_stationary_spread_in_the_plane_is_the_trace_of_a_lyapunov_equation(damping):
    """Σ = J Σ Jᵀ + β² I with J = λ I + (1 − λ) A: the noise is added after the damping."""
    rest = torch.zeros(4000, 2, dtype=torch.float64)
    own = on(lambda z: z @ SKEW.T, rest, damping)
    jacobian = SKEW.numpy() if damping is None else 0.5 * np.eye(2) + 0.5 * SKEW.numpy()
    wanted = np.trace(solve_discrete_lyapunov(jacobian, 0.1**2 * np.eye(2))) / 2
    predicted = theory.linear_spread(own, rest, 0.1, draws=1).square().mean()
    assert float(predicted) == pytest.approx(wanted, rel=0.06)
    seen = theory.simulated_spread(own, rest, 0.1, iterations=60, skip=40).square().mean()
    assert float(seen) == pytest.approx(wanted, rel=0.03)


def test_linear_spread_of_a_reasoner_is_what_small_noise_does(contraction):
    """Noise enters at each of the six updates of an iteration; the formula follows it through."""
    one, z = contraction
    own, rest = one.rows([0] * 200), z[:1].repeat(200, 1)  # many draws at once
    predicted = theory.linear_spread(own, rest, 1e-4, terms=8, draws=1)
    seen = theory.simulated_spread(own, rest, 1e-4, iterations=20, skip=10)
    squares = predicted.square().mean(), seen.square().mean()
    torch.testing.assert_close(*squares, rtol=0.1, atol=0)
    assert (seen > 1e-4).all()
    twice = theory.linear_spread(own, rest, 2e-4, terms=8, draws=1)
    torch.testing.assert_close(twice, 2 * predicted)


# ----------------------------------------------------------------------------------------- breadth


def test_coverage_counts_outcomes():
    for p, breadth in product((0.0, 0.25, 1.0), (1, 2, 5)):
        hit = sum(
            math.prod(p if right else 1 - p for right in starts)
            for starts in product((True, False), repeat=breadth)
            if any(starts)
        )
        assert float(theory.coverage(np.array(p), breadth)) == pytest.approx(hit)
    assert theory.coverage(np.array([0.1, 0.2]), 1).tolist() == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("breadth", [1, 2, 3])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_selection_success_is_that_of_all_draws(p, breadth):
    """Every tuple of (right or wrong, residual), ties shared; residuals occur in both arrays."""
    right, wrong = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 4.0, 5.0])
    atoms = [(r, True, p / 4) for r in right] + [(r, False, (1 - p) / 3) for r in wrong]
    wanted = 0.0
    for draw in product(atoms, repeat=breadth):
        least = min(r for r, _, _ in draw)
        tied = [is_right for r, is_right, _ in draw if r == least]
        wanted += math.prod(mass for _, _, mass in draw) * np.mean(tied)
    assert theory.selection_success(p, right, wrong, breadth) == pytest.approx(wanted, abs=1e-12)


def test_selection_success_against_simulation_and_at_the_ends():
    draw = np.random.default_rng(0)
    right, wrong = draw.gamma(2, 1, 200).round(1), draw.gamma(3, 1, 300).round(1)
    p, breadth, n = 0.4, 8, 40000
    is_right = draw.random((n, breadth)) < p
    sizes = np.where(is_right, draw.choice(right, (n, breadth)), draw.choice(wrong, (n, breadth)))
    seen = is_right[np.arange(n), sizes.argmin(1)].mean()
    found = theory.selection_success(p, right, wrong, breadth)
    assert found == pytest.approx(seen, abs=4 * math.sqrt(0.25 / n))
    none = np.array([])
    assert theory.selection_success(0.0, none, wrong, 4) == 0
    assert theory.selection_success(1.0, right, none, 4) == pytest.approx(1)
    same = theory.selection_success(p, right, right, breadth)
    assert same == pytest.approx(p), "residuals that say nothing leave the base rate"
    first = theory.selection_success(p, right - 100, wrong, breadth)
    assert first == pytest.approx(float(theory.coverage(np.array(p), breadth)))
    last = theory.selection_success(p, right + 100, wrong, breadth)
    assert last == pytest.approx(p**breadth)
