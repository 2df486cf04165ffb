"""Several processes as one: data-parallel training and sharded evaluation under ``torchrun``.

    torchrun --nproc-per-node 2 -m eqr train sudoku9

A result does not depend on the number of processes. In training every process draws the whole
batch and the whole noise of a step, which are functions of (seed, step), and keeps the rows of its
own slots; gradients are summed, so that weights agree up to the rounding of that sum. In evaluation
each process takes whole chunks of rows, and the gathered records are equal to the bit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from eqr.settings import ConfigError, UserError


class WorldError(UserError):
    """The processes have lost each other."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Say what a failed exchange means: torch reports it as a RuntimeError of its backend."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0].partition(". ")[0]
        raise WorldError(
            f"another process of this run has ended ({first}); start the same command again to go "
            "on from the last checkpoint"
        ) from error


def _sum(values: Tensor) -> None:
    """Sum over the processes, in place."""
    with _together():
        dist.all_reduce(values)


@dataclass(frozen=True, slots=True)
class World:
    """The processes that work on one result. Alone, every method leaves things as they are."""

    rank: int = 0  # rank 0 writes files and talks to people
    world_size: int = 1

    def own(self, total: int) -> slice:
        """Which of ``total`` slots are this process's: contiguous, as even as can be.

        >>> [World(rank, 3).own(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        """
        first, end = (rank * total // self.world_size for rank in (self.rank, self.rank + 1))
        return slice(first, end)

    def average_(self, means: Sequence[Tensor], share: float) -> None:
        """Turn means over this process's slots into means over all slots, in place.

        Args:
            means: floating tensors of any shape, gradients among them; the same on every process.
            share: this process's slots, as a share of all.
        """
        if self.world_size == 1:
            return
        # One exchange a dtype: many small ones would each pay the latency.
        for dtype in dict.fromkeys(mean.dtype for mean in means):
            alike = [mean.detach() for mean in means if mean.dtype == dtype]
            flat = torch.cat([mean.flatten() for mean in alike]) * share
            _sum(flat)
            parts = flat.split([mean.numel() for mean in alike])
            for mean, part in zip(alike, parts, strict=True):
                mean.copy_(part.view_as(mean))

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """The rows of all slots, (total, ...), from those of each process's own slots."""
        if self.world_size == 1:
            return rows
        whole = rows.new_zeros((total, *rows.shape[1:]))
        whole[self.own(total)] = rows
        _sum(whole)  # everything but one of the terms is zero
        return whole

    def add_(self, array: np.ndarray) -> None:
        """Sum an array over the processes, in place; of booleans, the union."""
        if self.world_size > 1:
            _sum(torch.from_numpy(array.view(np.uint8) if array.dtype == bool else array))

    def share(self, value: Any = None) -> Any:
        """The first process's value, on every process. All wait for it."""
        if self.world_size == 1:
            return value
        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return box[0]


ALONE = World()


@contextlib.contextmanager
def joined(device: str = "cpu") -> Iterator[World]:
    """The world that ``torchrun`` has started this process in; alone without it.

    On CUDA each process takes the GPU of its local rank.

    Raises:
        ConfigError: the device cannot be shared between processes, or there are too few.
    """
    # Clusters set some of these for purposes of their own: torchrun sets all.
    given = [os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_PORT")]
    together = all(word.isdecimal() for word in given) and "MASTER_ADDR" in os.environ
    size = int(given[0]) if together else 1
    if size == 1:
        yield ALONE
        return
    if device == "mps":
        raise ConfigError("--device mps works in one process only: leave out torchrun")
    backend = "gloo"
    if device == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ConfigError(f"torchrun --nproc-per-node must be at most {there}, the GPUs here")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # records are summed on the processor
    dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
