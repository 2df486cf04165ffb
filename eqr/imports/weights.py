"""Weights of the official code (locuslab/EqR), and of TRM: names and settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from eqr.checkpoint import Checkpoint, CheckpointError, load_model, save_model
from eqr.config import ModelConfig
from eqr.imports import hub, pth
from eqr.layers import RMS_EPS, ROPE_BASE
from eqr.model import Reasoner
from eqr.settings import ConfigError, from_dict, settings
from eqr.task import Task, task_from_dict

#: The sha256 of the released weights.
RELEASED = {
    "hub:eqr/sudoku-extreme": "258b1f0a90003a2db0de0c8df7831683ffce00de295ed4bba15dc8e599920d26",
    "hub:eqr/maze-unique": "9cb8ab682519f290c3ec157b5a16829e51afff27773651fbd01a260b8748b138",
}

_OFFICIAL_NAMES = {
    "embed_tokens.embedding_weight": "embed.weight",
    "lm_head.weight": "lm_head.weight",
    "mlp_t.gate_up_proj.weight": "mixer.swiglu.gate_up.weight",
    "mlp_t.down_proj.weight": "mixer.swiglu.down.weight",
    "self_attn.qkv_proj.weight": "mixer.qkv.weight",
    "self_attn.o_proj.weight": "mixer.out.weight",
    "mlp.gate_up_proj.weight": "channel.gate_up.weight",
    "mlp.down_proj.weight": "channel.down.weight",
    "q_head.weight": "halt_head.weight",
    "q_head.bias": "halt_head.bias",
    "H_init": "fixed_high",
    "L_init": "fixed_low",
    "puzzle_emb.weights": "prefix",
}
#: What the rows of a tensor stand for, where there is only one number of them.
_ROWS = {
    "q_head.weight": (2, "for halting and continuing"),
    "q_head.bias": (2, "for halting and continuing"),
    "puzzle_emb.weights": (1, "one prefix for all puzzles"),
}

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

#: The models imported, by the module and class that the official configuration names.
_FAMILIES = {
    "EqR": {"eqr", "eqrmodel"},
    "TRM": {"trm", "trmmodel", "tinyrecursivereasoningmodel_actv1"},
}
#: Others like them: how their names read, and what tensors only they have.
_OTHERS = {
    "CGAR": ("cgar", set()),  # it differs from TRM in its training alone
    "HRM": ("hrm|hierarchical", {"H_level"}),  # a second level of blocks
    "URM": ("urm", {"layers", "init_hidden"}),  # one latent and no level
}
#: What EqR has and TRM has not: damping, noise, and starts that are drawn anew.
_EQR_ONLY = {"lambda_", "noise_scale", "H_init_std", "L_init_std"}
#: Our names of the losses, by their ``loss_type``.
_LOSSES = {"stablemax_cross_entropy": "stablemax", "softmax_cross_entropy": "softmax"}

WHERE = "official configuration"
LARGEST = 2**16  # no size or number of a model here is larger
Size = Annotated[int, Field(ge=1, le=LARGEST)]
Maybe = Annotated[int, Field(ge=0, le=LARGEST)] | None
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


@settings
class Official:
    """The settings of the official code that a model depends on, by its names and defaults.

    ``H_cycles`` is our ``high_cycles``, ``L_cycles`` our ``low_cycles``, ``L_layers`` our
    ``blocks``, ``lambda_`` our ``1 − damping``, ``noise_scale`` our ``noise``, ``puzzle_emb_len``
    our ``prefix`` and ``puzzle_emb_ndim`` our ``prefix_width``.
    """

    hidden_size: Size
    num_heads: Size
    H_cycles: Size
    L_cycles: Size
    L_layers: Annotated[int, Field(ge=1, le=1000)]
    pos_encodings: Literal["rope", "rope2d", "none", None]
    mlp_t: bool
    seq_len: Size | None = None  # of the board
    vocab_size: Size | None = None
    expansion: Number = 4
    H_init_std: Number = 1
    L_init_std: Number = 1
    lambda_: Number = 0.95
    noise_scale: Number = 0.01
    board_height: Size | None = None  # None: the board is square
    board_width: Size | None = None
    puzzle_emb_ndim: Maybe = None  # 0: no prefix
    puzzle_emb_len: Maybe = None  # 0: as many tokens as puzzle_emb_ndim numbers take
    input_seq_len: Size | None = None  # where it is given, seq_len counts the prefix too
    # What models here have in one way only.
    num_puzzle_identifiers: Literal[1, None] = 1
    H_layers: Literal[0, None] = 0
    causal: Literal[False, None] = False
    no_ACT_continue: Literal[True, None] = True
    rms_norm_eps: Annotated[float, Field(ge=RMS_EPS, le=RMS_EPS)] | None = RMS_EPS
    rope_theta: Annotated[float, Field(ge=ROPE_BASE, le=ROPE_BASE)] | None = ROPE_BASE


def family_of(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """``"EqR"`` or ``"TRM"``, by the names in a configuration and of plain tensors.

    TRM stores its two starts, EqR draws them.

    Raises:
        CheckpointError: it is another family, or names and tensors disagree.
    """
    sections = (values, values.get("arch") or {})
    text = str([[part.get(key) for key in ("name", "short_name", "loss")] for part in sections])
    levels, starts = {key.split(".")[0] for key in tensors}, len({"H_init", "L_init"} & {*tensors})
    named = {
        family
        for family, (words, own) in _OTHERS.items()
        if levels & own or re.search(words, text.lower())
    }
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
    stated = {str(one) for one in types if one is not None} or {"stablemax_cross_entropy"}
    if len(stated) > 1 or stated - _LOSSES.keys():
        given = f"{' and '.join(sorted(stated)):.80}"
        raise ConfigError(f"{WHERE}.loss.loss_type is {given}; it must be one of {[*_LOSSES]}")
    return _LOSSES[stated.pop()]


def official_config(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], released: bool = False
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
    arch, tensors = values.get("arch") or {}, pth.plain_names(tensors)
    if not isinstance(arch, Mapping):
        raise ConfigError(f"{WHERE}.arch must be a section of settings")
    family, values = family_of(values, tensors), {**values, **arch}
    known = {field.name for field in fields(Official)}
    harmless = values.keys() - known if released else _HARMLESS.split()
    used = {str(key): value for key, value in values.items() if key not in harmless}
    theirs = from_dict(Official, used, WHERE)
    if family == "TRM" and (own := used.keys() & _EQR_ONLY):
        raise ConfigError(
            f"{WHERE}.{min(own)} is a setting of EqR, and these are the weights of a TRM"
        )
    tokens, vocabulary, prefix = _sizes(theirs, values, tensors)
    side = round(tokens**0.5)
    height, width = theirs.board_height or side, theirs.board_width or side
    if height * width != tokens or tokens > LARGEST:
        rule = f"at most {LARGEST} and a square, or board_height * board_width"
        raise ConfigError(f"{WHERE}.seq_len = {tokens} must be {rule}")
    sudoku = {11: 9, 18: 16}.get(vocabulary)
    if sudoku == height == width:
        box = round(sudoku**0.5)
        task = task_from_dict({"kind": "sudoku", "box_height": box, "box_width": box})
    elif vocabulary == 6:
        task = task_from_dict({"kind": "maze", "height": height, "width": width})
    else:
        raise ConfigError(
            f"{WHERE}.vocab_size = {vocabulary} on a {height}×{width} board must be that of Sudoku "
            "(11, 18) or Maze (6)"
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
    return from_dict(ModelConfig, ours | prefix, WHERE), task


def _sizes(
    theirs: Official, values: Mapping[str, Any], tensors: Mapping[str, Tensor]
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
            raise ConfigError(f"{WHERE}.{key} is missing; add it")
    whole = board + (length or 0)
    if theirs.input_seq_len and theirs.seq_len not in (None, whole):
        rule = f"input_seq_len + puzzle_emb_len = {whole}"
        raise ConfigError(f"{WHERE}.seq_len = {theirs.seq_len} must be {rule}")
    return board, vocabulary, {"prefix": length, "prefix_width": width} if width else {}


def official_tensors(tensors: Mapping[str, Tensor], model: Reasoner) -> dict[str, Tensor]:
    """Rename official tensors to ours; the second halting output (unused) is dropped."""
    ours = {k: v for k, v in model.state_dict().items() if k.startswith("fixed_")}
    for key, value in pth.plain_names(tensors).items():
        level, name = re.fullmatch(r"(?:L_level\.layers\.(\d+)\.)?(.*)", key, re.DOTALL).groups()
        rows, what = _ROWS.get(name, (None, ""))
        if name not in _OFFICIAL_NAMES:
            raise CheckpointError(f"tensor {key!r} has no counterpart; is it an EqR or a TRM?")
        if rows and value.shape[:1] != (rows,):
            size = tuple(value.shape)
            raise CheckpointError(f"tensor {key!r} has size {size}; expected {rows} row(s), {what}")
        if value.is_complex() or not value.float().isfinite().all():
            raise CheckpointError(f"tensor {key!r} must hold finite real numbers; get another file")
        if rows:
            value = value[0] if name == "puzzle_emb.weights" else value[:1]
        ours[(f"blocks.{level}." if level else "") + _OFFICIAL_NAMES[name]] = value.float()
    return ours


def convert(
    official: str | Path,
    out: Path | None = None,
    config: str | Mapping[str, Any] | None = None,
    weights: str | None = None,
    sha256: str | None = None,
) -> tuple[Path, Checkpoint]:
    """Convert official weights, of an EqR or a TRM, into a model file; where it is, and itself.

    Args:
        official: a ``.pth`` with ``model`` and, it may be, ``ema`` and ``config`` entries: a local
            path, or what :mod:`eqr.imports.hub` reads as a source.
        out: the safetensors file to write; without it, one named as the weights, in this folder.
        config: the official configuration, or where it is; without it, what the weights store, or
            else the one file beside them.
        weights: ``"ema"`` (the average, as the official evaluation), ``"raw"``, or None: the
            average if there is one.
        sha256: what the weights' file must hash to; known of :data:`RELEASED`.

    Raises:
        HubError, CheckpointError: a file is missing, unreadable, another one, would need a pickle
            to be executed, or is of another layout or family.
        ConfigError: the configuration does not fit.
    """
    if weights not in ("ema", "raw", None):
        raise ConfigError(f"--weights {weights!r} must be ema or raw")
    official, given, record = str(official), config, {"file": "config"}
    if isinstance(config, str):  # first, since it is small
        config = hub.locate(config, "model", pth.configurations, "configuration")
        given, record = pth.read_settings(config)
    known = RELEASED.get(official.partition("@")[0])
    place = hub.locate(official, "model", pth.checkpoints, "checkpoint")
    out = out or Path(f"{Path(official if known else place.name).stem}.safetensors")
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another name")
    for pin in filter(None, (sha256, known)):
        hub.check_pins({place.name: pin}, {place.name: place.path})
    content = pth.read_official(place.path)
    if given is None:
        given, record = content.get("config"), {"file": place.name}
    given = pth.plain_settings(given)
    if not isinstance(given, Mapping):
        given, record = pth.read_settings(pth.beside(place))
    try:
        tensors, which = pth.choose(content, weights or (known and "ema"))
        model_config, task = official_config(given, tensors, bool(known) and config is None)
        loss = official_loss(given)
        for device in ("meta", "cpu"):  # first without memory, of which sizes may ask too much
            with torch.device(device):
                model = Reasoner.for_task(task, model_config)
            model.load_state_dict(official_tensors(tensors, model), assign=device == "meta")
    except CheckpointError as error:
        raise CheckpointError(f"{place.name}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{record['file']}: {error}; or give another with --config") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{place.name}: does not fit the configuration of {record['file']}: {reason}"
        ) from error
    step = content.get("step")
    meta = place.record() | {"file": Path(place.name).name, "weights": which}
    meta |= {"loss": loss, "config": record}
    about = {"imported": meta, "step": step if isinstance(step, int) else None}
    save_model(out, model, task, about)
    return out, load_model(out)
