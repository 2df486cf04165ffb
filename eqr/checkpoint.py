"""Weights and resumable runs on disk: safetensors with a JSON header, written atomically.

Every file carries a sha256 of its tensors and header that is checked on loading. Pickles are never
executed; official ``.pth`` files come in through :mod:`eqr.imports.weights`.
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

from eqr.config import ModelConfig, Recipe, digest, from_dict, to_dict
from eqr.model import Reasoner, parameter_count
from eqr.task import Task, task_from_dict, task_to_dict

FORMAT = "eqr-1"
MODEL = {"kind": "model"}  # what marks a file of weights, as opposed to a run to be resumed


class CheckpointError(ValueError):
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata=header)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name on no content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
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
        sealed = json.loads(header[FORMAT])
        sha256, meta = sealed["sha256"], json.loads(sealed["meta"])
        intact = content_digest(tensors, sealed["meta"]) == sha256
    except CheckpointError:
        raise
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError,
            AttributeError) as error:  # fmt: skip
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


def stored_sha256(path: Path) -> str | None:
    """The sha256 that a file's header gives, unverified; None if there is none."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[FORMAT])["sha256"]
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError):
        return None


def save_model(path: Path, model: Reasoner, task: Task, meta: Mapping[str, Any]) -> str:
    """Write a model that :func:`load_model` can run; returns the file's sha256.

    Args:
        meta: where the weights come from: step, data and recipe of a training run, or a source.
    """
    head = {"task": task_to_dict(task), "model": to_dict(model.config)}
    return save_tensors(path, model.state_dict(), {**meta, **MODEL, **head})


def save_half(source: Path, path: Path) -> str:
    """Copy a model file with its weights as float16, half the size; returns the new sha256.

    Its header names the sha256 of the file that it was made from.
    """
    tensors, meta, sha256 = load_tensors(source)
    return save_tensors(path, {k: v.half() for k, v in tensors.items()}, meta | {"from": sha256})


def load_model(path: Path | str, device: str = "cpu") -> Checkpoint:
    """Read a model file, verified; ready for evaluation on ``device``.

    Raises:
        CheckpointError: the file is missing, damaged, altered, or holds something else.
    """
    tensors, meta, sha256 = load_tensors(path, MODEL)
    try:
        task = task_from_dict(meta["task"])
        model = Reasoner.for_task(task, from_dict(ModelConfig, meta["model"], "model"))
        # Weights may be shipped as float16 to save space; they run as float32.
        model.load_state_dict({k: v.float() for k, v in tensors.items()})
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: its settings and tensors make no model ({reason}); restore it from its source"
        ) from error
    return Checkpoint(model.to(device).eval().requires_grad_(False), task, meta, sha256)


class RunFolder:
    """The files of a training run: log, resume file, and at the end the model and its timing."""

    def __init__(self, directory: Path, recipe: Recipe, data: str) -> None:
        self.directory, self.recipe = directory, recipe
        self.log, self.resume = directory / "log.jsonl", directory / "resume.safetensors"
        # "resume 2": the first kind had other names for its tensors.
        settings = digest(to_dict(recipe, defaults=False))
        self.owner = {"kind": "resume 2", "recipe": settings, "data": data}

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State and header of the resume file; both empty where there is none.

        Raises:
            CheckpointError: it is damaged, or of another recipe or data set.
        """
        if not self.resume.exists():
            return {}, {}
        return load_tensors(self.resume, self.owner)[:2]

    def begin(self, size: int) -> None:
        """Cut the log back to ``size`` bytes: to where the resume file left it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        if self.log.stat().st_size < size:
            raise CheckpointError(
                f"{self.log}: shorter than its checkpoint says ({self.log.stat().st_size} < {size} "
                "bytes); delete the run's folder to start it anew"
            )
        os.truncate(self.log, size)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the log, on disk when this returns."""
        # NaN is not JSON: a mean over nothing is written as null.
        clean = {k: None if v != v else v for k, v in row.items()}
        with self.log.open("a") as file:
            file.write(json.dumps(clean) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def save(self, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write the resume file."""
        meta = {**meta, **self.owner, "log_bytes": self.log.stat().st_size}
        save_tensors(self.resume, state, meta)

    def finish(self, model: Reasoner, fused: bool, seconds: float) -> None:
        """Write the model that the run was for, and how long it took."""
        meta = {
            "recipe": to_dict(self.recipe),
            "step": self.recipe.train.steps,
            "data": self.owner["data"],
            "parameters": parameter_count(model),
        }
        save_model(self.directory / "model.safetensors", model, self.recipe.task, meta)
        timing = {"seconds": round(seconds, 1), "fused": fused}
        (self.directory / "timing.json").write_text(json.dumps(timing) + "\n")
