"""The update operator: its blocks, its heads, and one outer iteration of the dynamics (paper §3).

One *outer iteration* (one NFE) maps the latent pair ``(z_high, z_low)`` of a problem ``x`` to the
next one. Which reasoner it is (EqR, TRM-style, single latent, feedforward) is a matter of
:class:`eqr.config.ModelConfig` alone.

Shapes: ``B`` rows, ``S`` tokens, ``H`` hidden channels, ``V`` vocabulary. The latents of a model
with a prefix of ``P`` tokens have ``P + S``, the prefix first.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqr.config import ModelConfig
from eqr.layers import Block, Noise, at_least_float32, gaussian, init_weights, start_vectors
from eqr.streams import Generators, truncated_normal
from eqr.task import Task


@dataclass(frozen=True, slots=True)
class State:
    """The latent pair. A single-latent model has ``z_low`` with zero tokens."""

    z_high: Tensor  # (B, P + S, H)
    z_low: Tensor  # (B, P + S, H), or (B, 0, H)

    def detach(self) -> State:
        return State(self.z_high.detach(), self.z_low.detach())

    def replace_rows(self, mask: Tensor, other: State) -> State:
        """Rows of ``other`` where ``mask`` (B,) holds, rows of ``self`` elsewhere."""
        where = mask[:, None, None]
        return State(
            torch.where(where, other.z_high, self.z_high),
            torch.where(where, other.z_low, self.z_low),
        )

    def flat(self) -> Tensor:
        """Both latents as one vector a row, (B, D)."""
        return torch.cat((self.z_high.flatten(1), self.z_low.flatten(1)), dim=1)


@dataclass(frozen=True, slots=True)
class Step:
    """What one outer iteration returns."""

    state: State
    logits: Tensor  # (B, S, V)
    halt: Tensor  # (B,) logit of the halting head; > 0 means "settled"

    @property
    def answer(self) -> Tensor:
        """The decoded tokens, (B, S)."""
        return self.logits.argmax(-1)

    @property
    def margin(self) -> Tensor:
        """The smallest gap between a token's best and second logit, (B,) (paper A.1)."""
        best = self.logits.topk(2, dim=-1).values
        return (best[..., 0] - best[..., 1]).amin(1)


def residual(before: State, after: State) -> Tensor:
    """Root-mean-square change of a latent element over one outer iteration, (B,).

    This is the paper's ``‖f(z) − z‖`` divided by the square root of the number of elements, so that
    values compare across model sizes. RMS-normalised latents have elements of size about 1.
    """
    # In bfloat16 a sum of thousands of squares would stop growing.
    change = at_least_float32(after.z_high - before.z_high).square().sum((1, 2))
    change = change + at_least_float32(after.z_low - before.z_low).square().sum((1, 2))
    elements = before.z_high[0].numel() + before.z_low[0].numel()
    return (change / elements).sqrt()


def logit_change(before: Tensor, after: Tensor) -> Tensor:
    """How far a token's logits moved, ‖Δ logits‖₂ in the mean over tokens, (B, S, V) -> (B,).

    What the official code calls convergence; it sees only what the answer is read from.
    """
    return at_least_float32(after - before).norm(dim=-1).mean(1)


class Reasoner(nn.Module):
    """A latent reasoner: embeds a problem, iterates its latents, decodes tokens from ``z_high``.

    With ``config.prefix`` = P, P tokens stand before the board: one trained vector of
    ``prefix_width`` numbers, zero at first, padded with zeros and cut into P tokens (paper §7).
    Starts, noise and mixer cover them, the halting head reads the first, the logits leave them
    out. The official code trains a table of such vectors, one an identifier, by SignSGD at a rate
    of its own; these tasks have one identifier, and here it is a parameter like any other.

    Args:
        config: the operator's settings.
        height, width: the board; ``S = height · width`` tokens in row-major order.
        vocab_size: number of tokens, 0 being the pad.
        generator: draws the initial weights; None leaves them for a checkpoint to fill.
    """

    #: How its loss turns logits into probabilities; :func:`eqr.checkpoint.load_model` sets it.
    normalisation = "softmax"

    def __init__(
        self,
        config: ModelConfig,
        height: int,
        width: int,
        vocab_size: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.height, self.width, self.vocab_size = height, width, vocab_size
        self.tokens = height * width
        self.latent_tokens = config.prefix + self.tokens
        self.embed = nn.Embedding(vocab_size, config.hidden)
        self.blocks = nn.ModuleList(Block(config, height, width) for _ in range(config.blocks))
        self.lm_head = nn.Linear(config.hidden, vocab_size, bias=False)
        self.halt_head = nn.Linear(config.hidden, 1)  # of the two official outputs the one used
        if config.prefix:
            self.prefix = nn.Parameter(torch.zeros(config.prefix_width or config.hidden))
        # The start of `init="fixed"`: one vector for all tokens, drawn once and never trained;
        # that of `init="learned"` is the same vector as a parameter.
        learned = config.init == "learned"
        for name in ("high", "low"):
            vector = torch.zeros(config.hidden)
            if not learned:
                self.register_buffer(f"fixed_{name}", vector)
            elif name == "high" or config.hierarchical:
                self.register_parameter(f"start_{name}", nn.Parameter(vector))
            if config.learn_noise and (name == "high" or config.hierarchical):
                gain = nn.Parameter(torch.zeros(config.hidden))
                self.register_parameter(f"noise_{name}", gain)
        if generator is not None:
            init_weights(self, generator)

    @classmethod
    def for_task(
        cls, task: Task, config: ModelConfig, generator: torch.Generator | None = None
    ) -> Reasoner:
        """A model with the board and vocabulary of ``task``."""
        return cls(config, task.height, task.width, task.vocab_size, generator)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    def initial_state(self, rows: int, generator: Generators) -> State:
        """Where trajectories start, for ``rows`` rows (paper: RI, or one fixed vector).

        ``init="random"`` draws each row's latents from a truncated normal; ``"fixed"`` and
        ``"learned"`` give every row the same state and draw nothing. A learned start carries a
        gradient.
        """
        config, like = self.config, self.lm_head.weight
        tokens = self.latent_tokens
        tokens_low = tokens if config.hierarchical else 0
        if config.init != "random":
            high, low = start_vectors(self)
            low = high if low is None else low  # a single latent has no tokens for it
            high = high.expand(rows, tokens, -1)
            # Clones: an expanded tensor shares its memory between rows.
            return State(high.clone(), low.expand(rows, tokens_low, -1).clone())
        shape = (rows, tokens, config.hidden)
        high = truncated_normal(shape, config.init_std_high, generator, like)
        if not tokens_low:
            return State(high, high.new_zeros(rows, 0, config.hidden))
        return State(high, truncated_normal(shape, config.init_std_low, generator, like))

    def embedding(self, x: Tensor) -> Tensor:
        """What the latents get of problem tokens ``x`` (B, S): (B, P + S, H)."""
        hidden, emb = self.config.hidden, self.embed(x.long())
        if self.config.prefix:
            padding = self.config.prefix * hidden - self.prefix.numel()
            first = F.pad(self.prefix, (0, padding)).view(1, -1, hidden)
            emb = torch.cat((first.expand(x.shape[0], -1, -1), emb), dim=1)
        # Drawn with std 1/√H, the embedding has elements of size 1 here, as the latents have.
        return emb * math.sqrt(hidden)

    def read_logits(self, z_high: Tensor) -> Tensor:
        """The logits (B, S, V) of the board's tokens, from ``z_high`` (B, P + S, H)."""
        return self.lm_head(z_high[:, self.config.prefix :])

    def forward(
        self,
        z: Tensor,
        u: Tensor,
        damping: float | Tensor,
        noise: Tensor | None = None,
        log_gain: Tensor | None = None,
    ) -> Tensor:
        """The operator ``F``: ``λ z + (1 − λ) blocks(z + u) + ε`` (paper §3), all (B, S, H).

        Deterministic, so that it can be compiled as a whole (:mod:`eqr.compiled`).

        Args:
            z, u: the latent to update, and what is added to it.
            damping: λ.
            noise: ε with its β already in it; None adds none.
            log_gain: (H,) the ``g`` of ``learn_noise``: ε becomes ``ε exp(g)`` in each channel.
        """
        h = z + u
        for block in self.blocks:
            h = block(h)
        if damping:  # else the blend would only round
            h = damping * z + (1 - damping) * h
        if noise is not None:
            h = h + (noise if log_gain is None else noise * log_gain.exp())
        return h

    def step(
        self,
        state: State,
        x: Tensor,
        *,
        noise: float | Noise,
        generator: Generators | None = None,
        damping: float | Tensor | None = None,
        high_cycles: int | None = None,
        low_cycles: int | None = None,
    ) -> Step:
        """One outer iteration.

        Args:
            state: latents of B rows.
            x: problem tokens, (B, S) integers.
            noise: β of this iteration; 0 makes the map deterministic. Or a function that gives the
                ε of each update in turn, for noise that comes from elsewhere (an ONNX graph's
                input, another implementation's draws).
            generator: draws the noise of a β > 0, and is needed for it.
            damping: λ; None takes the configuration's.
            high_cycles, low_cycles: T and n; None takes the configuration's.

        Gradients flow through the last ``grad_cycles`` cycles only. Cut there, none would ever
        reach a learned start; with ``init="learned"`` the earlier cycles therefore hand the
        gradient on to the state they began from, and still give none to the weights: the start
        gets its exact gradient, and the weights the same truncated one as with any other start.
        """
        config = self.config
        draw = noise if callable(noise) else gaussian(noise, generator)
        damping = config.damping if damping is None else damping
        high_cycles = config.high_cycles if high_cycles is None else high_cycles
        low_cycles = config.low_cycles if low_cycles is None else low_cycles
        emb = self.embedding(x)
        z_high, z_low = state.z_high, state.z_low
        gains = (self.noise_high, getattr(self, "noise_low", None)) if config.learn_noise else ()
        gain_high, gain_low = gains or (None, None)
        through = config.init == "learned" and torch.is_grad_enabled()
        early = self._state_gradient_only if through else torch.no_grad
        for cycle in range(high_cycles):
            cut = cycle < high_cycles - config.grad_cycles
            u = emb.detach() if cut else emb  # nor does a cut cycle train the embedding
            with early() if cut else contextlib.nullcontext():
                if config.hierarchical:
                    for _ in range(low_cycles):
                        z_low = self(z_low, z_high + u, damping, draw(z_low), gain_low)
                    z_high = self(z_high, z_low, damping, draw(z_high), gain_high)
                else:
                    for _ in range(low_cycles):
                        z_high = self(z_high, u, damping, draw(z_high), gain_high)
        # Tokens before halting: gradients of z_high are summed in this order, bit for bit.
        logits = self.read_logits(z_high)
        halt = self.halt_head(z_high[:, 0]).squeeze(-1)  # reads the first token alone
        return Step(State(z_high, z_low), logits, halt)

    @contextlib.contextmanager
    def _state_gradient_only(self) -> Iterator[None]:
        """What is computed inside passes gradients to the latents and none to the weights."""
        # Detaching the weights instead would need a second forward pass of every layer.
        trained = [p for p in self.parameters() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in trained:
                p.requires_grad_(True)
