"""The two sides of the chapter *Theory*: closed forms, and what a trained model does (paper A.1).

The constants that its propositions need (norms, margins, fixed points) come from
:mod:`eqr.analysis.dynamics`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from eqr.analysis.dynamics import Dynamics, adjoint_solve, fixed_point, norm
from eqr.streams import stream

Loss = Callable[[Tensor], Tensor]  # states (B, N) to a scalar


# --- gradients ---------------------------------------------------------------------------


def answer_loss(dynamics: Dynamics, labels: np.ndarray) -> Loss:
    """Token cross-entropy of the answers decoded from states (B, N), for labels (B, S)."""
    read, truth = dynamics.model.read_logits, torch.as_tensor(labels).long()

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(read(dynamics.state(z).z_high).transpose(1, 2), truth)

    return loss


def operator_parameters(dynamics: Dynamics) -> list[Tensor]:
    """The weights that the map itself depends on, made trainable; the heads are not among them."""
    model = dynamics.model
    weights = [*model.blocks.parameters(), model.embed.weight]
    if model.config.prefix:
        weights.append(model.prefix)
    return [weight.requires_grad_(True) for weight in weights]


def truncated(dynamics: Dynamics, cycles: int = 1) -> Dynamics:
    """The same map and weights, with a gradient through its last ``cycles`` cycles only.

    A model without cycles is returned as it is.
    """
    if not hasattr(dynamics.model, "config"):
        return dynamics
    model = copy.copy(dynamics.model)  # shares its weights
    model.config = replace(model.config, grad_cycles=cycles)
    return replace(dynamics, model=model)


def unrolled_gradient(
    dynamics: Dynamics, z: Tensor, loss: Loss, parameters: Sequence[Tensor], depth: int
) -> Tensor:
    """Gradient of ``loss(f^depth(z))`` by autograd through all iterations, as one flat vector.

    From a fixed point, ``depth=1`` is the truncated gradient that training uses (one iteration,
    the carry detached) and a large depth is backpropagation through time.
    """
    with torch.enable_grad():
        for _ in range(depth):
            z = dynamics(z)
        gradients = torch.autograd.grad(loss(z), parameters)
    return torch.cat([g.flatten() for g in gradients])


def implicit_gradient(
    dynamics: Dynamics, z: Tensor, loss: Loss, parameters: Sequence[Tensor]
) -> Tensor:
    """Gradient of ``loss`` at the fixed point ``z`` (B, N): ``J_θᵀ (I − Jᵀ)^{-1} ∂ℓ/∂z``, flat.

    The implicit function theorem (paper A.1): nothing is unrolled, one linear system is solved.

    Raises:
        ArithmeticError: the system is too close to singular.
    """
    with torch.enable_grad():
        here = z.detach().requires_grad_(True)
        (outer,) = torch.autograd.grad(loss(here), here)
    w = adjoint_solve(dynamics, z, outer)
    with torch.enable_grad():
        gradients = torch.autograd.grad(dynamics(z), parameters, w)
    return torch.cat([g.flatten() for g in gradients])


# --- tracking ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tracking:
    """Segmented online training followed step by step; S steps of B rows."""

    error: np.ndarray  # (S + 1, B) e_s = ‖z_s − z*_s‖
    moved: np.ndarray  # (S, B) ‖z*_{s+1} − z*_s‖
    rho: np.ndarray  # (S, B) ‖f(z_s) − z*_s‖ / e_s: the contraction that this step had
    settled: np.ndarray  # (S + 1, B) bool: there was a fixed point to compare with


def track(
    dynamics: Dynamics,
    z: Tensor,
    loss: Loss,
    parameters: Sequence[Tensor],
    *,
    lr: float,
    steps: int,
) -> Tracking:
    """Train online on fixed problems and measure how far the carry lags behind its fixed point.

    Each step runs one outer iteration from the carry, descends the truncated gradient of ``loss``
    (Adam), and then finds the new weights' fixed point by iterating from the old one. Changes the
    parameters in place.

    Args:
        z: the carry to start from, (B, N).
    """
    optimizer, short = torch.optim.Adam(parameters, lr=lr), truncated(dynamics)
    reach = {"tolerance": 1e-6, "limit": 200}
    rest = fixed_point(dynamics, z, **reach)
    error, moved, rho, settled = [norm(z - rest.z)], [], [], [rest.settled]
    for _ in range(steps):
        with torch.enable_grad():
            z = short(z.detach())
            optimizer.zero_grad()
            loss(z).backward()
        z = z.detach()
        rho.append(norm(z - rest.z) / error[-1].clamp_min(1e-300))
        optimizer.step()
        after = fixed_point(dynamics, rest.z, **reach)
        moved.append(norm(after.z - rest.z))
        rest = after
        error.append(norm(z - rest.z))
        settled.append(rest.settled)
    return Tracking(*(torch.stack(part).numpy() for part in (error, moved, rho, settled)))


# --- noise -------------------------------------------------------------------------------


def linear_spread(
    dynamics: Dynamics,
    z: Tensor,
    noise: float,
    *,
    terms: int = 64,
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Stationary spread around the fixed point ``z`` that the linearised map predicts, (B,).

    ``tr Σ = Σ_k E‖J^k q‖²``, the trace of the solution of ``Σ = J Σ Jᵀ + Q``, with ``q`` the
    disturbance of one outer iteration; the expectation is a mean over ``draws`` of ``q``. Returned
    as RMS over the N numbers of the state.
    """
    total = z.new_zeros(len(z))
    with torch.no_grad():
        rest = dynamics(z)
    for k in range(draws):
        with torch.no_grad():
            # A disturbance small enough to be linear, scaled back afterwards.
            tiny = 1e-6
            q = (dynamics(z, tiny, stream(seed, "spread", k)) - rest) * (noise / tiny)
        for _ in range(terms):
            total += q.square().sum(1) / draws
            _, q = dynamics.jvp(z, q)
    return (total / z.shape[1]).sqrt()


def simulated_spread(
    dynamics: Dynamics, z: Tensor, noise: float, *, iterations: int, skip: int, seed: int = 0
) -> Tensor:
    """RMS distance to ``z`` (B, N) of noisy trajectories that start there, (B,).

    Args:
        iterations: averaged over, after ``skip`` that are not.
    """
    own, here = stream(seed, "spread simulation"), z
    total = z.new_zeros(len(z))
    for done in range(skip + iterations):
        with torch.no_grad():
            here = dynamics(here, noise, own)
        if done >= skip:
            total += (here - z).square().mean(1)
    return (total / iterations).sqrt()


# --- breadth -----------------------------------------------------------------------------


def coverage(p: np.ndarray, breadth: int) -> np.ndarray:
    """``1 − (1 − p)^B``: at least one of B independent starts falls into a basin of mass p.

    >>> float(coverage(np.array(0.5), 2))
    0.75
    """
    return 1 - (1 - np.asarray(p, float)) ** breadth


def selection_success(p: float, right: np.ndarray, wrong: np.ndarray, breadth: int) -> float:
    """Chance that the smallest of B residuals belongs to a right trajectory.

    Each start is right with probability ``p``; its residual is then one of ``right`` (n,), else of
    ``wrong`` (m,), drawn with replacement. Exact for these empirical distributions: the smallest
    residual is atom r with probability ``S(r−)^B − S(r)^B``, S being the mixture's survival
    function. With p at 0 or 1 the other array may be empty.

    >>> round(selection_success(0.5, np.array([1.0]), np.array([2.0]), 2), 4)  # as coverage
    0.75
    >>> round(selection_success(0.5, np.array([2.0]), np.array([1.0]), 2), 4)  # p ** 2
    0.25
    """
    if (p > 0 and not len(right)) or (p < 1 and not len(wrong)):
        raise ValueError(f"with p = {p:g} both kinds of trajectory need residuals")
    sizes = len(right), len(wrong)
    ours, others = p / max(sizes[0], 1), (1 - p) / max(sizes[1], 1)
    atoms = pd.DataFrame(
        {
            "residual": np.concatenate([right, wrong]),
            "mass": np.repeat([ours, others], sizes),
            "right": np.repeat([ours, 0.0], sizes),
        }
    )
    # Atoms of equal size share what falls on them in proportion to their mass.
    atoms = atoms.groupby("residual").sum()
    survival = (1 - atoms.mass.cumsum()).clip(0, 1)
    chosen = survival.shift(fill_value=1.0) ** breadth - survival**breadth
    return float((chosen * atoms.right / atoms.mass).fillna(0.0).sum())
