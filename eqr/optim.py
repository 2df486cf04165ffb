"""What training minimises and how: losses, optimizers, schedules, moving average (paper §3)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqr.config import ModelConfig, Recipe, TrainConfig
from eqr.layers import STACKED, at_least_float32
from eqr.model import Reasoner
from eqr.muon import Muon


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on Apple's MPS, which has no wider type."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def stablemax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the stablemax distribution, (B, S) (arXiv 2501.04697).

    Stablemax replaces ``exp`` by ``x + 1`` for ``x ≥ 0`` and ``1 / (1 − x)`` below: it grows only
    linearly, so that a confident model keeps a gradient. Computed in float64 where there is one.
    """
    logits = logits.to(widest(logits.device))
    # The clamp is for the branch not taken: its gradient would be infinite at x = 1.
    mass = torch.where(logits < 0, 1 / (1 - logits.clamp(max=0)), logits + 1)
    share = mass / mass.sum(-1, keepdim=True)
    return -share.gather(-1, labels[..., None]).squeeze(-1).log()


def token_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Cross-entropy of every token, (B, S); ``kind`` is ``"stablemax"`` or ``"softmax"``."""
    if kind == "stablemax":
        return stablemax_loss(logits, labels)
    return F.cross_entropy(at_least_float32(logits).transpose(1, 2), labels, reduction="none")


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


def build_optimizers(
    model: nn.Module | Reasoner, config: TrainConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers of a training configuration: each trained value of ``model`` is in one.

    With ``"muon"`` there are two: :class:`eqr.muon.Muon` for the matrices of the blocks, and AdamW
    for embedding, heads and whatever is a vector. Each group keeps its rate as ``initial_lr``, from
    which :func:`learning_rate` makes the rate of a step.
    """
    adam = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "muon":
        stacks: dict[int, list[Tensor]] = {}
        for name, p in model.blocks.named_parameters():
            if p.ndim == 2:
                stacks.setdefault(STACKED.get(name.split(".")[-2], 1), []).append(p)
        # By the number of maps a parameter holds, since a group has one setting for all.
        groups = [{"params": stack, "maps": maps} for maps, stack in stacks.items()]
        inside = {p for stack in stacks.values() for p in stack}
        rate = config.lr if config.muon_lr is None else config.muon_lr
        optimizers = (
            Muon(groups, lr=rate, weight_decay=config.weight_decay),
            torch.optim.AdamW([p for p in model.parameters() if p not in inside], **adam),
        )
    else:
        kind = AdamATan2 if config.optimizer == "adam_atan2" else torch.optim.AdamW
        optimizers = (kind(model.parameters(), **adam),)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]  # "lr" is overwritten at every step
    return optimizers


def learning_rate(step: int, config: TrainConfig, peak: float | None = None) -> float:
    """Rate of optimizer step ``step`` (counted from 0): linear warm-up, then the schedule.

    Args:
        peak: the rate at the end of the warm-up; None takes ``config.lr``.
    """
    peak = config.lr if peak is None else peak
    if step < config.warmup:  # step 0 has a rate above 0, or it would be wasted
        return peak * (step + 1) / config.warmup
    if config.schedule == "constant":
        return peak
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    low = config.final_lr
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def short_steps(config: TrainConfig) -> int:
    """How many of the first optimizer steps have the short operator.

    >>> short_steps(TrainConfig(steps=1000, short_until=0.25)), short_steps(TrainConfig(steps=9))
    (250, 0)
    """
    return round(config.short_until * config.steps)


def operator_at(recipe: Recipe, step: int) -> ModelConfig:
    """The settings of the operator at optimizer step ``step``, counted from 0.

    The short one has fewer cycles, and its gradient passes at most all of them.
    """
    train, model = recipe.train, recipe.model
    if step >= short_steps(train):
        return model
    high = train.short_high_cycles
    return replace(
        model,
        high_cycles=high,
        low_cycles=train.short_low_cycles,
        grad_cycles=min(high, model.grad_cycles),
    )


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """``ema ← decay · ema + (1 − decay) · model`` for every parameter: a moving average."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
