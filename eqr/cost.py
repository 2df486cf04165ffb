"""What a training run costs by formula, and the memory of its gradient measured beside it.

Serves the compute-matched rows of the construction path (paper Tables 2, 6–9; chapter
*Construction*): which rows cost the same, and why unrolling does not scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eqr.config import Recipe
from eqr.data import Dataset
from eqr.model import Reasoner, forward_flops, parameter_count, swiglu_width
from eqr.train import Trainer


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one training run; an outer iteration of one problem is the unit of the first three."""

    parameters: int
    flops: int  # of one outer iteration forward, for one problem
    layers: int  # layer evaluations of one outer iteration
    train_layers: int  # layer evaluations forward, all problems and steps together
    train_flops: float  # forward and backward, by formula
    activation_bytes: int  # kept for the backward pass of one optimizer step, by formula
    saved_bytes: int  # the same, measured


def step_flops(recipe: Recipe, model: Reasoner) -> float:
    """Operations of one optimizer step.

    The forward pass, plus twice the share of it that carries a gradient. A learned start also
    costs one more pass backwards (to the state alone) through the cycles that are cut.
    """
    config, train = recipe.model, recipe.train
    carried = config.grad_cycles / config.high_cycles
    share = 1 + 2 * carried + ((1 - carried) if config.init == "learned" else 0)
    return forward_flops(model) * share * train.batch * train.unroll


def block_activations(model: Reasoner, weights: bool = True) -> int:
    """Values that autograd keeps for one problem in one application of one block.

    Without a gradient for the ``weights`` the inputs of the linear maps need not be kept.

    SwiGLU of width W keeps its input, both halves of the first product, ``silu(gate)`` and the
    product that enters the last map: ``4 W`` and one input a row. A post-norm keeps the sum it
    divides, and one scale a row. Attention keeps its input, queries, keys, values, the mixed values
    and one number for each query and head; rotary positions keep turned queries and keys.
    """
    config, tokens, hidden = model.config, model.tokens, model.config.hidden
    inputs = 1 if weights else 0
    channel = (3 + inputs) * swiglu_width(hidden, config) * tokens
    channel += (1 + inputs) * tokens * hidden + tokens
    if config.mixer == "mlp":
        mixing = (3 + inputs) * swiglu_width(tokens, config) * hidden
        mixing += (1 + inputs) * tokens * hidden + hidden
    else:
        turned = 0 if config.rope == "none" else 2
        mixing = (5 + inputs + turned) * tokens * hidden + tokens * (config.heads + 1)
    return channel + mixing


def activation_bytes(recipe: Recipe, model: Reasoner) -> int:
    """Bytes that the backward pass of one optimizer step needs, by formula, in float32.

    It grows with the unrolled iterations (the paper's ``T · a_f``) and with the cycles that carry a
    gradient, and not with the depth that a detached carry reaches. Heads and loss are left out.
    """
    config, train = recipe.model, recipe.train
    in_cycle = config.layers // config.high_cycles
    values = config.grad_cycles * block_activations(model)
    if config.init == "learned":
        cut = config.high_cycles - config.grad_cycles
        values += cut * block_activations(model, weights=False)
    return 4 * in_cycle * values * train.unroll * train.batch


def saved_bytes(recipe: Recipe, data: Dataset) -> int:
    """Bytes of the tensors that autograd keeps in the first optimizer step, each storage once.

    Exact and the same on every run: it counts what is saved for the backward pass, not what an
    allocator holds. Weights are not counted.
    """
    trainer = Trainer(recipe, data)
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, Tensor] = {}  # a tensor stays alive here, so no address is used twice

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            kept.setdefault(value.untyped_storage().data_ptr(), value.detach())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        trainer.advance()
    return sum(value.untyped_storage().nbytes() for value in kept.values())


def cost(recipe: Recipe, data: Dataset) -> Cost:
    """All of it; runs one optimizer step to measure :func:`saved_bytes`."""
    with torch.device("meta"):
        model = Reasoner.for_task(recipe.task, recipe.model)
    train, layers = recipe.train, recipe.model.layers
    return Cost(
        parameters=parameter_count(model),
        flops=forward_flops(model),
        layers=layers,
        train_layers=train.steps * train.batch * train.unroll * layers,
        train_flops=train.steps * step_flops(recipe, model),
        activation_bytes=activation_bytes(recipe, model),
        saved_bytes=saved_bytes(recipe, data),
    )
