"""The files of a training run: what a killed one needs to go on, and what an ended one leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from eqr.checkpoint import CheckpointError, load_tensors, save_model, save_tensors
from eqr.config import Recipe, to_dict
from eqr.files import append_line, sha256, to_json, write_json, writing
from eqr.layers import parameter_count
from eqr.model import Reasoner
from eqr.settings import digest

#: The weights as the optimizer left them; those of the model are their running mean (EMA).
RAW = "raw.safetensors"


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

    def begin(self, meta: Mapping[str, Any]) -> None:
        """Cut the log back to where the resume file with header ``meta`` left it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        size, there = meta.get("log_bytes", 0), self.log.read_bytes()
        anew = "delete the run's folder to start it anew"
        if len(there) < size:
            says = f"shorter than its checkpoint says ({len(there)} < {size} bytes)"
            raise CheckpointError(f"{self.log}: {says}; {anew}")
        if meta.get("log_sha256", hashed := sha256(there[:size])) != hashed:
            raise CheckpointError(f"{self.log}: altered, its checkpoint has another sha256; {anew}")
        with writing(self.log):
            os.truncate(self.log, size)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to the log, on disk when this returns."""
        append_line(self.log, to_json(row))  # a mean over nothing, NaN, is written as null

    def save(self, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write the resume file."""
        log = self.log.read_bytes()
        seal = {"log_bytes": len(log), "log_sha256": sha256(log)}
        save_tensors(self.resume, state, {**meta, **self.owner, **seal})

    def finish(self, model: Reasoner, raw: Reasoner, fused: bool, seconds: float) -> None:
        """Write the model that the run was for, the one it is the mean of, and how long it took."""
        meta = {
            "recipe": to_dict(self.recipe, defaults=False),
            "step": self.recipe.train.steps,
            "data": self.owner["data"],
            "parameters": parameter_count(model),
        }
        for name, one in ((RAW, raw), ("model.safetensors", model)):
            save_model(self.directory / name, one, self.recipe.task, meta)
        timing = {"seconds": round(seconds, 1), "fused": fused}
        write_json(self.directory / "timing.json", timing)
