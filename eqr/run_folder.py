"""The files of a training run: what a killed one needs to go on, and what an ended one leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from eqr.checkpoint import CheckpointError, load_tensors, save_model, save_tensors
from eqr.config import Recipe, to_dict
from eqr.layers import parameter_count
from eqr.model import Reasoner
from eqr.settings import digest


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
            "recipe": to_dict(self.recipe, defaults=False),
            "step": self.recipe.train.steps,
            "data": self.owner["data"],
            "parameters": parameter_count(model),
        }
        save_model(self.directory / "model.safetensors", model, self.recipe.task, meta)
        timing = {"seconds": round(seconds, 1), "fused": fused}
        (self.directory / "timing.json").write_text(json.dumps(timing) + "\n")
