"""Named streams of random numbers: every draw in the project comes from one of these.

A stream is a function of the run's seed, a name and an index (a training step, a row, …), so there
is no generator state to save: a batch is a function of (seed, step), a trajectory's start and noise
of (seed, problem, restart). Nothing here, or anywhere in the package, seeds a global generator.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch


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
