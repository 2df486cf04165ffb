"""Files of the official codes: weights and average of a ``.pth``, read safely, and settings."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, serialization

from eqr.checkpoint import CheckpointError
from eqr.imports import hub
from eqr.settings import ConfigError

WEIGHTS = (".pth", ".pt")
SETTINGS = (".yaml", ".yml", ".json")

#: Tensors that are no parameters and so have no average.
_BUFFERS = frozenset({"H_init", "L_init", "puzzle_emb.weights"})
#: What files hold beside weights and average: settings, and the state of training.
_HARMLESS = """
config cfg args hparams hyper_parameters step total_steps global_step iteration epoch carry
optimizer optimizers optimizer_state optimizer_states optimizer_state_dict optimizer_lrs
scheduler schedulers lr_scheduler lr_schedulers scheduler_state_dict scaler grad_scaler
rng rng_state numpy python train_dataset dataloader metrics history wandb wandb_run_id
"""


def configurations(files: Iterable[str]) -> dict[str, list[str]]:
    """The files of settings in a repository."""
    return {name: [name] for name in files if name.endswith(SETTINGS)}


def checkpoints(files: Iterable[str]) -> dict[str, list[str]]:
    """The checkpoints of a repository, each with the settings in its folder and the one above."""
    groups = {}
    for name in map(PurePosixPath, files):
        if name.suffix in WEIGHTS:
            near = (name.parent, name.parent.parent)
            settings = [
                file for file in configurations(files) if PurePosixPath(file).parent in near
            ]
            groups[str(name)] = [str(name), *settings]
    return groups


def beside(place: hub.Place) -> hub.Place:
    """The configuration beside the weights: of their name, or else the only one in their folder,
    or else ``all_config.yaml`` one folder up, where the official code looks; else ConfigError."""
    folder, stem = place.path.parent, place.path.stem
    there = sorted(file for file in folder.iterdir() if file.suffix in SETTINGS)
    above = folder / ".." / "all_config.yaml"
    choice = [file for file in there if file.stem == stem] or there or [above]
    if len(choice) != 1 or not choice[0].is_file():
        names = ", ".join(file.name for file in there) or "no YAML or JSON file"
        remedy = f"give it with --config FILE (beside it: {names})"
        raise ConfigError(f"{place.name}: stores no configuration; {remedy}")
    file = os.path.relpath(choice[0], place.root) if place.origin else os.path.normpath(choice[0])
    return replace(place, name=file)


def read_settings(place: hub.Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """A JSON or YAML file as a mapping, and what to record of it."""
    import yaml

    if not place.path.is_file():
        raise ConfigError(f"{place.name}: no such file; correct --config")
    try:
        values = yaml.safe_load(place.path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{place.name}: neither JSON nor YAML ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{place.name}: must hold a mapping of settings")
    # The reference files keep the settings under "config", beside the tensors' shapes.
    values = values.get("config", values) if "seq_len" not in values else values
    return values, place.record()


class Inert:
    """Stands for whatever an official file names beside tensors: takes anything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def plain_settings(value: Any) -> Any:
    """Settings as plain values, whether or not they were stored as OmegaConf's containers."""
    if isinstance(value, int) and value.bit_length() > 64:
        return math.inf  # Python writes no integer of more than 4300 digits, in messages say
    state = getattr(value, "state", None) if isinstance(value, Inert) else None
    if isinstance(state, dict) and state.keys() & {"_content", "_val"}:
        value = state.get("_content", state.get("_val"))
    if isinstance(value, dict):
        return {key: plain_settings(part) for key, part in value.items()}
    return [plain_settings(part) for part in value] if isinstance(value, list) else value


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


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by their names in the model itself, without what was put around it: a compiled or
    parallel module, a loss. The cache of the prefix's rows, one for each row of a batch, goes."""
    plain = {}
    for key, value in tensors.items():
        words = [word for word in str(key).split(".") if word not in ("module", "_orig_mod")]
        name = ".".join(words).removeprefix("model.").removeprefix("inner.")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{key!r} is no tensor but {type(value).__name__}")
        if name in plain:
            raise CheckpointError(f"holds {name} under two names, one of them {key!r}")
        if name not in ("puzzle_emb.local_weights", "puzzle_emb.local_ids"):
            plain[name] = value
    return plain


def choose(content: Mapping[str, Any], wanted: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors wanted by their plain names, and which they are: ``ema`` or ``raw``.

    The average is ``{mu, shadow}`` or the dictionary of averages itself. Another entry that may
    hold weights could be an average too: it is refused, unless ``wanted`` says what to take.
    """
    stored, average = content.get("model"), content.get("ema")
    if stored is None:  # a state dict and nothing around it
        stored = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not isinstance(stored, Mapping) or not stored:
        raise CheckpointError(f"holds no tensors, in 'model' or by themselves: {[*content]!r:.80}")
    raw = plain_names(stored)
    known = {"ema", *_HARMLESS.split(), *(["model"] if "model" in content else stored)}
    for key, value in content.items():
        if key in known or isinstance(value, str | int | float | None):
            continue  # a number or a text holds no weights
        if wanted is None or (wanted == "ema" and average is None):
            raise CheckpointError(
                f"its entry {key!r} is neither the weights ('model'), nor their average ('ema'), "
                "nor known state of training; if it is the average, store it as 'ema'; if not, "
                "say with --weights raw (or ema) which to take"
            )
    if wanted == "raw" or (wanted is None and average is None):
        return raw, "raw"
    if average is None:
        raise CheckpointError("stores no average ('ema'); take what it stores with --weights raw")
    shadow = average.get("shadow", average) if isinstance(average, Mapping) else None
    parts = shadow if isinstance(shadow, Mapping) else {}
    mean = plain_names({k: v for k, v in parts.items() if getattr(v, "ndim", 0)})
    if not mean or (lacking := raw.keys() - mean.keys() - _BUFFERS):
        seen = [*average] if isinstance(average, Mapping) else type(average).__name__
        seen = f"lacks {min(lacking)}" if mean else f"is {seen!r:.80}, not a dictionary of averages"
        raise CheckpointError(f"its average ('ema') {seen}; --weights raw does without")
    return raw | mean, "ema"
