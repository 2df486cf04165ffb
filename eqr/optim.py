"""What training minimises and how: losses, optimizers, schedules, moving average (paper §3)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqr.config import ModelConfig, Recipe, TrainConfig
from eqr.layers import at_least_float32
from eqr.model import Reasoner
from eqr.optimizers import AdamATan2, Muon, matrices


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on Apple's MPS, which has no wider type."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def probabilities(logits: Tensor, normalisation: str) -> Tensor:
    """What a model gives each token, (B, S, V): ``"softmax"`` or ``"stablemax"``.

    Stablemax (arXiv 2501.04697) replaces ``exp`` by ``x + 1`` for ``x ≥ 0`` and ``1 / (1 − x)``
    below, which grows only linearly: a confident model keeps a gradient. In float64 if possible.
    """
    if normalisation == "softmax":
        return at_least_float32(logits).softmax(-1)
    logits = logits.to(widest(logits.device))
    # The clamp is for the branch not taken: its gradient would be infinite at x = 1.
    mass = torch.where(logits < 0, 1 / (1 - logits.clamp(max=0)), logits + 1)
    return mass / mass.sum(-1, keepdim=True)


def token_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    """Cross-entropy of every token, (B, S), with the :func:`probabilities` of ``kind``."""
    if kind == "softmax":  # in one step: a tiny probability would round to 0
        return F.cross_entropy(at_least_float32(logits).transpose(1, 2), labels, reduction="none")
    return -probabilities(logits, kind).gather(-1, labels[..., None]).squeeze(-1).log()


def build_optimizers(
    model: nn.Module | Reasoner, config: TrainConfig
) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers of a training configuration: each trained value of ``model`` is in one.

    With ``"muon"`` there are two: :class:`eqr.optimizers.Muon` for the matrices of the blocks, and
    AdamW for embedding, heads and whatever is a vector. Each group keeps its rate as
    ``initial_lr``, from which :func:`learning_rate` makes the rate of a step.
    """
    betas = config.beta1, config.beta2
    adam = {"lr": config.lr, "betas": betas, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        groups = matrices(model.blocks)
        inside = {p for group in groups for p in group["params"]}
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
    # One is added so that the last step has the final rate.
    share = (step + 1 - config.warmup) / max(1, config.steps - config.warmup)
    low = config.final_lr
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def short_steps(config: TrainConfig) -> int:
    """How many of the first optimizer steps have the short operator."""
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
