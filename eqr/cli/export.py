"""``eqr export``: a trained model's outer iteration as ONNX, with a description beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eqr.cli.console import Json, emit
from eqr.settings import ConfigError


def export_command(
    model: Annotated[Path, typer.Argument(help="A model.safetensors file.")],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write, such as model.onnx.")],
    as_json: Json = False,
) -> None:
    """Write one outer iteration as ONNX: latents, problem, noise, beta and damping in; the next
    latents, logits, halting logit and residual out, for any number of rows.

    It is compared with PyTorch before anything is written. A JSON file of the same name says
    what shapes it wants, how trajectories start, and what the tokens are.

    Example: eqr export $MODEL sudoku6.onnx
    """
    from eqr.checkpoint import load_model
    from eqr.store import replace_file
    from eqr.viewer.onnx import INPUTS, OUTPUTS, describe, export

    if out.suffix != ".onnx":
        raise ConfigError(f"{out}: the file to write must end in .onnx")
    loaded = load_model(model)
    meta = {"weights": loaded.sha256, "source": loaded.meta}
    made = export(loaded.model, out, meta)
    about = describe(loaded.model, loaded.task) | meta | {"inputs": INPUTS, "outputs": OUTPUTS}
    side = out.with_suffix(".json")
    replace_file(side, (json.dumps(about, indent=1) + "\n").encode())
    if as_json:
        size, gap = made.size, made.difference
        emit({"onnx": str(out), "json": str(side), "bytes": size, "difference": gap})
    else:
        print(out)
