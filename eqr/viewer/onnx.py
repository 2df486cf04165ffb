"""One outer iteration as an ONNX file, for readers who have no torch (``eqr export``), and what a
caller who has neither torch nor this package wants to know of a model.

The graph is the map ``f(z; x)`` of the paper (§3) with everything that a caller may want to vary as
an input: the latents, the problem, the noise that is added at each update, its size β, and the
damping λ. Whoever runs it draws starts and noise; so a result can be compared with torch number by
number, and :func:`export` does so before it writes anything.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqr import __version__
from eqr.files import write_file
from eqr.layers import parameter_count, start_vectors
from eqr.model import Reasoner, State, residual
from eqr.settings import UserError
from eqr.streams import stream
from eqr.task import Task
from eqr.viewer.frames import board_of

INPUTS = ("z_high", "z_low", "x", "noise", "beta", "damping")
OUTPUTS = ("next_high", "next_low", "logits", "halt", "residual")
OPSET = 17  # the oldest with all that a model needs; every runtime since 2022 reads it
TOLERANCE = 1e-4  # of any output against torch


class ExportError(UserError):
    """A model that cannot be exported, or whose export disagrees with it; one line."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What :func:`export` has written."""

    path: Path  # the ONNX file; beside it lies the same name with .json
    size: int  # bytes
    difference: float  # largest difference from torch, over all outputs


class OneIteration(nn.Module):
    """:meth:`eqr.model.Reasoner.step` with the noise given instead of drawn."""

    def __init__(self, model: Reasoner) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, z_high: Tensor, z_low: Tensor, x: Tensor, noise: Tensor, beta: Tensor, damping: Tensor
    ) -> tuple[Tensor, ...]:
        """The outputs named in ``OUTPUTS``.

        Args:
            z_high: (B, S, H) latents; z_low: the same, or (B, 0, H) for a single latent.
            x: (B, S) int64 problem tokens.
            noise: (K, B, S, H) standard normal draws, one for each of the K ``config.updates``, in
                the order in which ``step`` draws them.
            beta, damping: scalars β and λ.
        """
        before, drawn = State(z_high, z_low), iter(noise)
        step = self.model.step(before, x, noise=lambda z: beta * next(drawn), damping=damping)
        after = step.state
        return after.z_high, after.z_low, step.logits, step.halt, residual(before, after)


def example(model: Reasoner, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of ``OneIteration`` for ``rows`` rows: a random start, random tokens, β > 0.

    Float32, and int64 for ``x``; shapes as in :meth:`OneIteration.forward`.
    """
    own = stream(seed, "export", rows)
    state = model.initial_state(rows, own)
    noise = torch.randn((model.config.updates, *state.z_high.shape), generator=own)
    x = torch.randint(1, model.vocab_size, (rows, model.tokens), generator=own)
    values = (state.z_high, state.z_low, x, noise, torch.tensor(0.1), torch.tensor(0.3))
    return {name: value.detach().numpy() for name, value in zip(INPUTS, values, strict=True)}


def export(model: Reasoner, path: Path, meta: Mapping[str, Any] | None = None) -> Exported:
    """Write ``model``'s outer iteration to ``path`` as ONNX; the file appears whole or not at all.

    Args:
        model: in float32, on the CPU.
        meta: goes into the file's properties, as JSON under the key ``eqr``.

    Raises:
        ExportError: the package onnx is missing, or the graph disagrees with torch.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = traced(model)
    onnx.helper.set_model_props(graph, {"eqr": json.dumps(dict(meta or {}), sort_keys=True)})
    graph.producer_name, graph.producer_version = "eqr-book", __version__
    onnx.checker.check_model(graph)
    gap = disagreement(model, partial(ReferenceEvaluator(graph).run, None))
    if not gap <= TOLERANCE:
        raise ExportError(f"{path}: differs from torch by {gap:.2g}, more than {TOLERANCE}")
    content = graph.SerializeToString(deterministic=True)
    write_file(path, content)
    return Exported(path, len(content), gap)


def traced(model: Reasoner) -> Any:
    """The ONNX graph (an ``onnx.ModelProto``) of ``model``, with the number of rows left open.

    Through the TorchScript exporter: it needs no further package, and its files are smaller. That
    it is the older of two ways is all that it has to say, so its warnings are not shown.

    Raises:
        ExportError: the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExportError("onnx is not installed here: pip install 'eqr-book[book]'") from error
    inputs = tuple(torch.from_numpy(value) for value in example(model, 2).values())
    rows = {name: {0: "rows"} for name in ("z_high", "z_low", "x", *OUTPUTS)}
    rows["noise"] = {1: "rows"}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                OneIteration(model).eval(),
                inputs,
                buffer,
                input_names=list(INPUTS),
                output_names=list(OUTPUTS),
                dynamic_axes=rows,
                opset_version=OPSET,
                dynamo=False,
            )
        finally:
            logging.disable(logging.NOTSET)
    return onnx.load_model_from_string(buffer.getvalue())


@torch.no_grad()
def disagreement(model: Reasoner, run: Callable[[dict[str, np.ndarray]], Sequence[Any]]) -> float:
    """The largest difference of any output of ``run`` from torch, NaN where one is.

    ``run`` takes the inputs of :func:`example`. For three rows, with noise and damping and with
    neither.
    """
    gaps = []
    for quiet in (False, True):
        inputs = example(model, 3, seed=1)
        if quiet:
            inputs |= {"beta": np.zeros((), np.float32), "damping": np.zeros((), np.float32)}
        expected = OneIteration(model)(*(torch.from_numpy(value) for value in inputs.values()))
        for output, value in zip(run(inputs), expected, strict=True):
            gaps.append(np.abs(np.ravel(output) - value.numpy().ravel()).max(initial=0))
    return float(np.max(gaps))


def describe(model: Reasoner, task: Task) -> dict[str, Any]:
    """All that a caller without this package needs to run the file: the sidecar's content.

    The task's fields and symbols, the model's settings, shapes, what makes probabilities of its
    logits (:func:`eqr.optim.probabilities`), and how trajectories start: random ones from a normal
    cut at ±2 with the standard deviations given, others from the vectors given.
    """
    config = model.config
    start: dict[str, Any] = {"kind": config.init}
    if config.init == "random":
        start |= {"std_high": config.init_std_high, "std_low": config.init_std_low}
    else:
        high, low = start_vectors(model)
        start |= {"high": high.tolist(), "low": (high if low is None else low).tolist()}
    return {
        "task": board_of(task),
        "vocab_size": task.vocab_size,
        "hidden": config.hidden,
        "tokens_low": model.latent_tokens if config.hierarchical else 0,
        "updates": model.config.updates,
        "noise": config.noise,
        "damping": config.damping,
        "start": start,
        "normalisation": model.normalisation,
        "parameters": parameter_count(model),
        "model": asdict(config),
    }
