"""Weights of the official code (locuslab/EqR): its names, its configuration, its ``.pth`` files."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor, serialization

from eqr.checkpoint import CheckpointError, save_model
from eqr.config import Count, ModelConfig, Whole
from eqr.data import file_sha256
from eqr.imports import hub
from eqr.model import Reasoner
from eqr.settings import ConfigError, from_dict, settings
from eqr.task import Task, task_from_dict

WEIGHTS = (".pth", ".pt")
SETTINGS = (".yaml", ".yml", ".json")

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


#: Settings that models here have in one way only.
_ONLY = {"num_puzzle_identifiers": 1}


@settings
class Official:
    """The settings of the official code that a model depends on, by its names and defaults.

    ``H_cycles`` is our ``high_cycles``, ``L_cycles`` our ``low_cycles``, ``L_layers`` our
    ``blocks``, ``lambda_`` our ``1 − damping``, ``noise_scale`` our ``noise``, ``puzzle_emb_len``
    our ``prefix`` and ``puzzle_emb_ndim`` our ``prefix_width``.
    """

    hidden_size: Count
    num_heads: int
    H_cycles: int
    L_cycles: int
    L_layers: int
    pos_encodings: Literal["rope", "rope2d", "none", None]
    mlp_t: bool
    seq_len: Count | None = None  # of the board
    vocab_size: Count | None = None
    expansion: float = 4
    H_init_std: float = 1
    L_init_std: float = 1
    lambda_: float = 0.95
    noise_scale: float = 0.01
    board_height: Count | None = None  # None: the board is square
    board_width: Count | None = None
    puzzle_emb_ndim: Whole | None = None  # 0: no prefix
    puzzle_emb_len: Whole | None = None  # 0: as many tokens as puzzle_emb_ndim numbers take
    input_seq_len: Count | None = None  # where it is given, seq_len counts the prefix too


def official_config(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
) -> tuple[ModelConfig, Task]:
    """Our configuration for one of the official code (a whole file or its ``arch`` part).

    The official code takes ``seq_len`` and ``vocab_size`` from its data and does not store them:
    where they are missing, they come from the weights, the board or the data's name (see
    :func:`_sizes`).

    Raises:
        ConfigError: a needed key is missing or has no counterpart here.
    """
    where, arch = "official configuration", values.get("arch") or {}
    if not isinstance(arch, Mapping):
        raise ConfigError(f"{where}: arch must be a section of settings")
    values = {**values, **arch}
    for key, only in _ONLY.items():
        if values.get(key) not in (None, only):
            raise ConfigError(f"{where}.{key} = {values[key]!r:.60} must be {only} for models here")
    names = {field.name for field in fields(Official)}
    theirs = from_dict(Official, {k: v for k, v in values.items() if k in names}, where)
    tokens, vocabulary, prefix = _sizes(theirs, values, tensors or {}, where)
    side = round(tokens**0.5)
    height, width = theirs.board_height or side, theirs.board_width or side
    if height * width != tokens:
        raise ConfigError(
            f"{where}: seq_len = {tokens} is not a square board; add board_height and board_width"
        )
    sudoku = {11: 9, 18: 16}.get(vocabulary)
    if sudoku == height == width:
        box = round(sudoku**0.5)
        task = task_from_dict({"kind": "sudoku", "box_height": box, "box_width": box})
    elif vocabulary == 6:
        task = task_from_dict({"kind": "maze", "height": height, "width": width})
    else:
        raise ConfigError(
            f"{where}: vocab_size = {vocabulary} on a {height}×{width} board is neither "
            "Sudoku (11) nor Maze (6)"
        )
    rope = {"rope": "1d", "rope2d": "2d"}.get(theirs.pos_encodings, "none")
    ours = {
        "hidden": theirs.hidden_size,
        "blocks": theirs.L_layers,
        "high_cycles": theirs.H_cycles,
        "low_cycles": theirs.L_cycles,
        "mixer": "mlp" if theirs.mlp_t else "attention",
        "heads": theirs.num_heads,
        "rope": "none" if theirs.mlp_t else rope,
        "expansion": theirs.expansion,
        "init_std_high": theirs.H_init_std,
        "init_std_low": theirs.L_init_std,
        "damping": round(1 - theirs.lambda_, 12),
        "noise": theirs.noise_scale,
    }
    return from_dict(ModelConfig, ours | prefix, where), task


def _sizes(
    theirs: Official, values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[int, int, dict[str, int]]:
    """Tokens of the board, size of the vocabulary, and our settings of the prefix.

    What the configuration leaves out, something else may say. The head has a row for each symbol,
    the token mixer one for each token, prefix included. For attention the board does, as
    ``board_height`` × ``board_width`` or as ``30x30`` in the name of the data.
    """
    shapes = {key: value.shape for key, value in tensors.items() if getattr(value, "ndim", 0)}

    def size(name: str, axis: int = 0) -> int | None:
        return next((shape[axis] for key, shape in shapes.items() if key.endswith(name)), None)

    data, sides = values.get("dataset"), (theirs.board_height, theirs.board_width)
    name = str(data.get("data_path")) if isinstance(data, Mapping) else ""
    if None in sides and (named := re.search(r"(?<!\d)(\d+)x(\d+)(?!\d)", name)):
        sides = int(named[1]), int(named[2])
    board = theirs.input_seq_len or theirs.seq_len or (None not in sides and sides[0] * sides[1])
    width, length = theirs.puzzle_emb_ndim, theirs.puzzle_emb_len
    width = size("puzzle_emb.weights", -1) if width is None else width
    mixed = size("mlp_t.down_proj.weight")
    if width and length is None and mixed and board:
        length = mixed - board
    elif width and length == 0:
        length = -(-width // theirs.hidden_size)
    vocabulary = theirs.vocab_size or size("lm_head.weight")
    board = board or (mixed and mixed - (length or 0))
    needed = {"seq_len": board, "vocab_size": vocabulary}
    needed |= {"puzzle_emb_len": length} if width else {"puzzle_emb_ndim": width} if length else {}
    for key, value in needed.items():
        if not value:
            raise ConfigError(f"{where}.{key} is missing; add it")
    if theirs.input_seq_len and theirs.seq_len not in (None, board + (length or 0)):
        raise ConfigError(
            f"{where}.seq_len = {theirs.seq_len} must be input_seq_len + puzzle_emb_len = "
            f"{board + (length or 0)}"
        )
    return board, vocabulary, {"prefix": length, "prefix_width": width} if width else {}


def official_tensors(tensors: Mapping[str, Tensor], model: Reasoner) -> dict[str, Tensor]:
    """Rename official tensors to ours; the second halting output (unused) is dropped."""
    ours = {k: v for k, v in model.state_dict().items() if k.startswith("fixed_")}
    for key, value in tensors.items():
        name = key.removeprefix("_orig_mod.").removeprefix("model.").removeprefix("inner.")
        if name.startswith("L_level.layers."):
            index, name = name.removeprefix("L_level.layers.").split(".", 1)
            prefix = f"blocks.{index}."
        else:
            prefix = ""
        if name in ("q_head.weight", "q_head.bias"):
            ours[name.replace("q_head", "halt_head")] = value[:1].float()
        elif name in ("H_init", "L_init"):
            ours[{"H_init": "fixed_high", "L_init": "fixed_low"}[name]] = value.float()
        elif name == "puzzle_emb.weights":
            if value.shape[:-1] != (1,):
                raise CheckpointError(
                    f"tensor {key!r} has {len(value)} rows, one for each kind of puzzle; models "
                    "here have one prefix for all puzzles"
                )
            ours["prefix"] = value[0].float()
        elif name in _OFFICIAL_NAMES:
            ours[prefix + _OFFICIAL_NAMES[name]] = value.float()
        else:
            raise CheckpointError(f"tensor {key!r} has no counterpart; is it an EqR checkpoint?")
    return ours


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


# --- Where the files are --------------------------------------------------------------------------


def convert(
    official: str,
    out: Path,
    config: str | None = None,
    weights: str = "ema",
    sha256: str | None = None,
) -> tuple[str, str]:
    """Import official weights from a local path or the hub; the sha256 of the tensors written, and
    the name of the configuration used.

    Args:
        official, config: local paths, or what :mod:`eqr.imports.hub` reads as sources. Without
            ``config``: what the weights store, or else the one file beside them.
        sha256: what the file of the weights must hash to.

    Raises:
        HubError, CheckpointError, ConfigError: as :func:`import_official`, or a file is missing.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"--weights {weights!r} must be ema or raw")
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another name")
    given = record = None
    if config is not None:  # first, since it is small
        name, repository = _locate(config, SETTINGS, "configuration")
        given, record = _read_settings(name, repository)
    name, repository = _locate(official, WEIGHTS, "checkpoint")
    path = _fetch(name, repository, sha256)
    content = read_official(path)
    if given is None and isinstance(content.get("config"), Mapping):
        record = {"file": name}
    elif given is None:
        given, record = _read_settings(_beside(official, name, repository), repository)
    origin = {"hub": repository.origin()} if repository else {}
    try:
        made = import_official(
            path, out, given, weights, content=content, origin=origin | {"config": record}
        )
    except ConfigError as error:
        raise ConfigError(f"{record['file']}: {error}") from error
    return made, record["file"]


def _locate(text: str, suffixes: tuple[str, ...], what: str) -> tuple[str, hub.Repository | None]:
    """The name of a file, and the repository that it lies in: None for a local path."""
    source = hub.parse(text, "model")
    if source is None:
        return text, None
    repository = hub.open_repository(source)
    names = [name for name in repository.files if name.endswith(suffixes)]
    return hub.pick(source, names, what), repository


def _fetch(name: str, repository: hub.Repository | None, sha256: str | None = None) -> Path:
    """The file itself, of this sha256 if one is given."""
    pins = {name: sha256} if sha256 else {}
    if repository:
        return repository.fetch([name], pins) / name
    if pins and Path(name).is_file():
        hub.check_pins(pins, {name: file_sha256(Path(name))})
    return Path(name)


def _beside(official: str, name: str, repository: hub.Repository | None) -> str:
    """The one file beside the weights that may hold their configuration.

    Of the same name, or else the only one in their folder, or else ``all_config.yaml`` one folder
    up, where the official code looks for it.
    """
    folder, stem = PurePosixPath(name).parent, PurePosixPath(name).stem
    above = folder.parent / "all_config.yaml" if repository else folder / ".." / "all_config.yaml"
    around = [above] if Path(above).is_file() else []
    names = repository.files if repository else [*Path(folder).iterdir(), *around]
    paths = [PurePosixPath(path) for path in sorted(map(str, names))]
    paths = [path for path in paths if path.suffix in SETTINGS]
    beside = [path for path in paths if path.parent == folder]
    alike = [path for path in beside if path.stem == stem]
    choice = alike or beside or [path for path in paths if path == above]
    if len(choice) == 1:
        return str(choice[0])
    there = ", ".join(map(str, choice or paths))
    raise ConfigError(
        f"{official} stores no configuration; give it with --config FILE ("
        + (f"there is {there})" if there else "no YAML or JSON file lies beside it)")
    )


def _read_settings(
    name: str, repository: hub.Repository | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A JSON or YAML file as a mapping, and what to record of it."""
    import yaml

    path = _fetch(name, repository)
    if not path.is_file():
        raise ConfigError(f"{name}: no such file")
    try:
        values = yaml.safe_load(path.read_text())  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: neither JSON nor YAML ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: must hold a mapping of settings")
    # The reference files keep the settings under "config", beside the tensors' shapes.
    values = values.get("config", values) if "seq_len" not in values else values
    record = {"file": name, "sha256": file_sha256(path)}
    return values, record | ({"hub": repository.origin()} if repository else {})
