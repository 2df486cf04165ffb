"""Weights of the official code (locuslab/EqR), and of TRM: names and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eqr.checkpoint import CheckpointError, save_model
from eqr.config import Count, ModelConfig, TrainConfig, Whole
from eqr.data import file_sha256
from eqr.imports import hub, pth
from eqr.layers import RMS_EPS, ROPE_BASE
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
_ONLY = {"num_puzzle_identifiers": 1, "H_layers": 0, "causal": False, "no_ACT_continue": True}
_ONLY |= {"rms_norm_eps": RMS_EPS, "rope_theta": ROPE_BASE}

#: Settings of the official codes of EqR, TRM and HRM that do not change what a trained model
#: computes: of training, halting, evaluation, records and the machine.
_HARMLESS = """
arch name short_name loss dataset data_path data_paths data_paths_test evaluators batch_size
global_batch_size epochs max_steps train_epochs_per_iter gradient_accumulation_steps
optimizer_kwargs lr lr_min_ratio lr_warmup_steps weight_decay beta1 beta2 grad_clip_norm
puzzle_emb_lr puzzle_emb_weight_decay target_q_update_every freeze_weights ema ema_rate
halt_max_steps halt_exploration_prob halt_threshold halt_confirm_steps halt_confirm_mode
disable_act_halt act_inference forward_dtype gradient_checkpoint retain_graph seed debug
debug_trace_steps project_name entity run_name wandb_mode wandb_meta checkpoint_path
checkpoint_every_eval checkpoint_interval_steps resume load_checkpoint load_weights_only load_strict
eval_interval eval_interval_steps min_eval_interval eval_save_outputs eval_save_carry
eval_sync_max_wait_time eval_sync_poll_interval eval_sync_status_log_interval eval_description
eval_dir eval_act_streaming eval_act_streaming_slots eval_act_halt_threshold eval_act_halt_min_steps
eval_act_streaming_selection_score convergence_window convergence_top_k convergence_vis_plots
heavy_metrics_log_interval steps_hist_log_interval_steps steps_hist_plotly
grad_norm_log_interval_steps hidden_state_log_interval_steps
"""
#: No size or number of a model here is larger.
_LARGEST = 2**16

#: What EqR has and TRM has not: damping, noise, and starts that are drawn anew.
_EQR_ONLY = ("lambda_", "noise_scale", "H_init_std", "L_init_std")
#: The models imported, by the module and class that the official configuration names.
_FAMILIES = {
    "EqR": {"eqr", "eqrmodel"},
    "TRM": {"trm", "trmmodel", "tinyrecursivereasoningmodel_actv1"},
}
#: Our names of the losses, by their ``loss_type``.
_LOSSES = {"stablemax_cross_entropy": "stablemax", "softmax_cross_entropy": "softmax"}


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


def family_of(sections: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> str:
    """``"EqR"`` or ``"TRM"``, by names in sections of the configuration and of plain tensors.

    TRM stores its two starts, EqR draws them. HRM has a second level of blocks, URM one latent and
    no level; CGAR differs from TRM in its training alone, which only names tell.

    Raises:
        CheckpointError: it is another family, or names and tensors disagree.
    """
    starts = len({"H_init", "L_init"} & tensors.keys())
    text = str([[part.get(key) for key in ("name", "short_name", "loss")] for part in sections])
    levels = {key.split(".")[0] for key in tensors}
    others = {
        "CGAR": "cgar" in text.lower(),
        "HRM": "H_level" in levels or re.search("hrm|hierarchical", text.lower()),
        "URM": levels & {"layers", "init_hidden"} or "urm" in text.lower(),
    }
    named = {family for family, is_it in others.items() if is_it}
    for name in [str(part["name"]) for part in sections if part.get("name")] if not named else ():
        words = set(re.split("[@.]", name.lower())[-2:])
        named.add(next((family for family, own in _FAMILIES.items() if words <= own), name))
    if strange := named - _FAMILIES.keys():
        raise CheckpointError(f"a checkpoint of {min(strange)}; only EqR and TRM can be imported")
    family = min(named, default="TRM" if starts else "EqR")
    if len(named) > 1 or (tensors and starts != {"EqR": 0, "TRM": 2}[family]):
        raise CheckpointError(
            f"holds {starts} of the starts H_init and L_init (TRM has both, EqR none), and its "
            f"configuration is of {' and '.join(sorted(named)) or family}; give the one that it "
            "was trained with (--config)"
        )
    return family


def official_loss(values: Mapping[str, Any]) -> str:
    """Our name of the loss that a model was trained with: stablemax where none is stated.

    Raises:
        ConfigError: it is another one, or two are stated.
    """
    losses = [part.get("loss") for part in (values, values.get("arch") or {})]
    types = [loss.get("loss_type") if isinstance(loss, Mapping) else loss for loss in losses]
    stated = {str(one) for one in types if one is not None}
    if len(stated) > 1 or stated - _LOSSES.keys():
        raise ConfigError(
            f"official configuration.loss.loss_type is {' and '.join(sorted(stated)):.80}, and "
            f"must be one of {', '.join(_LOSSES)}; give the configuration that the weights were "
            "trained with (--config)"
        )
    return _LOSSES[stated.pop()] if stated else TrainConfig.loss


def official_config(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, released: bool = False
) -> tuple[ModelConfig, Task]:
    """Our configuration for one of the official code (a whole file or its ``arch`` part).

    The official code takes ``seq_len`` and ``vocab_size`` from its data and does not store them:
    where they are missing, they come from the weights, the board or the data's name (see
    :func:`_sizes`). ``released``: it is that of released weights, and a setting that is not known
    was passed over by the code that their results are from.

    Raises:
        ConfigError: a needed key is missing, has no counterpart here, or is not known.
        CheckpointError: these are not the tensors or the configuration of an EqR or TRM.
    """
    where, arch = "official configuration", values.get("arch") or {}
    if not isinstance(arch, Mapping):
        raise ConfigError(f"{where}: arch must be a section of settings")
    tensors = pth.plain_names(tensors or {})
    family, values = family_of((values, arch), tensors), {**values, **arch}
    names = {field.name for field in fields(Official)}
    known = names | _ONLY.keys() | set(_HARMLESS.split())
    for key in values if not released else ():
        if key not in known:
            raise ConfigError(
                f"{where}.{key} is neither used here nor known to be harmless; if it does not "
                "change what a trained model computes, give a configuration without it (--config)"
            )
        if key in _EQR_ONLY and family == "TRM":
            raise ConfigError(
                f"{where}.{key} is a setting of EqR, and these are the weights of a TRM; give the "
                "configuration that they were trained with (--config)"
            )
    for key in names | _ONLY.keys():
        # Not shown: Python writes no integer of more than 4300 digits.
        largest = 1000 if key == "L_layers" else _LARGEST
        if isinstance(value := values.get(key), int | float) and abs(value) > largest:
            raise ConfigError(f"{where}.{key} must be at most {largest}; correct it (--config)")
    for key, only in _ONLY.items():
        if values.get(key) not in (None, only):
            raise ConfigError(f"{where}.{key} = {values[key]!r:.60} must be {only} for models here")
    theirs = from_dict(Official, {k: v for k, v in values.items() if k in names}, where)
    tokens, vocabulary, prefix = _sizes(theirs, values, tensors, where)
    if tokens > _LARGEST:
        raise ConfigError(f"{where}.seq_len = {tokens} must be at most {_LARGEST}")
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
    if family == "TRM":
        ours |= {"init": "fixed", "damping": 0.0, "noise": 0.0}
    return from_dict(ModelConfig, ours | prefix, where), task


def _sizes(
    theirs: Official, values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[int, int, dict[str, int]]:
    """Tokens of the board, size of the vocabulary, and our settings of the prefix.

    What the configuration leaves out, something else may say. The head has a row for each symbol,
    the token mixer one for each token, prefix included. For attention the board does, as
    ``board_height`` × ``board_width`` or as ``30x30`` in the name of the data.
    """

    def size(name: str, axis: int = 0) -> int | None:
        ends = (t for key, t in tensors.items() if key.endswith(name) and t.ndim)
        return next((t.shape[axis] for t in ends), None)

    data, sides = values.get("dataset"), (theirs.board_height, theirs.board_width)
    name = str(data.get("data_path")) if isinstance(data, Mapping) else ""
    if None in sides and (named := re.search(r"(?<!\d)(\d{1,4})x(\d{1,4})(?!\d)", name)):
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
    for key, value in pth.plain_names(tensors).items():
        level, name = re.fullmatch(r"(?:L_level\.layers\.(\d+)\.)?(.*)", key, re.DOTALL).groups()
        rows = {"q_head.weight": 2, "q_head.bias": 2, "puzzle_emb.weights": 1}.get(name)
        if rows and value.shape[:1] != (rows,):
            size = f"has size {tuple(value.shape)}; expected {rows} row(s), "
            what = "one prefix for all puzzles" if rows == 1 else "for halting and continuing"
            raise CheckpointError(f"tensor {key!r} {size}{what}")
        if value.is_complex() or not value.float().isfinite().all():
            what = "complex" if value.is_complex() else "not finite"
            raise CheckpointError(f"tensor {key!r} has values that are {what}; take another file")
        if name.startswith("q_head."):
            ours[name.replace("q_head", "halt_head")] = value[:1].float()
        elif name in ("H_init", "L_init"):
            ours[{"H_init": "fixed_high", "L_init": "fixed_low"}[name]] = value.float()
        elif name == "puzzle_emb.weights":
            ours["prefix"] = value[0].float()
        elif name in _OFFICIAL_NAMES:
            ours[(f"blocks.{level}." if level else "") + _OFFICIAL_NAMES[name]] = value.float()
        else:
            raise CheckpointError(f"tensor {key!r} has no counterpart; is it an EqR or a TRM?")
    return ours


@dataclass(frozen=True, slots=True)
class Imported:
    """A model file made of official weights."""

    path: Path
    sha256: str  # of its tensors
    config: ModelConfig
    weights: str  # ema or raw
    settings: str = ""  # the file that the configuration is from

    @property
    def family(self) -> str:
        return "TRM" if self.config.init == "fixed" else "EqR"


def import_official(
    source: Path,
    out: Path,
    config: Mapping[str, Any] | None = None,
    weights: str | None = None,
    *,
    content: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    released: bool = False,
) -> Imported:
    """Convert an official ``.pth``, of an EqR or a TRM, into a model file.

    Args:
        source: file with ``model`` and, it may be, ``ema`` and ``config`` entries.
        out: the safetensors file to write.
        config: the official configuration; None takes the one stored in ``source``.
        weights: ``"ema"`` (the average, as the official evaluation), ``"raw"``, or None: the
            average if there is one.
        content: what :func:`eqr.imports.pth.read_official` gave, where it was read before.
        origin: what else to record of where the file came from.
        released: see :func:`official_config`.

    Raises:
        CheckpointError: unreadable, would need a pickle to be executed, or of another layout or
            family.
        ConfigError: the configuration does not fit.
    """
    source = Path(source)
    content = pth.read_official(source) if content is None else content
    if config is None:
        config = pth.plain_settings(content.get("config"))
        if not isinstance(config, Mapping):
            raise ConfigError(f"{source} stores no configuration; give it with --config FILE")
    try:
        tensors, which = pth.choose(content, weights)
        model_config, task = official_config(config, tensors, released)
        loss = official_loss(config)
        for device in ("meta", "cpu"):  # first without memory, of which sizes may ask too much
            with torch.device(device):
                model = Reasoner.for_task(task, model_config)
            model.load_state_dict(official_tensors(tensors, model), assign=device == "meta")
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: does not fit the configuration: {reason}") from error
    step = content.get("step")
    meta = {"file": source.name, "sha256": file_sha256(source), "weights": which, "loss": loss}
    about = {"imported": meta | (origin or {}), "step": step if isinstance(step, int) else None}
    return Imported(out, save_model(out, model, task, about), model_config, which)


def convert(
    official: str,
    out: Path | None = None,
    config: str | None = None,
    weights: str | None = None,
    sha256: str | None = None,
) -> Imported:
    """Import official weights from a local path or the hub.

    Args:
        official, config: local paths, or what :mod:`eqr.imports.hub` reads as sources. Without
            ``config``: what the weights store, or else the one file beside them.
        out: without it, the name of the weights in this folder.
        sha256: what the weights' file must hash to; known of :data:`eqr.imports.hub.RELEASED`.

    Raises:
        HubError, CheckpointError, ConfigError: as :func:`import_official`, or a file is missing.
    """
    if weights not in ("ema", "raw", None):
        raise ConfigError(f"--weights {weights!r} must be ema or raw")
    if short := hub.released(official):
        pin, weights = hub.RELEASED[short][1], weights or "ema"
        hub.check_pins({official: sha256 or pin}, {official: pin})
        sha256 = pin
    name, repository = hub.locate(official, WEIGHTS, "checkpoint")
    out = out or Path(f"{Path(short or name).stem}.safetensors")
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another name")
    given = record = None
    if config is not None:  # first, since it is small
        file, there = hub.locate(config, SETTINGS, "configuration")
        given, record = pth.read_settings(file, there)
    path = hub.fetch(name, repository, sha256)
    content = pth.read_official(path)
    if given is None:
        given, record = pth.plain_settings(content.get("config")), {"file": name}
    if not isinstance(given, Mapping):
        beside = hub.beside(official, name, repository, SETTINGS)
        given, record = pth.read_settings(beside, repository)
    origin = {"config": record} | ({"hub": repository.origin()} if repository else {})
    more = {"content": content, "origin": origin, "released": bool(short) and config is None}
    try:
        made = import_official(path, out, given, weights, **more)
    except ConfigError as error:
        raise ConfigError(f"{record['file']}: {error}") from error
    return replace(made, settings=record["file"])
