"""Named streams of random numbers: every draw in the project comes from one of these.

A stream is a function of the run's seed, a name and an index (a training step, a row, …), so there
is no generator state to save: a batch is a function of (seed, step), a trajectory's start and noise
of (seed, problem, restart). Nothing here, or anywhere in the package, seeds a global generator.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def stream_seed(seed: int, name: str, *index: int) -> int:
    """A 64-bit seed mixed from ``seed``, ``name`` and ``index`` (all non-negative).

    >>> stream_seed(0, "data", 1) == stream_seed(0, "data", 1) != stream_seed(0, "noise", 1)
    True
    """
    words = (seed, zlib.crc32(name.encode()), *index)
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


@dataclass(frozen=True, slots=True)
class Slots:
    """Draws for some rows of a batch, equal to those rows of a draw for the whole batch."""

    whole: torch.Generator
    batch: int
    own: slice


def stream(
    seed: int, name: str, *index: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A fresh generator of the stream ``name`` at ``index``, on ``device``."""
    return torch.Generator(device).manual_seed(stream_seed(seed, name, *index))


#: One generator for all rows, or one for each row (then a row's draws do not depend on its batch),
#: or one for a batch of which these are some rows.
Generators = torch.Generator | Sequence[torch.Generator] | Slots


def draw_rows(
    rows: int, generator: Generators, draw: Callable[[int, torch.Generator], Tensor]
) -> Tensor:
    """``draw(rows, generator)``, or one row from each of ``rows`` generators, as with one row."""
    if isinstance(generator, Slots):
        # The whole batch is drawn, so that it is the same for any number of processes.
        return draw_rows(generator.batch, generator.whole, draw)[generator.own]
    if isinstance(generator, torch.Generator):
        return draw(rows, generator)
    if len(generator) != rows:
        raise ValueError(f"{len(generator)} generators for {rows} rows: give one, or one a row")
    if not rows:
        return draw(0, torch.Generator())
    return torch.cat([draw(1, own) for own in generator])


def _draws(shape: Sequence[int], generator: Generators, law: str) -> Tensor:
    """Draws of ``shape`` (B, ...) by the tensor method ``law``, on the generator's device."""

    def draw(rows: int, own: torch.Generator) -> Tensor:
        empty = torch.empty((rows, *shape[1:]), device=own.device)
        return getattr(empty, law)(generator=own)

    return draw_rows(shape[0], generator, draw)


def standard_normal(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Normal draws of ``shape`` (B, ...) in the device and dtype of ``like``."""
    return _draws(shape, generator, "normal_").to(device=like.device, dtype=like.dtype)


def truncated_normal(
    shape: Sequence[int], std: float, generator: Generators, like: Tensor
) -> Tensor:
    """Draws from a normal cut at ±2, rescaled so that their standard deviation is ``std``.

    Cutting a unit normal at ±2 leaves a standard deviation of 0.88; the draws are divided by it
    ("variance-compensated", paper §3).
    """
    edge = math.erf(2 / math.sqrt(2))
    draws = torch.erfinv((2 * _draws(shape, generator, "uniform_") - 1) * edge) * math.sqrt(2)
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    cut_std = math.sqrt(1 - 4 * density / edge)
    # Float32's uniform may be 0 or near 1, where erfinv overshoots the cut by rounding.
    draws = (draws / cut_std * std).clamp_(-2 * std / cut_std, 2 * std / cut_std)
    return draws.to(device=like.device, dtype=like.dtype)
