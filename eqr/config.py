"""Configuration: frozen dataclasses, TOML recipes, profiles, and the hash that names a run.

A *recipe* says everything a training run depends on: the task, its data set, the model and the
training loop. Recipes live in ``eqr/recipes/<profile>/<name>.toml`` and hold every field they need,
without inheritance, so that one file is the whole truth about one model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from eqr.task import Task, nearest, task_from_dict, task_to_dict

#: Raised whenever a change to the code would change results; part of every run id.
SEMANTICS = 1

PROFILES = ("smoke", "laptop", "paper")
RECIPES = Path(__file__).parent / "recipes"

#: Marks a setting that came after the first published runs: it is written only where it differs
#: from its default, so that a model trained again keeps its header, hence its hash.
ADDED = types.MappingProxyType({"added": True})

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the field and the mend."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The update operator (paper §3). EqR, TRM and feedforward networks are values of it.

    =================  ==========================================================================
    EqR                ``init="random", damping=0.05, noise=0.01``
    TRM-style          ``init="fixed", damping=0, noise=0``
    single latent      ``hierarchical=False``; ``low_cycles`` updates of ``z_high`` a cycle
    weight-tied        ``hierarchical=False, high_cycles=1``, trained with ``halt_max=1``
    feedforward        as weight-tied with ``low_cycles=1`` and many ``blocks``
    learned start      ``init="learned"``: one trained vector for each latent (paper Tables 10–12)
    learned noise      ``learn_noise=True``: a trained gain on the noise of each channel
    normalised SwiGLU  ``norm_swiglu=True``: an RMS norm before the last map of every SwiGLU
    =================  ==========================================================================
    """

    hidden: int
    blocks: int
    high_cycles: int = 3  # T: cycles in one outer iteration
    low_cycles: int = 6  # n: updates of z_low in a cycle
    grad_cycles: int = 1  # how many of the last cycles carry a gradient
    hierarchical: bool = True
    mixer: Literal["mlp", "attention"] = "mlp"
    heads: int = 8
    rope: Literal["none", "1d", "2d"] = "none"
    expansion: float = 4.0
    width_multiple: int = 256  # SwiGLU widths are rounded up to a multiple of this
    init: Literal["random", "fixed", "learned"] = "random"
    init_std_high: float = 1.0
    init_std_low: float = 1.0
    damping: float = 0.05  # the paper's lambda
    noise: float = 0.01  # the paper's beta, while training
    learn_noise: bool = field(default=False, metadata=ADDED)  # beta exp(g), g trained from 0
    norm_swiglu: bool = field(default=False, metadata=ADDED)  # see eqr.model.SwiGLU

    def __post_init__(self) -> None:
        for name in ("hidden", "blocks", "high_cycles", "low_cycles", "heads", "width_multiple"):
            _require(getattr(self, name) >= 1, f"model.{name}", "must be at least 1")
        _require(
            1 <= self.grad_cycles <= self.high_cycles,
            "model.grad_cycles",
            f"must lie between 1 and model.high_cycles = {self.high_cycles}",
        )
        _require(0.0 <= self.damping < 1.0, "model.damping", "must lie in [0, 1)")
        _require(self.noise >= 0.0, "model.noise", "must not be negative")
        _require(
            self.noise > 0 or not self.learn_noise,
            "model.noise",
            "must be positive for model.learn_noise to have something to scale",
        )
        _require(self.expansion > 0.0, "model.expansion", "must be positive")
        _require(min(self.init_std_high, self.init_std_low) > 0, "model.init_std_*", "must be > 0")
        if self.mixer == "attention":
            _require(
                self.hidden % self.heads == 0,
                "model.heads",
                f"must divide model.hidden = {self.hidden}",
            )
            part = {"none": 1, "1d": 2, "2d": 4}[self.rope]
            _require(
                (self.hidden // self.heads) % part == 0,
                "model.rope",
                f"{self.rope!r} needs a head size (hidden / heads) divisible by {part}",
            )
        else:
            _require(self.rope == "none", "model.rope", 'needs model.mixer = "attention"')

    @property
    def updates(self) -> int:
        """Applications of the shared blocks in one outer iteration."""
        return self.high_cycles * (self.low_cycles + (1 if self.hierarchical else 0))

    @property
    def layers(self) -> int:
        """Layer evaluations in one outer iteration (the paper's ``N_eq``; 42 for its Sudoku)."""
        return self.updates * self.blocks


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which problems to train and test on."""

    train: int = 1000  # training problems before augmentation
    test: int = 512
    seed: int = 0
    augment: bool = True  # a random symmetry for every training row
    source: str = "generate"  # or a data set directory: from here, else from the project

    def __post_init__(self) -> None:
        _require(self.train >= 1, "data.train", "must be at least 1")
        _require(self.test >= 1, "data.test", "must be at least 1")
        _require(self.seed >= 0, "data.seed", "must not be negative")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Segmented online training (paper §3): one optimizer step after every outer iteration.

    The variants of the paper's construction path (its Tables 6–9) are values of it:

    ==================  ======================================================================
    segmented online    ``unroll=1``: an optimizer step after every outer iteration
    terminal loss       ``unroll=16, supervise_from=16``: back through 16, loss on the last
    all anchors         ``unroll=16, supervise_from=1``: the mean of all 16 losses
    late anchors        ``unroll=16, supervise_from=8`` or ``12``
    oracle halting      ``halting="oracle"``: a sample leaves once its answer is exactly right
    head, no halting    ``halting="limit"``: the head learns, every sample stays to the limit
    no halting          ``halting="limit", halt_weight=0``
    ==================  ======================================================================

    And so are the ways to train faster that others report (study ``fast``):

    ==================  ======================================================================
    Muon                ``optimizer="muon", muon_lr=0.005``: :class:`eqr.muon.Muon` for the
                        matrices of the blocks, AdamW with ``lr`` for everything else
    cosine              ``schedule="cosine", final_lr=0.01``: down to one per cent of both rates
    winner takes all    ``starts=4``: every sample runs from four starts, each with a carry of its
                        own, and the gradient is that of the one with the smallest token loss; it
                        costs as much as four times the batch
    short at first      ``short_until=0.25``: the first quarter of the steps has an operator of
                        ``short_high_cycles`` and ``short_low_cycles``, the last ``grad_cycles``
                        of which, or all if it has fewer, carry a gradient
    ==================  ======================================================================

    ``model.grad_cycles`` cuts the gradient inside an outer iteration whatever ``unroll`` is: a loss
    reaches back through earlier iterations only with ``grad_cycles = high_cycles``.
    """

    steps: int  # optimizer steps, each of `unroll` outer iterations
    batch: int = 768
    optimizer: Literal["adam_atan2", "adamw", "muon"] = "adam_atan2"
    lr: float = 1e-4
    muon_lr: float | None = field(default=None, metadata=ADDED)  # of the matrices; None: as lr
    warmup: int = 2000
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: float = 0.0  # where a cosine schedule ends, as a share of lr
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 1.0
    ema: float = 0.999
    loss: Literal["stablemax", "softmax"] = "stablemax"
    unroll: int = field(default=1, metadata=ADDED)  # outer iterations in one optimizer step
    supervise_from: int = field(default=1, metadata=ADDED)  # the first of them that has a loss
    starts: int = field(default=1, metadata=ADDED)  # of each sample; the best has the gradient
    short_until: float = field(default=0.0, metadata=ADDED)  # share of the steps, below 1
    short_high_cycles: int = field(default=1, metadata=ADDED)  # instead of the model's
    short_low_cycles: int = field(default=1, metadata=ADDED)
    halting: Literal["learned", "oracle", "limit"] = field(default="learned", metadata=ADDED)
    halt_max: int = 16  # a sample leaves the batch at the latest after so many iterations
    halt_explore: float = 0.1  # with this probability it must first run a random 2..halt_max
    halt_weight: float = 0.5
    dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 10
    eval_every: int = 250
    eval_problems: int = 128
    eval_depth: int = 16
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "halt_max", "log_every", "eval_every", "eval_problems"):
            _require(getattr(self, name) >= 1, f"train.{name}", "must be at least 1")
        for name in ("eval_depth", "checkpoint_every", "unroll", "starts"):
            _require(getattr(self, name) >= 1, f"train.{name}", "must be at least 1")
        for name in ("short_high_cycles", "short_low_cycles"):
            _require(getattr(self, name) >= 1, f"train.{name}", "must be at least 1")
        _require(0.0 <= self.short_until < 1.0, "train.short_until", "must lie in [0, 1)")
        for name in ("beta1", "beta2", "ema"):
            _require(0.0 <= getattr(self, name) < 1.0, f"train.{name}", "must lie in [0, 1)")
        for name in ("halt_explore", "final_lr"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"train.{name}", "must lie in [0, 1]")
        _require(self.lr > 0, "train.lr", "must be positive")
        _require(self.muon_lr is None or self.muon_lr > 0, "train.muon_lr", "must be positive")
        _require(
            self.muon_lr is None or self.optimizer == "muon",
            "train.muon_lr",
            'needs train.optimizer = "muon"',
        )
        _require(self.warmup >= 0, "train.warmup", "must not be negative")
        _require(self.weight_decay >= 0, "train.weight_decay", "must not be negative")
        _require(self.halt_weight >= 0, "train.halt_weight", "must not be negative")
        _require(
            1 <= self.supervise_from <= self.unroll,
            "train.supervise_from",
            f"must lie between 1 and train.unroll = {self.unroll}",
        )
        _require(
            self.halt_max % self.unroll == 0,
            "train.halt_max",
            f"must be a multiple of train.unroll = {self.unroll}, since a sample can leave only "
            "between optimizer steps",
        )


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """How a trained model is run: depth, breadth and the noise of the rollouts (paper §4).

    With ``symmetry``, every restart but the first solves an image of the problem under a random
    symmetry of the task, which is undone on its answer: the rival of random restarts.
    """

    depths: tuple[int, ...] = (16,)
    breadth: int = 1
    noise: float = 0.0  # beta while evaluating; always reported
    window: int = 3  # the residual is averaged over the last so many iterations
    seed: int = 0
    problems: int | None = None  # the first so many test problems; None: all
    symmetry: bool = field(default=False, metadata=ADDED)  # see eqr.rollout.restart_symmetries
    branches: int = field(default=1, metadata=ADDED)  # noise paths that leave each start
    branch_at: int = field(default=0, metadata=ADDED)  # the depth they part at
    checked: bool = field(default=False, metadata=ADDED)  # record whether the rules accept
    weight_noise: float = field(default=0.0, metadata=ADDED)  # see eqr.tasks.perturb
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=ADDED)

    def __post_init__(self) -> None:
        _require(len(self.depths) > 0, "eval.depths", "needs at least one depth")
        _require(
            list(self.depths) == sorted(set(self.depths)) and self.depths[0] >= 1,
            "eval.depths",
            "must be rising whole numbers from 1",
        )
        _require(self.breadth >= 1, "eval.breadth", "must be at least 1")
        finite = math.isfinite(self.noise)
        _require(finite and self.noise >= 0, "eval.noise", "must be finite and not negative")
        _require(self.window >= 1, "eval.window", "must be at least 1")
        _require(self.seed >= 0, "eval.seed", "must not be negative")
        _require(self.problems is None or self.problems >= 1, "eval.problems", "must be at least 1")
        _require(
            self.branches >= 1 and self.breadth % self.branches == 0,
            "eval.branches",
            f"must divide eval.breadth = {self.breadth}: the breadth counts all paths",
        )
        _require(
            0 <= self.branch_at < self.depths[0],
            "eval.branch_at",
            f"must lie below the smallest of eval.depths, {self.depths[0]}",
        )
        _require(
            self.branches == 1 or (self.noise > 0 and not self.symmetry),
            "eval.branches",
            "above 1 needs eval.noise > 0, to have paths that differ, and no eval.symmetry",
        )
        _require(
            self.branches > 1 or self.branch_at == 0,
            "eval.branch_at",
            "needs eval.branches above 1",
        )
        _require(self.weight_noise >= 0, "eval.weight_noise", "must not be negative")

    def nfe(self, depth: int, breadth: int) -> int:
        """Outer iterations a problem of the first ``breadth`` trajectories, to ``depth``.

        Those that share a prefix (``branches`` above 1) pay for it once.
        """
        starts = -(-breadth // self.branches)
        return starts * self.branch_at + breadth * (depth - self.branch_at)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a training run depends on, save the code itself."""

    name: str
    task: Task
    model: ModelConfig
    train: TrainConfig
    data: DataConfig = field(default_factory=DataConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        model, train = self.model, self.train
        _require(self.seed >= 0, "seed", "must not be negative")
        _require(
            train.starts == 1 or model.init == "random" or model.noise > 0,
            "train.starts",
            'above 1 needs model.init = "random" or model.noise > 0, to have starts that differ',
        )
        for name in ("high_cycles", "low_cycles"):
            _require(
                train.short_until == 0 or getattr(train, f"short_{name}") <= getattr(model, name),
                f"train.short_{name}",
                f"must be at most model.{name} = {getattr(model, name)}",
            )


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name} {rule}")


def near_miss(name: str, known: typing.Iterable[str]) -> str:
    """The tail of an error message: ``"; did you mean 'x'?"``, or the list of what is known."""
    return f"; {nearest(name, sorted(known))}"


def _check_type(value: Any, hint: Any, name: str) -> Any:
    """Return ``value`` as the annotated type or raise ConfigError; ints pass for floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{name} = {value!r} must be one of {', '.join(map(repr, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _check_type(value, next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} = {value!r} must be a list")
        return tuple(_check_type(v, args[0], f"{name}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} = {value} must be a finite number")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name} = {value!r} must be {hint.__name__}")
    return value


def from_dict(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the dataclass ``cls`` from a mapping; unknown, missing and ill-typed keys are errors.

    Raises:
        ConfigError: names the key as ``where.key`` and suggests the near miss.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} = {values!r} must be a section of settings")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}.{key} is not a known setting{near_miss(key, fields)}")
    for name, spec in fields.items():
        required = (
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ConfigError(f"{where}.{name} is missing; add it")
    return cls(**{k: _check_type(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def to_dict(config: Any, *, defaults: bool = True) -> dict[str, Any]:
    """A JSON-ready mapping of any configuration dataclass; the inverse of :func:`from_dict`.

    Args:
        defaults: False leaves out the settings at their default. Run ids hash that form, so that
            a setting added later leaves the ids of earlier runs alone. Changing a default changes
            what an id means and has to raise :data:`SEMANTICS`. Settings marked :data:`ADDED` are
            left out at their default in both forms.
    """
    if isinstance(config, Recipe):
        parts = {k: getattr(config, k) for k in ("data", "model", "train")}
        return {
            "name": config.name,
            "seed": config.seed,
            "task": task_to_dict(config.task),
            **{k: to_dict(part, defaults=defaults) for k, part in parts.items()},
        }
    values = {}
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        silent = not defaults or "added" in spec.metadata
        if not (silent and value == spec.default):
            values[spec.name] = list(value) if isinstance(value, tuple) else value
    return values


def recipe_from_dict(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a :class:`Recipe` from nested mappings (a parsed TOML file or checkpoint header)."""
    known = {f.name for f in dataclasses.fields(Recipe)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}: [{key}] is not a known section{near_miss(key, known)}")
    for key in ("name", "task", "model", "train"):
        if key not in values:
            raise ConfigError(f"{where}: {key} is missing; add it")
    if not isinstance(values["task"], Mapping):
        raise ConfigError(f"{where}: task = {values['task']!r} must be a section of settings")
    try:
        task = task_from_dict(dict(values["task"]))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    try:
        return Recipe(
            name=_check_type(values["name"], str, "name"),
            seed=_check_type(values.get("seed", 0), int, "seed"),
            task=task,
            data=from_dict(DataConfig, values.get("data", {}), "data"),
            model=from_dict(ModelConfig, values["model"], "model"),
            train=from_dict(TrainConfig, values["train"], "train"),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def recipe_names(profile: str) -> list[str]:
    """Names of the recipes of a profile, sorted."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is not known{near_miss(profile, PROFILES)}")
    return sorted(path.stem for path in (RECIPES / profile).glob("*.toml"))


def load_recipe(
    name: str, profile: str = "laptop", *, seed: int | None = None, overrides: Mapping = {}
) -> Recipe:
    """Read a recipe by name and profile, or from a path that ends in ``.toml``.

    Args:
        name: for example ``"sudoku6"``, or a path such as ``"my/recipe.toml"``.
        profile: ``smoke``, ``laptop`` or ``paper``; ignored for a path.
        seed: replaces the recipe's seed (initial weights, batches and training noise).
        overrides: dotted names to values, for example ``{"train.steps": 100}``.

    Raises:
        ConfigError: unknown name, profile or key; the message names the file.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe file")
    else:
        names = recipe_names(profile)
        if name not in names:
            raise ConfigError(
                f"recipe {name!r} is not known in profile {profile!r}{near_miss(name, names)}"
            )
        path = RECIPES / profile / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error
    values.setdefault("name", path.stem)
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        if not isinstance(target, dict):
            raise ConfigError(f"{dotted} is not a known setting")
        target[key] = value
    if seed is not None:
        values["seed"] = seed
    return recipe_from_dict(values, str(path))


def parse_overrides(settings: typing.Iterable[str]) -> dict[str, Any]:
    """``["train.steps=100"]`` to ``{"train.steps": 100}``; values are TOML, bare words strings."""
    overrides = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"{setting!r} must look like name=value")
        try:
            overrides[name.strip()] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            overrides[name.strip()] = text.strip()
    return overrides


def digest(value: Any) -> str:
    """The first 16 hex digits of the sha256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
