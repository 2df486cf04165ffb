"""Two optimizers that PyTorch has not: AdamATan2, the paper's, and Muon for stacked maps, which
others report to be faster (study ``fast``)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eqr.layers import STACKED


class AdamATan2(torch.optim.Optimizer):
    """Adam with ``atan2`` in place of a division, so that it needs no ε (arXiv 2407.05872).

    With gradient ``g`` at step ``t``, moments ``m ← β₁ m + (1 − β₁) g`` and
    ``v ← β₂ v + (1 − β₂) g²``:

        p ← (1 − lr · weight_decay) p
        p ← p − lr / (1 − β₁ᵗ) · atan2(m, √(v / (1 − β₂ᵗ)))

    The bias of ``m`` is corrected outside the ``atan2`` and no further scale is applied, as in the
    kernel used by the paper's authors (package ``adam-atan2``). An update is thus never larger than
    ``lr / (1 − β₁ᵗ) · π/2`` and does not depend on the scale of the gradient.

    Args:
        params: tensors to optimise.
        lr: step size, positive.
        betas: decay of the first and the second moment, in [0, 1).
        weight_decay: decoupled decay, as a rate multiplied by ``lr``.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            # Together by `_foreach`: one kernel for all parameters instead of one for each.
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["step"] = torch.zeros(())  # on the CPU: no GPU waits to be read
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            grads = [p.grad for p in params]
            steps = [self.state[p]["step"] for p in params]
            first = [self.state[p]["exp_avg"] for p in params]
            second = [self.state[p]["exp_avg_sq"] for p in params]
            beta1, beta2 = group["betas"]
            torch._foreach_add_(steps, 1)
            torch._foreach_lerp_(first, grads, 1 - beta1)
            torch._foreach_mul_(second, beta2)
            torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
            # Each parameter counts its own steps: one that got no gradient lags behind.
            for p, count, m, v in zip(params, steps, first, second, strict=True):
                t = count.item()
                scale = (v / (1 - beta2**t)).sqrt_()
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.atan2(m, scale), alpha=-group["lr"] / (1 - beta1**t))


#: Of the quintic of Muon's Newton–Schulz iteration (the page cited there): five steps bring every
#: singular value between 0.002 and 1 to between 0.68 and 1.21.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5

#: Root mean square of an element of Muon's update at rate 1: about that of Adam's.
MUON_RMS = 0.2


def orthogonalized(matrices: Tensor) -> Tensor:
    """For each matrix ``U S Vᵀ`` of (..., m, n) about ``U Vᵀ``, without a decomposition.

    The iteration is odd in the matrix and so acts on its singular values alone; a matrix of zeros
    stays one. Computed in the matrices' own precision.
    """
    a, b, c = NEWTON_SCHULZ
    tiny = torch.finfo(matrices.dtype).tiny
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp_min(tiny)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # the smaller of the two products
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for the matrices inside a network.

    With gradient ``g``, momentum ``m ← μ m + (1 − μ) g`` and Nesterov's look-ahead:

        p ← (1 − lr · weight_decay) p
        p ← p − lr · 0.2 · √max(rows, columns) · orthogonalized(μ m + (1 − μ) g)

    (https://kellerjordan.github.io/posts/muon/; the factor, which gives the elements of an update
    the same root mean square in every shape, that of Adam's: arXiv 2502.16982). It does not depend
    on the scale of the gradient.

    ``torch.optim.Muon`` is this rule for one map a parameter, in bfloat16. Here a parameter may
    hold several maps one below the other (gate and up; queries, keys and values), each of which is
    orthogonalised by itself: together, the one with the larger gradient would get nearly all of the
    update. And single precision keeps two runs that differ by rounding as close as other
    optimizers do.

    Args:
        params: matrices, or groups of them with a key ``maps``: how many each holds (default 1).
        lr: step size, positive.
        momentum: μ, in [0, 1).
        weight_decay: decoupled decay, as a rate multiplied by ``lr``.

    Raises:
        ValueError: a parameter that is no stack of ``maps`` maps.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maps": 1}
        super().__init__(params, settings)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2 or len(p) % group["maps"]:
                    shape, maps = tuple(p.shape), group["maps"]
                    raise ValueError(f"a parameter of shape {shape} does not hold maps = {maps}")

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                m = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(m, group["momentum"])
                maps = ahead.unflatten(0, (group["maps"], -1))  # (maps, rows, columns)
                update = orthogonalized(maps).flatten(0, 1)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                size = MUON_RMS * math.sqrt(max(maps.shape[1:]))
                p.add_(update, alpha=-group["lr"] * size)


def matrices(blocks: nn.Module) -> list[dict[str, Any]]:
    """The matrices of a model's blocks as groups for :class:`Muon`, by the maps each holds."""
    stacks: dict[int, list[Tensor]] = {}
    for name, p in blocks.named_parameters():
        if p.ndim == 2:
            stacks.setdefault(STACKED.get(name.split(".")[-2], 1), []).append(p)
    return [{"params": stack, "maps": maps} for maps, stack in stacks.items()]
