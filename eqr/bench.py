"""How fast training and evaluation are, beside what the machine's matrix products can do.

Rates are to be read as ratios within one run: absolute times depend on the machine and its load.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from eqr import data
from eqr.config import Recipe
from eqr.cost import step_flops
from eqr.model import forward_flops, parameter_count
from eqr.rollout import rollout
from eqr.store import processor
from eqr.train import Trainer


def rate(work: Callable[[], object], seconds: float, device: str) -> float:
    """Calls a second, over at least ``seconds``, after two calls that are not counted."""

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work(), work()
    finish()
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work()
        calls += 1
    finish()
    return calls / (time.perf_counter() - began)


def matmul_flops(device: str, seconds: float, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of a large square matrix product."""
    size = 8192 if device == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    return rate(lambda: left @ right, seconds, device) * 2 * size**3


def bench(recipe: Recipe, device: str = "cpu", seconds: float = 5.0) -> dict:
    """Measure one recipe, with its operator in full; see the keys of the result.

    The matrix-product rate is taken before and after, and the mean is used, so that a machine that
    slows down in between does not flatter the shares. A training step costs one forward pass plus
    twice the share of it that carries a gradient.
    """
    small = replace(
        recipe,
        data=replace(recipe.data, source="generate", train=64, test=64),
        train=replace(recipe.train, short_until=0.0),
    )
    problems = data.build(small.task, small.data)
    trainer = Trainer(small, problems, device)
    model, train = trainer.model, recipe.train
    dtype = torch.bfloat16 if train.dtype == "bfloat16" else torch.float32
    peak = matmul_flops(device, seconds / 2, dtype)
    steps = rate(trainer.advance, seconds, device)

    rows = 64
    inputs = torch.as_tensor(problems.test.inputs)

    def evaluate() -> None:
        for _ in rollout(trainer.average, inputs, depth=4, rows=rows):
            pass

    passes = rate(evaluate, seconds, device)
    peak = (peak + matmul_flops(device, seconds / 2, dtype)) / 2
    flops = forward_flops(model)
    operations = step_flops(recipe, model)
    iterations = passes * len(inputs) * 4
    if device == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "recipe": recipe.name,
        "device": device,
        "hardware": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "batch": train.batch,
        "parameters": parameter_count(model),
        "dtype": train.dtype,
        "matmul_gflops": peak / 1e9,
        "forward_gflop_per_iteration": flops / 1e9,
        "train_steps_per_s": steps,
        "train_ms_per_puzzle_iteration": 1e3 / (steps * train.batch * train.unroll),
        "train_share_of_matmul": steps * operations / peak,
        "eval_puzzles_per_s_at_depth_16": iterations / 16,
        "eval_ms_per_puzzle_iteration": 1e3 / iterations,
        "eval_share_of_matmul": iterations * flops / peak,
        "peak_memory_mib": memory,
    }
