"""The layers of the operator, their first weights and the noise of an update: RMS norm, SwiGLU,
two token mixers, rotary positions (paper §3).

Shapes: ``B`` rows, ``S`` tokens, ``H`` hidden channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqr.config import ModelConfig
from eqr.settings import SizeError, require_memory
from eqr.streams import Generators, standard_normal, truncated_normal

if TYPE_CHECKING:
    from eqr.model import Reasoner

RMS_EPS = 1e-5  # as in the official code; a row of zeros stays one
ROPE_BASE = 10_000.0

MOST_OPERATIONS = 1e17  # of one step; the paper's largest has 1e14
MOST_LAYERS = 100_000  # of one outer iteration; the paper's has 42

#: Layers whose weight holds several linear maps, one below the other, and how many.
STACKED = {"gate_up": 2, "qkv": 3}


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in float64 if they are: for sums that bfloat16 would blur."""
    return values if values.dtype == torch.float64 else values.float()


def rms_norm(h: Tensor, dim: int = -1) -> Tensor:
    """Divide by the root mean square along ``dim``; no learned scale; computed in float32."""
    wide = at_least_float32(h)
    scale = torch.rsqrt(wide.square().mean(dim, keepdim=True) + RMS_EPS)
    return (wide * scale).to(h.dtype)


def swiglu_width(features: int, config: ModelConfig) -> int:
    """Inner width: two thirds of ``expansion · features``, rounded up to ``width_multiple``."""
    wanted = round(config.expansion * features * 2 / 3)
    return -(-wanted // config.width_multiple) * config.width_multiple


class SwiGLU(nn.Module):
    """``down(silu(gate(h)) * up(h))`` along the last axis.

    With ``norm_swiglu`` the product is divided by its root mean square before ``down``. The size of
    ``up`` then no longer matters, that of ``gate`` only through the bend of ``silu``, and however
    large these two matrices grow, what is added to the latents does not: a gated unit is quadratic
    in them, which a large rate of learning would otherwise turn into blow-up.
    """

    def __init__(self, features: int, config: ModelConfig) -> None:
        super().__init__()
        width = swiglu_width(features, config)
        self.gate_up = nn.Linear(features, 2 * width, bias=False)  # one product instead of two
        self.down = nn.Linear(width, features, bias=False)
        self.norm = config.norm_swiglu

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        product = F.silu(gate) * up
        return self.down(rms_norm(product) if self.norm else product)


class TokenMixer(nn.Module):
    """A SwiGLU over the token axis; its post-norm runs over tokens too, as in the official code."""

    def __init__(self, tokens: int, config: ModelConfig) -> None:
        super().__init__()
        self.swiglu = SwiGLU(tokens, config)

    def forward(self, h: Tensor) -> Tensor:  # (B, S, H) -> (B, S, H)
        h = h.transpose(1, 2)
        return rms_norm(h + self.swiglu(h)).transpose(1, 2)


class Attention(nn.Module):
    """Bidirectional self-attention with no, 1-D or 2-D rotary positions, then the post-norm."""

    def __init__(self, config: ModelConfig, height: int, width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)
        # Not persistent: they follow from the configuration, and a checkpoint holds weights.
        size = config.hidden // config.heads
        cos, sin = rope_table(size, height, width, config.rope, config.prefix)
        self.register_buffer("cos", cos, persistent=False)  # (P + S, head size)
        self.register_buffer("sin", sin, persistent=False)
        self.rope_parts = {"none": 0, "1d": 1, "2d": 2}[config.rope]

    def forward(self, h: Tensor) -> Tensor:  # (B, S, H) -> (B, S, H)
        batch, tokens, hidden = h.shape
        qkv = self.qkv(h).view(batch, tokens, 3, self.heads, hidden // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, S, head size)
        if self.rope_parts:
            q, k = self._rotate(q), self._rotate(k)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return rms_norm(h + self.out(mixed.reshape(batch, tokens, hidden)))

    def _rotate(self, h: Tensor) -> Tensor:
        """Rotate pairs (j, j + half) inside each of the one or two parts of the head."""
        wide = at_least_float32(h)  # bfloat16 blurs angles
        parts = wide.unflatten(-1, (self.rope_parts, 2, -1))
        swapped = torch.stack((-parts[..., 1, :], parts[..., 0, :]), dim=-2).flatten(-3)
        return (wide * self.cos + swapped * self.sin).to(h.dtype)


def rope_table(
    size: int, height: int, width: int, kind: str, prefix: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (P + S, size) of rotary positions for tokens in row-major order.

    1-D turns by the token's index, the ``prefix`` tokens before the board counted; 2-D, which has
    no place for these, turns the first half of a head by the row and the second half by the column
    (RoPE: arXiv 2104.09864).
    """
    index = torch.arange(prefix + height * width)
    axes = {"none": [], "1d": [index], "2d": [index // width, index % width]}[kind]
    if not axes:
        return torch.ones(len(index), size), torch.zeros(len(index), size)
    part = size // len(axes)
    rates = 1.0 / ROPE_BASE ** (torch.arange(0, part, 2).float() / part)
    angles = [torch.outer(axis.float(), rates).repeat(1, 2) for axis in axes]
    table = torch.cat(angles, dim=1)
    return table.cos(), table.sin()


class Block(nn.Module):
    """A token mixer, then a channel SwiGLU; each followed by its residual sum and RMS norm."""

    def __init__(self, config: ModelConfig, height: int, width: int) -> None:
        super().__init__()
        self.mixer = (
            TokenMixer(config.prefix + height * width, config)
            if config.mixer == "mlp"
            else Attention(config, height, width)
        )
        self.channel = SwiGLU(config.hidden, config)

    def forward(self, h: Tensor) -> Tensor:
        h = self.mixer(h)
        return rms_norm(h + self.channel(h))


def start_vectors(model: Reasoner) -> tuple[Tensor, Tensor | None]:
    """The fixed or the learned start of ``z_high`` and ``z_low``, each (H,)."""
    if model.config.init == "learned":
        return model.start_high, getattr(model, "start_low", None)
    return model.fixed_high, model.fixed_low


@torch.no_grad()
def init_weights(model: Reasoner, generator: torch.Generator) -> None:
    """All initialisation (paper §3), drawn from ``generator`` in the order of the table.

    ==================  ==================================================================
    embedding           truncated normal, std 1/√H (the embedding is scaled by √H in use)
    every linear map    truncated normal, std 1/√fan_in
    halting head        weight 0, bias −5: nothing halts before it has learned to
    fixed start         truncated normal, std ``init_std_high`` and ``init_std_low``
    learned start       the same draws as the fixed one
    log noise gain      0: the noise is β in every channel
    prefix              0, as in the official code
    ==================  ==================================================================
    """
    config = model.config

    def fill(tensor: Tensor, std: float) -> None:
        tensor.copy_(truncated_normal(tensor.shape, std, generator, tensor))

    fill(model.embed.weight, 1 / math.sqrt(config.hidden))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.halt_head:
            fill(module.weight, 1 / math.sqrt(module.in_features))
    # From zero, so that the first answers decide what the head learns, not its draw.
    model.halt_head.weight.zero_()
    model.halt_head.bias.fill_(-5.0)
    for start, std in zip(
        start_vectors(model), (config.init_std_high, config.init_std_low), strict=True
    ):
        if start is not None:
            fill(start, std)


#: Gives the ε that an update adds to a latent (B, S, H), its β already in it; None adds nothing.
Noise = Callable[[Tensor], Tensor | None]


def gaussian(beta: float, generator: Generators | None) -> Noise:
    """The ε of paper §3: normal with standard deviation ``beta``, drawn anew for each update.

    Raises:
        ValueError: ``beta > 0`` without a generator.
    """
    if beta and generator is None:
        raise ValueError("noise > 0 needs a generator")
    return lambda z: beta * standard_normal(z.shape, generator, z) if beta else None


def parameter_count(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())


def weight_count(config: ModelConfig, tokens: int, vocab_size: int) -> int:
    """Number of values in the large matrices of a model, without making one.

    Args:
        tokens: of the latents: those of the board, and of a prefix.
    """
    hidden = config.hidden
    mixer = mlp_weights(tokens, config) if config.mixer == "mlp" else 4 * hidden**2
    return config.blocks * (mlp_weights(hidden, config) + mixer) + 2 * vocab_size * hidden


def require_weights(
    config: ModelConfig, board: int, vocab_size: int, tensors: Mapping[str, Tensor]
) -> None:
    """ValueError where a model would have more values than its file."""
    wanted = weight_count(config, config.prefix + board, vocab_size)
    there = sum(value.numel() for value in tensors.values())
    if wanted > there:
        raise ValueError(f"{wanted:,} weights are wanted, and {there:,} are there")


def mlp_weights(features: int, config: ModelConfig) -> int:
    """Values in the matrices of a SwiGLU."""
    return 3 * features * swiglu_width(features, config)


def layer_operations(config: ModelConfig, tokens: int) -> int:
    """Operations of one block for one problem, in its products with weights; see eqr.cost."""
    mixer = config.hidden * mlp_weights(tokens, config)
    if config.mixer == "attention":
        mixer = 4 * tokens * config.hidden**2
    return 2 * (tokens * mlp_weights(config.hidden, config) + mixer)


def require_rows(model: Reasoner, rows: int, pairs: int) -> None:
    """SizeError where so many trajectories cannot be in flight, out of so many pairs of problem and
    restart, or one iteration of them would not end."""
    if not isinstance(getattr(model, "config", None), ModelConfig):
        return  # another operator, of which nothing is known
    config, tokens = model.config, model.latent_tokens
    inner = max(swiglu_width(config.hidden, config), config.hidden)
    each = 4 * tokens * (6 * config.hidden + 3 * inner)  # states, an update, and within a block
    remedy = "lower the rows, the breadth or the problems"
    require_memory(each * min(rows, pairs) + 48 * pairs, f"{pairs:,} trajectories", remedy)
    require_time(config, tokens, 1, "one iteration of the model")


def require_time(config: ModelConfig, tokens: int, rows: int, what: str) -> None:
    """SizeError where so many applications of the operator would take years here."""
    operations = rows * config.layers * layer_operations(config, tokens)
    if operations > MOST_OPERATIONS or config.layers > MOST_LAYERS:
        size = f"{config.layers:,} layers and {operations:.0e} operations"
        raise SizeError(
            f"{what} takes {size}, years here: lower the cycles, the width or the batch"
        )
