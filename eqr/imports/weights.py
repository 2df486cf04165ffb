"""Weights of the official code (locuslab/EqR): its names, its configuration, its ``.pth`` files."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, serialization

from eqr.checkpoint import CheckpointError, save_model
from eqr.config import ModelConfig
from eqr.data import file_sha256
from eqr.model import Reasoner
from eqr.settings import ConfigError, from_dict
from eqr.task import Task, task_from_dict

_OFFICIAL_NAMES = {
    "embed_tokens.embedding_weight": "embed.weight",
    "lm_head.weight": "lm_head.weight",
    "mlp_t.gate_up_proj.weight": "mixer.swiglu.gate_up.weight",
    "mlp_t.down_proj.weight": "mixer.swiglu.down.weight",
    "self_attn.qkv_proj.weight": "mixer.qkv.weight",
    "self_attn.o_proj.weight": "mixer.out.weight",
    "mlp.gate_up_proj.weight": "channel.gate_up.weight",
    "mlp.down_proj.weight": "channel.down.weight",
}


def official_config(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> tuple[ModelConfig, Task]:
    """Our configuration for one of the official code (a whole file or its ``arch`` part).

    The official code takes ``seq_len`` and ``vocab_size`` from its data and does not store them:
    where they are missing, the weights, the board or the data's name tell them (see
    :func:`_sizes`).

    Official ``H_cycles`` is our ``high_cycles``, ``L_cycles`` our ``low_cycles``, ``L_layers`` our
    ``blocks``, ``lambda_`` our ``1 − damping`` (0.95 where not given) and ``noise_scale`` our
    ``noise`` (0.01 where not given).

    Raises:
        ConfigError: a needed key is missing or has no counterpart here.
    """
    arch = values.get("arch") or {}
    if not isinstance(arch, Mapping):
        raise ConfigError("official configuration: arch must be a section of settings")
    values = {**values, **arch}
    values = {**_sizes(values, tensors or {}), **values}
    needed = ("seq_len", "vocab_size", "hidden_size", "num_heads", "H_cycles", "L_cycles")
    for key in (*needed, "L_layers", "pos_encodings", "mlp_t"):
        if key not in values:
            raise ConfigError(f"official configuration: {key} is missing; add it")
    ropes = {"rope": "1d", "rope2d": "2d", "none": "none", None: "none"}
    if values["pos_encodings"] not in ropes:
        raise ConfigError(
            f"official configuration: pos_encodings = {values['pos_encodings']!r} is not known"
        )
    for key in ("seq_len", "vocab_size"):
        if type(values[key]) is not int:
            raise ConfigError(f"official configuration: {key} must be a whole number")
    if not isinstance(values.get("lambda_", 0.95), float | int):
        raise ConfigError("official configuration: lambda_ must be a number")
    side = round(values["seq_len"] ** 0.5)
    height = values.get("board_height") or side
    width = values.get("board_width") or side
    if height * width != values["seq_len"]:
        raise ConfigError(
            f"official configuration: seq_len = {values['seq_len']} is not a square board; "
            "add board_height and board_width"
        )
    sudoku = {11: 9, 18: 16}.get(values["vocab_size"])
    if sudoku == height == width:
        box = round(sudoku**0.5)
        task = task_from_dict({"kind": "sudoku", "box_height": box, "box_width": box})
    elif values["vocab_size"] == 6:
        task = task_from_dict({"kind": "maze", "height": height, "width": width})
    else:
        raise ConfigError(
            f"official configuration: vocab_size = {values['vocab_size']} on a {height}×{width} "
            "board is neither Sudoku (11) nor Maze (6)"
        )
    mlp = bool(values["mlp_t"])
    ours = {
        "hidden": values["hidden_size"],
        "blocks": values["L_layers"],
        "high_cycles": values["H_cycles"],
        "low_cycles": values["L_cycles"],
        "mixer": "mlp" if mlp else "attention",
        "heads": values["num_heads"],
        "rope": "none" if mlp else ropes[values["pos_encodings"]],
        "expansion": values.get("expansion", 4),
        "init_std_high": values.get("H_init_std", 1.0),
        "init_std_low": values.get("L_init_std", 1.0),
        "damping": round(1 - values.get("lambda_", 0.95), 12),
        "noise": values.get("noise_scale", 0.01),
    }
    return from_dict(ModelConfig, ours, "official configuration"), task


def _sizes(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """``vocab_size`` and ``seq_len`` as far as something tells them.

    The head has a row for each symbol, the token mixer a row for each token. For attention the
    board does, as ``board_height`` × ``board_width`` or as ``30x30`` in the name of the data.
    """
    shapes = {key: value.shape for key, value in tensors.items() if getattr(value, "ndim", 0)}
    vocabulary = [s[0] for key, s in shapes.items() if key.endswith("lm_head.weight")]
    tokens = [s[0] for key, s in shapes.items() if key.endswith("mlp_t.down_proj.weight")]
    data = values.get("dataset")
    name = str(data.get("data_path")) if isinstance(data, Mapping) else ""
    board = values.get("board_height"), values.get("board_width")
    if all(type(side) is int for side in board):
        tokens.append(board[0] * board[1])
    elif sides := re.search(r"(?<!\d)(\d+)x(\d+)(?!\d)", name):
        tokens.append(int(sides[1]) * int(sides[2]))
    return {
        key: found[0] for key, found in (("vocab_size", vocabulary), ("seq_len", tokens)) if found
    }


def official_tensors(tensors: Mapping[str, Tensor], model: Reasoner) -> dict[str, Tensor]:
    """Rename official tensors to ours; the second halting output (unused) is dropped."""
    found = {k: v for k, v in model.state_dict().items() if k.startswith("fixed_")}
    for key, value in tensors.items():
        name = key.removeprefix("_orig_mod.").removeprefix("model.").removeprefix("inner.")
        if name.startswith("L_level.layers."):
            index, name = name.removeprefix("L_level.layers.").split(".", 1)
            prefix = f"blocks.{index}."
        else:
            prefix = ""
        if name in ("q_head.weight", "q_head.bias"):
            found[name.replace("q_head", "halt_head")] = value[:1].float()
        elif name in ("H_init", "L_init"):
            found[{"H_init": "fixed_high", "L_init": "fixed_low"}[name]] = value.float()
        elif name in _OFFICIAL_NAMES:
            found[prefix + _OFFICIAL_NAMES[name]] = value.float()
        else:
            raise CheckpointError(f"tensor {key!r} has no counterpart; is it an EqR checkpoint?")
    return found


class Inert:
    """Stands for whatever an official file names beside tensors: takes anything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_official(source: Path) -> dict[str, Any]:
    """The content of an official ``.pth``, read without executing any pickle.

    Official files may hold more than tensors (a generator's state, the trainer's carry). PyTorch's
    restricted reader takes tensors and plain values only; what else the file names is read as an
    :class:`Inert` object, so that no function or class of the file's choice is ever called.

    Raises:
        CheckpointError: missing, damaged, not a dictionary, or it names what is refused all the
            same (the operating system, say).
    """
    source = Path(source)
    if not source.is_file():
        raise CheckpointError(f"{source}: no such checkpoint file")
    try:
        # Files of PyTorch's first format cannot be looked through beforehand, only refused.
        whole = zipfile.is_zipfile(source)
        names = serialization.get_unsafe_globals_in_checkpoint(source) if whole else []
        with serialization.safe_globals([(Inert, name) for name in names]):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(word in str(error).lower() for word in ("global", "blocked", "reduce")):
            raise CheckpointError(f"{source}: damaged or not a .pth file") from error
        raise CheckpointError(
            f"{source}: refused, reading it would execute a pickle; keep only its 'model' and "
            "'ema' entries with torch.save on a machine that trusts it"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source}: damaged or not a .pth file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source}: holds no state dict; expected an entry 'model'")
    return content


def import_official(
    source: Path,
    out: Path,
    config: Mapping[str, Any] | None = None,
    weights: str = "ema",
    *,
    content: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> str:
    """Convert an official ``.pth`` into a model file; returns the sha256 of its tensors.

    Args:
        source: file with ``model`` and, it may be, ``ema`` and ``config`` entries.
        out: the safetensors file to write.
        config: the official configuration; None takes the one stored in ``source``.
        weights: ``"ema"`` (the average, as the official evaluation; raw if there is none) or
            ``"raw"``.
        content: what :func:`read_official` gave for ``source``, where it was read before.
        origin: what else to record of where the file came from.

    Raises:
        CheckpointError: unreadable, would need a pickle to be executed, or of another layout.
        ConfigError: the configuration does not fit.
    """
    source = Path(source)
    content = read_official(source) if content is None else content
    if config is None:
        config = content.get("config")
        if not isinstance(config, Mapping):
            raise ConfigError(f"{source} stores no configuration; give it with --config FILE")
    tensors = content.get("model", content)
    average = content.get("ema")
    shadow = average.get("shadow") if isinstance(average, Mapping) else None
    if weights == "ema" and not isinstance(shadow, Mapping):
        weights = "raw"  # there is no average
    if weights == "ema":
        tensors = {**tensors, **shadow}
    try:
        model_config, task = official_config(config, tensors)
        model = Reasoner.for_task(task, model_config)
        model.load_state_dict(official_tensors(tensors, model))
    except (RuntimeError, CheckpointError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: does not fit the configuration: {reason}") from error
    step = content.get("step")
    meta = {"file": source.name, "sha256": file_sha256(source), "weights": weights}
    meta |= origin or {}
    step = step if isinstance(step, int) else None
    return save_model(out, model, task, {"imported": meta, "step": step})
