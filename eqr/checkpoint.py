"""Weights on disk: safetensors with a JSON header, written atomically.

Every file carries a sha256 of its tensors and header that is checked on loading. Pickles are never
executed; official ``.pth`` files come in through :mod:`eqr.imports.weights`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from eqr.config import ModelConfig, TrainConfig, to_dict
from eqr.files import DAMAGE, parse_json, write_file
from eqr.layers import require_weights
from eqr.model import Reasoner
from eqr.settings import UserError, from_dict
from eqr.task import Task, task_from_dict, task_to_dict

FORMAT = "eqr-1"
MODEL = {"kind": "model"}  # what marks a file of weights, as opposed to a run to be resumed


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names the file and suggests a fix."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model and what its header says about it."""

    model: Reasoner
    task: Task
    meta: dict[str, Any]  # step, data digest, the whole recipe, or where it was imported from
    sha256: str  # of the file's content; names the weights in records


def content_digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """sha256 over ``meta`` and the tensors' names, dtypes, shapes and bytes, by name."""
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        # Bytes alone would not tell a matrix from another shape of the same numbers.
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and ``meta`` as one safetensors file, atomically; returns its sha256."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(meta, sort_keys=True)
    sha256 = content_digest(tensors, text)
    # One key, since safetensors writes several in random order: equal content, equal file.
    header = {FORMAT: json.dumps({"sha256": sha256, "meta": text})}
    write_file(path, save(tensors, metadata=header), mark=FORMAT.encode())
    return sha256


def load_tensors(
    path: Path | str, expect: Mapping[str, Any] = {}
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, ``meta`` and sha256 of a file written by :func:`save_tensors`.

    Args:
        expect: values that its ``meta`` must have.

    Raises:
        CheckpointError: missing, not one of ours, truncated, altered, or of another kind or run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if FORMAT not in header:
            raise CheckpointError(
                f"{path}: not written by eqr (it has no {FORMAT!r} header); official weights need "
                "`eqr import-checkpoint` first"
            )
        sealed = parse_json(header[FORMAT])
        sha256, meta = sealed["sha256"], dict(parse_json(sealed["meta"]))
        intact = content_digest(tensors, sealed["meta"]) == sha256
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, *DAMAGE) as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error}); restore it from its source"
        ) from error
    if not intact:
        raise CheckpointError(f"{path}: altered, its content does not match its sha256; restore it")
    for key, value in expect.items():
        if meta.get(key) != value:
            raise CheckpointError(
                f"{path}: has another {key} ({meta.get(key)!r}, not {value!r}); a model is in its "
                "run's model.safetensors, and a run of other settings needs another folder"
            )
    return tensors, meta, sha256


def save_model(path: Path, model: Reasoner, task: Task, meta: Mapping[str, Any]) -> str:
    """Write a model that :func:`load_model` can run; returns the file's sha256.

    Args:
        meta: where the weights come from: step, data and recipe of a training run, or a source.
    """
    head = {"task": task_to_dict(task), "model": to_dict(model.config, defaults=False)}
    return save_tensors(path, model.state_dict(), {**meta, **MODEL, **head})


def load_model(path: Path | str, device: str = "cpu") -> Checkpoint:
    """Read a model file, verified; ready for evaluation on ``device``.

    Its confidence is by the loss it was trained with; by softmax where the header names none.

    Raises:
        CheckpointError: the file is missing, damaged, altered, or holds something else.
    """
    tensors, meta, sha256 = load_tensors(path, MODEL)
    try:
        task = task_from_dict(meta["task"])
        config = from_dict(ModelConfig, meta["model"], "model")
        require_weights(config, task.seq_len, task.vocab_size, tensors)  # before memory is taken
        model = Reasoner.for_task(task, config)
        # Weights may be shipped as float16 to save space; they run as float32.
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
        if "recipe" in meta or "imported" in meta:  # what official weights have is the default
            train = meta.get("imported") or meta.get("recipe", {}).get("train", {})
            model.normalisation = train.get("loss", TrainConfig.loss)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: its settings and tensors make no model ({reason}); restore it from its source"
        ) from error
    return Checkpoint(model.to(device).eval().requires_grad_(False), task, meta, sha256)
