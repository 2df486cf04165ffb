"""Configuration: the settings of model, data, training and evaluation, and the hash of a run.

A *recipe* says everything a training run depends on: the task, its data set, the model and the
training loop. :mod:`eqr.recipes` reads them from TOML files; :func:`to_dict` shows every setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Strict, ValidationInfo

from eqr.settings import ConfigError, from_dict, require, settings
from eqr.task import Task, task_from_dict, task_to_dict

#: Raised whenever a change to the code would change results; part of every run id.
SEMANTICS = 2

Count = Annotated[int, Field(ge=1, lt=2**31)]
Many = Annotated[int, Field(ge=1, le=2**20)]  # depths and breadths
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # below 1
Dtype = Literal["float32", "bfloat16"]


@settings
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
    released weights   ``prefix=16``: so many trained tokens stand before the board (paper §7)
    =================  ==========================================================================
    """

    section: ClassVar[str] = "model"
    hidden: Count
    blocks: Count
    high_cycles: Count = 3  # T: cycles in one outer iteration
    low_cycles: Count = 6  # n: updates of z_low in a cycle
    grad_cycles: Count = 1  # how many of the last cycles carry a gradient
    hierarchical: bool = True
    mixer: Literal["mlp", "attention"] = "mlp"
    heads: Count = 8
    rope: Literal["none", "1d", "2d"] = "none"
    expansion: Annotated[float, Field(gt=0, le=1e6)] = 4.0
    width_multiple: Count = 256  # SwiGLU widths are rounded up to a multiple of this
    init: Literal["random", "fixed", "learned"] = "random"
    init_std_high: Positive = 1.0
    init_std_low: Positive = 1.0
    damping: Rate = 0.05  # the paper's lambda
    noise: Size = 0.01  # the paper's beta, while training
    learn_noise: bool = False  # beta exp(g), g trained from 0
    norm_swiglu: bool = False  # see eqr.layers.SwiGLU
    prefix: Whole = 0  # tokens before the board, see eqr.model.Reasoner
    prefix_width: Count | None = None  # trained numbers of the prefix; None: hidden

    def __post_init__(self) -> None:
        rule = f"must be at most model.high_cycles = {self.high_cycles}"
        require(self.grad_cycles <= self.high_cycles, "grad_cycles", rule)
        rule = "must be positive for model.learn_noise to have something to scale"
        require(self.noise > 0 or not self.learn_noise, "noise", rule)
        rule = 'has no place on a board: it needs model.rope = "1d" or "none"'
        require(self.prefix == 0 or self.rope != "2d", "prefix", rule)
        rule = f"must be at most model.prefix * model.hidden = {self.prefix * self.hidden}"
        require((self.prefix_width or 0) <= self.prefix * self.hidden, "prefix_width", rule)
        if self.mixer == "mlp":
            require(self.rope == "none", "rope", 'needs model.mixer = "attention"')
            return
        rule = f"must divide model.hidden = {self.hidden}"
        require(self.hidden % self.heads == 0, "heads", rule)
        part = {"none": 1, "1d": 2, "2d": 4}[self.rope]
        rule = f"= {self.rope!r} needs a head size (hidden / heads) divisible by {part}"
        require(self.hidden // self.heads % part == 0, "rope", rule)

    @property
    def updates(self) -> int:
        """Applications of the shared blocks in one outer iteration."""
        return self.high_cycles * (self.low_cycles + (1 if self.hierarchical else 0))

    @property
    def layers(self) -> int:
        """Layer evaluations in one outer iteration (the paper's ``N_eq``; 42 for its Sudoku)."""
        return self.updates * self.blocks


@settings
class DataConfig:
    """Which problems to train and test on."""

    section: ClassVar[str] = "data"
    train: Count = 1000  # training problems before augmentation
    test: Count = 512
    validation: Whole = 0  # for what is chosen: rates, schedules, a rule's constants
    seed: Whole = 0
    augment: bool = True  # a random symmetry for every training row
    source: str = "generate"  # or a data set directory: from here, else from the project
    digest: str = ""  # that the data set at ``source`` must have; empty: any


@settings
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

    ``model.grad_cycles`` cuts the gradient inside an outer iteration whatever ``unroll`` is: a loss
    reaches back through earlier iterations only with ``grad_cycles = high_cycles``.
    """

    section: ClassVar[str] = "train"
    steps: Count  # optimizer steps, each of `unroll` outer iterations
    batch: Count = 768
    optimizer: Literal["adam_atan2", "adamw", "muon"] = "adam_atan2"
    lr: Positive = 1e-4
    muon_lr: Positive | None = None  # of the matrices; None: as lr
    warmup: Whole = 2000
    clip: Positive | None = None  # the largest norm of a gradient; None: any
    schedule: Literal["constant", "cosine"] = "constant"
    final_lr: Share = 0.0  # where a cosine schedule ends, as a share of lr
    beta1: Rate = 0.9
    beta2: Rate = 0.95
    weight_decay: Size = 1.0
    ema: Rate = 0.999
    loss: Literal["stablemax", "softmax"] = "stablemax"
    unroll: Count = 1  # outer iterations in one optimizer step
    supervise_from: Count = 1  # the first of them that has a loss
    starts: Count = 1  # of each sample; the best has the gradient
    short_until: Rate = 0.0  # share of the steps
    short_high_cycles: Count = 1  # instead of the model's
    short_low_cycles: Count = 1
    halting: Literal["learned", "oracle", "limit"] = "learned"
    halt_max: Count = 16  # a sample leaves the batch at the latest after so many iterations
    halt_explore: Share = 0.1  # with this probability it must first run a random 2..halt_max
    halt_weight: Size = 0.5
    dtype: Dtype = "float32"
    log_every: Count = 10
    eval_every: Count = 250
    eval_problems: Count = 128
    eval_depth: Many = 16
    checkpoint_every: Count = 250

    def __post_init__(self) -> None:
        muon = self.muon_lr is None or self.optimizer == "muon"
        require(muon, "muon_lr", 'needs train.optimizer = "muon"')
        rule = f"must be at most train.unroll = {self.unroll}"
        require(self.supervise_from <= self.unroll, "supervise_from", rule)
        rule = (
            f"must be a multiple of train.unroll = {self.unroll}, since a sample can leave only "
            "between optimizer steps"
        )
        require(self.halt_max % self.unroll == 0, "halt_max", rule)


@settings
class EvalConfig:
    """How a trained model is run: depth, breadth and the noise of the rollouts (paper §4)."""

    section: ClassVar[str] = "eval"
    depths: Annotated[tuple[Many, ...], Strict(False), Field(min_length=1)] = (16,)
    breadth: Many = 1
    noise: Size = 0.0  # beta while evaluating; always reported
    window: Count = 3  # the residual is averaged over the last so many iterations
    seed: Whole = 0
    problems: Count | None = None  # the first so many of its split; None: all
    symmetry: bool = False  # restarts solve images of the problem, see eqr.tasks.symmetry
    branches: Count = 1  # noise paths that leave each start
    branch_at: Whole = 0  # the depth they part at
    checked: bool = False  # record whether the rules accept
    split: Literal["test", "validation"] = "test"
    weight_noise: Size = 0.0  # see eqr.tasks.shift
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        rising = list(self.depths) == sorted(set(self.depths))
        require(rising, "depths", "must be rising whole numbers from 1")
        rule = f"must divide eval.breadth = {self.breadth}: the breadth counts all paths"
        require(self.breadth % self.branches == 0, "branches", rule)
        rule = f"must lie below the smallest of eval.depths, {self.depths[0]}"
        require(self.branch_at < self.depths[0], "branch_at", rule)
        rule = "above 1 needs eval.noise > 0, to have paths that differ, and no eval.symmetry"
        alone = self.branches == 1
        require(alone or (self.noise > 0 and not self.symmetry), "branches", rule)
        require(not alone or self.branch_at == 0, "branch_at", "needs eval.branches above 1")

    def nfe(self, depth: int, breadth: int) -> int:
        """Outer iterations a problem of the first ``breadth`` trajectories, to ``depth``.

        Those that share a prefix (``branches`` above 1) pay for it once.
        """
        starts = -(-breadth // self.branches)
        return starts * self.branch_at + breadth * (depth - self.branch_at)


# --- Recipes --------------------------------------------------------------------------------------


def _section(value: Any, info: ValidationInfo) -> Any:
    """The section of a recipe that is given as a mapping."""
    if info.field_name == "task" and not isinstance(value, Task):
        return task_from_dict(value)
    kind = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}.get(info.field_name)
    return from_dict(kind, value, info.field_name) if kind and type(value) is not kind else value


@settings
class Recipe:
    """Everything that a training run depends on, save the code itself."""

    name: str
    task: Annotated[Task, BeforeValidator(_section)]
    model: Annotated[ModelConfig, BeforeValidator(_section)]
    train: Annotated[TrainConfig, BeforeValidator(_section)]
    data: Annotated[DataConfig, BeforeValidator(_section)] = field(default_factory=DataConfig)
    seed: Whole = 0

    def __post_init__(self) -> None:
        model, train = self.model, self.train
        differ = train.starts == 1 or model.init == "random" or model.noise > 0
        rule = 'above 1 needs model.init = "random" or model.noise > 0, to have starts that differ'
        require(differ, "train.starts", rule)
        for name in ("high_cycles", "low_cycles"):
            most = getattr(model, name)
            fits = train.short_until == 0 or getattr(train, f"short_{name}") <= most
            require(fits, f"train.short_{name}", f"must be at most model.{name} = {most}")


def to_dict(config: Any, *, defaults: bool = True) -> dict[str, Any]:
    """A JSON-ready mapping of any settings; the inverse of :func:`from_dict`.

    Args:
        defaults: False leaves out the settings at their default. That form is what is stored and
            what ids hash, so that a setting added later leaves the ids of earlier runs alone.
            Changing a default changes what an id means and has to raise :data:`SEMANTICS`.
    """
    values = {}
    for spec in fields(config):
        value = getattr(config, spec.name)
        if isinstance(value, Task):
            values[spec.name] = task_to_dict(value)
        elif isinstance(value, ModelConfig | DataConfig | TrainConfig):
            values[spec.name] = to_dict(value, defaults=defaults)
        elif defaults or value != spec.default or isinstance(config, Recipe):
            values[spec.name] = list(value) if isinstance(value, tuple) else value
    return values


def recipe_from_dict(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Build a :class:`Recipe` from nested mappings (a parsed TOML file or checkpoint header)."""
    try:
        return from_dict(Recipe, values, "")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
