"""Weights and resumable runs on disk: safetensors with a JSON header, written atomically.

Two kinds of file: a *model* (averaged weights, what to run) and a *resume* file (all a killed run
needs to go on bitwise). Both carry a sha256 of their tensors that is checked on loading. Pickles
are never executed; official ``.pth`` files come in through :mod:`eqr.imports.weights`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from eqr.config import (
    ModelConfig,
    Recipe,
    digest,
    from_dict,
    to_dict,
)
from eqr.model import Reasoner
from eqr.task import Task, task_from_dict, task_to_dict

FORMAT = "eqr-1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the mend."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model and what its header says about it."""

    model: Reasoner
    task: Task
    meta: dict[str, Any]  # step, data digest, the whole recipe, or where it was imported from
    sha256: str  # of the tensors; names the weights in records


def content_digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    """sha256 over ``meta`` and the tensors' names, dtypes, shapes and bytes, by name."""
    total = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    """Write tensors and ``meta`` as one safetensors file, atomically; returns their sha256."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(meta, sort_keys=True)
    sha256 = content_digest(tensors, text)
    # One key, since safetensors writes several in random order: equal content, equal file.
    header = {FORMAT: json.dumps({"sha256": sha256, "meta": text})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return sha256


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors, ``meta`` and sha256 of a file written by :func:`save_tensors`.

    Raises:
        CheckpointError: missing, not one of ours, truncated, or altered.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error}); restore it from its source"
        ) from error
    if FORMAT not in header:
        raise CheckpointError(
            f"{path}: not written by eqr (it has no {FORMAT!r} header); official weights need "
            "`eqr import-checkpoint` first"
        )
    try:
        sealed = json.loads(header[FORMAT])
        sha256, text = sealed["sha256"], sealed["meta"]
        intact = content_digest(tensors, text) == sha256
        meta = json.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged header ({error}); restore the file") from error
    if not intact:
        raise CheckpointError(f"{path}: altered, its content does not match its sha256; restore it")
    return tensors, meta, sha256


def stored_sha256(path: Path) -> str | None:
    """The sha256 that a file's header gives for its tensors, unverified; None if there is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[FORMAT])["sha256"]
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def save_model(path: Path, model: Reasoner, recipe: Recipe, meta: Mapping[str, Any]) -> str:
    """Write a model that :func:`load_model` can run; returns the sha256 of its tensors."""
    return save_weights(path, model, recipe.task, {**meta, "recipe": to_dict(recipe)})


def save_weights(path: Path, model: Reasoner, task: Task, meta: Mapping[str, Any]) -> str:
    """Write a model that no recipe of ours has trained; returns the sha256 of its tensors."""
    head = {"kind": "model", "task": task_to_dict(task), "model": to_dict(model.config)}
    return save_tensors(path, model.state_dict(), {**meta, **head})


def save_half(source: Path, path: Path) -> str:
    """Copy a model file with its weights as float16, half the size; returns the new sha256.

    The header tells the sha256 of the weights that it was made from.
    """
    tensors, meta, sha256 = load_tensors(source)
    return save_tensors(path, {k: v.half() for k, v in tensors.items()}, meta | {"from": sha256})


def load_model(path: Path | str, device: str = "cpu") -> Checkpoint:
    """Read a model file, verified; ready for evaluation on ``device``.

    Raises:
        CheckpointError: the file is missing, damaged, altered, or holds something else.
    """
    path = Path(path)
    tensors, meta, sha256 = load_tensors(path)
    if meta.get("kind") != "model":
        raise CheckpointError(
            f"{path}: holds a {meta.get('kind')!r} state, not a model; give the run's "
            "model.safetensors"
        )
    try:
        task = task_from_dict(meta["task"])
        config = from_dict(ModelConfig, meta["model"], "model")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: unusable settings in its header ({error})") from error
    model = Reasoner.for_task(task, config)
    # Weights may be shipped as float16 to save space; they run as float32.
    try:
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: tensors do not fit its configuration: {reason}") from error
    return Checkpoint(model.to(device).eval().requires_grad_(False), task, meta, sha256)


def save_resume(
    path: Path, tensors: Mapping[str, Tensor], recipe: Recipe, data: str, meta: Mapping[str, Any]
) -> None:
    """Write the state of a training run (see ``Trainer.tensors``), atomically."""
    head = {"kind": "resume", "recipe": digest(to_dict(recipe, defaults=False)), "data": data}
    save_tensors(path, tensors, {**meta, **head})


def load_resume(path: Path, recipe: Recipe, data: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_resume` wrote, if it belongs to this recipe and data set.

    Raises:
        CheckpointError: damaged, or written by another recipe or on other data.
    """
    tensors, meta, _ = load_tensors(path)
    wanted = {"kind": "resume", "recipe": digest(to_dict(recipe, defaults=False)), "data": data}
    for key, value in wanted.items():
        if meta.get(key) != value:
            raise CheckpointError(
                f"{path}: belongs to another {key} ({meta.get(key)}, not {value}); "
                "train into another folder or delete this one"
            )
    return tensors, meta
