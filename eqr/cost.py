"""What a training run costs by formula, and the memory of its gradient measured beside it.

Serves the compute-matched rows of the construction path (paper Tables 2, 6–9; chapter
*Construction*): which rows cost the same, and why unrolling does not scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from eqr.config import ModelConfig, Recipe
from eqr.data import SPLITS, Dataset
from eqr.layers import (
    parameter_count,
    require_time,
    swiglu_width,
    weight_count,
)
from eqr.model import Reasoner, State
from eqr.optim import operator_at, short_steps
from eqr.settings import require_memory


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one training run; an outer iteration of one problem is the unit of the first three."""

    parameters: int
    flops: int  # of one outer iteration forward, for one problem
    layers: int  # layer evaluations of one outer iteration
    train_layers: int  # layer evaluations forward, all problems and steps together
    train_flops: float  # forward and backward, by formula
    activation_bytes: int  # saved for the backward pass of one optimizer step, by formula
    saved_bytes: int  # the same, measured


def forward_flops(model: Reasoner) -> int:
    """Operations of one outer iteration for one problem, as PyTorch counts them while it runs one
    (a model on the meta device costs nothing).

    Those of the matrix products, a multiply-add being two; norms and activations are not counted
    (below one per cent).
    """
    config, weight = model.config, model.lm_head.weight
    high = weight.new_zeros(1, model.latent_tokens, config.hidden)
    low = high if config.hierarchical else high[:, :0]
    x = torch.zeros(1, model.tokens, dtype=torch.long, device=model.device)
    # What is compiled is one operation to the counter, or an error.
    eager, counting = torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False)
    with torch.no_grad(), eager, counting as counter:
        model.step(State(high, low), x, noise=0.0)
    return counter.get_total_flops()


def step_flops(recipe: Recipe, model: Reasoner, step: int | None = None) -> float:
    """Operations of optimizer step ``step``; None: of one with the operator in full.

    The forward pass, plus twice the share of it that carries a gradient. A learned start also
    costs one more pass backwards (to the state alone) through the cycles that are cut. Of several
    starts all are run, forward and backward: what a loser gets back is zero, and computed.
    The optimizer's own work is left out; Muon's is about one per cent.
    """
    train = recipe.train
    config = recipe.model if step is None else operator_at(recipe, step)
    forward = forward_flops(model) * config.layers / model.config.layers
    carried = config.grad_cycles / config.high_cycles
    share = 1 + 2 * carried + ((1 - carried) if config.init == "learned" else 0)
    return forward * share * train.batch * train.starts * train.unroll


def block_activations(config: ModelConfig, tokens: int, weights: bool = True) -> int:
    """Values that autograd keeps for one problem in one application of one block.

    Without a gradient for the ``weights`` the inputs of the linear maps need not be saved.

    SwiGLU of width W keeps its input, both halves of the first product, ``silu(gate)`` and the
    product that enters the last map: ``4 W`` and one input a row. If that product is normalised, it
    is saved before and after, with one scale. A post-norm keeps the sum it divides, and one scale a
    row. Attention keeps its input, queries, keys, values, the mixed values
    and one number for each query and head; rotary positions keep turned queries and keys.
    """
    hidden = config.hidden
    inputs, normed = int(weights), int(config.norm_swiglu)
    channel = (3 + inputs + normed) * swiglu_width(hidden, config) * tokens
    channel += (1 + inputs) * tokens * hidden + (1 + normed) * tokens
    if config.mixer == "mlp":
        mixing = (3 + inputs + normed) * swiglu_width(tokens, config) * hidden
        mixing += (1 + inputs) * tokens * hidden + (1 + normed) * hidden
    else:
        turned = 0 if config.rope == "none" else 2
        mixing = (5 + inputs + turned) * tokens * hidden + tokens * (config.heads + 1)
    return channel + mixing


def activation_bytes(recipe: Recipe) -> int:
    """Bytes that the backward pass of one optimizer step needs, by formula, in float32.

    It grows with the unrolled iterations (the paper's ``T · a_f``), with the starts of a sample and
    with the cycles that carry a gradient, and not with the depth that a detached carry reaches.
    Heads and loss are left out, and steps with a short operator need less.
    """
    config, train, tokens = recipe.model, recipe.train, latent_tokens(recipe)
    in_cycle = config.layers // config.high_cycles
    values = config.grad_cycles * block_activations(config, tokens)
    if config.init == "learned":
        cut = config.high_cycles - config.grad_cycles
        values += cut * block_activations(config, tokens, weights=False)
    return 4 * in_cycle * values * train.unroll * train.batch * train.starts


def saved_bytes(recipe: Recipe, data: Dataset) -> int:
    """Bytes of the tensors that autograd keeps in one optimizer step, each storage once.

    It is the first step with the operator in full. Exact and the same on every run: it counts what
    is saved for the backward pass, not what an allocator holds. Weights are not counted. Measured
    on two samples and scaled to the batch, so that a batch which only a GPU holds can be asked
    about anywhere.
    """
    from eqr.train import Trainer  # which asks this module how long a run is

    few = min(recipe.train.batch, 2)
    trainer = Trainer(replace(recipe, train=replace(recipe.train, batch=few)), data)
    trainer.step = short_steps(recipe.train)
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    saved: dict[int, Tensor] = {}  # a tensor stays alive here, so no address is used twice

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage().data_ptr() not in weights:
            saved.setdefault(value.untyped_storage().data_ptr(), value.detach())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        trainer.advance()
    total = sum(value.untyped_storage().nbytes() for value in saved.values())
    return total * recipe.train.batch // few


def latent_tokens(recipe: Recipe) -> int:
    """Tokens of the latents: those of the board, and of a prefix."""
    return recipe.model.prefix + recipe.task.seq_len


def require_fits(recipe: Recipe, device: str = "cpu") -> None:
    """SizeError where a training cannot fit into memory, or one step of it would not end.

    By formula, before anything is made; too small rather than too large, so that what would fit is
    never refused.
    """
    config, train, tokens = recipe.model, recipe.train, latent_tokens(recipe)
    board, problems = recipe.task.seq_len, sum(getattr(recipe.data, split) for split in SPLITS)
    rows = train.batch * train.starts
    weights = weight_count(config, tokens, recipe.task.vocab_size)
    activations = activation_bytes(recipe) // (2 if train.dtype == "bfloat16" else 1)
    parts = {
        # Weights, their average, gradients, two moments; and the objects of a block.
        "model.hidden, model.blocks or the board": 20 * weights + 10_000 * config.blocks,
        "train.batch": activations + rows * 4 * (2 * board + 2 * tokens * config.hidden),
        "data.train": problems * (2 * board + 4),
    }
    remedy = f"lower {max(parts, key=parts.get)}"
    there = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else None
    require_memory(sum(parts.values()), f"training {recipe.name}", remedy, there)
    require_time(config, tokens, 3 * rows * train.unroll, f"one step of training {recipe.name}")


def cost(recipe: Recipe, data: Dataset) -> Cost:
    """All of it; runs one optimizer step to measure :func:`saved_bytes`."""
    with torch.device("meta"):
        model = Reasoner.for_task(recipe.task, recipe.model)
    train, layers = recipe.train, recipe.model.layers
    short, rows = short_steps(train), train.batch * train.starts * train.unroll
    short_layers = operator_at(recipe, 0).layers
    return Cost(
        parameters=parameter_count(model),
        flops=forward_flops(model),
        layers=layers,
        train_layers=rows * (short * short_layers + (train.steps - short) * layers),
        train_flops=short * step_flops(recipe, model, 0)
        + (train.steps - short) * step_flops(recipe, model),
        activation_bytes=activation_bytes(recipe),
        saved_bytes=saved_bytes(recipe, data),
    )
