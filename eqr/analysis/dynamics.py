"""One outer iteration as a map on flat states: derivatives, norms, exponents, constants.

The local half of the landscape (chapters *The theory, derived and tested* and *Settle or
wander?*); the global half, attractors and basins, is :mod:`eqr.analysis.landscape`. Everything
works on any model that has ``step``, a trained reasoner or a :class:`MapModel` made of a function
one can check by hand, and in float64, since tangents would drown in float32's rounding.

Shapes: ``B`` rows, each with its own problem; ``N`` numbers in a row's flat state (both latents).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eqr.model import Reasoner, State, Step
from eqr.streams import stream


class MapModel:
    """A function on flat states as a model with ``step``, for maps with known answers.

    Args:
        function: states (B, N) to their images (B, N).
        decode: states (B, N) to logits (B, S, V); by default each number is a token of its own,
            1 where it is positive and 0 where it is not.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.function = function
        self.decode = decode or (lambda z: torch.stack((-z, z), -1))

    def step(
        self,
        state: State,
        x: Tensor,
        *,
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        damping: float | None = None,
    ) -> Step:
        """``λ z + (1 − λ) f(z) + β ε`` on ``state.z_high`` (B, N, 1)."""
        z = state.z_high[..., 0]
        image = self.function(z)
        if damping:
            image = damping * z + (1 - damping) * image
        if noise:
            image = image + noise * torch.randn(z.shape, generator=generator, dtype=z.dtype)
        after = State(image[..., None], state.z_low)
        return Step(after, self.read_logits(after.z_high), image.new_zeros(len(z)))

    def read_logits(self, z_high: Tensor) -> Tensor:
        """The logits (B, S, V) of ``z_high`` (B, N, 1)."""
        return self.decode(z_high[..., 0])

    def start(self, z: Tensor) -> State:
        """The state that holds the flat states ``z`` (B, N)."""
        return State(z[..., None], z.new_zeros(len(z), 0, 1))


@dataclass(frozen=True, slots=True)
class Dynamics:
    """The map ``z ↦ f(z; x)`` of B problems, on flat states (B, N)."""

    model: Any  # has step(state, x, noise=, generator=, damping=) -> Step
    x: Tensor  # (B, S) problem tokens
    like: State  # a state of the model: its shapes and dtype, not its values
    damping: float | None = None  # λ; None takes the model's own

    @classmethod
    def of(
        cls,
        model: Reasoner,
        inputs: Any,
        *,
        damping: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Dynamics:
        """The map of a trained reasoner on problems (B, S); float32 where only its orbits count.

        The map has a copy of the model, whose derivatives run through all cycles: training
        truncates the gradient of an outer iteration to its last ``grad_cycles`` cycles (paper §3),
        but a Jacobian must see all of them.
        """
        twin = copy.deepcopy(model).to(dtype).requires_grad_(False)
        twin.config = replace(twin.config, grad_cycles=twin.config.high_cycles)
        x = torch.as_tensor(inputs, device=twin.device)
        return cls(twin, x, twin.initial_state(1, stream(0, "unused")), damping)

    def rows(self, index: Any) -> Dynamics:
        """The same map on some of the rows only."""
        return replace(self, x=self.x[index])

    def starts(self, seed: int, restart: int = 0, first: int = 0) -> Tensor:
        """Starts (B, N) as in :func:`eqr.rollout.rollout` with ``seed``.

        Args:
            first: the number that the first row's problem has in that rollout.
        """
        rows = range(first, first + len(self.x))
        own = [stream(seed, "evaluation", row, restart) for row in rows]
        return self.model.initial_state(len(self.x), own).flat()

    def state(self, z: Tensor) -> State:
        """Flat states (B, N) as the model's pair of latents."""
        high, low = self.like.z_high.shape[1:], self.like.z_low.shape[1:]
        cut = math.prod(high)
        rows = len(z)
        return State(z[:, :cut].reshape(rows, *high), z[:, cut:].reshape(rows, *low))

    def step(self, z: Tensor, noise: float = 0.0, generator: Any = None) -> Step:
        """One outer iteration from ``z`` (B, N), with logits and halting logit."""
        return self.model.step(
            self.state(z), self.x, noise=noise, generator=generator, damping=self.damping
        )

    def __call__(self, z: Tensor, noise: float = 0.0, generator: Any = None) -> Tensor:
        """The image of ``z``, (B, N)."""
        return self.step(z, noise, generator).state.flat()

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` and ``J(z) v``, each (B, N)."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward derivative
            image, tangent = torch.func.jvp(self.__call__, (z,), (v,))
        return image.detach(), tangent.detach()

    def vjp(self, z: Tensor, w: Tensor) -> Tensor:
        """``J(z)ᵀ w``, (B, N)."""
        z = z.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self(z), z, w)
        return gradient

    def iterate(self, z: Tensor, depth: int) -> Iterator[Tensor]:
        """``f(z), f(f(z)), …``: ``depth`` states (B, N), without gradients."""
        for _ in range(depth):
            with torch.no_grad():
                z = self(z)
            yield z


def norm(z: Tensor) -> Tensor:
    """Euclidean norm of each row, (B,)."""
    return torch.linalg.vector_norm(z, dim=-1)


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Where iteration came to rest, if it did."""

    z: Tensor  # (B, N) the last states
    residual: Tensor  # (B,) Euclidean length of the last step, the one that led to z
    iterations: int
    settled: Tensor  # (B,) bool: the residual is below the tolerance


def fixed_point(
    dynamics: Dynamics, z: Tensor, *, tolerance: float = 1e-9, limit: int = 1000
) -> FixedPoint:
    """Iterate from ``z`` (B, N) until every row's residual is below ``tolerance · √N``.

    Rows that wander or cycle run to ``limit`` iterations and come back with ``settled`` False.
    """
    bound = tolerance * math.sqrt(z.shape[1])
    done, gap = 0, torch.full((len(z),), math.inf)
    for done, image in enumerate(dynamics.iterate(z, limit), 1):  # noqa: B007
        gap, z = norm(image - z), image
        if bool((gap < bound).all()):
            break
    return FixedPoint(z, gap, done, gap < bound)


def power_iteration(apply: Callable[[Tensor], Tensor], like: Tensor, iterations: int) -> Tensor:
    """Growth of random directions, of length one each time, under a linear map (B, N) to (B, N).

    Returns:
        (iterations, B): their length after the map; 1e-300 at least, so that it has a logarithm.
    """
    v = torch.randn(like.shape, generator=stream(0, "directions"), dtype=like.dtype)
    v, growth = v / norm(v)[:, None], []
    for _ in range(iterations):
        image = apply(v)
        growth.append(norm(image).clamp_min(1e-300))
        v = image / growth[-1][:, None]
    return torch.stack(growth)


def jacobian_norm(dynamics: Dynamics, z: Tensor, *, power: int = 1, iterations: int = 40) -> Tensor:
    """Largest singular value of ``J(z)^power``, (B,).

    With ``power=1`` the Lipschitz constant of the linearised map; at a fixed point with
    ``power=m`` that of its m-fold iterate. Power iteration with jvp and vjp; converges from below.
    """
    size = z.new_zeros(len(z))

    def there_and_back(v: Tensor) -> Tensor:
        nonlocal size
        for _ in range(power):
            _, v = dynamics.jvp(z, v)
        size = norm(v)  # the square root of what both ways make of v would lose half the digits
        for _ in range(power):
            v = dynamics.vjp(z, v)
        return v

    power_iteration(there_and_back, z, iterations)
    return size


def spectral_radius(dynamics: Dynamics, z: Tensor, *, iterations: int = 100) -> Tensor:
    """Modulus of the largest eigenvalue of ``J(z)``, (B,): the rate of the last approach.

    Power iteration; the growth is averaged, geometrically, over the second half of the iterations,
    because with a complex pair of leading eigenvalues single steps swing about it.
    """
    growth = power_iteration(lambda v: dynamics.jvp(z, v)[1], z, iterations)
    return growth[iterations // 2 :].log().mean(0).exp()


def lyapunov(
    dynamics: Dynamics, z: Tensor, depth: int, *, skip: int = 0, exponents: int = 1
) -> Tensor:
    """The largest finite-time Lyapunov exponents from ``z`` on, (B, exponents), per iteration.

    The mean logarithmic growth of tangent vectors along the trajectory, which are made orthonormal
    again after every iteration (QR; Benettin et al. 1980). Positive: neighbours separate.

    Args:
        depth: iterations to average over.
        skip: iterations run beforehand, in which the tangents turn but are not counted.
        exponents: how many, largest first.
    """
    draws = torch.randn((*z.shape, exponents), generator=stream(0, "tangents"), dtype=z.dtype)
    frame, total = torch.linalg.qr(draws)[0], z.new_zeros(len(z), exponents)
    for done in range(skip + depth):
        images = [dynamics.jvp(z, frame[..., k].contiguous()) for k in range(exponents)]
        z = images[0][0]
        frame, upper = torch.linalg.qr(torch.stack([tangent for _, tangent in images], -1))
        if done >= skip:
            total += upper.diagonal(dim1=1, dim2=2).abs().clamp_min(1e-300).log()
    return total / depth


def gap_lipschitz(weight: Tensor) -> float:
    """G: Lipschitz constant of any token's logit gap as a function of the state (paper A.1).

    For a linear head ``weight`` (V, H) the gap of two tokens changes with the state by at most the
    distance of their rows, so G is the largest such distance: exact, not an estimate.
    """
    weight = weight.detach()
    return float(torch.cdist(weight, weight).max())


def adjoint_solve(
    dynamics: Dynamics, z: Tensor, g: Tensor, *, transpose: bool = True, tolerance: float = 1e-10
) -> Tensor:
    """``w`` (B, N) with ``(I − J(z)ᵀ) w = g``, or with J where ``transpose`` is False.

    GMRES, one row at a time, needs products with the Jacobian only.

    Raises:
        ArithmeticError: it does not converge (an eigenvalue of J is close to 1).
    """
    from scipy.sparse.linalg import LinearOperator, gmres

    solutions = []
    for row in range(len(z)):
        own, here = dynamics.rows([row]), z[row : row + 1]

        def apply(vector: np.ndarray, own: Dynamics = own, here: Tensor = here) -> np.ndarray:
            v = torch.from_numpy(np.asarray(vector, np.float64).reshape(1, -1))
            image = own.vjp(here, v) if transpose else own.jvp(here, v)[1]
            return (v - image).numpy()[0]

        size = z.shape[1]
        operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
        answer, failed = gmres(
            operator, g[row].numpy(), rtol=tolerance, restart=min(size, 100), maxiter=20
        )
        if failed:
            raise ArithmeticError(f"row {row}: (I − J) is too close to singular for GMRES")
        solutions.append(torch.from_numpy(answer))
    return torch.stack(solutions)


@dataclass(frozen=True, slots=True)
class Pca:
    """A plane that shows as much as possible of a cloud of states."""

    mean: np.ndarray  # (N,)
    axes: np.ndarray  # (K, N) orthonormal
    explained: np.ndarray  # (K,) share of the variance

    def project(self, states: np.ndarray) -> np.ndarray:
        """Coordinates (…, K) of states (…, N)."""
        return (states - self.mean) @ self.axes.T


def pca(states: np.ndarray, components: int = 2) -> Pca:
    """Principal axes of states (M, N)."""
    states = np.asarray(states, np.float64)
    mean = states.mean(0)
    _, size, axes = np.linalg.svd(states - mean, full_matrices=False)
    variance = size**2 / (size**2).sum()
    return Pca(mean, axes[:components], variance[:components])
