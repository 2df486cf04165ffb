"""Fused kernels for the operator, through ``torch.compile`` where this machine can build them.

Norms, gates, damping and noise of an update are a few passes over memory each when they run one
by one; compiled they are fused. Nothing but the rounding changes. Building takes some seconds (half
a minute the first time on a machine, which keeps what it built), so short runs go without.

``EQR_COMPILE=0`` switches it off, ``EQR_COMPILE=1`` on whatever the length of the run.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import warnings

import torch

from eqr.config import EvalConfig, Recipe
from eqr.cost import forward_flops
from eqr.model import Reasoner
from eqr.settings import ConfigError

#: What one outer iteration costs beside its matrix products, and how fast a core does those: a
#: guess that only decides whether a piece of work is long enough to be worth compiling for.
ITERATION_S, FLOPS_A_S = 5e-3, 5e10
WORTH_S = 60.0


@functools.cache
def trouble(device: str = "cpu") -> str:
    """Why nothing can be compiled for ``device`` here; empty where it can. Tries it once."""
    torch._dynamo.config.recompile_limit = 256  # one process may run many models and shapes
    try:
        values = torch.ones(8, device=device)
        torch.compile(lambda x: torch.rsqrt(x.square() + 1) * 2, fullgraph=True)(values)
    except (RuntimeError, OSError, ImportError) as error:  # no C++ compiler, no Python headers, …
        return " ".join(str(error).split())[-300:]  # the compiler's own words come last
    return ""


def wanted(seconds: float) -> bool:
    """Whether work that takes about so long without compiling should be compiled."""
    asked = os.environ.get("EQR_COMPILE", "auto")
    if asked not in ("0", "1", "auto"):
        raise ConfigError(f"EQR_COMPILE = {asked!r} must be 0, 1 or auto")
    return asked == "1" or (asked == "auto" and seconds >= WORTH_S)


def seconds_of(iterations: int, flops: float) -> float:
    """A rough guess of the time of so many outer iterations of ``flops`` operations each."""
    return iterations * (ITERATION_S + flops / FLOPS_A_S)


def training_is_long(recipe: Recipe) -> bool:
    """Whether to compile for a training run: see :func:`wanted`."""
    with torch.device("meta"):
        flops = forward_flops(Reasoner.for_task(recipe.task, recipe.model))
    iterations = recipe.train.steps * recipe.train.unroll
    return wanted(seconds_of(iterations, 3 * flops * recipe.train.batch))


def evaluation_is_long(model: Reasoner, config: EvalConfig, rows: int) -> bool:
    """Whether to compile for an evaluation of ``config.problems``: see :func:`wanted`.

    Args:
        rows: trajectories in flight.
    """
    chunks = math.ceil(config.problems * config.breadth / rows)
    return wanted(seconds_of(chunks * config.depths[-1], rows * forward_flops(model)))


def compile_operator(*models: Reasoner) -> bool:
    """Compile the operator of models in place; False, with a warning, where this machine cannot.

    Raises:
        ConfigError: it cannot, and ``EQR_COMPILE=1`` asked for it.
    """
    if why := trouble(models[0].device.type):
        if os.environ.get("EQR_COMPILE") == "1":
            raise ConfigError(f"EQR_COMPILE = 1, but nothing can be compiled here: {why}")
        warnings.warn(f"running uncompiled, at about half the speed: {why}", stacklevel=2)
        return False
    for model in models:
        model.compile(fullgraph=True)
    return True


def compiled_copy(model: Reasoner) -> Reasoner:
    """A copy of the model with its operator compiled, or the model itself where that cannot be."""
    copied = copy.deepcopy(model)
    return copied if compile_operator(copied) else model
